"""Clients without code of ours: Triton's generated stubs in an isolated Python, and grpc-js in Node.js."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.data import DATA, PHOTOS
from twinspire import Client
from twinspire_server.triton import TritonServer

EXAMPLES = Path(__file__).parents[2] / "examples" / "other_languages"
PROTO = DATA / "triton_protocol" / "grpc_service.proto"
TEXTS = ["a red cat", "", "雪の上の boat 🐕"]
TIMEOUT_S = 300
# Fails where anything of ours was imported.
_ISOLATED = """import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not [name for name in sys.modules if name.partition(".")[0].startswith("twinspire")]
"""


def _files() -> list[Path]:
    return sorted(PHOTOS.glob("*.jpg"))[:4]


def _run(command: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )


def _assert_cosines(printed: str, server: TritonServer) -> None:
    """Compare the lines that an example prints with the client's cosines."""
    with Client.connect(server.grpc_url) as client:
        expected = client.encode_images(_files()) @ client.encode_texts(TEXTS).T
    lines = [line.split(" ") for line in printed.splitlines()]
    assert [name for name, *_ in lines] == [file.name for file in _files()]
    for (_, *cosines), row in zip(lines, expected, strict=True):
        assert [float(cosine) for cosine in cosines] == pytest.approx(row.tolist(), abs=1.1e-4)  # four decimals


def test_generated_stubs(triton_server: TritonServer, tmp_path: Path) -> None:
    """An isolated Python with grpc and the generated stubs alone sends JPEG bytes and texts and gets the vectors."""
    texts = [argument for text in TEXTS for argument in ("--text", text)]
    example = [EXAMPLES / "raw_inputs.py", triton_server.grpc_url, "tiny", *_files(), *texts]
    done = _run([sys.executable, "-I", "-c", _ISOLATED, *example], tmp_path)
    assert done.returncode == 0, done.stderr
    _assert_cosines(done.stdout, triton_server)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the packages of the Node.js example, as its lock file pins them."""
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm")
    folder = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(EXAMPLES, folder)
    done = _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_node(triton_server: TritonServer, node: Path) -> None:
    """grpc-js with Triton's proto file sends JPEG bytes and texts and gets the vectors."""
    done = _run(["node", "raw_inputs.mjs", PROTO, triton_server.grpc_url, "tiny", *_files(), "--", *TEXTS], node)
    assert done.returncode == 0, done.stderr
    _assert_cosines(done.stdout, triton_server)


def test_node_sees_the_errors(triton_server: TritonServer, node: Path) -> None:
    """A file that is no image is an INVALID_ARGUMENT with its position and cause."""
    (node / "no.jpg").write_bytes(b"no image")
    command = ["node", "raw_inputs.mjs", PROTO, triton_server.grpc_url, "tiny", _files()[0], "no.jpg", "--", "a"]
    done = _run(command, node)
    assert done.returncode == 1
    assert done.stderr.startswith("INVALID_ARGUMENT: ")
    assert "image 1 (bytes): not an image" in done.stderr
