"""SigLIP and SigLIP 2: embeddings, token ids and pixels of transformers, SentencePiece and big_vision."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import sentencepiece
import torch
from hypothesis import assume, example, given, settings, strategies
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as PlainTokenizer
from tokenizers import normalizers
from transformers import GemmaTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipTokenizer

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
from twinspire.bundle import Bundle, Interpolation, Padding, Resize
from twinspire.errors import CheckpointError
from twinspire.text import Tokenizer
from twinspire_export import export_checkpoint
from twinspire_export.families.siglip import image_tower, text_tower
from twinspire_export.rewrite import REWRITES, apply_rewrites
from twinspire_export.towers import TransformerTower
from twinspire_export.transformer import Linear

pytestmark = pytest.mark.usefixtures(readable_sentencepiece.__name__)
CONTEXT, WIDTH = 64, 32
TEXTS = [*coco_captions(2_000), *CHINESE, *HARD_TEXTS]
CLEANED = [
    "A Cat, sat!  on\tthe\nmat",
    "snake_case",
    "- hello",
    "...",
    "ＡＢＣ　ｄ",
    "a ～ b～c",
    "① ½ ﬁne … ™️",
    "ｶﾞｷﾞ ガギグ",
]
COMBINING = ["mo\u0323\u0302t con me\u0300o", "Cafe\u0301", "й Ё", "고양이", "बिल्ली", "แมวนั่ง", "\u05d1\u05bc"]
"""Texts whose letters have marks of their own: NFD as file systems have it, and scripts that are written so."""


def save_gemma(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Write Gemma's kind of tokenizer in the files of google/siglip2-base-patch16-224, and return SentencePiece's."""
    options = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    special = {"pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>", "bos_id": 2, "unk_id": 3}
    trained = train_sentencepiece("bpe", byte_fallback=True, vocab_size=900, split_digits=True, **options, **special)
    model = folder / "tokenizer.model"
    model.write_bytes(trained)
    GemmaTokenizerFast(
        str(model), add_bos_token=False, add_eos_token=True, model_max_length=CONTEXT, padding_side="right"
    ).save_pretrained(folder)
    model.unlink()
    return sentencepiece.SentencePieceProcessor(model_proto=trained)


def save_model(folder: Path, *, vocabulary: int, seed: int = 0, image_size: int = 32, **vision: Any) -> SiglipModel:
    """Write a random two-layer `SiglipModel` and its image processor."""
    layers = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**layers, "vocab_size": vocabulary, "max_position_embeddings": CONTEXT, "projection_size": WIDTH},
        vision_config={**layers, "image_size": image_size, "patch_size": 8, **vision},
    )
    model = fill_weights(SiglipModel(config), seed=seed)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    model.save_pretrained(folder)
    SiglipImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tiny SigLIP checkpoint, to be read only."""
    folder = tmp_path_factory.mktemp("siglip") / "tiny-siglip"
    folder.mkdir()
    save_sentencepiece(folder)
    save_model(folder, vocabulary=500)
    return folder


@pytest.fixture(scope="module")
def exported(pristine: Path) -> Bundle:
    """Give the bundle of the tiny checkpoint, to be read only."""
    return export_checkpoint(pristine, pristine.parent / "bundle")


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    """Give a copy of the tiny checkpoint, which the test may damage."""
    folder = tmp_path / "tiny-siglip"
    folder.mkdir()
    for file in pristine.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def image_features(checkpoint: Path) -> Callable[[list[Image.Image]], torch.Tensor]:
    """Return transformers' encoding of images."""
    model, processor = SiglipModel.from_pretrained(checkpoint).eval(), SiglipImageProcessor.from_pretrained(checkpoint)

    def features(images: list[Image.Image]) -> torch.Tensor:
        pixels = processor(images, input_data_format="channels_last", return_tensors="pt")
        with torch.no_grad():
            return model.get_image_features(**pixels)

    return features


def text_features(checkpoint: Path, ids: Callable[[str], list[int]], pad: int) -> Callable[[list[str]], torch.Tensor]:
    """Return transformers' encoding of texts whose ids, with end token, are `ids`, padded to the context."""
    model = SiglipModel.from_pretrained(checkpoint).eval()

    def features(texts: list[str]) -> torch.Tensor:
        rows = [ids(text) + [pad] * CONTEXT for text in texts]
        with torch.no_grad():
            return model.get_text_features(torch.tensor([row[:CONTEXT] for row in rows]))

    return features


