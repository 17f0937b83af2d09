"""MetaCLIP 2: embeddings, token ids and pixels of transformers, and a table of tokens too large for one file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    MetaClip2Config,
    MetaClip2Model,
    SiglipTokenizer,
    XLMRobertaTokenizerFast,
)

from support.families import (
    CHINESE,
    HARD_TEXTS,
    assert_image_embeddings,
    assert_pixels,
    assert_probabilities,
    assert_quantizes,
    assert_served_like_local,
    assert_text_embeddings,
    assert_tokens,
    coco_captions,
    fill_weights,
    photographs_and_odd_images,
)
from support.sentencepiece_models import readable_sentencepiece, save_sentencepiece, slow_ids, train_sentencepiece
from twinspire.bundle import Bundle, Padding, Precision, Tower
from twinspire.errors import CheckpointError
from twinspire_export import export_checkpoint, onnx_export

pytestmark = pytest.mark.usefixtures(readable_sentencepiece.__name__)
CONTEXT = 77
TEXTS = [*coco_captions(2_000), *CHINESE, *HARD_TEXTS]


def save_model(folder: Path, *, vocabulary: int, end: int, pad: int, activation: str = "gelu") -> None:
    """Write a random two-layer `MetaClip2Model` and its image processor."""
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": vocabulary, "max_position_embeddings": CONTEXT, "hidden_act": activation}
    config = MetaClip2Config(
        text_config={**text, "eos_token_id": end, "pad_token_id": pad, "bos_token_id": 0},
        vision_config={**layers, "image_size": 32, "patch_size": 8, "hidden_act": activation},
        projection_dim=24,
    )
    fill_weights(MetaClip2Model(config)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def save_checkpoint(folder: Path, *, activation: str = "gelu") -> Path:
    """Write a checkpoint with XLM-V's kind of tokenizer: <s> 0, <pad> 1, </s> 2, as facebook/xlm-v-base has it."""
    folder.mkdir()
    trained = train_sentencepiece("unigram", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, vocab_size=500)
    (folder / "sentencepiece.bpe.model").write_bytes(trained)
    tokenizer = XLMRobertaTokenizerFast(str(folder / "sentencepiece.bpe.model"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    save_model(folder, vocabulary=1_000, end=2, pad=1, activation=activation)
    return folder


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def pristine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, readable_sentencepiece: None
) -> Path:
    """Give a tiny checkpoint of either activation, to be read only."""
    return save_checkpoint(tmp_path_factory.mktemp("metaclip") / "tiny-metaclip-2", activation=request.param)


@pytest.fixture(scope="module")
def exported(pristine: Path) -> Bundle:
    """Give the bundle of the tiny checkpoint, to be read only."""
    return export_checkpoint(pristine, pristine.parent / "bundle")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Give a tiny checkpoint, which the test may damage."""
    return save_checkpoint(tmp_path / "tiny-metaclip-2")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the largest engine so small that the table of tokens does not fit in float32."""
    monkeypatch.setattr(onnx_export, "MAX_GRAPH_BYTES", 180_000)


def ids_of(folder: Path) -> Callable[[str], list[int]]:
    """Return transformers' tokenization, which is also that of MetaCLIP's own `get_tokenizer`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    return lambda text: list(tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"])


def image_features(checkpoint: Path) -> Callable[[list[Image.Image]], torch.Tensor]:
    """Return transformers' encoding of images."""
    model, processor = MetaClip2Model.from_pretrained(checkpoint), CLIPImageProcessor.from_pretrained(checkpoint)

    def features(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, input_data_format="channels_last", return_tensors="pt")
        with torch.no_grad():
            return model.eval().get_image_features(**pixels)

    return features


def text_features(checkpoint: Path, ids: Callable[[str], list[int]], pad: int) -> Callable[[list[str]], torch.Tensor]:
    """Return transformers' encoding of texts, padded to the context as MetaCLIP does."""
    model = MetaClip2Model.from_pretrained(checkpoint).eval()

    def features(texts: list[str]) -> torch.Tensor:
        rows = [(ids(text) + [pad] * CONTEXT)[:CONTEXT] for text in texts]
        with torch.no_grad():
            return model.get_text_features(torch.tensor(rows))

    return features


def test_settings(exported: Bundle) -> None:
    """Texts have at most 77 tokens, end with 2, and need no padding."""
    text, manifest = exported.text, exported.manifest
    assert (manifest.family, manifest.dim, manifest.logit_bias) == ("metaclip_2", 24, None)
    assert (text.context_length, text.padding, text.pad_id, text.eos_id) == (CONTEXT, Padding.TRIM, 1, 2)


def test_images_are_those_of_transformers(exported: Bundle, pristine: Path) -> None:
    """Pixels and embeddings of photographs and odd images are those of transformers."""
    assert_pixels(exported, CLIPImageProcessor.from_pretrained(pristine))
    assert_image_embeddings(exported, image_features(pristine))


def test_texts_are_those_of_transformers(exported: Bundle, pristine: Path) -> None:
    """Token ids and embeddings of captions, Chinese, emoji and overlong texts are those of transformers."""
    ids = ids_of(pristine)
    assert_tokens(exported, ids, TEXTS)
    assert_text_embeddings(exported, text_features(pristine, ids, pad=1))


def test_probabilities_are_those_of_transformers(exported: Bundle, pristine: Path) -> None:
    """The scale gives the model's own probabilities."""
    model, images, texts = MetaClip2Model.from_pretrained(pristine).eval(), photographs_and_odd_images()[:4], CHINESE
    tokens = AutoTokenizer.from_pretrained(pristine)(texts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(pristine)(images, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image.softmax(dim=-1)
    assert_probabilities(exported, expected, images, texts)


def test_vocabulary_of_mt5(tmp_path: Path) -> None:
    """The checkpoints with mT5's vocabulary have SigLIP's tokenizer, and are pooled at its end token, 1."""
    checkpoint = tmp_path / "tiny"
    checkpoint.mkdir()
    save_sentencepiece(checkpoint, byte_fallback=True)
    save_model(checkpoint, vocabulary=SiglipTokenizer.from_pretrained(checkpoint).vocab_size, end=1, pad=1)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert (bundle.text.context_length, bundle.text.eos_id, bundle.text.padding) == (CONTEXT, 1, Padding.TRIM)
    ids = slow_ids(checkpoint, CONTEXT)
    assert_tokens(bundle, ids, TEXTS)
    assert_text_embeddings(bundle, text_features(checkpoint, ids, pad=1))


@pytest.mark.usefixtures("small_files")
def test_table_too_large_for_a_file_is_stored_in_fp16(checkpoint: Path, tmp_path: Path) -> None:
    """Where the text tower exceeds a file, its token embeddings are fp16; the certificate says so, and holds."""
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    engines = bundle.manifest.engines
    certificate = engines[Tower.TEXT][Precision.FP32].certificate
    assert certificate is not None
    assert "fp16" in certificate.data
    assert certificate.min_cosine >= 0.999999
    assert_text_embeddings(bundle, text_features(checkpoint, ids_of(checkpoint), pad=1), tolerance=5e-4)
    image = engines[Tower.IMAGE][Precision.FP32].certificate
    assert image is not None
    assert "fp16" not in image.data


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_int8_and_fp16(checkpoint: Path, tmp_path: Path) -> None:
    """An engine whose token embeddings are fp16 converts to fp16 and quantizes to int8."""
    assert_quantizes(export_checkpoint(checkpoint, tmp_path / "bundle"), tmp_path / "int8", minimum_cosine=0.995)


@pytest.mark.slow
def test_served(checkpoint: Path, tmp_path: Path) -> None:
    """Triton gives the embeddings of this process."""
    assert_served_like_local(export_checkpoint(checkpoint, tmp_path / "bundle"), tmp_path / "repository")


# Bad input.


def refused(checkpoint: Path) -> str:
    """Export, expect a CheckpointError and nothing left, and give its message."""
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    assert not (checkpoint.parent / "bundle").exists()
    return str(caught.value)


def edit_text_config(checkpoint: Path, **changes: Any) -> None:
    """Change values of the text tower's config."""
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    config["text_config"].update(changes)
    file.write_text(json.dumps(config))


def test_other_end_token(checkpoint: Path) -> None:
    """A tower that is pooled at another token than the tokenizer's end is refused."""
    edit_text_config(checkpoint, eos_token_id=3)
    assert "eos_token_id" in refused(checkpoint)


def test_other_end_token_than_that_of_mt5(checkpoint: Path) -> None:
    """So is one with mT5's vocabulary."""
    save_sentencepiece(checkpoint)
    assert "eos_token_id" in refused(checkpoint)


def test_missing_tokenizer(checkpoint: Path) -> None:
    """Without tokenizer.json it is named: a SentencePiece model alone is not read."""
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(checkpoint)


def test_weights_of_another_family(checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """CLIP's tiny weights have the names of MetaCLIP's but other shapes, which are named."""
    clip = make_checkpoint(tmp_path / "clip")
    shutil.copy(clip / "model.safetensors", checkpoint / "model.safetensors")
    assert "position_embedding" in refused(checkpoint)


def test_tower_beyond_a_file_even_in_fp16(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text tower that exceeds a file even so is refused with its size."""
    monkeypatch.setattr(onnx_export, "MAX_GRAPH_BYTES", 120_000)
    assert "GiB" in refused(checkpoint)
