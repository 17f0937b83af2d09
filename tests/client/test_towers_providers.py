"""Named providers are used or raise; only `auto` goes on to another, and says so."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from twinspire.bundle import Precision, Tower
from twinspire.errors import EngineError, InputError, MissingDependencyError, ProviderError
from twinspire.towers import InferencePrecision, LocalTowers, OpenVinoOptions, Provider, auto_selection, providers

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def _open(tiny: Any, provider: str, **options: Any) -> LocalTowers:
    return LocalTowers(tiny.bundle, **{"precision": "fp32", "threads": 1, "provider": provider, **options})


def _forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make `import package` fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def openvino() -> None:
    """Skip, with the reason, where the OpenVINO provider is not there."""
    error = providers.unavailable_error(Provider.OPENVINO)
    if error is not None:
        pytest.skip(str(error))


@pytest.fixture
def plugin() -> None:
    """Skip, with the reason, where the OpenVINO plugin is not installed, as beside the GPU packages."""
    pytest.importorskip("onnxruntime_ep_openvino", reason="needs onnxruntime-ep-openvino")


# The CPU


def test_the_cpu_is_always_there(tiny: Any) -> None:
    """Named `cpu`, the towers run on it and say so."""
    towers = _open(tiny, "cpu")
    assert towers.runtime.provider is Provider.CPU
    assert Provider.CPU in providers.available()


def test_without_onnxruntime_the_extra_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime is not installed, any provider, `auto` included, names the extra that brings it."""
    _forget(monkeypatch, "onnxruntime")
    for name in ("auto", *Provider):
        with pytest.raises(MissingDependencyError) as caught:
            _open(tiny, name)
        assert (caught.value.package, caught.value.extra) == ("onnxruntime", "cpu")


# OpenVINO


def test_without_the_plugin_the_extra_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openvino` without its package names the extra that brings it."""
    _forget(monkeypatch, "onnxruntime_ep_openvino")
    with pytest.raises(MissingDependencyError) as caught:
        _open(tiny, "openvino")
    assert (caught.value.package, caught.value.extra) == ("onnxruntime-ep-openvino", "cpu")


@pytest.mark.usefixtures("plugin")
def test_a_plugin_without_a_device_is_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openvino` on a machine that its plugin does not serve raises and says what is there."""
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    with pytest.raises(ProviderError, match="processor") as caught:
        _open(tiny, "openvino")
    assert all(provider in str(caught.value) for provider in providers.available())


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_does_not_load_is_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin library that cannot be registered is a ProviderError with onnxruntime's words."""

    def fail(*_: str) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("wrong ELF class")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(ProviderError, match="wrong ELF class"):
        _open(tiny, "openvino")


def test_registering_twice_is_fine() -> None:
    """The plugin may be asked for any number of times in one process."""
    assert providers.available() == providers.available()


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_openvino_agrees_with_numpy(tiny: Any, precision: Precision) -> None:
    """OpenVINO gives what NumPy computes within 1e-6: float32 is computed as float32, not as bf16."""
    towers = _open(tiny, "openvino", precision=precision)
    model = tiny.int8 if precision is Precision.INT8 else tiny.model
    texts = [np.array([1, *[4 + n] * n, 2], np.int32) for n in range(12)]
    for found, expected in (
        (towers.encode_images(IMAGES), model.encode_images(IMAGES)),
        (towers.encode_texts(texts), model.encode_texts(texts)),
    ):
        difference = np.abs(found - expected).max()
        assert difference <= 1e-6, f"largest difference {difference:.2e}"
    assert str(towers.runtime) == f"onnxruntime openvino {precision}, threads: 1"


@pytest.mark.usefixtures("openvino")
def test_openvino_computes_in_bf16_where_asked(tiny: Any) -> None:
    """bf16 is used only where it was asked for; `runtime` says so, and it stays within 1e-2."""
    options = OpenVinoOptions(inference_precision=InferencePrecision.BF16)
    towers = _open(tiny, "openvino", threads=2, streams=2, openvino=options)
    difference = np.abs(towers.encode_images(IMAGES) - tiny.model.encode_images(IMAGES)).max()
    assert difference <= 1e-2, f"largest difference {difference:.2e}"
    assert str(towers.runtime) == "onnxruntime openvino fp32 in bf16, threads: 2, streams: 2"