def test_settings(exported: Bundle) -> None:
    """Images are stretched to a square, mean and std are 0.5, texts are 64 tokens padded with the end token."""
    image, text, manifest = exported.image, exported.text, exported.manifest
    assert (manifest.family, manifest.dim) == ("siglip", WIDTH)
    assert (image.resize, image.size, image.interpolation) == (Resize.STRETCH, 32, Interpolation.BICUBIC)
    assert (image.mean, image.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (text.context_length, text.padding, text.pad_id, text.eos_id) == (CONTEXT, Padding.MAX_LENGTH, 1, 1)
    assert manifest.logit_scale == pytest.approx(np.exp(1.5), rel=1e-6)
    assert manifest.logit_bias == -2.0


def test_images_are_those_of_transformers(exported: Bundle, pristine: Path) -> None:
    """Pixels and embeddings of photographs and odd images are those of transformers."""
    assert_pixels(exported, SiglipImageProcessor.from_pretrained(pristine))
    assert_image_embeddings(exported, image_features(pristine))


def test_texts_are_those_of_transformers(exported: Bundle, pristine: Path) -> None:
    """Token ids and embeddings of captions, Chinese, emoji and overlong texts are those of transformers."""
    ids = slow_ids(pristine)
    assert_tokens(exported, ids, [*TEXTS, *CLEANED, *COMBINING])
    assert_text_embeddings(exported, text_features(pristine, ids, pad=1))


def test_probabilities_are_those_of_transformers(exported: Bundle, pristine: Path) -> None:
    """Scale and bias give the model's own probabilities, a sigmoid of each pair."""
    model, images, texts = SiglipModel.from_pretrained(pristine).eval(), photographs_and_odd_images()[:4], CHINESE[:3]
    tokens = SiglipTokenizer.from_pretrained(pristine)(texts, padding="max_length", return_tensors="pt")
    pixels = SiglipImageProcessor.from_pretrained(pristine)(images, return_tensors="pt")
    with torch.no_grad():
        expected = model(input_ids=tokens["input_ids"], **pixels).logits_per_image.sigmoid()
    assert_probabilities(exported, expected, images, texts)


@pytest.fixture(scope="module", params=["unknown characters", "byte fallback"])
def both_tokenizers(
    request: pytest.FixtureRequest, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[str], list[int]], Tokenizer]:
    """Give transformers' tokenization and the bundle's, for a vocabulary as c4_en's and one as mc4's."""
    folder = tmp_path_factory.mktemp("vocabulary") / "checkpoint"
    folder.mkdir()
    for file in pristine.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if request.param == "byte fallback":
        save_sentencepiece(folder, byte_fallback=True)
        save_model(folder, vocabulary=800)
    bundle = export_checkpoint(folder, folder.parent / "bundle")
    return slow_ids(folder), Tokenizer(bundle.tokenizer_path, bundle.text)


# Marks of several scripts on one letter are left out: transformers keeps their order, Unicode's NFKC sorts them.
_CHARACTERS = strategies.characters(exclude_categories=["Cs", "Cn", "Mn", "Mc", "Me"], max_codepoint=0x1FFFF)


@settings(max_examples=400, deadline=None)
@given(strategies.text(strategies.one_of(_CHARACTERS, strategies.sampled_from("abc AB.,_-\t▁́̂")), max_size=40))
@example("▁a ▁ b▁")
@example("\x1fa\x85b\u2028")
def test_any_text(both_tokenizers: tuple[Callable[[str], list[int]], Tokenizer], text: str) -> None:
    """Any text has transformers' ids, whatever punctuation, capitals, whitespace and controls are in it."""
    assume(not any(token in text.lower() for token in ("</s>", "<unk>")))  # see the next test
    ids, tokenizer = both_tokenizers
    assert tokenizer.encode([text])[0].tolist() == ids(text)


def test_special_tokens_in_a_text_are_text(exported: Bundle) -> None:
    """A special token that a user writes is cleaned like other text, and cannot end it."""
    tokenizer = Tokenizer(exported.tokenizer_path, exported.text)
    written, plain = tokenizer.encode(["a</s>b", "asb"])
    assert written.tolist() == plain.tolist()


def test_size_that_is_no_multiple_of_the_patch(tmp_path: Path) -> None:
    """An image of 30 pixels has 3 x 3 patches of 8; the pixels left over, as at 384 / 14, are not read."""
    save_sentencepiece(tmp_path)
    save_model(tmp_path, vocabulary=500, image_size=30)
    bundle = export_checkpoint(tmp_path, tmp_path / "bundle")
    assert_image_embeddings(bundle, image_features(tmp_path))


REWRITTEN = ("normalisation", "patches", "norms", "scale", "probe", "qkv", "pooled")
ORDERS = [
    *(((*REWRITES[name].requires, name)) for name in REWRITTEN),
    REWRITTEN,
    ("qkv", "probe", "pooled", "scale", "norms"),
    ("pooled", "qkv", "norms", "probe", "scale"),
    ("probe", "qkv", "norms", "scale", "pooled"),
    ("norms", "qkv", "probe"),
]


