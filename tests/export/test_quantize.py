"""A bundle gains int8 engines that are small, near to fp32, and made without torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the bundle to quantize is exported, which needs torch")
pytest.importorskip("nncf", reason="quantizing needs nncf")

import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper
from PIL import Image

from twinspire.bundle import MANIFEST_NAME, Bundle, Precision, Tower
from twinspire.errors import BundleError, EngineError, ImageError, InputError
from twinspire.tensorrt_support import check_symmetric
from twinspire.text import Tokenizer
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export import quantize as quantize_module
from twinspire_export.calibration import MAX_SAMPLES, split, subsample
from twinspire_export.engine_check import check_engine
from twinspire_export.quantization.node_roles import roles_of
from twinspire_export.quantization.recipe import Int8Recipe

WORDS = ("a", "red", "car", "boats", "on", "the", "sea", "at", "night", "一辆", "红色的", "汽车", "猫")


def draw_images(count: int, size: int) -> NDArray[np.uint8]:
    """Draw smooth random images, (count, size, size, 3) uint8."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in small])


def write_captions(count: int) -> list[str]:
    """Write random captions of one to eight words."""
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


def run(path: Path, feed: NDArray[np.uint8] | NDArray[np.int32]) -> NDArray[np.float32]:
    """Run an engine by onnxruntime alone."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    embedding: NDArray[np.float32] = session.run(["embedding"], {session.get_inputs()[0].name: feed})[0]
    return embedding


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a tiny bundle with fp32 engines, to be read only."""
    folder = tmp_path_factory.mktemp("base")
    return export_checkpoint(make_checkpoint(folder / "tiny-clip"), folder / "bundle")


