"""Named providers are used or raise; only `auto` goes on to another, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from twinspire.bundle import Precision, Tower
from twinspire.errors import EngineError, InputError, MissingDependencyError, ProviderError
from twinspire.towers import (
    InferencePrecision,
    LocalTowers,
    OpenVinoOptions,
    Provider,
    auto_selection,
    openvino_support,
    providers,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def _open(tiny: Any, provider: str, **options: Any) -> LocalTowers:
    return LocalTowers(tiny.bundle, **{"precision": "fp32", "threads": 1, "provider": provider, **options})


def _forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make `import package` fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture(params=["onnxruntime", "openvino"])
def openvino(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name the library that computes the provider: the plugin where the runtime is not installed, and the runtime."""
    library: str = request.param
    if library == "openvino":
        pytest.importorskip("openvino", reason="needs openvino")
    else:
        _forget(monkeypatch, "openvino")
    error = providers.unavailable_error(Provider.OPENVINO)
    if error is not None or openvino_support.uses_runtime() != (library == "openvino"):
        pytest.skip(f"the provider openvino is not computed by {library} here: {error}")
    return library


@pytest.fixture
def runtime_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the plugin offer no device, as on AMD, where OpenVINO's own runtime is installed."""
    pytest.importorskip("openvino", reason="needs openvino")
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)


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
    _forget(monkeypatch, "openvino")
    with pytest.raises(MissingDependencyError) as caught:
        _open(tiny, "openvino")
    assert (caught.value.package, caught.value.extra) == ("onnxruntime-ep-openvino", "cpu")


@pytest.mark.usefixtures("plugin")
def test_without_a_device_the_extra_of_the_runtime_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plugin has no device and OpenVINO's runtime is missing, the error names the extra that brings it."""
    monkeypatch.setattr(onnxruntime, "get_ep_devices", list)
    _forget(monkeypatch, "openvino")
    with pytest.raises(MissingDependencyError, match="Intel") as caught:
        _open(tiny, "openvino")
    assert (caught.value.package, caught.value.extra) == ("openvino", "cpu-openvino")
    assert Provider.OPENVINO not in providers.available()


