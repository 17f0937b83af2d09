"""More than a server can take: it refuses, stays small, and answers afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from twinspire import Client, sample_bundle
from twinspire_server.repository import build_repository
from twinspire_server.triton import TritonServer

FLOOD = Path(__file__).with_name("overload.py")


def test_what_does_not_fit_the_queue_is_refused(place: Any) -> None:
    """Of 400 full batches at once some are refused, Triton holds no more than its queue; then texts are answered."""
    build_repository([sample_bundle()], place.repository)
    with TritonServer(place.repository) as server:
        command = [sys.executable, FLOOD, server.grpc_url, str(server.pid), "--factor", "1000", "--most", "400"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
        assert set(found["outcomes"]) == {"OK", "UNAVAILABLE"}
        assert found["peak_mb"] < 400, found  # 154 MB of pictures wait at most; all of them are 482 MB
        with Client.connect(server.grpc_url, sample_bundle()) as client:
            assert client.encode_text(["a red car"]).shape == (1, 128)
