"""Int8 and fp16 engines of models with outliers as trained transformers have them.

Outlier channels of the residual stream (https://arxiv.org/abs/2208.07339) and massive activations of single tokens
(https://arxiv.org/abs/2402.17762).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the bundle to quantize is exported, which needs torch")
pytest.importorskip("nncf", reason="quantizing needs nncf")

import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor
from transformers import CLIPModel

from twinspire.bundle import Bundle, Certificate, Precision, Tower
from twinspire.errors import EngineError
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.calibration import scene_captions, scene_images
from twinspire_export.engine_check import EngineRunner, open_engine
from twinspire_export.outlier_checkpoints import add_massive_activations, add_outliers
from twinspire_export.quantization.float_fallback import restore_float
from twinspire_export.quantization.outlier_channels import outliers_of, remove_masks, split_outliers
from twinspire_export.quantization.quantizer import prepare, run_nncf
from twinspire_export.quantization.recipe import DEFAULT_RECIPE
from twinspire_export.random_checkpoints import ModelSize, random_model, save_random_checkpoint

COSINE = 0.995
"""What the worst held-out sample must reach, in both towers."""

MOST_IN_FLOAT = {"20 times": 8, "100 times": 14, "massive": 2}
"""Labels such as `mlp-down:3` and `tokens`, of the 21 of four blocks at ViT-B/32's width."""

SAMPLES = 40
"""Images and captions; a fifth is held out."""

KINDS: dict[str, Callable[[CLIPModel], Any]] = {
    "20 times": lambda model: add_outliers(model, factor=20),
    "100 times": lambda model: add_outliers(model, factor=100),
    "massive": add_massive_activations,
}


def make_bundle(size: ModelSize, kind: str, folder: Path) -> Bundle:
    """Export a random model of four blocks with outliers."""
    checkpoint = save_random_checkpoint(size, folder / "checkpoint")
    text = CLIPModel.from_pretrained(checkpoint).config.text_config
    model = random_model(size, layers=4, start_id=text.bos_token_id, end_id=text.eos_token_id)
    KINDS[kind](model)
    model.save_pretrained(checkpoint)
    return export_checkpoint(checkpoint, folder / "fp32", name="outliers")


def certificates(base: Bundle, folder: Path, precision: Precision, **options: Any) -> dict[Tower, Certificate]:
    """Quantize a bundle on scenes; return the certificates of both towers."""
    samples: dict[str, Any] = {"images": scene_images()[:SAMPLES], "captions": scene_captions()[:SAMPLES]}
    made = quantize_bundle(base, folder, precision=precision, **samples, **options)
    found = {tower: made.manifest.engines[tower][precision].certificate for tower in made.towers}
    for tower, certificate in found.items():
        print(precision, tower, certificate)
    return {tower: certificate for tower, certificate in found.items() if certificate is not None}


