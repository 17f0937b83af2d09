"""Token merging in an engine's graph, against the paper's algorithm on transformers' own modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import onnx
import torch
from torch import Tensor
from transformers import (
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from twinspire.bundle import ImageSettings
from twinspire.errors import InputError
from twinspire_export.engine_check import EngineRunner
from twinspire_export.families import chinese_clip, clip, siglip
from twinspire_export.onnx_export import Exporter, export_graph
from twinspire_export.random_checkpoints import randomize_weights
from twinspire_export.rewrite import ALL, apply_rewrites
from twinspire_export.token_merging import merge_tokens

TOLERANCE = 1e-5  # of components of unit vectors
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SETTINGS = ImageSettings.centre_crop(32, mean=MEAN, std=STD)
LAYERS = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4}
VISION = {**LAYERS, "image_size": 32, "patch_size": 8}
FAMILIES = {
    "clip": (CLIPModel, CLIPConfig, clip),
    "chinese-clip": (ChineseCLIPModel, ChineseCLIPConfig, chinese_clip),
    "siglip": (SiglipModel, SiglipConfig, siglip),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@cache
def _model(family: str) -> Any:
    """Make a small model whose every parameter is random. Not to be changed."""
    model_class, config, _ = FAMILIES[family]
    model = model_class(config(text_config=LAYERS, vision_config=VISION, projection_dim=24)).eval()
    randomize_weights(model, seed=0)
    return model


@cache
def _engine(folder: Path, family: str, rewrites: tuple[str, ...]) -> Path:
    _, _, module = FAMILIES[family]
    build: Any = getattr(module, "image_tower", clip.image_tower)
    tower = apply_rewrites(build(_model(family), SETTINGS), rewrites)
    path = folder / f"{family}-{len(rewrites)}.onnx"
    export_graph(tower, path, inputs={"image": torch.from_numpy(IMAGES[:2])}, exporter=Exporter.OPTIMUM)
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the function that exports an image tower, with all lossless rewrites or some."""
    folder = tmp_path_factory.mktemp("engines")
    return lambda family, rewrites=ALL: _engine(folder, family, rewrites)


def _embed(model: onnx.ModelProto, images: np.ndarray[Any, Any] = IMAGES) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(model, full_check=True)
    return EngineRunner(model.SerializeToString()).embed([images])


