"""Chinese-CLIP: a checkpoint of `ChineseCLIPModel` becomes a bundle that computes the authors' formula."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BertTokenizerFast,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
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
    export_without_rewrites,
    fill_weights,
    photographs_and_odd_images,
)
from twinspire.bundle import Bundle, Padding, Resize, Tower
from twinspire.errors import CheckpointError
from twinspire_export import export_checkpoint
from twinspire_export.checkpoint import open_checkpoint

SIZE, CONTEXT = 32, 52
PROCESSOR = {"do_center_crop": False, "size": {"height": SIZE, "width": SIZE}}  # as OFA-Sys' checkpoints have it


def vocabulary() -> list[str]:
    """Make a vocabulary of characters and pieces of words, with room for what is unknown."""
    texts = " ".join([*coco_captions(200), *CHINESE]).lower()
    characters = sorted(
        {character for character in texts if not character.isspace()} | set("abcdefghijklmnopqrstuvwxyz")
    )
    words = sorted({word for word in texts.split() if word.isalpha() and word.isascii()})[::2]
    pieces = [f"##{character}" for character in ascii_lowercase]
    return [*dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *words, *pieces])]


def save_checkpoint(folder: Path, *, tokenizer_json: bool = False, **text: Any) -> Path:
    """Save a random `ChineseCLIPModel` of two layers as the hub holds it: vocab.txt, no tokenizer.json."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ChineseCLIPConfig(
        text_config={**layers, "vocab_size": len(vocabulary()), "max_position_embeddings": 512, **text},
        vision_config={**layers, "image_size": SIZE, "patch_size": 8, "hidden_act": "quick_gelu"},
        projection_dim=24,
    )
    torch.manual_seed(0)
    fill_weights(ChineseCLIPModel(config)).save_pretrained(folder, safe_serialization=True)
    ChineseCLIPImageProcessor(**PROCESSOR).save_pretrained(folder)
    if tokenizer_json:
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Give a checkpoint and the bundle made of it, to be read only."""
    folder = tmp_path_factory.mktemp("chinese-clip")
    checkpoint = save_checkpoint(folder / "checkpoint")
    return checkpoint, export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture
def checkpoint(exported: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """Give a checkpoint that the test may damage."""
    return Path(shutil.copytree(exported[0], tmp_path / "chinese-clip"))


def slow_ids(folder: Path) -> Callable[[str], list[int]]:
    """Return transformers' tokenizer in Python, which is the authors' own, cut as their code cuts."""
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    return lambda text: tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"]


def text_features(folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """Return the authors' `encode_text`: the padded text's first token times the projection (cn_clip/clip/model.py)."""
    model, encode = ChineseCLIPModel.from_pretrained(folder).eval(), slow_ids(folder)

    def features(texts: list[str]) -> torch.Tensor:
        ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(encode(text))] = torch.tensor(encode(text))
        with torch.no_grad():
            hidden = model.text_model(input_ids=ids, attention_mask=ids.ne(0).long())[0]
        return hidden[:, 0, :] @ model.text_projection.weight.T.detach()

    return features


def image_features(folder: Path) -> Callable[[list[Image.Image]], torch.Tensor]:
    """Return transformers' image features, pixels by its slow processor."""
    model = ChineseCLIPModel.from_pretrained(folder).eval()
    processor = ChineseCLIPImageProcessor.from_pretrained(folder)
    return lambda images: model.get_image_features(
        **processor(images, input_data_format="channels_last", return_tensors="pt")
    )


def test_settings(exported: tuple[Path, Bundle]) -> None:
    """Images are stretched; the context is the authors' 52 tokens; [SEP] ends a text and [PAD] is masked."""
    _, bundle = exported
    assert (bundle.manifest.family, bundle.dim, bundle.image.resize) == ("chinese_clip", 24, Resize.STRETCH)
    assert (bundle.text.context_length, bundle.text.pad_id, bundle.text.eos_id) == (CONTEXT, 0, 3)
    assert bundle.text.padding is Padding.TRIM


