"""BERT-like text towers against transformers' own models: layouts, poolings, padding, rewrites, roles, settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the export needs torch")

import onnx
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AlignTextConfig,
    AlignTextModel,
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    ClapTextConfig,
    ClapTextModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.activations import ACT2FN

from twinspire.bundle import Padding
from twinspire.errors import CheckpointError
from twinspire_export.engine_check import EngineRunner
from twinspire_export.families.bert_text import text_settings
from twinspire_export.families.huggingface import tokenizer_json
from twinspire_export.fp16 import to_fp16
from twinspire_export.onnx_export import Exporter, export_graph
from twinspire_export.quantization.node_roles import NodeRole, roles_of
from twinspire_export.quantization.quantizer import quantize_graph
from twinspire_export.rewrite import ALL, REWRITES, apply_rewrites
from twinspire_export.text_encoder import TextEncoder, TextPooling, encoder_of

TOLERANCE = 2e-6  # of components of unit vectors; float32 sums in another order
MIN_COSINE = 0.99999
VOCABULARY, POSITIONS, WIDTH, DIM = 60, 24, 32, 20
LENGTHS = {1: (2,), 3: (9, 2, 5), 17: (*range(2, 18), 20)}  # of texts by batch size

LAYOUTS: dict[str, tuple[type[Any], type[Any], dict[str, int]]] = {
    "bert": (BertConfig, BertModel, {"pad_token_id": 0, "type_vocab_size": 2}),
    "bert that pads with 7": (BertConfig, BertModel, {"pad_token_id": 7, "type_vocab_size": 2}),
    "roberta": (RobertaConfig, RobertaModel, {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, {"pad_token_id": 1, "type_vocab_size": 1}),
    "camembert": (CamembertConfig, CamembertModel, {"pad_token_id": 1, "type_vocab_size": 1}),
    "align": (AlignTextConfig, AlignTextModel, {"pad_token_id": 0, "type_vocab_size": 2}),
    "clap": (ClapTextConfig, ClapTextModel, {"pad_token_id": 1, "type_vocab_size": 1}),
}
APPLICABLE = tuple(name for name in ALL if issubclass(TextEncoder, REWRITES[name].tower))


@cache
def text_model(layout: str, *, activation: str = "gelu", layers: int = 3) -> Any:
    """Make a small model whose every parameter is drawn, those of norms, biases and padding too. Not to be changed."""
    config_class, model_class, settings = LAYOUTS[layout]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_attention_heads=4,
        num_hidden_layers=layers,
        max_position_embeddings=POSITIONS,
        hidden_act=activation,
        attn_implementation="eager",
        **settings,
    )
    return randomized(model_class(config).eval(), seed=3)


def randomized(model: Any, *, seed: int = 0) -> Any:
    """Fill every parameter of `model`: as initialised, biases are 0 and norms 1, and mistakes in them go unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() and name.endswith("weight")
            spread = 0.3 if parameter.dim() == 1 or "embeddings" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * spread + (1.0 if is_norm else 0.0))
    return model


def texts(batch: int, pad_id: int, *, extra: int = 0) -> Tensor:
    """Draw (batch, L + extra) int32 of the lengths LENGTHS[batch], L the longest, padded on the right."""
    generator = torch.Generator().manual_seed(batch)
    lengths = LENGTHS[batch]
    ids = torch.randint(8, VOCABULARY, (batch, max(lengths) + extra), generator=generator)
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = pad_id
    return ids.to(torch.int32)


def states(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return transformers' last hidden states (N, L, W) and the attention mask (N, L)."""
    mask = (ids != model.config.pad_token_id).long()
    return model(input_ids=ids.long(), attention_mask=mask).last_hidden_state, mask


def first_token(model: Any, ids: Tensor) -> Tensor:
    """Pool as CLIP-like models with BERT do."""
    return states(model, ids)[0][:, 0]


def mean(model: Any, ids: Tensor) -> Tensor:
    """Pool by the formula of sentence-transformers, models/Pooling.py."""
    hidden, mask = states(model, ids)
    expanded = mask.unsqueeze(-1).expand(hidden.size()).float()
    return torch.sum(hidden * expanded, 1) / torch.clamp(expanded.sum(1), min=1e-9)


def pooler(model: Any, ids: Tensor) -> Tensor:
    """Take transformers' own pooler: dense and tanh on the first token."""
    return model(input_ids=ids.long(), attention_mask=(ids != model.config.pad_token_id).long()).pooler_output


REFERENCES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "first token": (first_token, {}),
    "mean": (mean, {"pooling": TextPooling.MEAN}),
    "pooler": (pooler, {"pooler": True}),
}