@pytest.fixture(scope="module", params=KINDS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a tiny bundle of each kind."""
    return make_bundle(ModelSize.TINY, request.param, tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_int8_holds(tiny: Bundle, tmp_path: Path) -> None:
    """Every held-out sample keeps its embedding in int8, whatever the outliers."""
    for tower, certificate in certificates(tiny, tmp_path / "int8", Precision.INT8).items():
        assert certificate.min_cosine >= COSINE, f"{tower}: {certificate}"


@pytest.mark.slow
def test_recipe_alone_falls_short(tmp_path: Path) -> None:
    """Kept to its recipe, a tiny int8 text tower with outliers is below the bar: the test above can fail."""
    base = make_bundle(ModelSize.TINY, "20 times", tmp_path)
    kept = certificates(base, tmp_path / "kept", Precision.INT8, min_cosine=None)
    assert kept[Tower.TEXT].min_cosine < COSINE - 0.01
    assert kept[Tower.TEXT].split_layers is kept[Tower.TEXT].float_layers is None


@pytest.mark.slow
def test_fp16_holds(tiny: Bundle, tmp_path: Path) -> None:
    """So do the engines in fp16."""
    for tower, certificate in certificates(tiny, tmp_path / "made", Precision.FP16).items():
        assert certificate.min_cosine >= COSINE, f"{tower}: {certificate}"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "smallest"), [("massive", COSINE), ("20 times", 0.99), ("100 times", 0.99)])
def test_int8_for_tensorrt_holds(tmp_path: Path, kind: str, smallest: float) -> None:
    """int8 between fp16 holds massive activations; outlier channels cost a little more, as fp16 rounds beside them."""
    base = make_bundle(ModelSize.TINY, kind, tmp_path)
    for tower, certificate in certificates(base, tmp_path / "made", Precision.INT8_TENSORRT).items():
        assert certificate.min_cosine >= smallest, f"{tower}: {certificate}"


@pytest.mark.slow
def test_no_layer_can_be_int8_for_tensorrt(tmp_path: Path) -> None:
    """Where all layers would stay in float, an EngineError says to use fp16."""
    base = make_bundle(ModelSize.TINY, "20 times", tmp_path)
    with pytest.raises(EngineError, match="fp16"):
        certificates(base, tmp_path / "made", Precision.INT8_TENSORRT, min_cosine=1.0)
    assert not (tmp_path / "made").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["20 times"])
def test_vit_b_32_holds(tmp_path: Path, kind: str) -> None:
    """At ViT-B/32's width and resolution the bar is met with most layers in int8."""
    base = make_bundle(ModelSize.VIT_B_32, kind, tmp_path)
    for tower, certificate in certificates(base, tmp_path / "int8", Precision.INT8).items():
        assert certificate.min_cosine >= COSINE, f"{tower}: {certificate}"
        assert len(certificate.float_layers or ()) <= MOST_IN_FLOAT[kind], f"{tower}: {certificate}"


@torch.no_grad()
def residuals(model: CLIPModel, tower: str) -> list[Tensor]:
    """Run images or texts; return the residual stream (N, L, W) before each block."""
    found: list[Tensor] = []
    layers = getattr(model, f"{tower}_model").encoder.layers
    hooks = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0])) for layer in layers]
    generator = torch.Generator().manual_seed(11)
    if tower == "vision":
        size = model.config.vision_config.image_size
        smooth = torch.randn(4, 3, 7, 7, generator=generator)
        model.get_image_features(torch.nn.functional.interpolate(smooth, size=size, mode="bicubic"))
    else:
        config = model.config.text_config
        ids = torch.randint(0, config.bos_token_id, (4, 9), generator=generator)
        ids[:, 0], ids[:, -1] = config.bos_token_id, config.eos_token_id
        model.get_text_features(ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("factor", [20, 100])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_outlier_channels_are_there(tower: str, factor: int) -> None:
    """Before each block, the five channels are about `factor` times as large as the others, each at least a third."""
    model = random_model(ModelSize.TINY, layers=3)
    chosen = add_outliers(model, channels=5, factor=factor)
    for hidden in residuals(model, tower):
        channels = hidden.square().mean(dim=(0, 1)).sqrt()  # (W,)
        ratios = channels / channels.median()
        others = np.delete(ratios.numpy(), chosen)
        print(f"{tower}: outliers {ratios[chosen].tolist()}, others up to {others.max():.1f}")
        assert ratios[chosen].min() >= factor / 3
        assert ratios[chosen].mean() >= 0.8 * factor
        assert others.max() < 4


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_massive_activations_are_there(tower: str) -> None:
    """Behind the second block, the tokens that are named hold hundreds in one channel each; no other value is near."""
    model = random_model(ModelSize.TINY, layers=4)
    made = add_massive_activations(model, layer=1, value=500)[tower]
    before, after = residuals(model, tower)[1:3]
    assert before.abs().max() < 50
    for token, channel in made:
        found = after[:, token, channel]
        print(f"{tower}: {found.tolist()} against a median of {after.abs().median()}")
        assert found.min() > 100
        assert found.mean() > 300
        after[:, token, channel] = 0
    assert after.abs().max() < 50


@torch.no_grad()
def test_attention_rests_on_massive_activations() -> None:
    """The start token gets much of the attention of later blocks, and little of it before."""
    model = random_model(ModelSize.TINY, layers=4)
    ids = torch.randint(0, 40000, (4, 12), generator=torch.Generator().manual_seed(3))
    ids[:, 0], ids[:, -1] = model.config.text_config.bos_token_id, model.config.text_config.eos_token_id

    def share() -> float:
        model.text_model.config._attn_implementation = "eager"
        attentions = model.text_model(ids, output_attentions=True).attentions
        return float(attentions[3][:, :, 6:, 0].mean())

    before = share()
    add_massive_activations(model)
    after = share()
    print(f"share of the start token: {before:.3f}, with a massive activation {after:.3f}")
    assert after > max(0.3, 2 * before)


def test_restored_layers_compute_in_float(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """With every layer returned to float, NNCF's graph computes what the float graph did: bias, smoothing and all."""
    base = export_checkpoint(make_checkpoint(tmp_path / "tiny-clip"), tmp_path / "fp32")
    ids = [np.array([[1, 40, 60, 2]], np.int32), np.array([[1, 90, 2]], np.int32)]
    feeds = [{"input_ids": row} for row in ids]
    prepared = prepare(onnx.load(base.engine(Tower.TEXT, Precision.FP32)), DEFAULT_RECIPE)
    original = onnx.ModelProto()
    original.CopyFrom(prepared.model)
    quantized = run_nncf(prepared, feeds)
    expected = EngineRunner(base.engine(Tower.TEXT, Precision.FP32)).embed(ids)
    before = np.abs(EngineRunner(quantized.SerializeToString()).embed(ids) - expected).max()
    restore_float(quantized, original, list(prepared.quantized))
    after = np.abs(EngineRunner(quantized.SerializeToString()).embed(ids) - expected).max()
    print(f"largest difference to float: {before} in int8, {after} restored")
    assert before > 1e-3
    assert after <= 1e-6
    assert "QuantizeLinear" not in {node.op_type for node in quantized.graph.node}


def product(channels: int = 64) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """Build a product of (N, K) with a weight (K, 6), and draw an input with two outlier channels, 3 and 7."""
    rng = np.random.default_rng(2)
    given = rng.normal(0, 1, (20, channels)).astype(np.float32)
    given[:, [3, 7]] *= 50
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [onnx.numpy_helper.from_array(rng.normal(0, 1, (channels, 6)).astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), given


def run(model: onnx.ModelProto, given: NDArray[np.float32], name: str = "y") -> NDArray[np.float32]:
    """Run a model."""
    values: NDArray[np.float32] = open_engine(model.SerializeToString(), "graph").run([name], {"x": given})[0]
    return values


def test_split_product_is_equal() -> None:
    """Split by channels, the product is the same up to rounding, with the masks and without them."""
    model, given = product()
    expected = run(model, given)
    split = split_outliers(model, ["product"], [{"x": given}], 2.0)
    assert split.layers == ("product",)
    onnx.checker.check_model(model)
    masked = run(model, given)
    assert np.abs(masked - expected).max() <= 1e-4, np.abs(masked - expected).max()
    remove_masks(model, split.masks)
    assert np.array_equal(run(model, given), masked)
    assert "Mul" not in {node.op_type for node in model.graph.node}


def test_ordinary_product_is_not_split() -> None:
    """A layer without outliers keeps its graph."""
    model, given = product()
    before = model.SerializeToString()
    assert split_outliers(model, ["product"], [{"x": np.clip(given, -3, 3)}], 2.0).layers == ()
    assert run(onnx.load_from_string(before), given).tobytes() == run(model, given).tobytes()


def test_outlier_channels_by_size() -> None:
    """A channel is an outlier above the factor times the usual, at most an eighth of all and sixteen."""
    usual = np.linspace(1, 2, 400, dtype=np.float32)
    usual[[9, 300]] = 9, 4.1
    assert outliers_of(usual, 2.0).tolist() == [9, 300]
    assert outliers_of(usual, 5.0).tolist() == []
    many = np.where(np.arange(400) % 20 == 0, 9, 1).astype(np.float32)  # twenty are no exception
    assert outliers_of(many, 2.0).tolist() == []
    assert outliers_of(np.array([1, 1, 1, 99], np.float32), 2.0).tolist() == []
