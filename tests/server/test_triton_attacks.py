"""The attacks of attacks.py against a real Triton: refused, and the server is ready and right afterwards."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from support.arrays import png
from support.live_gateway import eventually
from support.triton_faults import FIXED_CANCELLATIONS, FIXED_STREAM_ERRORS, is_killed, version
from twinspire.errors import ServerError
from twinspire.towers import TritonTowers
from twinspire_server.triton import TritonServer, flags, launch

_SPEC = importlib.util.spec_from_file_location("attacks", Path(__file__).with_name("attacks.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
attacks = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = attacks  # for its dataclass
_SPEC.loader.exec_module(attacks)

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
TEXTS = [np.array([1, 5, 7, 2], np.int32), np.array([1, 2], np.int32)]
PNG = png(IMAGES[0])
TOLERANCE = 1e-6
CANCELLATIONS = "grpc cancellations"


def _target(server: TritonServer, **options: Any) -> Any:
    return attacks.Target(
        "127.0.0.1", server.ports.http, server.ports.grpc, models="tiny", context=20, size=16, **options
    )


@pytest.fixture(scope="module")
def towers(triton_server: TritonServer, tiny: Any) -> Any:
    """Connect as any client does, without a key."""
    opened = TritonTowers(triton_server.grpc_url, tiny.bundle)
    yield opened
    opened.close()


@pytest.fixture
def lost_server(triton_server: TritonServer, tmp_path: Path) -> Iterator[TritonServer]:
    """Serve the same repository by a server that may be lost. Triton 2.51 needs 11 s to end after cancelled streams."""
    with TritonServer(triton_server.repository, log_file=tmp_path / "triton.log") as server:
        yield server


@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if name != CANCELLATIONS])
def test_an_attack_is_refused_and_harms_nothing(
    triton_server: TritonServer, towers: TritonTowers, tiny: Any, name: str
) -> None:
    """The answer is a refusal; the same process is ready afterwards and both models give the right embeddings."""
    attack, answer = attacks.ATTACKS[name]
    pid, start_s = triton_server.pid, time.monotonic()
    assert attack(_target(triton_server)) == answer
    assert time.monotonic() - start_s < attacks.TIMEOUT_S
    assert triton_server.pid == pid
    _assert_ready_and_right(triton_server, towers, tiny)


def _assert_ready_and_right(server: TritonServer, towers: TritonTowers, tiny: Any) -> None:
    assert server.running
    assert _target(server).http("GET", "/v2/health/ready") == "HTTP 200"
    for found, right in (
        (towers.encode_images(IMAGES), tiny.int8.encode_images(IMAGES)),
        (towers.encode_texts(TEXTS), tiny.int8.encode_texts(TEXTS)),
        (_raw(server, "image_bytes", "image_bytes", PNG), tiny.int8.encode_images(IMAGES[:1])),
        (_raw(server, "text_raw", "text", b""), tiny.int8.encode_texts([np.array([1, 2], np.int32)])),
    ):
        difference = np.abs(found - right).max()
        assert difference <= TOLERANCE, f"largest difference {difference:.2e}"


def _is_accepted(server: TritonServer) -> bool:
    """Whether the queue has room: a cancelled request leaves it when its turn comes."""
    try:
        _raw(server, "image_bytes", "image_bytes", PNG)
    except InferenceServerException as error:
        if "queue" not in str(error):
            raise
        return False
    return True


def _raw(server: TritonServer, model: str, name: str, content: bytes) -> np.ndarray:
    """Encode a file or a text as clients without code of ours do."""
    given = InferInput(name, [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[content]], np.object_))
    with InferenceServerClient(server.grpc_url) as client:
        return client.infer(f"tiny_{model}", [given]).as_numpy("embedding")


@pytest.mark.parametrize("path", ["/v2/models/tiny_text/stats", "/v2/models/tiny_text/config", "/v2/logging"])
def test_the_key_opens_what_is_closed(triton_server: TritonServer, path: str) -> None:
    """With `admin_headers` the restricted parts answer, with another key they do not."""
    headers = triton_server.admin_headers
    assert _target(triton_server, headers=tuple(headers.items())).http("GET", path) == "HTTP 200"
    wrong = tuple((name, "0" * 32) for name in headers)
    assert _target(triton_server, headers=wrong).http("GET", path) == attacks.FORBIDDEN


def test_the_key_opens_inference_over_http(triton_server: TritonServer) -> None:
    """With `admin_headers` HTTP runs an inference."""
    target = _target(triton_server, headers=tuple(triton_server.admin_headers.items()))
    assert attacks.http_inference(target) == "HTTP 200"


def test_nobody_reads_or_guesses_the_key(triton_server: TritonServer, lost_server: TritonServer) -> None:
    """Neither the arguments of a ready server and its parent nor the log show its key, and each server has its own."""
    (key,) = triton_server.admin_headers.values()
    assert key not in lost_server.admin_headers.values()
    parent = Path(f"/proc/{triton_server.pid}/stat").read_text().rpartition(")")[2].split()[1]
    for pid in (triton_server.pid, parent):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"--http-restricted-api=" in arguments
        assert key.encode() not in arguments
    assert key not in triton_server.log_file.read_text()


def test_the_chunks_kill_a_server_without_the_key(
    echo: Callable[..., TritonServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the key closes is real: the same request ends the same server started without restrictions."""

    def unrestricted(*given: Any, **options: Any) -> list[str]:
        return [flag for flag in flags(*given, **options) if "restricted" not in flag]

    monkeypatch.setattr(launch, "flags", unrestricted)
    with echo() as server:
        if version(server) >= (2, 60):
            pytest.skip("this Triton is not affected: fixed in 25.08")
        _target(server).chunked("/v2/repository/index")
        assert server.wait(10) == 128 + signal.SIGSEGV


def test_cancellations_harm_nothing(lost_server: TritonServer, tiny: Any) -> None:
    """Calls and streams that are cancelled at any moment leave the server ready and right.

    Now and then they kill 2.51 on a busy machine, as SECURITY.md says, and never a Triton of 25.06 or later.
    """
    attack, answer = attacks.ATTACKS[CANCELLATIONS]
    assert attack(_target(lost_server)) == answer
    try:
        assert eventually(lambda: _is_accepted(lost_server)), "the queue is still full of cancelled requests"
        opened = TritonTowers(lost_server.grpc_url, tiny.bundle)
        _assert_ready_and_right(lost_server, opened, tiny)
        opened.close()
    except (AssertionError, InferenceServerException, ServerError):
        if version(lost_server) >= FIXED_CANCELLATIONS:
            raise
        assert is_killed(lost_server)


def test_the_stream_errors_that_no_flag_closes(lost_server: TritonServer) -> None:
    """A stream in Triton's own error mode kills 2.51, as SECURITY.md says, and not a Triton of 26.04 or later."""
    attacks.grpc_stream_errors(_target(lost_server))
    if version(lost_server) >= FIXED_STREAM_ERRORS:
        assert lost_server.running
    else:
        assert is_killed(lost_server)
