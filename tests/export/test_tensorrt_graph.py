"""Every engine that goes to TensorRT: what `prepare_engine` makes of it, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the bundles are exported, which needs torch")

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from twinspire import sample_bundle
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import EngineError, InputError, MissingDependencyError
from twinspire.tensorrt_support import PRECISIONS, check_graph, check_precision, prepare_engine
from twinspire_export import export_checkpoint, quantize_bundle

INPUT = {Tower.IMAGE: "image", Tower.TEXT: "input_ids"}


@pytest.fixture(scope="module")
def bundles(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Give a tiny bundle with every precision, one exported without rewrites, and the sample."""
    folder = tmp_path_factory.mktemp("bundles")
    checkpoint = make_checkpoint(folder / "tiny-clip")
    rewritten = export_checkpoint(checkpoint, folder / "rewritten")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for precision in (Precision.FP16, Precision.INT8_TENSORRT):
        rewritten = quantize_bundle(
            rewritten, folder / precision, precision=precision, images=images, captions=["a cat", "two dogs"]
        )
    plain = export_checkpoint(checkpoint, folder / "plain", rewrites=())
    plain = quantize_bundle(plain, folder / "plain-fp16", precision="fp16", images=images, captions=["a cat"])
    return {"rewritten": rewritten, "plain": plain, "sample": Bundle.open(sample_bundle())}


def _engines(bundles: dict[str, Bundle]) -> Iterator[tuple[Bundle, Tower, Path]]:
    """List every engine that TensorRT may be given."""
    for bundle in bundles.values():
        for tower in (Tower.IMAGE, Tower.TEXT):
            for precision in set(bundle.precisions(tower)) & set(PRECISIONS):
                yield bundle, tower, bundle.engine(tower, precision)


def _feed(bundle: Bundle, tower: Tower) -> NDArray[Any]:
    probes = bundle.probes()
    if tower is Tower.IMAGE:
        return probes.towers[Tower.IMAGE].inputs
    ids = np.full((len(probes.towers[Tower.TEXT].inputs), bundle.text.context_length), bundle.text.pad_id, np.int32)
    for row, text in zip(ids, probes.towers[Tower.TEXT].inputs, strict=True):
        row[: len(text)] = text
    return ids


def _run(engine: bytes, tower: Tower, feed: NDArray[Any]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {INPUT[tower]: feed})[0]
    return result


def test_prepared_engines_compute_the_same(bundles: dict[str, Bundle]) -> None:
    """Every prepared engine is a valid graph whose embeddings are bit-equal to those of the bundle's engine."""
    engines = list(_engines(bundles))
    assert len(engines) == 2 * (3 + 2 + 1)
    for bundle, tower, engine in engines:
        prepared = prepare_engine(engine)
        onnx.checker.check_model(onnx.load_from_string(prepared), full_check=True)
        feed = _feed(bundle, tower)
        np.testing.assert_array_equal(_run(prepared, tower, feed), _run(engine.read_bytes(), tower, feed))


def test_nothing_but_a_cast_reads_the_pixels(bundles: dict[str, Bundle]) -> None:
    """In every bundle bytes are moved before they are cast, which is refused, and prepared they are cast first."""
    for _, tower, engine in _engines(bundles):
        if tower is Tower.TEXT:
            continue
        model = onnx.load(engine)
        with pytest.raises(EngineError, match="'image'"):
            check_graph(model)
        prepared = onnx.load_from_string(prepare_engine(engine))
        check_graph(prepared)
        assert [node.op_type for node in prepared.graph.node if "image" in node.input] == ["Cast"]


def test_preparing_again_changes_nothing(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    """A prepared engine is prepared already, and a text engine needs nothing."""
    image, text = (bundles["rewritten"].engine(tower, Precision.FP16) for tower in (Tower.IMAGE, Tower.TEXT))
    (tmp_path / "prepared.onnx").write_bytes(once := prepare_engine(image))
    assert prepare_engine(tmp_path / "prepared.onnx") == once
    assert prepare_engine(text) == onnx.load(text).SerializeToString()


def test_int8_of_processors_is_refused() -> None:
    """Of the precisions, int8 and unknown ones are an InputError that names the one for TensorRT."""
    assert check_precision("int8-tensorrt") is Precision.INT8_TENSORRT
    for precision in ("int8", "int4"):
        with pytest.raises(InputError, match="int8-tensorrt"):
            check_precision(precision)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Add", ["image", "image"], ["y"], "reader"),
        helper.make_node("DequantizeLinear", ["image", "scale", "zero"], ["y"], "reader"),  # as int8 engines have it
    ],
)
def test_pixels_that_are_computed_with(tmp_path: Path, node: onnx.NodeProto) -> None:
    """A graph that computes with bytes before they are cast is an EngineError that names the file."""
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.float32(1), "scale"), numpy_helper.from_array(np.uint8(0), "zero")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "a.onnx")
    with pytest.raises(EngineError, match=r"a\.onnx"):
        prepare_engine(tmp_path / "a.onnx")


def test_without_onnx(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError) as caught:
        prepare_engine(bundles["sample"].engine(Tower.IMAGE, Precision.FP32))
    assert (caught.value.package, caught.value.extra) == ("onnx", "quantize")
