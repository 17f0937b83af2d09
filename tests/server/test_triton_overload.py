"""More than a server can take: it refuses, stays small, computes nothing for callers that left, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinspire import Client, sample_bundle
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer

pytestmark = [pytest.mark.serial, pytest.mark.slow]

FLOOD = Path(__file__).with_name("overload.py")


@pytest.fixture(scope="module")
def server(needs_triton: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Serve the sample."""
    folder = tmp_path_factory.mktemp("overload")
    build_repository([sample_bundle()], folder / "repository")
    with TritonServer(folder / "repository") as server:
        yield server


def test_what_does_not_fit_the_queue_is_refused(server: TritonServer) -> None:
    """At many times the full batches that it can answer, Triton refuses and stays small, and goes on answering."""
    command = [sys.executable, FLOOD, server.grpc_url, str(server.pid), "--factor", "10", "--seconds", "6"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert set(found["outcomes"]) == {"OK", "UNAVAILABLE"}
    # Without a bound it would hold what it refuses, 1.2 MB each; what arrives meanwhile passes through.
    refused_mb = 1.2 * found["outcomes"]["UNAVAILABLE"]
    assert refused_mb > 600, found
    assert found["peak_mb"] - found["before_mb"] < max(600, refused_mb / 4), found
    # The generator, and receiving 1.2 MB for each refusal, take processors from the engine: see bench/results.
    assert found["answered_per_s"] > 0.25 * found["capacity"], found
    with Client.connect(server.grpc_url, sample_bundle()) as client:
        assert client.encode_texts(["a red car"]).shape == (1, 128)
