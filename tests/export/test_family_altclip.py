"""AltCLIP: a checkpoint of `AltCLIPModel` becomes a bundle that computes what transformers computes."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the export needs torch")
pytest.importorskip("sentencepiece", reason="the tokenizer's vocabulary is trained with it")

import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessor, XLMRobertaTokenizer, XLMRobertaTokenizerFast

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
    export_without_rewrites,
    fill_weights,
    photographs_and_odd_images,
)
from twinspire.bundle import Bundle, Padding, Precision, Resize, Tower
from twinspire.errors import CheckpointError
from twinspire_export import export_checkpoint, onnx_export, quantize_bundle
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.families.bert_text import load_bert_tokenizer

SIZE, CONTEXT = 32, 77


@cache
def vocabulary() -> bytes:
    """Train a sentencepiece model with the normaliser and special tokens of XLM-RoBERTa's."""
    model = io.BytesIO()
    texts = [*coco_captions(400), *CHINESE, *"abcdefghijklmnopqrstuvwxyz0123456789.,!?"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def save_checkpoint(folder: Path, *, tokenizer_json: bool = False) -> Path:
    """Save a random `AltCLIPModel` of two layers as the hub holds it: sentencepiece.bpe.model, no tokenizer.json."""
    folder.mkdir(parents=True)
    (folder / "sentencepiece.bpe.model").write_bytes(vocabulary())
    tokenizer = XLMRobertaTokenizer(str(folder / "sentencepiece.bpe.model"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    if tokenizer_json:
        load_bert_tokenizer(folder, XLMRobertaTokenizerFast).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AltCLIPConfig(
        text_config={**layers, "vocab_size": len(tokenizer), "max_position_embeddings": 514, "project_dim": 20},
        vision_config={**layers, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    fill_weights(AltCLIPModel(config)).save_pretrained(folder, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Give a checkpoint and the bundle made of it, to be read only."""
    folder = tmp_path_factory.mktemp("altclip")
    checkpoint = save_checkpoint(folder / "checkpoint")
    return checkpoint, export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture
def checkpoint(exported: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """Give a checkpoint that the test may damage."""
    return Path(shutil.copytree(exported[0], tmp_path / "altclip"))


def slow_ids(folder: Path) -> Callable[[str], list[int]]:
    """Return transformers' slow tokenizer, which is sentencepiece itself, cut as the authors' code cuts."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"]


def text_features(folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """Return transformers' text features, padded and masked as its tokenizer does."""
    model, tokenizer = AltCLIPModel.from_pretrained(folder).eval(), XLMRobertaTokenizer.from_pretrained(folder)

    def features(texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        with torch.no_grad():
            return model.get_text_features(**ids)

    return features


def image_features(folder: Path) -> Callable[[list[Image.Image]], torch.Tensor]:
    """Return transformers' image features, pixels by its slow processor."""
    model, processor = AltCLIPModel.from_pretrained(folder).eval(), CLIPImageProcessor.from_pretrained(folder)

    def features(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, input_data_format="channels_last", return_tensors="pt")
        with torch.no_grad():
            return model.get_image_features(**pixels)

    return features


def test_settings(exported: tuple[Path, Bundle]) -> None:
    """Images are cropped; the context is the authors' 77 tokens; </s> ends a text and <pad> is masked."""
    _, bundle = exported
    assert (bundle.manifest.family, bundle.dim, bundle.image.resize) == ("altclip", 24, Resize.SHORTEST_SIDE)
    assert (bundle.text.context_length, bundle.text.pad_id, bundle.text.eos_id) == (CONTEXT, 1, 2)
    assert bundle.text.padding is Padding.TRIM


def test_pixels(exported: tuple[Path, Bundle]) -> None:
    """Pixels are those of transformers' slow processor."""
    checkpoint, bundle = exported
    assert_pixels(bundle, CLIPImageProcessor.from_pretrained(checkpoint))


def test_token_ids(exported: tuple[Path, Bundle]) -> None:
    """Token ids are sentencepiece's, for captions, Chinese, emoji, empty and overlong texts."""
    checkpoint, bundle = exported
    assert_tokens(bundle, slow_ids(checkpoint), [*coco_captions(2000), *CHINESE, *HARD_TEXTS])


def test_embeddings(exported: tuple[Path, Bundle]) -> None:
    """Both engines give transformers' embeddings for any batch size, shape and length."""
    checkpoint, bundle = exported
    assert_image_embeddings(bundle, image_features(checkpoint))
    assert_text_embeddings(bundle, text_features(checkpoint))


def test_rewrites_change_no_embedding(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """Without rewrites the engines give the same embeddings, and the space is the same."""
    checkpoint, bundle = exported
    plain, changed = export_without_rewrites(checkpoint, bundle, tmp_path)
    assert_image_embeddings(plain, image_features(checkpoint))
    assert_text_embeddings(plain, text_features(checkpoint))
    assert changed == {Tower.IMAGE, Tower.TEXT}


def test_logit_scale_gives_the_models_probabilities(exported: tuple[Path, Bundle]) -> None:
    """The scaled cosines' softmax is that of the model's own logits."""
    checkpoint, bundle = exported
    images, texts = photographs_and_odd_images()[:5], CHINESE[:4]
    model, tokenizer = AltCLIPModel.from_pretrained(checkpoint).eval(), XLMRobertaTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids, **pixels).logits_per_image
    assert math.isclose(bundle.manifest.logit_scale, model.logit_scale.exp().item(), rel_tol=1e-6)
    assert_probabilities(bundle, logits.softmax(dim=-1), images, texts)


def test_tokenizer_json_and_sentencepiece_are_one_space(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """A checkpoint with tokenizer.json beside the sentencepiece model has the same space and ids."""
    checkpoint, bundle = exported
    other = export_checkpoint(save_checkpoint(tmp_path / "json", tokenizer_json=True), tmp_path / "bundle")
    assert other.space == bundle.space
    assert_tokens(other, slow_ids(checkpoint), [*CHINESE, *HARD_TEXTS])


@pytest.mark.slow
def test_other_precisions(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """int8 and fp16 engines are made, and have cosines of at least 0.99 and 0.9999 to fp32."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    assert_quantizes(exported[1], tmp_path / "int8", minimum_cosine=0.99)


@pytest.mark.slow
def test_served(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """A Triton from its wheel gives the embeddings that the engines give in this process."""
    assert_served_like_local(exported[1], tmp_path / "repository")


@pytest.mark.slow
def test_text_tower_of_published_size_fits_an_engine(
    exported: tuple[Path, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tower too large for a file has its tokens in float16, which keeps the cosine and lets it be quantized."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    checkpoint, whole = exported
    weights = onnx_export.weight_bytes(open_checkpoint(checkpoint).tower(Tower.TEXT))
    monkeypatch.setattr(onnx_export, "MAX_GRAPH_BYTES", weights - 1)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert bundle.space == whole.space
    sizes = [model.manifest.engines[Tower.TEXT][Precision.FP32].size_bytes for model in (bundle, whole)]
    assert sizes[0] < sizes[1] - 10_000, sizes
    captions, images = [*coco_captions(24), *CHINESE], photographs_and_odd_images()[:12]
    for precision, smallest in ((Precision.INT8, 0.99), (Precision.FP16, 0.9999)):
        made = quantize_bundle(bundle, tmp_path / precision, precision=precision, images=images, captions=captions)
        certificates = [model.manifest.engines[Tower.TEXT] for model in (bundle, made)]
        found = [certificates[0][Precision.FP32].certificate, certificates[1][precision].certificate]
        assert all(found)
        print(precision, *(certificate.min_cosine for certificate in found))
        assert found[0].min_cosine >= 0.99999
        assert found[1].min_cosine >= smallest
        assert made.manifest.engines[Tower.TEXT][precision].size_bytes < sizes[0]


# Checkpoints that cannot be used


def edit(file: Path, change: dict[str, Any]) -> None:
    """Change the top level of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")


def without_vocabulary(folder: Path) -> None:
    """Remove the tokenizer."""
    (folder / "sentencepiece.bpe.model").unlink()


def damaged_vocabulary(folder: Path) -> None:
    """Cut the tokenizer."""
    (folder / "sentencepiece.bpe.model").write_bytes(vocabulary()[:1000])


def without_processor(folder: Path) -> None:
    """Remove the image processor's settings."""
    (folder / "preprocessor_config.json").unlink()


def as_chinese_clip(folder: Path) -> None:
    """Call it a Chinese-CLIP."""
    edit(folder / "config.json", {"model_type": "chinese_clip", "architectures": ["ChineseCLIPModel"]})


def text_model_alone(folder: Path) -> None:
    """Call it the text tower of an AltCLIP."""
    edit(folder / "config.json", {"architectures": ["AltCLIPTextModel"]})


def misshapen(folder: Path) -> None:
    """Cut a weight."""
    weights = load_file(folder / "model.safetensors")
    weights["text_model.transformation.weight"] = weights["text_model.transformation.weight"][:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_norm(folder: Path) -> None:
    """Leave a weight out."""
    weights = load_file(folder / "model.safetensors")
    del weights["text_model.pre_LN.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_normaliser(folder: Path) -> None:
    """Save tokenizer.json without its normaliser."""
    load_bert_tokenizer(folder, XLMRobertaTokenizerFast).save_pretrained(folder)
    edit(folder / "tokenizer.json", {"normalizer": None})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (without_vocabulary, "sentencepiece"),
        (damaged_vocabulary, "tokenizer"),
        (without_processor, "preprocessor_config.json"),
        (as_chinese_clip, "missing"),
        (text_model_alone, "AltCLIPTextModel"),
        (misshapen, "transformation"),
        (without_norm, "pre_LN"),
        (without_normaliser, "normalizer"),
    ],
)
def test_unusable_checkpoints(checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], word: str) -> None:
    """A checkpoint that lacks a part, or has one of another model, is a CheckpointError; nothing is written."""
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
