"""`twinspire doctor`: what it reports, and that it fails for what was asked for and does not work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from twinspire import sample_bundle
from twinspire._doctor import server_status
from twinspire._machine import machine_limits
from twinspire.errors import TwinspireError

_WITHOUT = """import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("onnxruntime", "faiss", "onnxruntime_ep_openvino"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from twinspire.cli import main
main(sys.argv[1:])
"""


def _doctor(*arguments: str, program: tuple[str, ...] = ("-m", "twinspire")) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, *program, "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@contextmanager
def _status_port(status: int, body: bytes) -> Iterator[str]:
    """Answer every request with one page; yield the address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Send the page."""
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:  # type: ignore[override]
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def report() -> Any:
    """Run it once without options."""
    status, document = _doctor()
    assert status == 0
    return document


def test_a_provider_that_works_has_computed(report: Any) -> None:
    """The CPU provider reproduces the sample's fp32 embeddings, with times; one that cannot run says why."""
    providers = {one["provider"]: one for one in report["providers"]}
    assert providers["cpu"]["problem"] is None
    assert providers["cpu"]["cosine"] > 0.9999
    assert 0 < providers["cpu"]["batch_s"] < 60
    for one in providers.values():
        assert (one["problem"] is None) == (one["cosine"] is not None)


def test_the_engine_that_auto_runs(report: Any) -> None:
    """`auto` is reported with its runtime and the reason."""
    assert report["auto"]["runtime"].startswith(("onnxruntime ", "openvino "))
    assert report["auto"]["reason"]


def test_extras_name_versions_or_the_command(report: Any) -> None:
    """An extra has the versions of its packages; one with missing packages the pip command that brings it."""
    extras = {one["extra"]: one for one in report["extras"]}
    assert extras["cpu"]["problem"] is None
    assert extras["cpu"]["packages"]["onnxruntime"] == version("onnxruntime")
    assert "pip install" in extras["gpu"]["problem"]
    assert not {"dev", "docs"} & set(extras)


def test_the_machine(report: Any) -> None:
    """Cores, instruction sets, memory and open files are those of this process."""
    machine, limits = report["machine"], machine_limits()
    assert machine["cores"] == limits.cores
    assert machine["instruction_sets"] == list(limits.instruction_sets)
    assert machine["memory_bytes"] == limits.memory_bytes
    assert machine["open_files"] == limits.open_files


def test_quotas_of_both_versions_of_control_groups(tmp_path: Path) -> None:
    """The processors and the memory that a container may use are read from version 2 and version 1."""
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1073741824\n")
    limits = machine_limits(tmp_path)
    assert (limits.cpu_quota, limits.memory_limit_bytes) == (1.5, 2**30)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_limits(tmp_path).cpu_quota is machine_limits(tmp_path).memory_limit_bytes is None
    old = tmp_path / "v1"
    for name, value in (("cpu/cpu.cfs_quota_us", "50000"), ("cpu/cpu.cfs_period_us", "100000"),
                        ("memory/memory.limit_in_bytes", str(2**31))):  # fmt: skip
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(value)
    assert (machine_limits(old).cpu_quota, machine_limits(old).memory_limit_bytes) == (0.5, 2**31)
    assert any("throttled" in note for note in machine_limits(old).notes()) == (machine_limits(old).cores > 0.5)


def test_a_damaged_bundle_that_was_named_is_a_fault(tmp_path: Path) -> None:
    """With an engine cut short the status is 1 and the fault names it."""
    shutil.copytree(sample_bundle(), tmp_path / "bundle")
    engine = next((tmp_path / "bundle").glob("image.fp32.onnx"))
    engine.write_bytes(engine.read_bytes()[:1000])
    status, document = _doctor("--bundle", str(tmp_path / "bundle"))
    assert status == 1
    assert not document["works"]
    assert "image.fp32.onnx" in document["faults"][0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("--provider", "cuda"), "cuda"), (("--extra", "gpu"), "gpu"), (("--status", "127.0.0.1:1"), "127.0.0.1:1")],
)
def test_what_was_asked_for_and_does_not_work(arguments: tuple[str, str], word: str) -> None:
    """A missing provider, extra or server is status 1 where it was asked for."""
    status, document = _doctor(*arguments)
    assert status == 1
    assert word in document["faults"][0]


def test_without_onnxruntime_it_reports_that() -> None:
    """With the base install alone it ends with 0 and says which command brings the engines."""
    status, document = _doctor(program=("-c", _WITHOUT))
    assert status == 0
    assert all("pip install" in one["problem"] for one in document["providers"])
    assert "pip install" in document["auto"]["problem"]
    assert _doctor("--provider", "cpu", program=("-c", _WITHOUT))[0] == 1


def test_a_server_that_is_ready_and_one_that_is_not() -> None:
    """A ready server is reported with its canary; one whose canary found wrong embeddings is a fault."""
    canary = {"ok": False, "cosine": {"m": 0.2}}
    with _status_port(
        200, json.dumps({"ready": True, "models": ["m"], "restarts": {}, "canary": None}).encode()
    ) as address:
        assert _doctor("--status", address)[0] == 0
    page = json.dumps({"ready": False, "reasons": ["the canary says no"], "canary": canary}).encode()
    with _status_port(503, page) as address:
        status, document = _doctor("--status", address)
    assert status == 1
    assert document["server"]["canary"] == canary
    assert "canary" in document["faults"][0]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"ready": 1}'])
def test_another_service_is_told_from_a_status_port(body: bytes) -> None:
    """Any other page is an error that names the address."""
    with _status_port(200, body) as address, pytest.raises(TwinspireError, match=address):
        server_status(address)


@pytest.mark.parametrize(
    "arguments", [("--status", "x"), ("--status", "h:99999"), ("--extra", "nope"), ("--provider", "tpu")]
)
def test_unusable_arguments(arguments: tuple[str, str]) -> None:
    """What is no address, extra or provider is status 2."""
    assert _doctor(*arguments)[0] == 2
