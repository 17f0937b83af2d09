"""An open loop of full batches of images at a multiple of capacity: what a server's memory and refusals do.

`python tests/server/overload.py HOST:PORT PID` measures the image tower of the sample on a server that runs, whose
process is PID, and prints JSON. `twinspire serve --json` names both.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

ROWS, SIZE = 32, 112
MOST_PER_S = 300
"""The most requests a second, 360 MB: two cores of an EPYC that also send and compute cannot refuse 600."""


def resident_mb(pid: int) -> float:
    """Return the memory that a process holds now, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1000


def _closed_loop(infer: Any, request: Any) -> float:
    """Return how many of 16 requests, 8 in flight, are answered in a second."""
    start_s = time.perf_counter()
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda _: infer(request), range(16)))
    return 16 / (time.perf_counter() - start_s)


def flood(address: str, pid: int, *, seconds: float, factor: float, most: int) -> dict[str, Any]:
    """Send full batches at `factor` times what the server answers in a closed loop; return what was seen.

    A second has MOST_PER_S requests at most.

    `capacity` and `answered_per_s` are requests a second, the latter until the last request was sent; latencies are of
    refusals, in milliseconds. No more than `most` requests are sent.
    """
    request = service_pb2.ModelInferRequest(model_name="scenes_image")
    request.inputs.add(name="image", datatype="UINT8", shape=[ROWS, SIZE, SIZE, 3])
    request.raw_input_contents.append(np.zeros((ROWS, SIZE, SIZE, 3), np.uint8).tobytes())
    options = [("grpc.max_send_message_length", -1)]
    with closing(grpc.insecure_channel(address, options=options)) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        before_mb = resident_mb(pid)
        capacity = max(_closed_loop(infer, request) for _ in range(2))
        outcomes: Counter[str] = Counter()
        refused_ms: list[float] = []
        lock = threading.Lock()

        def done(future: Any, sent_s: float) -> None:
            code = future.code()
            with lock:
                outcomes[code.name] += 1
                if code is not grpc.StatusCode.OK:
                    refused_ms.append(1000 * (time.perf_counter() - sent_s))

        peak_mb, sent = before_mb, 0
        start_s = time.perf_counter()
        while (elapsed_s := time.perf_counter() - start_s) < seconds and sent < most:
            if sent < min(factor * capacity, MOST_PER_S) * elapsed_s:
                sent_s = time.perf_counter()
                infer.future(request).add_done_callback(lambda future, sent_s=sent_s: done(future, sent_s))
                sent += 1
            else:
                time.sleep(0.002)
            if sent % 20 == 0:
                peak_mb = max(peak_mb, resident_mb(pid))
        with lock:
            answered = outcomes["OK"]
        took_s = time.perf_counter() - start_s
        deadline_s = time.monotonic() + 60
        while sum(outcomes.values()) < sent and time.monotonic() < deadline_s:
            time.sleep(0.05)
            peak_mb = max(peak_mb, resident_mb(pid))
    return {
        "capacity": round(capacity, 1),
        "sent_per_s": round(sent / took_s, 1),
        "answered_per_s": round(answered / took_s, 1),
        "outcomes": dict(outcomes),
        "before_mb": round(before_mb),
        "peak_mb": round(peak_mb),
        "refused_ms_p50": round(float(np.median(refused_ms)), 1) if refused_ms else None,
        "refused_ms_p99": round(float(np.quantile(refused_ms, 0.99)), 1) if refused_ms else None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("pid", type=int)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument("--most", type=int, default=sys.maxsize)
    given = parser.parse_args()
    found = flood(given.address, given.pid, seconds=given.seconds, factor=given.factor, most=given.most)
    print(json.dumps(found, indent=2))