@pytest.mark.parametrize("names", ORDERS, ids="-".join)
@torch.inference_mode()
def test_rewrites(pristine: Path, exported: Bundle, names: tuple[str, ...]) -> None:
    """Each rewrite, alone and with others in several orders, leaves the embeddings as they are."""
    model = SiglipModel.from_pretrained(pristine).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), generator=generator).to(torch.uint8)
    ids = torch.randint(0, 500, (3, CONTEXT), generator=generator)
    expected = (
        model.get_image_features((pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5),
        model.get_text_features(ids),
    )
    for tower, given_, features in zip(
        (image_tower(model, exported.image), text_tower(model)), (pixels, ids.int()), expected, strict=True
    ):
        for name in names:
            if isinstance(tower, REWRITES[name].tower):
                REWRITES[name].apply(tower)
        difference = (tower.eval()(given_) - torch.nn.functional.normalize(features, dim=-1)).abs().max().item()
        print(f"{type(tower).__name__} {names}: largest difference {difference:.1e}")
        assert difference <= 2e-6


def test_rewrites_leave_less_to_compute(pristine: Path, exported: Bundle) -> None:
    """The probe's keys become logits of one number a head; the text's last block transforms one token alone."""
    model = SiglipModel.from_pretrained(pristine)
    image, text = image_tower(model, exported.image), text_tower(model)
    towers: list[TransformerTower] = [apply_rewrites(image, REWRITTEN), apply_rewrites(text, REWRITTEN)]
    assert image.attention_pool.probe is None
    assert [len(linear.weight) for linear in image.attention_pool.attention.project.linears] == [2 + WIDTH]
    assert text.pooled_block is not None
    assert image.pooled_block is None
    for tower in towers:
        assert [name for name, _ in tower.named_parameters() if "norm" in name] == []
        assert sum(isinstance(module, Linear) for module in tower.modules()) > 0


@pytest.mark.slow
def test_int8_and_fp16(exported: Bundle, tmp_path: Path) -> None:
    """Both towers convert to fp16 and quantize to int8, the attention pool included."""
    assert_quantizes(exported, tmp_path / "int8", minimum_cosine=0.995)


@pytest.mark.slow
def test_served(exported: Bundle, tmp_path: Path) -> None:
    """Triton gives the embeddings of this process for texts of any length, though the end token itself pads."""
    assert_served_like_local(exported, tmp_path / "repository")


# SigLIP 2: Gemma's tokenizer.


def big_vision_ids(gemma: sentencepiece.SentencePieceProcessor) -> Callable[[str], list[int]]:
    """Return big_vision's `lower(key="text")|tok(length=64, model="gemma", bos="no", eos="sticky", key="text")`.

    `tf.strings.lower` with its default encoding lowercases ASCII alone.
    """
    lower = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

    def ids(text: str) -> list[int]:
        tokens = [*gemma.encode(text.translate(lower)), gemma.eos_id()]
        return tokens if len(tokens) <= CONTEXT else [*tokens[: CONTEXT - 1], tokens[-1]]

    return ids


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[str], list[int]]]:
    """Give a tiny SigLIP 2 checkpoint of fixed resolution and big_vision's tokenization."""
    folder = tmp_path_factory.mktemp("siglip2") / "tiny-siglip2"
    folder.mkdir()
    gemma = save_gemma(folder)
    save_model(folder, vocabulary=gemma.vocab_size())
    return folder, big_vision_ids(gemma)


def test_siglip_2(siglip2: tuple[Path, Callable[[str], list[int]]], tmp_path: Path) -> None:
    """SigLIP 2's texts are lowercased, have no start token, and are padded with Gemma's padding token."""
    checkpoint, ids = siglip2
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert (bundle.manifest.family, bundle.text.pad_id, bundle.text.eos_id) == ("siglip", 0, 1)
    assert bundle.text.padding is Padding.MAX_LENGTH
    assert_tokens(bundle, ids, [*TEXTS, *CLEANED, *COMBINING])
    assert_text_embeddings(bundle, text_features(checkpoint, ids, pad=0))
    assert_image_embeddings(bundle, image_features(checkpoint))
    tokenizer = Tokenizer(bundle.tokenizer_path, bundle.text)
    upper, lower = tokenizer.encode(["A Cat, 2 DOGS!", "a cat, 2 dogs!"])
    assert upper.tolist() == lower.tolist()


# Bad input.


def refused(checkpoint: Path) -> str:
    """Export, expect a CheckpointError and nothing left, and give its message."""
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    assert not (checkpoint.parent / "bundle").exists()
    return str(caught.value)