@cache
def head(kind: str) -> nn.Sequential:
    """Make what follows the pooling."""
    made = {
        "none": nn.Sequential(),
        "linear": nn.Sequential(nn.Linear(WIDTH, DIM, bias=False)),
        "linear with bias": nn.Sequential(nn.Linear(WIDTH, DIM)),
        "mlp": nn.Sequential(nn.Linear(WIDTH, DIM), nn.ReLU(), nn.Linear(DIM, DIM)),
        "norm and linears": nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, DIM, bias=False)),
    }[kind]
    return randomized(made.eval(), seed=9)


def assert_equal(tower: nn.Module, expected: Callable[[Tensor], Tensor], pad_id: int) -> None:
    """Compare `tower` with features by transformers over batch sizes, mixed lengths and more padding than needed."""
    largest, smallest = 0.0, 1.0
    for batch, extra in itertools.product(LENGTHS, (0, 2)):
        ids = texts(batch, pad_id, extra=extra)
        with torch.inference_mode():
            found, features = tower(ids), expected(ids)
        assert (found.norm(dim=-1) - 1).abs().max() < 1e-6
        unit = torch.nn.functional.normalize(features, dim=-1)
        largest = max(largest, (found - unit).abs().max().item())
        smallest = min(smallest, torch.nn.functional.cosine_similarity(found, features).min().item())
    print(f"largest difference {largest:.1e}, smallest cosine {smallest:.7f}")
    assert largest <= TOLERANCE, f"largest difference {largest}"
    assert smallest >= MIN_COSINE, f"smallest cosine {smallest}"


def reference(model: Any, pooling: str, kind: str) -> Callable[[Tensor], Tensor]:
    """Return the function that gives transformers' features of token ids."""
    pool = REFERENCES[pooling][0]
    return lambda ids: head(kind)(pool(model, ids))


def tower_of(model: Any, pooling: str, kind: str) -> TextEncoder:
    """Make the tower as it comes from a checkpoint."""
    return encoder_of(model, head=head(kind), **REFERENCES[pooling][1]).eval()


@pytest.mark.parametrize("pooling", REFERENCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_towers_are_those_of_transformers(layout: str, pooling: str) -> None:
    """Each layout and pooling gives transformers' embeddings, whatever the padding, with and without the rewrites."""
    model = text_model(layout)
    expected, pad_id = reference(model, pooling, "linear"), model.config.pad_token_id
    assert_equal(tower_of(model, pooling, "linear"), expected, pad_id)
    assert_equal(apply_rewrites(tower_of(model, pooling, "linear")), expected, pad_id)


@pytest.mark.parametrize("kind", ["none", "linear with bias", "mlp", "norm and linears"])
@pytest.mark.parametrize("pooling", ["first token", "mean"])
def test_heads(pooling: str, kind: str) -> None:
    """What follows the pooling may be nothing, layers with and without a bias, activations and a norm."""
    model = text_model("bert")
    expected = reference(model, pooling, kind)
    assert_equal(tower_of(model, pooling, kind), expected, 0)
    assert_equal(apply_rewrites(tower_of(model, pooling, kind)), expected, 0)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu"])
def test_activations(activation: str) -> None:
    """The activation is the one of the config; another gives other embeddings."""
    model = text_model("bert", activation=activation)
    assert_equal(tower_of(model, "mean", "linear"), reference(model, "mean", "linear"), 0)
    tower = tower_of(model, "mean", "linear")
    for block in tower.blocks:
        block.mlp.activation = ACT2FN["gelu"]
    with pytest.raises(AssertionError, match="difference"):
        assert_equal(tower, reference(model, "mean", "linear"), 0)


def test_rewrites_that_apply() -> None:
    """Norms are not folded in post-norm blocks: their outputs are residuals too."""
    assert APPLICABLE == ("mask", "scale", "qkv", "pooled")


@pytest.mark.parametrize("pooling", ["first token", "mean"])
@pytest.mark.parametrize("layout", ["bert", "xlm-roberta"])
def test_every_subset_of_rewrites(layout: str, pooling: str) -> None:
    """Every subset of the rewrites, in both orders, leaves the embeddings as they are."""
    model = text_model(layout)
    expected, pad_id = reference(model, pooling, "linear"), model.config.pad_token_id
    for count in range(len(APPLICABLE) + 1):
        for names in itertools.combinations(APPLICABLE, count):
            for order in {names, names[::-1]}:
                tower = tower_of(model, pooling, "linear")
                for name in order:
                    REWRITES[name].apply(tower)
                assert_equal(tower, expected, pad_id)


def test_rewrites_change_the_graph() -> None:
    """Q, K and V become one product; a pooled last block computes one token; mean pooling keeps all of them."""
    model = text_model("bert")
    tower = apply_rewrites(tower_of(model, "first token", "linear"))
    assert [len(block.attention.input_layers()) for block in tower.all_blocks()] == [1, 1, 2]
    assert all(block.attention.heads.scale is None for block in tower.all_blocks())
    assert tower.pooled_block is not None
    rows = []
    for part in (tower.pooled_block.attention.output, tower.pooled_block.mlp.up, tower.pooled_block.mlp.down):
        part.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[1]))
    tower(texts(3, 0))
    assert rows == [1, 1, 1]
    assert apply_rewrites(tower_of(model, "mean", "linear")).pooled_block is None
    assert torch.tensor(tower.masked).half().isfinite()


