"""Comparison of this package's closed loop with perf_analyzer, NVIDIA's load generator.

https://github.com/triton-inference-server/perf_analyzer; its program lies in the wheel of tritonclient 2.48.0 and needs
libb64.so.0d and libcudart.so.12.
"""

from __future__ import annotations

import csv
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from twinspire.bundle import Tower
from twinspire.errors import EngineError
from twinspire_bench.load_generator import Generator, Request, requests_of
from twinspire_bench.scripts import RunningServer, ServedOptions
from twinspire_eval.load import interleaved
from twinspire_eval.records import Record, series
from twinspire_eval.statistics import paired_ratio
from twinspire_eval.tables import figure, figures_table

IN_FLIGHT = (1, 16)
_DEADLINE_S = 30.0
_WINDOWS = 3
"""Windows that perf_analyzer compares; it repeats them until their latencies differ by no more than `_STABILITY`."""
_STABILITY_PERCENT = 50


def measure_bundle(served: ServedOptions, program: Path, *, rounds: int, seconds: float) -> Record:
    """Serve a bundle and measure its image tower by both, with one and with 16 images in flight.

    Raises EngineError and ServerError as `ServedOptions.serve` and `compare`.
    """
    requests = requests_of(served.bundle, 1, deadline_s=_DEADLINE_S, has_bytes=False)
    (request,) = {request.content: request for request in requests.values()}.values()
    results = {}
    with served.serve() as server:
        for in_flight in IN_FLIGHT:
            results[f"{in_flight} in flight"] = compare(
                program,
                server,
                f"{served.bundle.name}_{Tower.IMAGE}",
                request,
                in_flight=in_flight,
                rounds=rounds,
                seconds=seconds,
            )
    return served.record("perf_analyzer", server, {"rounds": rounds, "seconds": seconds}, results)


def show(record: Record, console: Console) -> None:
    """Print a record of this comparison."""
    table = figures_table(["images"], ["twinspire, images/s", "perf_analyzer, images/s", "ratio"])
    for name, found in record.results.items():
        speeds = (found[f"{by}_per_s"]["median"] for by in ("twinspire", "perf_analyzer"))
        table.add_row(name, *map(figure, speeds), f"{found['ratio']['value']:.2f}")
    console.print(table)


def compare(
    program: Path, server: RunningServer, model: str, request: Request, *, in_flight: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure requests/s of a model by both, in turn; return results for a record.

    `request` is a request of one row. Raises EngineError where perf_analyzer fails.
    """
    with closing(Generator(server.address, deadline_s=_DEADLINE_S)) as generator:
        found = interleaved(
            {
                "twinspire_per_s": lambda: generator.closed_loop(request, in_flight=in_flight, seconds=seconds),
                "perf_analyzer_per_s": lambda: requests_per_s(
                    program, server.address, model, in_flight=in_flight, seconds=seconds
                ),
            },
            rounds=rounds,
            warmup=0,
        )
    return {
        **{name: series(figures, "median") for name, figures in found.items()},
        "ratio": paired_ratio(found["twinspire_per_s"], found["perf_analyzer_per_s"]),
    }


def requests_per_s(program: Path, address: str, model: str, *, in_flight: int, seconds: float) -> float:
    """Return the requests/s that perf_analyzer measures, with requests of one row of random numbers."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        words = [str(program.absolute()), "-m", model, "-i", "grpc", "-u", address, "-f", str(report)]
        words += ["--concurrency-range", f"{in_flight}:{in_flight}", "--input-data", "random"]
        words += ["--measurement-interval", str(round(1000 * seconds / _WINDOWS))]
        words += ["--stability-percentage", str(_STABILITY_PERCENT), "--max-trials", str(2 * _WINDOWS)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60 + 4 * seconds)  # noqa: S603
        if done.returncode != 0 or not report.exists():
            raise EngineError(f"{program} failed with status {done.returncode}: {done.stdout}{done.stderr}".strip())
        with report.open(encoding="utf-8", newline="") as lines:
            (row,) = csv.DictReader(lines)
    return float(row["Inferences/Second"])