@pytest.mark.usefixtures("runtime_only")
def test_without_the_plugin_the_runtime_computes(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plugin is not installed and OpenVINO's runtime is, the runtime computes."""
    _forget(monkeypatch, "onnxruntime_ep_openvino")
    assert _open(tiny, "openvino").runtime.library == "openvino"


@pytest.mark.usefixtures("runtime_only")
def test_engines_that_the_runtime_cannot_load_are_an_error(tmp_path: Path) -> None:
    """A file that OpenVINO cannot read is an EngineError that names it, with OpenVINO's own as its cause."""
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for name in ("broken.onnx", "gone.onnx"):
        with pytest.raises(EngineError, match=name) as caught:
            providers.open_session(tmp_path / name, Provider.OPENVINO, threads=1, openvino=OpenVinoOptions())
        assert caught.value.path == tmp_path / name
        assert caught.value.__cause__ is not None


@pytest.mark.usefixtures("runtime_only")
def test_the_runtime_describes_tensors_as_onnxruntime_does(tiny: Any) -> None:
    """Names, types and fixed axes of inputs and outputs are those that onnxruntime gives; free axes stay free."""
    for tower in (Tower.IMAGE, Tower.TEXT):
        engine = tiny.bundle.engine(tower, Precision.FP32)
        own, plain = (
            providers.open_session(engine, provider, threads=1, openvino=OpenVinoOptions())
            for provider in (Provider.OPENVINO, Provider.CPU)
        )
        for found, expected in zip(
            [*own.get_inputs(), *own.get_outputs()], [*plain.get_inputs(), *plain.get_outputs()], strict=True
        ):
            fixed = tuple(axis if isinstance(axis, int) else None for axis in expected.shape)
            assert (found.name, found.type, found.shape) == (expected.name, expected.type, fixed)


@pytest.mark.usefixtures("runtime_only")
def test_inputs_have_the_engines_names(tmp_path: Path) -> None:
    """An operator that OpenVINO removes, here a cast of int32 to int32, gives an input no other name."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["N", "L"])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", "L"])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["/Cast_output_0"], to=TensorProto.INT32),
        helper.make_node("Cast", ["/Cast_output_0"], ["embedding"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "text", [ids], [embedding])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "t.onnx")
    session = providers.open_session(tmp_path / "t.onnx", Provider.OPENVINO, threads=1, openvino=OpenVinoOptions())
    assert [found.name for found in session.get_inputs()] == ["input_ids"]
    assert session.run(["embedding"], {"input_ids": np.array([[3]], np.int32)})[0] == [[3.0]]


@pytest.mark.usefixtures("runtime_only")
def test_the_runtime_keeps_no_reference_to_what_it_gave(tiny: Any) -> None:
    """The embeddings of one call do not change when the next is made."""
    towers = _open(tiny, "openvino")
    first = towers.encode_images(IMAGES[:1])
    before = first.copy()
    towers.encode_images(IMAGES[1:2])
    assert np.array_equal(first, before)


@pytest.mark.usefixtures("runtime_only")
def test_an_input_that_the_runtime_refuses_is_an_error(tiny: Any) -> None:
    """A call that OpenVINO refuses raises, and the session computes the next one."""
    session = providers.open_session(
        tiny.bundle.engine(Tower.IMAGE, Precision.FP32), Provider.OPENVINO, threads=1, openvino=OpenVinoOptions()
    )
    with pytest.raises(RuntimeError):
        session.run(["embedding"], {"image": IMAGES[:, :8]})
    assert len(session.run(None, {"image": IMAGES})[0]) == len(IMAGES)


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_does_not_load_is_an_error(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin library that cannot be registered is a ProviderError with onnxruntime's words."""
    _forget(monkeypatch, "openvino")

    def fail(*_: str) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("wrong ELF class")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(ProviderError, match="wrong ELF class"):
        _open(tiny, "openvino")


def test_registering_twice_is_fine() -> None:
    """The plugin may be asked for any number of times in one process."""
    assert providers.available() == providers.available()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_openvino_agrees_with_numpy(tiny: Any, precision: Precision, openvino: str) -> None:
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
    library = "onnxruntime openvino" if openvino == "onnxruntime" else "openvino"
    assert str(towers.runtime) == f"{library} {precision}, threads: 1"


def test_openvino_computes_in_bf16_where_asked(tiny: Any, openvino: str) -> None:
    """bf16 is used only where it was asked for; `runtime` says so, and it stays within 1e-2."""
    options = OpenVinoOptions(inference_precision=InferencePrecision.BF16)
    towers = _open(tiny, "openvino", threads=2, streams=2, openvino=options)
    difference = np.abs(towers.encode_images(IMAGES) - tiny.model.encode_images(IMAGES)).max()
    assert difference <= 1e-2, f"largest difference {difference:.2e}"
    library = "onnxruntime openvino" if openvino == "onnxruntime" else "openvino"
    assert str(towers.runtime) == f"{library} fp32 in bf16, threads: 2, streams: 2"


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


SIGNALLED = """
import gc, signal, sys, threading
if {library!r} == "onnxruntime":
    sys.modules["openvino"] = None
from twinspire.bundle import Bundle
from twinspire.towers import LocalTowers

opened = [LocalTowers(Bundle.open({bundle!r}), precision="fp32", threads=1, provider="openvino") for _ in range(2)]

def close():
    while opened:
        opened.pop(0)  # in the order in which they were opened
        gc.collect()

if {thread}:
    closing = threading.Thread(target=close)
    closing.start()
    closing.join()
else:
    close()
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="alternate signal stacks are kept on Linux")
@pytest.mark.parametrize("thread", [False, True])
def test_a_signal_after_closing_reaches_its_handler(tiny: Any, openvino: str, thread: bool) -> None:
    """Towers closed in any order and thread leave the process a signal stack that is there."""
    code = SIGNALLED.format(library=openvino, bundle=str(tiny.bundle.path), thread=thread)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


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
        ({"avx512_vnni", "runtime"}, Precision.INT8, [Provider.OPENVINO, Provider.CPU]),
        ({"avx512_vnni", "runtime"}, Precision.FP32, [Provider.CPU]),
    ],
)
def test_auto_takes_openvino_where_it_gains(
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    precision: Precision,
    expected: list[Provider],
) -> None:
    """`auto` tries OpenVINO first for int8 engines with AMX or where its runtime computes, and the CPU always last."""
    monkeypatch.setattr(auto_selection, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(auto_selection, "needs_runtime", lambda: "runtime" in flags)
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