def test_the_model_is_not_changed() -> None:
    """Rewriting leaves every parameter of the model as it was."""
    model = text_model("roberta")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_rewrites(tower_of(model, "first token", "linear"))
    assert [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])] == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
    ],
)
def test_other_kinds_of_bert_are_refused(change: dict[str, Any], word: str) -> None:
    """Relative positions and decoders are a CheckpointError, and so is a model without the pooler that is asked for."""
    small = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    with pytest.raises(CheckpointError, match=word):
        encoder_of(BertModel(BertConfig(**small, **change)))
    with pytest.raises(CheckpointError, match="pooler"):
        encoder_of(BertModel(BertConfig(**small), add_pooling_layer=False), pooler=True)
    with pytest.raises(CheckpointError, match="Linear"):
        encoder_of(nn.Linear(2, 2))


# The graphs


@pytest.fixture(scope="module", params=["bert-first token", "bert-mean", "xlm-roberta-first token", "roberta-pooler"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[[Tensor], Tensor], int]:
    """Give an engine with all rewrites, transformers' features, and the padding's id."""
    layout, pooling = request.param.rsplit("-", maxsplit=1)
    model = text_model(layout)
    path = tmp_path_factory.mktemp("engines") / "text.onnx"
    tower = apply_rewrites(tower_of(model, pooling, "linear"))
    example = torch.full((2, 5), 9, dtype=torch.int32)
    export_graph(tower, path, inputs={"input_ids": example}, exporter=Exporter.TORCH)
    return path, reference(model, pooling, "linear"), model.config.pad_token_id


def test_engines_are_those_of_transformers(exported: tuple[Path, Callable[[Tensor], Tensor], int]) -> None:
    """The exported graph takes any batch size and length, and gives transformers' embeddings."""
    path, expected, pad_id = exported
    runner = EngineRunner(path)
    assert_equal(lambda ids: torch.from_numpy(runner.embed([ids.numpy()])), expected, pad_id)


def test_roles_of_post_norm_encoders(exported: tuple[Path, Callable[[Tensor], Tensor], int]) -> None:
    """Each layer of a post-norm encoder has its role and block, whichever way it is pooled."""
    path, _, pad_id = exported
    found = [role.labels[-1] for role in roles_of(onnx.load(path)).values()]
    counts = {label: found.count(label) for label in found}
    pooled = counts.pop("attention-in:2")  # queries apart from keys and values where the last block is pooled
    assert pooled in (1, 2)
    assert counts.pop("positions", 0) == (pad_id == 1)
    assert counts.pop("projection") in (1, 2)  # with the pooler
    assert counts == {
        "tokens": 1,
        **{f"attention-in:{block}": 1 for block in range(2)},
        **{
            f"{role}:{block}": 1
            for block in range(3)
            for role in ("attention-scores", "attention-values", "attention-out", "mlp-up", "mlp-down")
        },
    }


def test_roles_name_the_right_weights(exported: tuple[Path, Callable[[Tensor], Tensor], int]) -> None:
    """A role's weight has the shape of its layer: the MLP is wider than the attention."""
    model = onnx.load(exported[0])
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    expected = {
        NodeRole.TOKENS: {(VOCABULARY, WIDTH)},
        NodeRole.POSITIONS: {(POSITIONS, WIDTH)},
        NodeRole.ATTENTION_IN: {(WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (WIDTH, 3 * WIDTH)},
        NodeRole.ATTENTION_OUT: {(WIDTH, WIDTH)},
        NodeRole.MLP_UP: {(WIDTH, 3 * WIDTH)},
        NodeRole.MLP_DOWN: {(3 * WIDTH, WIDTH)},
        NodeRole.PROJECTION: {(WIDTH, DIM), (WIDTH, WIDTH)},
    }
    for name, found in roles_of(model).items():
        if found.role in expected:
            (shape,) = [shapes[source] for source in nodes[name].input if source in shapes]
            assert shape in expected[found.role], (name, found, shape)


def embed(model: onnx.ModelProto, path: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Run a graph by onnxruntime."""
    onnx.save(model, path)
    return EngineRunner(path).embed([ids])


@pytest.mark.slow
def test_fp16_and_int8(exported: tuple[Path, Callable[[Tensor], Tensor], int], tmp_path: Path) -> None:
    """The engines at other precisions stay near transformers, padded rows of one batch included."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    path, expected, pad_id = exported
    ids = texts(17, pad_id)
    features = torch.nn.functional.normalize(expected(ids), dim=-1).detach().numpy()
    generator = np.random.default_rng(0)
    feeds = [
        {"input_ids": generator.integers(8, VOCABULARY, (1, length), dtype=np.int32)} for length in (4, 9, 14, 19) * 6
    ]
    half = embed(to_fp16(onnx.load(path)), tmp_path / "fp16.onnx", ids.numpy())
    quantized = quantize_graph(onnx.load(path), feeds)
    weights = [node for node in quantized.graph.node if node.op_type == "Gather"]
    assert len(weights) >= 2, "the table of tokens is int8: its rows and their scales are looked up"
    int8 = embed(quantized, tmp_path / "int8.onnx", ids.numpy())
    cosines = {name: float((found * features).sum(1).min()) for name, found in (("fp16", half), ("int8", int8))}
    print(cosines)
    assert cosines["fp16"] >= 0.9999, cosines
    assert cosines["int8"] >= 0.99, cosines


# Settings


def bert_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """Make a small WordPiece tokenizer that lowercases, with [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "##s"]
    made = Tokenizer(models.WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    if changes.pop("normalised", True):
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if changes.pop("enclosed", True):
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{"model_max_length": 16, **special, **changes})


def settings_of(tokenizer: PreTrainedTokenizerFast, model: Any, **options: Any) -> Any:
    """Translate the tokenizer as a family does."""
    return text_settings(tokenizer, tokenizer_json(tokenizer, Path("folder")), model, Path("folder"), **options)


def test_settings_of_bert() -> None:
    """The end token is [SEP], padding is the model's; the context is the shortest of what limits it."""
    found = settings_of(bert_tokenizer(), text_model("bert"))
    assert (found.context_length, found.pad_id, found.eos_id, found.padding) == (16, 0, 3, Padding.TRIM)
    assert settings_of(bert_tokenizer(model_max_length=512), text_model("bert")).context_length == POSITIONS
    assert settings_of(bert_tokenizer(), text_model("bert"), context_length=9).context_length == 9


def test_context_of_roberta_is_what_its_positions_allow() -> None:
    """RoBERTa's positions begin behind the padding's, so that a text may have that many tokens less."""
    tokenizer = bert_tokenizer(model_max_length=512, pad_token="[UNK]")
    found = settings_of(tokenizer, text_model("roberta"))
    assert (found.context_length, found.pad_id) == (POSITIONS - 2, 1)
    ids = torch.full((1, found.context_length), 9, dtype=torch.int32)
    assert tower_of(text_model("roberta"), "first token", "linear")(ids).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "layout", "word"),
    [
        ({"enclosed": False}, "bert", "post-processor"),
        ({"normalised": False}, "bert", "normalizer"),
        ({"pad_token": None}, "bert", "pad"),
        ({"sep_token": None}, "bert", "sep_token"),
        ({}, "roberta", "pad"),
        ({"pad_token": "[SEP]"}, "bert", "pad"),
    ],
)
def test_tokenizers_that_do_not_fit(changes: dict[str, Any], layout: str, word: str) -> None:
    """A tokenizer without enclosing tokens, normaliser or the model's padding is a CheckpointError."""
    with pytest.raises(CheckpointError, match=word):
        settings_of(bert_tokenizer(**changes), text_model(layout))


def test_tokenizer_of_another_model() -> None:
    """Ids without an embedding are a CheckpointError."""
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(VOCABULARY)])
    with pytest.raises(CheckpointError, match="vocab_size"):
        settings_of(tokenizer, text_model("bert"))