@pytest.fixture(scope="module")
def quantized(base: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give that bundle with int8 engines, calibrated on 30 images and captions."""
    destination = tmp_path_factory.mktemp("quantized") / "bundle"
    return quantize_bundle(base, destination, images=draw_images(30, 32), captions=write_captions(30))


@pytest.mark.slow
def test_int8_engines_are_near_fp32(base: Bundle, quantized: Bundle) -> None:
    """On images and captions never seen, each int8 embedding has a cosine of at least 0.99 to the fp32 one."""
    pictures = draw_images(50, 32)[-8:]
    ids = Tokenizer(base.tokenizer_path, base.text).encode(["three people in the snow", "夜晚的海上"])
    for tower, feeds in ((Tower.IMAGE, [pictures]), (Tower.TEXT, [row[None] for row in ids])):
        for feed in feeds:
            measured = run(quantized.engine(tower, Precision.INT8), feed)
            norms = np.linalg.norm(measured, axis=1)
            assert np.abs(norms - 1).max() <= 1e-6, f"norms {norms}"
            cosines = (measured * run(base.engine(tower, Precision.FP32), feed)).sum(axis=1)
            assert cosines.min() >= 0.99, f"{tower}: least cosine {cosines.min()}"
            assert cosines.max() < 1 - 1e-7, f"{tower}: nothing was quantized, cosines {cosines}"


@pytest.mark.slow
def test_family_that_this_version_does_not_know(base: Bundle, tmp_path: Path) -> None:
    """A bundle of an unknown family is quantized by what its graphs hold, and keeps its family."""
    copy = shutil.copytree(base.path, tmp_path / "later")
    manifest = copy / MANIFEST_NAME
    document = json.loads(manifest.read_text(encoding="utf-8")) | {"family": "made-in-2031"}
    manifest.write_text(json.dumps(document), encoding="utf-8")
    images, captions = draw_images(10, 32), write_captions(10)
    quantized = quantize_bundle(copy, tmp_path / "int8", images=images, captions=captions)
    assert quantized.manifest.family == "made-in-2031"
    assert quantized.precisions(Tower.IMAGE) == (Precision.FP32, Precision.INT8)


def test_certificates_tell_what_was_measured(base: Bundle, quantized: Bundle) -> None:
    """The certificates give the cosines to the fp32 engines on every fifth sample, which was kept from calibration."""
    pictures = [picture[None] for picture in draw_images(30, 32)[::5]]
    captions = Tokenizer(base.tokenizer_path, base.text).encode(write_captions(30)[::5])
    for tower, feeds in ((Tower.IMAGE, pictures), (Tower.TEXT, [row[None] for row in captions])):
        certificate = quantized.manifest.engines[tower][Precision.INT8].certificate
        assert certificate is not None
        int8, fp32 = quantized.engine(tower, Precision.INT8), base.engine(tower, Precision.FP32)
        cosines = np.array([float((run(int8, feed) * run(fp32, feed)).sum()) for feed in feeds])
        assert (certificate.reference, certificate.samples) == ("fp32 engine", 6)
        assert re.findall(r"\d+", certificate.data) == ["6", "24"]
        difference = abs(certificate.min_cosine - cosines.min()) + abs(certificate.mean_cosine - cosines.mean())
        assert difference <= 1e-6, f"{tower}: difference {difference}"
        assert set(certificate.versions) == {"nncf", "onnx", "onnxruntime"}


def test_weights_are_stored_as_int8(quantized: Bundle) -> None:
    """Every weight of a product but the projection's is an int8 initializer with a scale for each output channel."""
    for tower in (Tower.IMAGE, Tower.TEXT):
        model = onnx.load(quantized.engine(tower, Precision.INT8))
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        producers = {node.output[0]: node for node in model.graph.node}
        quantize = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert not set(quantize) & constants.keys(), "weights are quantized at every run"
        weights = 0
        for product in (node for node in model.graph.node if node.op_type in ("MatMul", "Conv", "Gemm")):
            in_float = set(product.input) & constants.keys()
            assert not in_float or "projection" in product.name, f"{product.name} has a weight in fp32"
            source = producers.get(product.input[1])
            if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in constants:
                weight, scale = constants[source.input[0]], constants[source.input[1]]
                assert (weight.dtype, scale.shape) == (np.int8, weight.shape[-1:])
                assert not constants[source.input[2]].any()
                weights += 1
        assert weights >= 2 * 4  # four or more in each of two layers


def test_activations_keep_their_precision(quantized: Bundle) -> None:
    """Symmetric ranges have the zero point in the middle, of int8 or uint8; pixels are taken as the bytes they are."""
    for tower in (Tower.IMAGE, Tower.TEXT):
        model = onnx.load(quantized.engine(tower, Precision.INT8))
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        zero_points = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        assert len(zero_points) >= 2 * 4
        assert {(str(point.dtype), int(point)) for point in zero_points} <= {("int8", 0), ("uint8", 128)}
        pixels = [
            (float(constants[node.input[1]]), int(constants[node.input[2]]))
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and constants[node.input[2]].dtype == np.uint8
            if not any(node.input[0] in other.output for other in model.graph.node if other.op_type == "QuantizeLinear")
        ]
        assert pixels == ([(1.0, 0)] if tower is Tower.IMAGE else [])


def test_token_table_is_not_dequantized_whole(quantized: Bundle) -> None:
    """The text engine looks rows up in the int8 table: no DequantizeLinear has a table of the vocabulary's height."""
    model = onnx.load(quantized.engine(Tower.TEXT, Precision.INT8))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    gathered = [constants[n.input[0]] for n in model.graph.node if n.op_type == "Gather" and n.input[0] in constants]
    assert TensorProto.INT8 in {tensor.data_type for tensor in gathered}
    heights = {
        constants[node.input[0]].dims[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    assert 323 not in heights


def test_engines_follow_the_contract(base: Bundle, quantized: Bundle) -> None:
    """The int8 engines are valid, of standard operators, with the same inputs and outputs as the fp32 ones."""
    for tower in (Tower.IMAGE, Tower.TEXT):
        check_engine(quantized.engine(tower, Precision.INT8), tower, base.manifest.tower(tower))


def test_new_bundle_is_the_old_one_and_more(base: Bundle, quantized: Bundle) -> None:
    """Name, space and settings stay; equal files are hard links; the old bundle is untouched."""
    again = Bundle.open(quantized.path)
    assert again.manifest.draft() == base.manifest.draft()
    for tower in (Tower.IMAGE, Tower.TEXT):
        assert again.precisions(tower) == (Precision.FP32, Precision.INT8)
        assert Bundle.open(base.path).precisions(tower) == (Precision.FP32,)
    for name in ("image.fp32.onnx", "text.fp32.onnx", "tokenizer.json", "probes.npz"):
        assert (again.path / name).samefile(base.path / name)


@pytest.mark.slow
def test_quantizing_is_reproducible(base: Bundle, quantized: Bundle, tmp_path: Path) -> None:
    """The same samples give the same engines, byte by byte."""
    again = quantize_bundle(base, tmp_path / "again", images=draw_images(30, 32), captions=write_captions(30))
    assert again.manifest == quantized.manifest


@pytest.mark.slow
def test_image_files_and_few_samples(base: Bundle, tmp_path: Path) -> None:
    """Files are prepared as the client prepares them; under 20 samples none is held apart, and that is said."""
    files = []
    for position, picture in enumerate(draw_images(4, 60)):
        files.append(tmp_path / f"{position}.png")
        Image.fromarray(picture).save(files[-1])
    bundle = quantize_bundle(base, tmp_path / "bundle", images=files, captions=["a red car", "两艘小船"])
    image = bundle.manifest.engines[Tower.IMAGE][Precision.INT8].certificate
    text = bundle.manifest.engines[Tower.TEXT][Precision.INT8].certificate
    assert image is not None
    assert text is not None
    assert (image.data, image.samples) == ("the 4 images calibrated on", 4)
    assert (text.data, text.samples) == ("the 2 captions calibrated on", 2)


SCRIPT = """
import sys

class Hiding:
    '''A finder that finds no torch, as where it is not installed.'''
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torch", "transformers", "optimum")
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.path[:0] = sys.argv[3:]
import numpy as np
from twinspire_export import quantize_bundle
pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
bundle = quantize_bundle(sys.argv[1], sys.argv[2], images=pictures, captions=["a cat", "一只猫"])
assert "torch" not in sys.modules
try:
    from twinspire_export import export_checkpoint
except Exception as error:
    print(error)
"""


@pytest.mark.slow
def test_needs_no_torch_and_says_nothing(base: Bundle, tmp_path: Path) -> None:
    """Without torch, quantizing works and prints nothing, and exporting names the extra that brings torch."""
    roots = [str(Path(__file__).parents[2] / room) for room in ("client", "bench", "export")]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(base.path), str(tmp_path / "bundle"), *roots],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (message,) = done.stdout.splitlines()
    assert "'torch'" in message
    assert ".[export]" in message
    assert Bundle.open(tmp_path / "bundle").precisions(Tower.TEXT) == (Precision.FP32, Precision.INT8)


def test_bundle_with_int8_engines(quantized: Bundle, tmp_path: Path) -> None:
    """A bundle that has int8 engines is refused."""
    with pytest.raises(BundleError, match="already"):
        quantize_bundle(quantized, tmp_path / "again", images=draw_images(2, 32), captions=["a"])
    assert list(tmp_path.iterdir()) == []


def test_existing_destination(base: Bundle, tmp_path: Path) -> None:
    """A destination that exists is refused."""
    with pytest.raises(BundleError, match="exists"):
        quantize_bundle(base, tmp_path, images=draw_images(2, 32), captions=["a"])


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (np.zeros((0, 32, 32, 3), np.uint8), "calibrate"),
        ([], "calibrate"),
        (np.zeros((2, 31, 32, 3), np.uint8), r"\(N, 32, 32, 3\)"),
        (np.zeros((2, 32, 32, 3), np.float32), r"\(N, 32, 32, 3\)"),
    ],
)
def test_bad_images(base: Bundle, tmp_path: Path, pictures: NDArray[np.uint8], said: str) -> None:
    """No images, or arrays of another shape or dtype, are an InputError, and nothing is left."""
    with pytest.raises(InputError, match=said):
        quantize_bundle(base, tmp_path / "bundle", images=pictures, captions=["a"])
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_no_image(base: Bundle, tmp_path: Path) -> None:
    """A file that is no image is an ImageError with its position, and nothing is left."""
    files = [tmp_path / "good.png", tmp_path / "bad.png"]
    Image.fromarray(draw_images(1, 40)[0]).save(files[0])
    files[1].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"bad\.png") as caught:
        quantize_bundle(base, tmp_path / "bundle", images=files, captions=["a"])
    assert (caught.value.position, caught.value.name) == (1, str(files[1]))
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_no_captions(base: Bundle, tmp_path: Path) -> None:
    """No captions are an InputError, and nothing is left."""
    with pytest.raises(InputError, match="captions"):
        quantize_bundle(base, tmp_path / "bundle", images=draw_images(2, 32), captions=[])
    assert list(tmp_path.iterdir()) == []


