"""The NVIDIA driver says whether there is a GPU, and the cause is named where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinspire import _cuda
from twinspire.errors import EngineError, ProviderError

CLIENT = Path(__file__).parents[2] / "client"


@pytest.fixture
def driver(fake_cuda_driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the fake driver, and no variable that hides GPUs."""
    monkeypatch.setattr(_cuda, "LIBRARY", str(fake_cuda_driver))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("count", [1, 2])
def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A driver that reports GPUs: their number, and no reason against them."""
    monkeypatch.setenv("FAKE_CUDA_DEVICES", str(count))
    assert _cuda.device_count() == count
    assert _cuda.unavailable_reason() is None


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FAKE_CUDA_INIT": "100"}, ["device", "cuInit", "100"]),
        ({"FAKE_CUDA_INIT": "803"}, ["cuInit", "803", "unsupported display driver"]),
        ({"FAKE_CUDA_INIT": "999"}, ["cuInit", "999"]),
        ({"FAKE_CUDA_DEVICES": "0"}, ["device", "cuDeviceGetCount", "0"]),
        ({"FAKE_CUDA_COUNTING": "3"}, ["cuDeviceGetCount", "3"]),
        ({"FAKE_CUDA_INIT": "100", "CUDA_VISIBLE_DEVICES": ""}, ["device", "CUDA_VISIBLE_DEVICES"]),
    ],
)
def test_the_cause_is_named(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], words: list[str]) -> None:
    """The failing call, its status code, the driver's words for it and the variable that may have hidden a GPU."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    reason = _cuda.unavailable_reason()
    assert reason is not None
    assert all(word in reason for word in words), reason
    with pytest.raises(ProviderError):
        _cuda.device_count()


def test_no_driver_is_the_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No library, an empty file in its place, as containers have it, and a library of another kind."""
    empty = tmp_path / "libcuda.so.1"
    empty.touch()
    for library in ("libcuda-that-is-not-here.so.1", str(empty), "libc.so.6"):
        monkeypatch.setattr(_cuda, "LIBRARY", library)
        assert "NVIDIA" in str(_cuda.unavailable_reason())


@pytest.mark.usefixtures("driver")
def test_a_failing_call_is_an_error() -> None:
    """A call that the driver has not is an EngineError with its name."""
    with pytest.raises(EngineError, match="cuMemAlloc_v2"):
        _cuda.call(_cuda.load_driver(), "cuMemAlloc_v2")


def test_the_driver_is_found_as_any_library(fake_cuda_driver: Path) -> None:
    """By its name, where the dynamic linker looks."""
    done = subprocess.run(
        [sys.executable, "-c", "from twinspire import _cuda; print(_cuda.device_count())"],
        env=os.environ | {"LD_LIBRARY_PATH": str(fake_cuda_driver.parent), "PYTHONPATH": str(CLIENT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"
    assert done.stderr == ""