@pytest.mark.usefixtures("openvino")
def test_threads_share_openvino(tiny: Any) -> None:
    """Calls from several threads at once, with as many streams or fewer, give what NumPy computes."""
    towers = _open(tiny, "openvino", threads=2, streams=2)
    jobs = [IMAGES[: 1 + job % 5] for job in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for images, found in zip(jobs, pool.map(towers.encode_images, jobs), strict=True):
            difference = np.abs(found - tiny.model.encode_images(images)).max()
            assert difference <= 1e-6, f"largest difference {difference:.2e}"


def test_openvino_is_told_the_precision() -> None:
    """Precision, threads and streams are named: nothing is left to the provider's defaults."""
    settings = providers._settings(Provider.OPENVINO, threads=3, streams=1, openvino=OpenVinoOptions())
    assert json.loads(settings["load_config"]) == {
        "CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1"}
    }


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"inference_precision": "f16"}, "bf16"),
    ],
)
def test_other_openvino_options_are_refused(options: dict[str, Any], word: str) -> None:
    """A wrong option is an InputError that says what there is."""
    with pytest.raises(InputError, match=word):
        OpenVinoOptions(**options)


# What the session says of itself


class _Session:
    """A session as onnxruntime describes one: its providers, and which operators went to which."""

    def __init__(self, assigned: dict[str, list[str]]) -> None:
        self._assigned = assigned

    def get_providers(self) -> list[str]:
        return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=k) for k in kinds])
            for name, kinds in self._assigned.items()
        ]


@pytest.mark.parametrize("kind", ["MatMul", "FusedMatMul", "MatMulInteger", "QLinearConv", "Gemm"])
def test_heavy_operators_left_to_the_cpu_are_an_error(kind: str) -> None:
    """A provider that leaves the products to the CPU is not used: that is a fallback by another name."""
    session: Any = _Session({"OpenVINOExecutionProvider": ["Add"], "CPUExecutionProvider": [kind, kind, "Shape"]})
    with pytest.raises(ProviderError, match=rf"2 {kind}\b") as caught:
        providers._check_assignment(session, Path("image.onnx"), Provider.OPENVINO)
    assert "image.onnx" in str(caught.value)


def test_light_operators_may_stay_on_the_cpu() -> None:
    """Shape computations on the CPU are as onnxruntime means them."""
    session: Any = _Session({"OpenVINOExecutionProvider": ["MatMul"], "CPUExecutionProvider": ["Shape", "Gather"]})
    providers._check_assignment(session, Path("image.onnx"), Provider.OPENVINO)


# What auto prefers


@pytest.mark.parametrize(
    ("flags", "precision", "expected"),
    [
        ({"avx512_vnni", "amx_int8"}, Precision.INT8, [Provider.OPENVINO, Provider.CPU]),
        ({"avx512_vnni", "amx_int8"}, Precision.FP32, [Provider.CPU]),
        ({"avx512_vnni"}, Precision.INT8, [Provider.CPU]),
    ],
)
def test_auto_takes_openvino_where_it_gains(
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    precision: Precision,
    expected: list[Provider],
) -> None:
    """`auto` tries OpenVINO first for int8 engines on a processor with AMX, and the CPU always last."""
    monkeypatch.setattr(auto_selection, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(
        auto_selection, "unavailable_reason", lambda provider: "is not there" if provider is Provider.CUDA else None
    )
    tried = list(auto_selection.candidates(tiny.bundle, None, precision))
    assert [candidate.provider for candidate in tried] == expected
    assert "cuda" in tried[-1].reason


def test_processor_flags_are_read_from_linux(tmp_path: Path) -> None:
    """The first `flags` line counts; where there is none, or no file, nothing is assumed."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert "avx512_vnni" in auto_selection.processor_flags(cpuinfo)
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert auto_selection.processor_flags(cpuinfo) == frozenset()
    assert auto_selection.processor_flags(tmp_path / "none") == frozenset()


def test_an_engine_that_cannot_be_opened_is_an_error(tiny: Any, tmp_path: Path) -> None:
    """A missing engine file is an EngineError that names it, from onnxruntime's own."""
    with pytest.raises(EngineError, match=r"gone\.onnx") as caught:
        providers.open_session(tmp_path / "gone.onnx", Provider.CPU, threads=1, openvino=OpenVinoOptions())
    assert caught.value.__cause__ is not None
    assert tiny.bundle.engine(Tower.IMAGE, Precision.FP32).exists()