def test_pixels(exported: tuple[Path, Bundle]) -> None:
    """Pixels are those of transformers' slow processor, and of the authors' Resize((S, S), BICUBIC)."""
    checkpoint, bundle = exported
    assert_pixels(bundle, ChineseCLIPImageProcessor.from_pretrained(checkpoint))
    assert_pixels(
        bundle,
        lambda image, **_: {
            "pixel_values": np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)[None]
        },
    )


def test_token_ids(exported: tuple[Path, Bundle]) -> None:
    """Token ids are those of the tokenizer in Python, for captions, Chinese, emoji, empty and overlong texts."""
    checkpoint, bundle = exported
    assert_tokens(bundle, slow_ids(checkpoint), [*coco_captions(2000), *CHINESE, *HARD_TEXTS])


def test_embeddings(exported: tuple[Path, Bundle]) -> None:
    """Both engines give the reference's embeddings for any batch size, shape and length."""
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
    model, tokenizer = ChineseCLIPModel.from_pretrained(checkpoint).eval(), BertTokenizer(str(checkpoint / "vocab.txt"))
    ids = tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    pixels = ChineseCLIPImageProcessor.from_pretrained(checkpoint)(images, return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids, **pixels).logits_per_image
    assert math.isclose(bundle.manifest.logit_scale, model.logit_scale.exp().item(), rel_tol=1e-6)
    assert_probabilities(bundle, logits.softmax(dim=-1), images, texts)


def test_tokenizer_json_and_vocab_txt_are_one_space(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """A checkpoint with tokenizer.json beside vocab.txt has the same space and ids."""
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


# Checkpoints that cannot be used


def edit(file: Path, change: dict[str, Any]) -> None:
    """Change the top level of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")


def without_vocabulary(folder: Path) -> None:
    """Remove the tokenizer."""
    (folder / "vocab.txt").unlink()


def without_processor(folder: Path) -> None:
    """Remove the image processor's settings."""
    (folder / "preprocessor_config.json").unlink()


def shortest_edge(folder: Path) -> None:
    """Keep the aspect ratio, without a crop: what the first revision on the hub said."""
    edit(folder / "preprocessor_config.json", {"size": SIZE})


def another_crop(folder: Path) -> None:
    """Crop what was stretched to less than the model takes."""
    edit(folder / "preprocessor_config.json", {"do_center_crop": True, "crop_size": {"height": 18, "width": 18}})


def as_clip(folder: Path) -> None:
    """Call it a CLIP."""
    edit(folder / "config.json", {"model_type": "clip", "architectures": ["CLIPModel"]})


def as_altclip(folder: Path) -> None:
    """Call it an AltCLIP."""
    edit(folder / "config.json", {"model_type": "altclip", "architectures": ["AltCLIPModel"]})


def misshapen(folder: Path) -> None:
    """Cut a weight."""
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = weights["text_projection.weight"][:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_projection(folder: Path) -> None:
    """Leave a weight out."""
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_normaliser(folder: Path) -> None:
    """Save tokenizer.json without its normaliser."""
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    edit(folder / "tokenizer.json", {"normalizer": None})


def longer_vocabulary(folder: Path) -> None:
    """Give the tokenizer more words than the model has embeddings."""
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("more\nwords\n")


def other_padding(folder: Path) -> None:
    """Let the model pad with another id than the tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(folder / "config.json", {"text_config": {**config["text_config"], "pad_token_id": 4}})


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (without_vocabulary, "vocab.txt"),
        (without_processor, "preprocessor_config.json"),
        (shortest_edge, "do_center_crop"),
        (another_crop, "image_size"),
        (as_clip, "tokenizer"),
        (as_altclip, "tokenizer"),
        (misshapen, "text_projection"),
        (without_projection, "text_projection"),
        (without_normaliser, "normalizer"),
        (longer_vocabulary, "vocab_size"),
        (other_padding, "pad_token_id"),
    ],
)
def test_unusable_checkpoints(checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], word: str) -> None:
    """A checkpoint that lacks a part, or has one of another model, is a CheckpointError; nothing is written."""
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_opening_runs_no_code(checkpoint: Path) -> None:
    """A checkpoint that asks for code of its own is opened without it."""
    edit(checkpoint / "config.json", {"auto_map": {"AutoModel": "evil.Model"}})
    (checkpoint / "evil.py").write_text("raise SystemExit('ran')")
    assert open_checkpoint(checkpoint).dim == 24