def test_engine_that_lost_its_meaning(base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An int8 engine far from fp32 is refused, not certified, and nothing is left."""
    other = base.engine(Tower.IMAGE, Precision.FP32)

    def write_other(reference: Path, samples: object, destination: Path, **_: object) -> None:
        model = onnx.load(other)
        projection = next(t for t in model.graph.initializer if list(t.dims) == [32, 24])
        projection.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(projection), projection.name))
        bias = [t for t in model.graph.initializer if t.name.endswith("projection.bias")]
        for tensor in bias:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        onnx.save(model, destination)

    monkeypatch.setattr(quantize_module, "write_engine", write_other)
    with pytest.raises(EngineError, match="usable"):
        quantize_bundle(base, tmp_path / "bundle", images=draw_images(2, 32), captions=["a"], min_cosine=None)
    assert list(tmp_path.iterdir()) == []


def test_samples_are_split_evenly() -> None:
    """At most 320 samples are taken, evenly; a fifth is kept apart where there are 20, none where there are fewer."""
    taken = subsample(range(1000))
    assert len(taken) == len(set(taken)) == MAX_SAMPLES
    assert (taken[0], max(np.diff(taken))) == (0, 4)
    parts = split(taken)
    assert (len(parts.measurement), len(parts.calibration), parts.held_out) == (64, 256, True)
    assert not set(parts.measurement) & set(parts.calibration)
    few = split(list("abcdefghijklmnopqrs"))
    assert (few.calibration, few.held_out) == (few.measurement, False)


@pytest.fixture(scope="module")
def half(base: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give that bundle with fp16 engines."""
    destination = tmp_path_factory.mktemp("half") / "bundle"
    return quantize_bundle(base, destination, precision="fp16", images=draw_images(30, 32), captions=write_captions(30))


def test_fp16_engines_are_near_fp32(base: Bundle, half: Bundle) -> None:
    """fp16 engines follow the contract, are half as large, and give embeddings of a cosine of at least 0.99999."""
    for tower in (Tower.IMAGE, Tower.TEXT):
        engines = half.manifest.engines[tower]
        check_engine(half.engine(tower, Precision.FP16), tower, base.manifest.tower(tower))
        certificate = engines[Precision.FP16].certificate
        assert certificate is not None
        assert certificate.min_cosine >= 0.99999
        assert set(certificate.versions) == {"onnx", "onnxruntime"}
        weights = [
            sum(len(tensor.raw_data) for tensor in onnx.load(half.engine(tower, precision)).graph.initializer)
            for precision in (Precision.FP32, Precision.FP16)
        ]
        assert weights[1] < 0.55 * weights[0]


@pytest.mark.slow
def test_int8_for_tensorrt(base: Bundle, tmp_path: Path) -> None:
    """The variant for TensorRT has signed pairs alone, fp16 between them, and keeps the token table out of them."""
    made = quantize_bundle(
        base,
        tmp_path / "bundle",
        precision=Precision.INT8_TENSORRT,
        images=draw_images(30, 32),
        captions=write_captions(30),
    )
    for tower in (Tower.IMAGE, Tower.TEXT):
        engine = made.engine(tower, Precision.INT8_TENSORRT)
        check_engine(engine, tower, base.manifest.tower(tower))
        model = onnx.load(engine)
        check_symmetric(model)
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        scales = {
            constants[node.input[1]].data_type
            for node in model.graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        }
        assert scales == {TensorProto.FLOAT16}
        weights = [
            numpy_helper.to_array(constants[node.input[0]])
            for node in model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in constants
        ]
        assert len(weights) >= 2 * 4
        assert min(weight.min() for weight in weights) >= -127
        tables = [constants[n.input[0]] for n in model.graph.node if n.op_type == "Gather" and n.input[0] in constants]
        assert TensorProto.INT8 not in {table.data_type for table in tables}
        certificate = made.manifest.engines[tower][Precision.INT8_TENSORRT].certificate
        assert certificate is not None
        assert certificate.mean_cosine >= 0.99


@pytest.mark.slow
def test_precisions_add_up(half: Bundle, tmp_path: Path) -> None:
    """A bundle with one precision can be given another; one that is no precision to quantize to is refused."""
    both = quantize_bundle(half, tmp_path / "both", images=draw_images(2, 32), captions=["a"])
    assert both.precisions(Tower.IMAGE) == (Precision.FP32, Precision.FP16, Precision.INT8)
    for precision in ("fp32", "int4"):
        with pytest.raises(InputError, match="int8-tensorrt"):
            quantize_bundle(half, tmp_path / "again", precision=precision)
    with pytest.raises(BundleError, match="already"):
        quantize_bundle(half, tmp_path / "again", precision="fp16")


@pytest.mark.slow
def test_recipe_of_a_tower(base: Bundle, tmp_path: Path) -> None:
    """A recipe changes the tower that it is for: what it leaves out has no quantizer."""
    recipes = {Tower.IMAGE: Int8Recipe(keep_float=("mlp-down", "mlp-up:0"))}
    made = quantize_bundle(
        base, tmp_path / "bundle", images=draw_images(2, 32), captions=["a"], recipes=recipes, min_cosine=None
    )
    quantized = {}
    for tower in (Tower.IMAGE, Tower.TEXT):
        model = onnx.load(made.engine(tower, Precision.INT8))
        sources = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        parts = roles_of(onnx.load(base.engine(tower, Precision.FP32)))
        quantized[tower] = {
            parts[node.name].labels[-1] for node in model.graph.node if node.name in parts and node.input[1] in sources
        }
    assert {"mlp-down:0", "mlp-down:1", "mlp-up:0", "mlp-up:1"} - quantized[Tower.IMAGE] == {
        "mlp-down:0", "mlp-down:1", "mlp-up:0",
    }  # fmt: skip
    assert {"mlp-down:0", "mlp-down:1", "mlp-up:0", "mlp-up:1"} <= quantized[Tower.TEXT]
    assert "projection" not in quantized[Tower.TEXT]


@pytest.mark.slow
def test_bad_images_are_left_out(base: Bundle, tmp_path: Path) -> None:
    """With somebody to tell, a file that is no image is left out; where fewer than 20 stay, that is an InputError."""
    files = []
    for position, picture in enumerate(draw_images(21, 40)):
        files.append(tmp_path / f"{position}.png")
        Image.fromarray(picture).save(files[-1])
    files[3].write_bytes(b"no picture")
    bad: list[ImageError] = []
    bundle = quantize_bundle(base, tmp_path / "bundle", images=files, captions=["a"], on_bad_item=bad.append)
    certificate = bundle.manifest.engines[Tower.IMAGE][Precision.INT8].certificate
    assert certificate is not None
    assert [error.position for error in bad] == [3]
    assert re.findall(r"\d+", certificate.data) == ["4", "16"]
    files[5].write_bytes(b"no picture either")
    with pytest.raises(InputError, match=r"\b3\.png"):
        quantize_bundle(base, tmp_path / "again", images=files, captions=["a"], on_bad_item=bad.append)
    assert not (tmp_path / "again").exists()


def test_fp16_engine_that_overflows(base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that fp16 cannot hold, of a token that no sample has, is an EngineError, and nothing is left."""
    load = onnx.load

    def load_large(path: Path, **options: Any) -> onnx.ModelProto:
        model = load(path, **options)
        for tensor in model.graph.initializer:
            if list(tensor.dims) == [323, 32]:
                table = numpy_helper.to_array(tensor).copy()
                table[5] = 1e6
                tensor.CopyFrom(numpy_helper.from_array(table, tensor.name))
        return model

    monkeypatch.setattr(onnx, "load", load_large)
    with pytest.raises(EngineError, match=r"1e\+06"):
        quantize_bundle(base, tmp_path / "b", precision="fp16", images=draw_images(2, 32), captions=["a"])
    assert list(tmp_path.iterdir()) == []