def edit_json(file: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_naflex_is_refused(checkpoint: Path) -> None:
    """A NaFlex checkpoint is refused with the name of a fixed-resolution one."""
    edit_json(checkpoint / "config.json", model_type="siglip2", architectures=["Siglip2Model"])
    message = refused(checkpoint)
    assert "NaFlex" in message
    assert "google/siglip2-base-patch16-224" in message


def test_missing_tokenizer(checkpoint: Path) -> None:
    """Without spiece.model and tokenizer.json both are named."""
    (checkpoint / "spiece.model").unlink()
    message = refused(checkpoint)
    assert "spiece.model" in message
    assert "tokenizer.json" in message


def serialised_tokenizer(bundle: Bundle) -> dict[str, Any]:
    """Return the bundle's tokenizer as JSON."""
    tokenizer: dict[str, Any] = json.loads(bundle.tokenizer_path.read_text(encoding="utf-8"))
    return tokenizer


def test_tokenizer_json_alone_that_cleans_texts(checkpoint: Path, exported: Bundle) -> None:
    """A tokenizer.json with SigLIP's normaliser is enough, and gives the same ids."""
    (checkpoint / "spiece.model").unlink()
    (checkpoint / "tokenizer.json").write_bytes(exported.tokenizer_path.read_bytes())
    bundle = export_checkpoint(checkpoint, checkpoint.parent / "bundle")
    ids = [Tokenizer(each.tokenizer_path, each.text).encode(TEXTS) for each in (bundle, exported)]
    assert all(np.array_equal(one, other) for one, other in zip(*ids, strict=True))


def test_spiece_model_is_preferred(checkpoint: Path, exported: Bundle) -> None:
    """Beside spiece.model a tokenizer.json without normaliser does no harm: it is not read."""
    document = serialised_tokenizer(exported)
    (checkpoint / "tokenizer.json").write_text(json.dumps({**document, "normalizer": None}))
    assert export_checkpoint(checkpoint, checkpoint.parent / "bundle").space == exported.space


@pytest.mark.parametrize("missing", ["Lowercase", "Replace", "all"])
def test_tokenizer_json_without_its_normaliser(checkpoint: Path, exported: Bundle, missing: str) -> None:
    """A tokenizer.json alone that keeps capitals or punctuation is refused: its ids would be wrong."""
    (checkpoint / "spiece.model").unlink()
    document = serialised_tokenizer(exported)
    steps = [step for step in document["normalizer"]["normalizers"] if step["type"] != missing and missing != "all"]
    document["normalizer"]["normalizers"] = steps
    (checkpoint / "tokenizer.json").write_text(json.dumps(document))
    assert "normaliser" in refused(checkpoint)


def test_gemma_without_its_normaliser(siglip2: tuple[Path, Callable[[str], list[int]]], tmp_path: Path) -> None:
    """A Gemma tokenizer.json that leaves spaces as they are is refused."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in siglip2[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = PlainTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "normaliser" in refused(folder)


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("spiece.model", b"no protobuf", "spiece.model"),
        ("spiece.model", b"", "spiece.model"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json"),
        ("preprocessor_config.json", b"{", "preprocessor_config.json"),
    ],
)
def test_damaged_file(checkpoint: Path, file: str, content: bytes, word: str) -> None:
    """A damaged file is named."""
    (checkpoint / file).write_bytes(content)
    assert word in refused(checkpoint)


def test_vocabulary_of_another_model(checkpoint: Path) -> None:
    """A tokenizer with more tokens than the tower has embeddings is refused."""
    save_model(checkpoint, vocabulary=100)
    assert "vocab_size" in refused(checkpoint)


def test_no_attention_pool(checkpoint: Path) -> None:
    """An image tower without its head, as vision-only checkpoints have, is refused."""
    config = json.loads((checkpoint / "config.json").read_text())
    edit_json(checkpoint / "config.json", vision_config={**config["vision_config"], "vision_use_head": False})
    assert "vision_use_head" in refused(checkpoint)


def test_towers_of_different_size(checkpoint: Path) -> None:
    """Embeddings of two lengths are refused."""
    config = json.loads((checkpoint / "config.json").read_text())
    edit_json(checkpoint / "config.json", text_config={**config["text_config"], "projection_size": 16})
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("text_model.head.weight", "text_model.head.bias"):
        tensors[name] = tensors[name][:16].clone()
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    assert "projection_size" in refused(checkpoint)


def test_weights_of_another_family(checkpoint: Path, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """CLIP's weights under SigLIP's name lack tensors, which are named."""
    clip = make_checkpoint(tmp_path / "clip")
    (checkpoint / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes())
    assert "head.attention" in refused(checkpoint)
