"""ALIGN: a checkpoint of `AlignModel` becomes a bundle that computes what transformers computes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest

pytest.importorskip("torch", reason="the export needs torch")

import onnx
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AlignConfig, AlignModel, BertTokenizer, BertTokenizerFast, EfficientNetImageProcessor

from support.families import (
    CHINESE,
    HARD_TEXTS,
    assert_image_embeddings,
    assert_pixels,
    assert_probabilities,
    assert_served_like_local,
    assert_text_embeddings,
    assert_tokens,
    coco_captions,
    export_without_rewrites,
    fill_batch_norms,
    fill_weights,
    photographs_and_odd_images,
)
from twinspire.bundle import Bundle, Interpolation, Precision, Resize, Tower
from twinspire.errors import CheckpointError
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.checkpoint import open_checkpoint
from twinspire_export.quantization.node_roles import roles_of

# As transformers' convert_align_tf_to_hf.py writes them, and so the hub's: the temperature is a trained tensor.
SIZE, STRETCHED, CONTEXT = 289, 346, 64
TEMPERATURE = 0.07
PROCESSOR = {
    "do_center_crop": True,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
    "do_normalize": False,
    "include_top": False,
    "resample": Image.Resampling.BILINEAR,
}


def vocabulary() -> list[str]:
    """Make a vocabulary of characters and pieces of words, with room for what is unknown."""
    texts = " ".join([*coco_captions(200), *CHINESE]).lower()
    characters = sorted({character for character in texts if not character.isspace()} | set(ascii_lowercase))
    words = sorted({word for word in texts.split() if word.isalpha() and word.isascii()})[::2]
    pieces = [f"##{character}" for character in ascii_lowercase]
    return [*dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *words, *pieces])]


def save_checkpoint(folder: Path, *, processor: dict[str, Any] | None = None, **vision: Any) -> Path:
    """Save a random `AlignModel` with blocks of both strides and paddings, its tokenizer and its processor."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    config = AlignConfig(
        text_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(vocabulary()),
            "max_position_embeddings": 512,
        },
        vision_config={
            "image_size": SIZE,
            "width_coefficient": 0.2,
            "depth_coefficient": 0.3,
            "hidden_dim": 64,
            "depthwise_padding": [],
            **vision,
        },
        projection_dim=64,
    )
    model = fill_batch_norms(fill_weights(AlignModel(config)))
    model.temperature.data.fill_(TEMPERATURE)
    model.save_pretrained(folder)
    EfficientNetImageProcessor(**{**PROCESSOR, **(processor or {})}).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=CONTEXT).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Give a checkpoint and the bundle made of it, to be read only."""
    folder = tmp_path_factory.mktemp("align")
    checkpoint = save_checkpoint(folder / "checkpoint")
    return checkpoint, export_checkpoint(checkpoint, folder / "bundle")


@pytest.fixture
def checkpoint(exported: tuple[Path, Bundle], tmp_path: Path) -> Path:
    """Give a checkpoint that the test may damage."""
    return Path(shutil.copytree(exported[0], tmp_path / "align"))


def slow_ids(folder: Path) -> Callable[[str], list[int]]:
    """Return transformers' tokenizer in Python, cut at the 64 tokens of the authors' code."""
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    return lambda text: tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"]


def text_features(folder: Path) -> Callable[[list[str]], torch.Tensor]:
    """Return transformers' text features, padded to 64 tokens as its processor pads."""
    model, encode = AlignModel.from_pretrained(folder).eval(), slow_ids(folder)

    def features(texts: list[str]) -> torch.Tensor:
        ids = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(encode(text))] = torch.tensor(encode(text))
        with torch.no_grad():
            return model.get_text_features(input_ids=ids, attention_mask=ids.ne(0).long())

    return features


def image_features(folder: Path) -> Callable[[list[Image.Image]], torch.Tensor]:
    """Return transformers' image features, pixels by its slow processor."""
    model = AlignModel.from_pretrained(folder).eval()
    processor = EfficientNetImageProcessor.from_pretrained(folder)

    def features(images: list[Image.Image]) -> torch.Tensor:
        with torch.no_grad():
            return model.get_image_features(**processor(images, input_data_format="channels_last", return_tensors="pt"))

    return features


def test_settings(exported: tuple[Path, Bundle]) -> None:
    """Images are stretched to 346 pixels and cropped to 289; pixels go from -1 to 1; the context is 64 tokens."""
    _, bundle = exported
    image = bundle.image
    assert (bundle.manifest.family, bundle.dim) == ("align", 64)
    assert (image.resize, image.shortest_side, image.size) == (Resize.STRETCH_AND_CROP, STRETCHED, SIZE)
    assert (image.interpolation, image.mean, image.std) == (Interpolation.BILINEAR, (0.5,) * 3, (0.5,) * 3)
    assert (bundle.text.context_length, bundle.text.pad_id, bundle.text.eos_id) == (CONTEXT, 0, 3)


def test_pixels(exported: tuple[Path, Bundle]) -> None:
    """Pixels are those of transformers' slow processor."""
    checkpoint, bundle = exported
    assert_pixels(bundle, EfficientNetImageProcessor.from_pretrained(checkpoint))


def test_token_ids(exported: tuple[Path, Bundle]) -> None:
    """Token ids are those of the tokenizer in Python, for captions, Chinese, emoji, empty and overlong texts."""
    checkpoint, bundle = exported
    assert_tokens(bundle, slow_ids(checkpoint), [*coco_captions(2000), *CHINESE, *HARD_TEXTS])


