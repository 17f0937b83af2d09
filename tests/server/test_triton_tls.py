"""TLS between our client and our server: who shows the wrong certificate gets no answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from twinspire.errors import InputError, ServerUnavailableError
from twinspire.towers import TlsOptions, TritonTowers
from twinspire_server.repository import build_repository
from twinspire_server.triton import Prober, ServerTls, TritonServer

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Encrypted:
    """A server that speaks TLS alone and wants to see its callers' certificates, and the files of all of them."""

    server: TritonServer
    ours: Path
    theirs: Path

    def towers(self, tiny: Any, tls: TlsOptions | None) -> TritonTowers:
        """Connect in at most 5 seconds."""
        return TritonTowers(self.server.grpc_url, tiny.bundle, tls=tls, deadline_s=5)


def _write(folder: Path, authority: trustme.CA) -> Path:
    """Write an authority's certificate, and one that it signed with its key for 127.0.0.1."""
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "root.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    return folder


@pytest.fixture(scope="module")
def encrypted(needs_triton: None, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Serve the tiny bundle encrypted, for clients with a certificate alone."""
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = _write(folder / "ours", trustme.CA()), _write(folder / "theirs", trustme.CA())
    build_repository([tiny.bundle.path], folder / "repository", precision="fp32", threads=1)
    tls = ServerTls(certificate=ours / "certificate.pem", key=ours / "key.pem", client_ca=ours / "root.pem")
    server = TritonServer(folder / "repository", tls=tls, log_file=folder / "triton.log").start()
    try:
        yield Encrypted(server, ours, theirs)
    finally:
        server.stop()


def _options(root: Path, shown: Path | None) -> TlsOptions:
    if shown is None:
        return TlsOptions(root_certificates=root / "root.pem")
    return TlsOptions(
        root_certificates=root / "root.pem",
        client_key=shown / "key.pem",
        client_certificate=shown / "certificate.pem",
    )


def test_an_encrypted_connection_gives_the_embeddings(encrypted: Encrypted, tiny: Any) -> None:
    """With the authority that signed both certificates, images are encoded as in the clear."""
    towers = encrypted.towers(tiny, _options(encrypted.ours, encrypted.ours))
    found = towers.encode_images(IMAGES)
    towers.close()
    difference = np.abs(found - tiny.model.encode_images(IMAGES)).max()
    assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


def test_probes_reach_a_server_that_asks_for_certificates(encrypted: Encrypted) -> None:
    """The supervisor, which has no client's certificate, still learns the vectors of every model, over HTTP."""
    with Prober(encrypted.server) as prober:
        results = prober.check(timeout_s=60)
    assert {"tiny_image", "tiny_text"} <= set(results)
    for result in results.values():
        assert result.ok
        assert result.is_answered


@pytest.mark.parametrize("case", ["in the clear", "another authority", "no certificate", "a stranger's certificate"])
def test_who_does_not_fit_is_not_answered(encrypted: Encrypted, tiny: Any, case: str) -> None:
    """Either side turns the other away; the error names the address and comes within the deadline."""
    tls = {
        "in the clear": None,
        "another authority": _options(encrypted.theirs, encrypted.ours),
        "no certificate": _options(encrypted.ours, None),
        "a stranger's certificate": _options(encrypted.ours, encrypted.theirs),
    }[case]
    with pytest.raises(ServerUnavailableError, match=encrypted.server.grpc_url):
        encrypted.towers(tiny, tls)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"certificate": "missing.pem"}, "missing.pem"),
        ({"certificate": "text.pem"}, "PEM"),
        ({"key": "theirs/key.pem"}, "key"),
        ({"key": "ours/certificate.pem"}, "key"),
        ({"client_ca": "ours/key.pem"}, "certificate"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, changes: dict[str, str], word: str) -> None:
    """Missing files, files without PEM and a key of another certificate are refused before anything is started."""
    _write(tmp_path / "ours", trustme.CA())
    _write(tmp_path / "theirs", trustme.CA())
    (tmp_path / "text.pem").write_text("no certificate")
    files = {"certificate": "ours/certificate.pem", "key": "ours/key.pem", "client_ca": "ours/root.pem"} | changes
    with pytest.raises(InputError, match=word):
        ServerTls(**{name: tmp_path / file for name, file in files.items()})
