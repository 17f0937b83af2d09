"""More than a server can take: it refuses, stays small, and answers afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twinspire import Client, sample_bundle
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer

pytestmark = pytest.mark.serial

FLOOD = Path(__file__).with_name("overload.py")


def test_what_does_not_fit_the_queue_is_refused(place: Any) -> None:
    """Many times the full batches that it can answer: Triton refuses and stays small; then texts are answered."""
    build_repository([sample_bundle()], place.repository)
    with TritonServer(place.repository) as server:
        command = [sys.executable, FLOOD, server.grpc_url, str(server.pid), "--factor", "10", "--seconds", "6"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
        assert set(found["outcomes"]) == {"OK", "UNAVAILABLE"}
        # Without a bound it would hold what it refuses, 1.2 MB each; what arrives meanwhile passes through.
        refused_mb = 1.2 * found["outcomes"]["UNAVAILABLE"]
        assert found["peak_mb"] - found["before_mb"] < max(250, refused_mb / 4), found
        with Client.connect(server.grpc_url, sample_bundle()) as client:
            assert client.encode_texts(["a red car"]).shape == (1, 128)
