"""Checkpoints of the published sizes with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from support.data import VOCABULARY
from twinspire.errors import InputError
from twinspire_export.random_checkpoints import (
    MERGES_NAME,
    SHAPES,
    ModelSize,
    random_model,
    randomize_weights,
    stand_in_tokenizer,
    write_clip_tokenizer,
)


def cosines(vectors: Tensor) -> Tensor:
    """Give the cosines of each row of (N, D) with every other one: (N * (N - 1),)."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]


@pytest.fixture(scope="module")
def shallow() -> CLIPModel:
    """Give ViT-B/32 at full width with two layers."""
    return random_model(ModelSize.VIT_B_32, layers=2)


@torch.inference_mode()
def test_embeddings_are_varied(shallow: CLIPModel) -> None:
    """Different images and different texts get embeddings with cosines between -0.2 and 0.95."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(8, 3, 7, 7, generator=generator), size=224, mode="bicubic")
    ids = torch.randint(0, 49000, (8, 12), generator=generator)
    ids[:, -1] = 49407
    for embeddings in (shallow.get_image_features(smooth), shallow.get_text_features(ids)):
        between = cosines(embeddings)
        assert between.min() > -0.2, f"least {between.min()}"
        assert between.max() < 0.95, f"largest {between.max()}"


def test_no_parameter_is_constant(shallow: CLIPModel) -> None:
    """Norms and biases are drawn too, so that a mistake in them can be seen."""
    assert [name for name, p in shallow.named_parameters() if p.dim() and p.std() < 1e-3] == []


def test_weights_follow_the_seed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """The same seed gives the same weights, whatever was there before; another gives others."""
    one = CLIPModel.from_pretrained(make_checkpoint(tmp_path / "one", seed=1))
    two = CLIPModel.from_pretrained(make_checkpoint(tmp_path / "two", seed=2))
    randomize_weights(one, seed=3)
    randomize_weights(two, seed=3)
    expected = dict(one.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in two.named_parameters())
    randomize_weights(two, seed=4)
    drawn = [(name, parameter) for name, parameter in two.named_parameters() if name != "logit_scale"]
    assert not any(torch.equal(parameter, expected[name]) for name, parameter in drawn)


def test_every_size_has_a_shape() -> None:
    """Each size has its figures; images divide into patches and widths into heads of 64."""
    assert set(SHAPES) == set(ModelSize)
    for shape in SHAPES.values():
        assert shape.image_size % shape.patch_size == shape.image_width % 64 == shape.text_width % 64 == 0


def test_stand_in_tokenizer() -> None:
    """Its end token has the highest id, and every text ends with it."""
    tokenizer = stand_in_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer("Zebra 🦓 斑马")["input_ids"][-1] == tokenizer.eos_token_id


def test_clips_own_tokenizer(tmp_path: Path) -> None:
    """From OpenAI's file comes CLIP's tokenizer: 49,408 tokens, the published ids of a caption, a context of 77."""
    write_clip_tokenizer(VOCABULARY, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_folder_without_the_vocabulary(tmp_path: Path) -> None:
    """A vocabulary folder without OpenAI's file is an InputError that names the file."""
    with pytest.raises(InputError, match=MERGES_NAME):
        write_clip_tokenizer(tmp_path, tmp_path)