def test_embeddings(exported: tuple[Path, Bundle]) -> None:
    """Both engines give transformers' embeddings for any batch size, shape and length."""
    checkpoint, bundle = exported
    assert_image_embeddings(bundle, image_features(checkpoint))
    assert_text_embeddings(bundle, text_features(checkpoint))


@pytest.mark.slow
@pytest.mark.parametrize(
    "vision",
    [
        pytest.param({"depthwise_padding": [2, 4]}, id="other paddings"),
        pytest.param({"pooling_type": "max"}, id="maximum"),
        pytest.param({"image_size": 64}, id="even size"),
    ],
)
def test_other_networks(tmp_path: Path, vision: dict[str, Any]) -> None:
    """Padding of depthwise convolutions, pooling and size may be any that transformers knows."""
    size = vision.get("image_size", SIZE)
    crop = {"crop_size": {"height": size, "width": size}}
    checkpoint = save_checkpoint(tmp_path / "checkpoint", processor=crop, **vision)
    bundle = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert_image_embeddings(bundle, image_features(checkpoint))


@pytest.mark.slow
def test_rewrites_change_no_embedding(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """Without rewrites the text engine gives the same embeddings, and the space is the same."""
    checkpoint, bundle = exported
    plain, changed = export_without_rewrites(checkpoint, bundle, tmp_path)
    assert_text_embeddings(plain, text_features(checkpoint))
    assert Tower.TEXT in changed


def test_temperature_gives_the_models_probabilities(exported: tuple[Path, Bundle]) -> None:
    """The cosines are divided by the trained temperature: its inverse is the logit scale."""
    checkpoint, bundle = exported
    images, texts = photographs_and_odd_images()[:5], CHINESE[:4]
    assert math.isclose(bundle.manifest.logit_scale, 1 / TEMPERATURE, rel_tol=1e-6)
    model, encode = AlignModel.from_pretrained(checkpoint).eval(), slow_ids(checkpoint)
    processor = EfficientNetImageProcessor.from_pretrained(checkpoint)
    rows = [torch.tensor(encode(text)) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=ids.ne(0).long(), **processor(images, return_tensors="pt"))
    assert_probabilities(bundle, output.logits_per_image.softmax(dim=-1), images, texts)


@pytest.mark.slow
def test_other_precisions(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """int8 engines, TensorRT's too, and fp16 ones have a certificate whose mean is at least 0.99 and 0.9999."""
    pytest.importorskip("nncf", reason="quantizing needs nncf")
    _, bundle = exported
    images, captions = photographs_and_odd_images(), [*coco_captions(24), *CHINESE]
    minima = {Precision.INT8: 0.99, Precision.INT8_TENSORRT: 0.99, Precision.FP16: 0.9999}
    for precision, smallest in minima.items():
        made = quantize_bundle(bundle, tmp_path / precision, precision=precision, images=images, captions=captions)
        for tower in made.towers:
            certificate = made.manifest.engines[tower][precision].certificate
            assert certificate is not None
            print(precision, tower, certificate.min_cosine, certificate.mean_cosine)
            assert certificate.mean_cosine >= smallest


def test_roles(exported: tuple[Path, Bundle]) -> None:
    """The image tower has no projection, no batch norm and no patches; each kind of convolution is told apart."""
    graph = onnx.load(exported[1].engine(Tower.IMAGE, Precision.FP32))
    found = {str(role.role) for role in roles_of(graph).values()}
    assert found == {"stem", "convolution", "depthwise", "squeeze-excite"}
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}


@pytest.mark.slow
def test_served(exported: tuple[Path, Bundle], tmp_path: Path) -> None:
    """A Triton from its wheel gives the embeddings that the engines give in this process."""
    assert_served_like_local(exported[1], tmp_path / "repository")


# Checkpoints that cannot be used


def edit(file: Path, change: dict[str, Any]) -> None:
    """Change the top level of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    """Remove all of the tokenizer."""
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()


AS_DUAL_ENCODER = {"model_type": "vision-text-dual-encoder", "architectures": ["VisionTextDualEncoderModel"]}


def other_temperature(value: float) -> Callable[[Path], None]:
    """Return what sets the temperature."""
    return lambda folder: edit_weights(folder, lambda weights: weights["temperature"].fill_(value))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (without_tokenizer, "vocab.txt"),
        (lambda folder: edit(folder / "tokenizer.json", {"normalizer": None}), "normalizer"),
        (lambda folder: edit_weights(folder, lambda weights: weights.pop("temperature")), "temperature"),
        (other_temperature(0.0), "temperature"),
        (other_temperature(float("nan")), "temperature"),
        (lambda folder: edit(folder / "config.json", {"projection_dim": 32}), "text_projection"),
        (
            lambda folder: edit(folder / "config.json", {"model_type": "clip", "architectures": ["CLIPModel"]}),
            "missing",
        ),
        (lambda folder: edit(folder / "preprocessor_config.json", {"do_center_crop": False}), "image_size"),
        (lambda folder: edit(folder / "preprocessor_config.json", {"rescale_offset": False}), "rescale_factor"),
        (lambda folder: edit(folder / "preprocessor_config.json", {"rescale_factor": 0}), "rescale_factor"),
        (lambda folder: edit(folder / "preprocessor_config.json", {"do_resize": False}), "do_resize"),
    ],
)
def test_unusable_checkpoints(checkpoint: Path, tmp_path: Path, damage: Callable[[Path], Any], word: str) -> None:
    """A checkpoint that lacks a part, or has one of another model, is a CheckpointError; nothing is written."""
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=word):
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_projection_of_another_width(tmp_path: Path) -> None:
    """Texts and images of different widths are refused, naming both."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", width_coefficient=0.1)
    with pytest.raises(CheckpointError, match=r"64.* 32 "):
        open_checkpoint(checkpoint)
