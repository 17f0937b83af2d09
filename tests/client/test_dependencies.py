"""An optional package that is installed and cannot be imported is an error with its cause, not a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from twinspire.errors import BrokenDependencyError, MissingDependencyError
from twinspire.index.faiss_support import faiss_library
from twinspire.towers import LocalTowers, Provider, providers
from twinspire.towers.onnxruntime_support import _silence, onnxruntime_library

CLIENT = Path(__file__).parents[2] / "client"
# What importing faiss-gpu-cuvs 1.15.0 beside libcuvs-cu13 26.10 raises, and what a missing wheel of its libraries does.
SYMBOL = "ImportError('libfaiss.so: undefined symbol: _ZTIN3rmm9bad_allocE')"
WHEELS = "RuntimeError('faiss-gpu-cuvs installed but the cuVS runtime wheels are missing')"


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a package in front of the installed one whose import raises; return the folder for PYTHONPATH."""

    def put(module: str, error: str) -> Path:
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(f"raise {error}\n")
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return put


@pytest.mark.parametrize(
    ("module", "error", "library"),
    [
        ("faiss", SYMBOL, faiss_library),
        ("faiss", WHEELS, faiss_library),
        ("faiss", "OSError('libgomp.so.1: cannot open shared object file')", faiss_library),
        ("faiss", "ModuleNotFoundError('No module named numpy.core', name='numpy.core')", faiss_library),
        ("onnxruntime", "ImportError('cannot import name InferenceSession')", onnxruntime_library),
    ],
)
def test_the_cause_and_the_package_are_named(
    broken: Callable[[str, str], Path], module: str, error: str, library: Callable[[], Any]
) -> None:
    """The error carries what the import raised, which package with its version brings it, and the extra to install."""
    broken(module, error)
    with pytest.raises(BrokenDependencyError) as caught:
        library()
    cause = error.split("'")[1]
    assert caught.value.cause == cause == str(caught.value.__cause__)
    assert caught.value.package.startswith(module)
    assert caught.value.extra in ("cpu", "gpu")
    assert cause in str(caught.value)


@pytest.mark.parametrize(("module", "library"), [("faiss", faiss_library), ("onnxruntime", onnxruntime_library)])
def test_a_package_that_is_not_there_is_missing(
    module: str, library: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not installed is not broken."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError) as caught:
        library()
    assert caught.value.extra == "cpu"


def test_onnxruntimes_log_and_telemetry_are_switched_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first use in a process; whoever turns the log up later keeps it so."""
    import onnxruntime

    calls: list[object] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", calls.append)
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("telemetry"))
    _silence.cache_clear()
    onnxruntime_library()
    onnxruntime_library()
    assert calls == [4, "telemetry"]


def test_no_provider_runs_on_a_broken_onnxruntime(tiny: Any, broken: Callable[[str, str], Path]) -> None:
    """Each provider, and `auto`, raises the cause; none is available."""
    broken("onnxruntime", "ImportError('libonnxruntime.so.1: wrong ELF class')")
    assert providers.available() == ()
    for name in ("auto", *Provider):
        with pytest.raises(BrokenDependencyError, match="wrong ELF class"):
            LocalTowers(tiny.bundle, provider=name)


@pytest.mark.slow
def test_a_search_says_so_in_one_line(tmp_path: Path, broken: Callable[[str, str], Path]) -> None:
    """`twinspire search` with a FAISS that cannot be imported ends with status 2 and one line of error."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures" / "red.png")
    environment = os.environ | {"PYTHONPATH": str(CLIENT)}

    def twinspire(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "twinspire", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    assert twinspire("index", "add", "pictures.index", "pictures").returncode == 0
    environment["PYTHONPATH"] = f"{broken('faiss', SYMBOL)}:{CLIENT}"
    done = twinspire("search", "pictures.index", "red")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "undefined symbol: _ZTIN3rmm9bad_allocE" in done.stderr
