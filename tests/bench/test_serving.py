"""Benchmarks of a served bundle, measured small: lanes, overload and perf_analyzer's report."""

from __future__ import annotations

import importlib.util
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from twinspire import sample_bundle
from twinspire.bundle import Bundle
from twinspire.errors import EngineError
from twinspire_bench import lanes, overload
from twinspire_bench.perf_analyzer import requests_per_s
from twinspire_bench.scripts import ServedOptions
from twinspire_eval.records import Record

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("pytriton") is None, reason="a real Triton comes with the extra `server`"
)


@pytest.fixture
def served(tmp_path: Path) -> ServedOptions:
    """Describe the sample, served with two threads."""
    return ServedOptions(bundle=Bundle.open(sample_bundle()), threads=2, streams=2, work=tmp_path)


@needs_triton
@pytest.mark.slow
def test_overload_is_measured(served: ServedOptions, tmp_path: Path) -> None:
    """A record says for each kind of request what was offered, answered and refused, and reads back and prints."""
    settings = overload.OverloadSettings(factor=4, seconds=3, closed_s=1, rows=8)
    record = overload.measure_bundle(served, settings=settings, say=lambda _: None)
    record.save(tmp_path / "overload.json")
    results = Record.load(tmp_path / "overload.json").results
    assert {"1 tensors", "8 tensors"} <= set(results)
    for name, found in results.items():
        assert sum(found["outcomes"].values()) > 0, name
        assert found["capacity_images_per_s"] > 0
        assert found["goodput_images_per_s"] > 0
        assert found["overload_cores"]["server"] > 0
        assert found["memory_mb"]["last_third"] > 0
    assert _shown(overload.show, record).count("tensors") >= 2


@needs_triton
@pytest.mark.slow
def test_lanes_are_measured(served: ServedOptions, tmp_path: Path) -> None:
    """A record has latencies of texts and images/s, alone and together."""
    settings = lanes.LaneSettings(rounds=1, visit_s=2, texts_per_s=20)
    record = lanes.measure_bundle(served, settings=settings, say=lambda _: None)
    record.save(tmp_path / "lanes.json")
    results = Record.load(tmp_path / "lanes.json").results
    texts, images = results["texts"], results["images"]
    assert len(texts["alone_ms"]["samples"]) == len(texts["beside_images_ms"]["samples"]) > 0
    assert texts["p99_ratio"] == pytest.approx(texts["beside_images_ms"]["p99"] / texts["alone_ms"]["p99"])
    assert images["ratio"]["value"] > 0
    assert "p99" in _shown(lanes.show, record)


def test_the_report_of_perf_analyzer_is_read(tmp_path: Path) -> None:
    """Requests/s come from its CSV file; where it fails, the error has what it printed."""
    program = tmp_path / "perf_analyzer"
    report = "Concurrency,Inferences/Second,Client Send\\n16,123.5,7"
    program.write_text(f"#!/bin/sh\nwhile [ $1 != -f ]; do shift; done\nprintf '{report}' > $2\n", encoding="utf-8")
    program.chmod(0o755)
    assert requests_per_s(program, "127.0.0.1:1", "model", in_flight=16, seconds=1) == 123.5
    program.write_text("#!/bin/sh\necho no such model\nexit 3\n", encoding="utf-8")
    with pytest.raises(EngineError, match="no such model"):
        requests_per_s(program, "127.0.0.1:1", "model", in_flight=16, seconds=1)


TERMINATED = """
import sys, time
from pathlib import Path
from rich.console import Console
from twinspire import sample_bundle
from twinspire.bundle import Bundle
from twinspire_bench.scripts import ServedOptions, exit_on_error

options = ServedOptions(bundle=Bundle.open(sample_bundle()), threads=1, streams=1, work=Path(sys.argv[1]))
with exit_on_error(Console(stderr=True)), options.serve() as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@needs_triton
@pytest.mark.slow
def test_a_terminated_benchmark_leaves_no_server(tmp_path: Path) -> None:
    """SIGTERM ends a benchmark with status 143, and the server that it started with it."""
    command = [sys.executable, "-c", TERMINATED, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = Path("/proc", process.stdout.readline().strip())
        assert server.is_dir()
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not server.exists()


def _shown(show: object, record: Record) -> str:
    assert callable(show)
    terminal = io.StringIO()
    show(record, Console(file=terminal, width=160))
    return terminal.getvalue()