def _merge(metric: Tensor, hidden: Tensor, size: Tensor, r: int, *, class_token: bool) -> tuple[Tensor, Tensor]:
    """Merge as the paper's appendix D does, `bipartite_soft_matching` and `merge_wavg`, for metric (N, L, D)."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(-1, -2)
    if class_token:
        scores[:, 0, :] = -torch.inf
    node_max, node_idx = scores.max(dim=-1)
    edge_idx = node_max.argsort(dim=-1, descending=True, stable=True)[..., None]
    unmerged, sources = edge_idx[:, r:], edge_idx[:, :r]
    targets = node_idx[..., None].gather(dim=-2, index=sources)
    if class_token:
        unmerged = unmerged.sort(dim=1)[0]

    def reduce(values: Tensor) -> Tensor:
        src, dst = values[:, ::2], values[:, 1::2]
        n, length, width = src.shape
        kept = src.gather(1, unmerged.expand(n, length - r, width))
        moved = src.gather(1, sources.expand(n, r, width))
        return torch.cat([kept, dst.scatter_add(1, targets.expand(n, r, width), moved)], dim=1)

    total = reduce(size)
    return reduce(hidden * size) / total, total


def _attend(layer: Any, query: Tensor, key: Tensor, value: Tensor, size: Tensor, heads: int) -> Tensor:
    """Attend with projected tokens, proportionally to their sizes."""
    n, width = len(query), query.shape[-1]
    split = [each.reshape(n, -1, heads, width // heads).transpose(1, 2) for each in (query, key, value)]
    logits = split[0] @ split[1].transpose(2, 3) * (width // heads) ** -0.5 + size.log()[:, None, None, :, 0]
    mixed: Tensor = layer((logits.softmax(-1) @ split[2]).transpose(1, 2).reshape(n, -1, width))
    return mixed


@torch.inference_mode()
def _reference(family: str, r: int, images: np.ndarray[Any, Any] = IMAGES) -> np.ndarray[Any, Any]:
    """Encode by transformers' modules, with `r` tokens merged in every block."""
    model = _model(family)
    vision, class_token, heads = model.vision_model, family != "siglip", 4
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    hidden = vision.embeddings((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std)
    if class_token:
        hidden = vision.pre_layrnorm(hidden)
    size = torch.ones(*hidden.shape[:2], 1)
    for layer in vision.encoder.layers:
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        key = attention.k_proj(normed)
        hidden = hidden + _attend(
            attention.out_proj, attention.q_proj(normed), key, attention.v_proj(normed), size, heads
        )
        metric = key.reshape(*key.shape[:2], heads, -1).mean(dim=2)
        count = min(r, (hidden.shape[1] - class_token) // 2)
        if count:
            hidden, size = _merge(metric, hidden, size, count, class_token=class_token)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    if class_token:
        features = model.visual_projection(vision.post_layernorm(hidden[:, 0]))
    else:
        head, tokens = vision.head, vision.post_layernorm(hidden)
        inner = head.attention
        parts = zip(inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3), strict=True)
        query, key, value = (
            torch.nn.functional.linear(each, *part)
            for each, part in zip((head.probe.expand(len(tokens), -1, -1), tokens, tokens), parts, strict=True)
        )
        pooled = _attend(inner.out_proj, query, key, value, size, heads)
        features = (pooled + head.mlp(head.layernorm(pooled)))[:, 0]
    unit: np.ndarray[Any, Any] = torch.nn.functional.normalize(features, dim=-1).numpy()
    return unit


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rewrites", [ALL, ()], ids=["rewritten", "plain"])
def test_merged_engines_compute_the_papers_formulas(
    engine: Callable[..., Path], family: str, rewrites: tuple[str, ...]
) -> None:
    """For every r the embeddings are those of the paper's algorithm, and differ from those of the whole engine."""
    path = engine(family, rewrites)
    whole = EngineRunner(path).embed([IMAGES])
    for r in (1, 2, 3, 5):
        model = onnx.load(path)
        merge_tokens(model, r)
        found = _embed(model)
        difference = np.abs(found - _reference(family, r)).max()
        assert difference <= TOLERANCE, f"r {r}: largest difference {difference:.1e}"
        assert np.abs(found - whole).max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_no_merging_leaves_the_graph_as_it_is(engine: Callable[..., Path], family: str) -> None:
    """With r 0 the graph is the same, bit for bit, and its reference is transformers' model."""
    model = onnx.load(engine(family))
    before = model.SerializeToString()
    merge_tokens(model, 0)
    assert model.SerializeToString() == before
    assert np.abs(_embed(model) - _reference(family, 0)).max() <= TOLERANCE


def test_the_numbers_of_tokens_are_told(engine: Callable[..., Path]) -> None:
    """The last block does not merge, the class token is never merged, and at most half of the others are."""
    merged = {(family, r): merge_tokens(onnx.load(engine(family)), r) for family in ("clip", "siglip") for r in (3, 9)}
    assert merged == {
        ("clip", 3): (17, 14, 11, 8),
        ("clip", 9): (17, 9, 5, 3),
        ("siglip", 3): (16, 13, 10, 7, 4),
        ("siglip", 9): (16, 8, 4, 2, 1),
    }


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_equal_tokens_are_merged_alike_in_every_batch(engine: Callable[..., Path], family: str) -> None:
    """An image of one colour, whose patches tie, and others have the same embeddings alone, in a batch and again."""
    model = onnx.load(engine(family))
    merge_tokens(model, 4)
    images = np.concatenate([np.full((2, 32, 32, 3), 77, np.uint8), IMAGES])
    together = _embed(model, images)
    alone = np.concatenate([_embed(model, image[None]) for image in images])
    assert np.abs(together - alone).max() <= TOLERANCE
    assert np.array_equal(together, _embed(model, images))
    assert np.abs(together[0] - together[1]).max() <= TOLERANCE


def test_a_quantized_engine_merges_too(engine: Callable[..., Path]) -> None:
    """An int8 engine with r tokens merged is as near to the paper's result as the whole one is to the fp32 engine."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    from twinspire_export.quantization.quantizer import quantize_graph

    images = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3), np.uint8)
    int8 = quantize_graph(onnx.load(engine("clip")), [{"image": image[None]} for image in images])
    whole = (_embed(int8) * _reference("clip", 0)).sum(axis=1).min()
    lengths = merge_tokens(int8, 2)
    merged = (_embed(int8) * _reference("clip", 2)).sum(axis=1).min()
    assert lengths == (17, 15, 13, 11)
    assert whole > 0.99
    assert merged > 0.98, f"cosine {merged:.4f}; whole {whole:.4f}"


def test_negative_numbers_are_refused(engine: Callable[..., Path]) -> None:
    """A negative r is an InputError."""
    with pytest.raises(InputError, match="r -1"):
        merge_tokens(onnx.load(engine("clip")), -1)


def test_graphs_without_attention_are_refused() -> None:
    """A graph that is no transformer is an InputError that says what is expected."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["embedding"])],
        "none",
        [value("image", onnx.TensorProto.FLOAT, ["N", 4])],
        [value("embedding", onnx.TensorProto.FLOAT, ["N", 4])],
    )
    with pytest.raises(InputError, match="transformer"):
        merge_tokens(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), 2)
