"""Every command that encodes, on a real Triton, in the clear and encrypted."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from twinspire.errors import MissingDependencyError
from twinspire.index import Index
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer, find_triton, launch

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Served:
    """A folder with images, labels, a bundle and the files of TLS, and the addresses of two servers of that bundle."""

    folder: Path
    plain: str
    encrypted: str

    def command(self, *arguments: object) -> list[str]:
        """Return the command line of `twinspire`."""
        return [sys.executable, "-m", "twinspire", *map(str, arguments)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `twinspire` in the folder."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def served(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the tiny bundle twice, once with TLS that asks for the caller's certificate."""
    try:
        find_triton()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("served")
    (folder / "tiny").symlink_to(tiny.bundle.path)
    (folder / "labels.txt").write_text("red cat\nblue dog\n")
    (folder / "photos").mkdir()
    for number, name in enumerate("abc"):
        noise = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(folder / "photos" / f"{name}.png")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    tls = [
        "--grpc-use-ssl=1",
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={folder / 'certificate.pem'}",
        f"--grpc-server-key={folder / 'key.pem'}",
        f"--grpc-root-cert={folder / 'ca.pem'}",
    ]
    build_repository([tiny.bundle.path], folder / "repository", precision="fp32", threads=1)
    plain_flags = launch.flags
    with TritonServer(folder / "repository") as plain, pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "flags", lambda *given, **options: [*plain_flags(*given, **options), *tls])
        with TritonServer(folder / "repository") as encrypted:
            yield Served(folder, plain.grpc_url, encrypted.grpc_url)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_an_index_is_made_and_searched_on_a_server(served: Served, tiny: Any, encrypted: bool) -> None:
    """What the server encoded is what the engine gives here; search and classify answer as in process."""
    remote: tuple[object, ...] = ("-b", "tiny", "--server", served.plain)
    if encrypted:
        keys = ("--tls-ca", "ca.pem", "--tls-certificate", "certificate.pem", "--tls-key", "key.pem")
        remote = ("-b", "tiny", "--server", served.encrypted, *keys)
    index = f"{encrypted}.index"
    added = served.run("index", "add", index, "photos", "--json", *remote)
    assert (added.returncode, json.loads(added.stdout)["added"]) == (0, 3), added.stderr
    with Index.open(served.folder / index) as opened:
        paths = [Path(item.uri) for item in opened.get(range(3))]
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        difference = np.abs(opened.vectors(range(3)) - tiny.model.encode_images(pixels)).max()
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"
    here = ("-b", "tiny", "--precision", "fp32")
    for command in (("search", index, "red cat", "--mode", "vector"), ("classify", "photos", "-l", "labels.txt")):
        there, alone = served.run(*command, *remote), served.run(*command, *here)
        assert there.returncode == alone.returncode == 0, there.stderr + alone.stderr
        assert there.stdout == alone.stdout


def test_a_folder_is_followed_with_a_server(served: Served) -> None:
    """`index watch --server` catches up, and ends with status 0 at Ctrl-C."""
    command = served.command("index", "watch", "watched", "photos", "-b", "tiny", "--server", served.plain)
    with subprocess.Popen(
        command, cwd=served.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert re.search(r"\b3\b", process.stdout.readline())
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err


@pytest.mark.parametrize(
    "options",
    ["", "--tls", "--tls-ca ca.pem", "--tls-certificate certificate.pem --tls-key key.pem"],
    ids=["in the clear", "default roots", "no certificate", "certificate but default roots"],
)
def test_who_does_not_fit_gets_an_error(served: Served, options: str) -> None:
    """The error names the address and comes within the deadline."""
    remote = ("-b", "tiny", "--server", served.encrypted, "--deadline", "3")
    ran = served.run("classify", "photos", "-l", "labels.txt", *remote, *options.split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert served.encrypted in ran.stderr
    assert "Traceback" not in ran.stderr
