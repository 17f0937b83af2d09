"""The CUDA provider is used where the driver reports a GPU that computes; `auto` goes on elsewhere and says why.

There is no GPU here: the driver is a small library (`cuda_driver.c`), and a session on CUDA is one on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from twinspire import _cuda
from twinspire.errors import EngineError, ProviderError
from twinspire.towers import LocalTowers, Provider, providers
from twinspire.towers.onnxruntime_support import failure_cause

NAME = "CUDAExecutionProvider"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
LAZY = "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=vm ; file=cudnn_fe_call.cc"


def _open(tiny: Any, provider: str, **options: Any) -> LocalTowers:
    return LocalTowers(tiny.bundle, **{"precision": "fp32", "threads": 2, "provider": provider, **options})


@pytest.fixture
def gpu_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let onnxruntime list CUDA, as its GPU build does with and without a GPU."""
    listed = [NAME, *(name for name in onnxruntime.get_available_providers() if name != NAME)]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)


@pytest.fixture
def gpu(gpu_packages: None, fake_cuda_driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver report a GPU too."""
    monkeypatch.setattr(_cuda, "LIBRARY", str(fake_cuda_driver))


@pytest.fixture
def sessions(gpu: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[Any]]:
    """Let sessions open on CUDA, and compute or fail with a message; returns the inputs that they are given."""
    real = onnxruntime.InferenceSession

    def install(failure: str | None) -> list[Any]:
        seen: list[Any] = []

        class CudaSession:
            def __init__(self, engine: str, sess_options: Any) -> None:
                self._cpu = real(engine, sess_options, providers=["CPUExecutionProvider"])
                self.get_inputs, self.get_outputs = self._cpu.get_inputs, self._cpu.get_outputs

            def get_providers(self) -> list[str]:
                return [NAME, "CPUExecutionProvider"]

            def get_provider_graph_assignment_info(self) -> list[Any]:
                return []

            def run(self, names: Any, inputs: dict[str, Any]) -> Any:
                seen.append(inputs)
                if failure is not None:
                    raise RuntimeError(failure)
                return self._cpu.run(names, inputs)

        def open_session(engine: str, *, sess_options: Any, providers: Any, enable_fallback: int) -> Any:
            if providers[0][0] == NAME:
                return CudaSession(engine, sess_options)
            return real(engine, sess_options, providers=providers, enable_fallback=enable_fallback)

        monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
        return seen

    return install


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# Without a GPU


def test_cuda_without_its_onnxruntime_is_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` with the CPU build of onnxruntime raises, says what is there and which extra brings it."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match=r"\[gpu\]") as caught:
        _open(tiny, "cuda")
    assert all(provider in str(caught.value) for provider in providers.available())


@pytest.mark.usefixtures("gpu_packages")
@pytest.mark.parametrize(
    ("library", "settings", "word"),
    [
        ("libcuda-that-is-not-here.so.1", {}, "NVIDIA"),
        (None, {"FAKE_CUDA_INIT": "100"}, "device"),
        (None, {"FAKE_CUDA_DEVICES": "0"}, "device"),
        (None, {"FAKE_CUDA_INIT": "803"}, "803"),
    ],
)
def test_gpu_packages_without_a_gpu(
    tiny: Any,
    fake_cuda_driver: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    library: str | None,
    settings: dict[str, str],
    word: str,
) -> None:
    """`cuda` raises with the driver's word; `auto` says it among its reasons, and does not even try."""
    monkeypatch.setattr(_cuda, "LIBRARY", library or str(fake_cuda_driver))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProviderError, match=word) as caught:
        _open(tiny, "cuda")
    assert all(provider in str(caught.value) for provider in providers.available())
    assert Provider.CUDA not in providers.available()
    with caplog.at_level(logging.INFO, logger="twinspire"):
        towers = _open(tiny, "auto")
    assert towers.runtime.provider is not Provider.CUDA
    assert _warnings(caplog) == []
    assert word in caplog.text


# With a GPU that cannot compute


@pytest.mark.usefixtures("gpu")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_provider_that_onnxruntime_drops_is_an_error(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where onnxruntime would go on with the CPU alone, `cuda` raises, and `auto` goes on with one warning."""
    if "libonnxruntime_providers_cuda.so" in {path.name for path in Path(onnxruntime.__file__).parent.glob("capi/*")}:
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(ProviderError, match="providers_cuda") as caught:
        _open(tiny, "cuda")
    assert "image.fp32.onnx" in str(caught.value)
    assert _open(tiny, "auto").runtime.provider is not Provider.CUDA
    (warning,) = _warnings(caplog)
    assert "dropped" in warning


def test_a_gpu_that_cannot_compute_fails_at_opening(
    tiny: Any, sessions: Callable[[str | None], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Without cuDNN a session opens and its first input fails: `cuda` raises with the cause, `auto` goes on."""
    seen = sessions(LAZY)
    with pytest.raises(ProviderError, match="CUDNN_STATUS_NOT_INITIALIZED") as caught:
        _open(tiny, "cuda")
    assert caught.value.__cause__ is not None
    assert "hostname" not in str(caught.value)
    assert [list(inputs) for inputs in seen] == [["image"]]
    towers = _open(tiny, "auto")
    assert towers.runtime.provider is not Provider.CUDA
    (warning,) = _warnings(caplog)
    assert "CUDNN_STATUS_NOT_INITIALIZED" in warning
    difference = np.abs(towers.encode_images(IMAGES) - tiny.model.encode_images(IMAGES)).max()
    assert difference <= 1e-6, f"largest difference {difference:.2e}"


@pytest.mark.usefixtures("gpu")
def test_a_session_that_does_not_open_is_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA says while a session is opened is an EngineError with CUDA's words alone."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "cuda_call.cc:154 CUDA failure 35: CUDA driver version is insufficient ; GPU=-1 ; hostname=vm"
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(EngineError, match="CUDA driver version is insufficient") as caught:
        _open(tiny, "cuda")
    assert "cuda_call.cc" not in str(caught.value)
    assert "hostname" not in str(caught.value)


def test_other_failures_keep_their_words() -> None:
    """What is no failure of a CUDA library is told as it came, on one line."""
    assert failure_cause(RuntimeError("no such\n  file")) == "no such file"


# With a GPU


def test_a_gpu_computes_one_input_of_each_tower_first(tiny: Any, sessions: Callable[[str | None], list[Any]]) -> None:
    """Opening on CUDA runs one image and one text of zeros."""
    seen = sessions(None)
    assert _open(tiny, "auto").runtime.provider is Provider.CUDA
    assert [(name, array.shape, array.any()) for inputs in seen for name, array in inputs.items()] == [
        ("image", (1, 16, 16, 3), False),
        ("input_ids", (1, 20), False),
    ]


def test_streams_do_not_keep_auto_from_a_gpu(
    tiny: Any, sessions: Callable[[str | None], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Streams are for processors: `auto` takes the GPU in one stream and says so; `cuda` with two is an error."""
    sessions(None)
    with caplog.at_level(logging.INFO, logger="twinspire"):
        towers = _open(tiny, "auto", streams=2)
    assert (towers.runtime.provider, towers.runtime.streams) == (Provider.CUDA, 1)
    assert _warnings(caplog) == []
    assert "streams: 2" in caplog.text
    with pytest.raises(ProviderError, match=r"\bstreams?\b"):
        _open(tiny, "cuda", streams=2)
    assert _open(tiny, "cpu", streams=2).runtime.streams == 2
