"""A model family is added from outside: registered by its `model_type`, and exported with no change elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the export needs torch")

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from twinspire import Client
from twinspire.bundle import Bundle, ImageSettings, Padding, Precision, TextSettings, Tower
from twinspire.errors import CheckpointError
from twinspire_export import export_checkpoint
from twinspire_export.families import FAMILIES, Checkpoint, CheckpointSource, ModelFamily

SIZE, DIM, VOCABULARY, CONTEXT = 16, 12, 40, 9
PAD, END = 0, 1
CAPTIONS = ["a cat", "two boats on the sea at night", "", "a red car"]


class ToyImageTower(nn.Module):
    """Average the pixels of each quarter of an image, then project: `(N, S, S, 3) uint8 -> (N, D)`."""

    def __init__(self, weights: dict[str, Tensor], *, unit_length: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights["image.weight"], requires_grad=False)
        self.unit_length = unit_length

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image`."""
        quarters = image.to(torch.float32).reshape(-1, 2, SIZE // 2, 2, SIZE // 2, 3).mean(dim=(2, 4))
        vectors = (quarters.reshape(-1, 12) / 255 + 0.1) @ self.weight
        return vectors / vectors.norm(dim=-1, keepdim=True) if self.unit_length else vectors


class ToyTextTower(nn.Module):
    """Add up the embeddings of a text's tokens, without its padding: `(N, L) int32 -> (N, D)`."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.table = nn.Parameter(weights["text.table"], requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids`."""
        is_token = (input_ids != PAD).to(torch.float32).unsqueeze(-1)
        vectors = (nn.functional.embedding(input_ids, self.table) * is_token).sum(dim=1)
        return vectors / vectors.norm(dim=-1, keepdim=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyCheckpoint(Checkpoint):
    """An opened toy checkpoint, whose reference embeddings are computed in numpy."""

    weights: dict[str, Tensor]
    unit_length: bool

    def tower(self, tower: Tower) -> nn.Module:
        """Return a tower."""
        if tower is Tower.IMAGE:
            return ToyImageTower(self.weights, unit_length=self.unit_length)
        return ToyTextTower(self.weights)

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode images."""
        return reference_images(self.weights, images)

    def embed_texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Encode captions."""
        return reference_texts(self.weights, captions)


class ToyFamily(ModelFamily):
    """Two towers of one matrix each."""

    model_type = "toy"
    architecture = "ToyModel"

    def __init__(self, *, unit_length: bool = True) -> None:
        self.unit_length = unit_length

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> Checkpoint:
        """Open a checkpoint."""
        return ToyCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=DIM,
            image=ImageSettings.centre_crop(SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            text=TextSettings(context_length=CONTEXT, pad_id=PAD, eos_id=END, padding=Padding.TRIM),
            tokenizer_json=tokenizer().to_str(),
            pooling="sum",
            logit_scale=20.0,
            logit_bias=-3.0,
            weights=load_file(files[0]),
            unit_length=self.unit_length,
        )


def tokenizer() -> Tokenizer:
    """Make a tokenizer of words with an end token."""
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocabulary = {"<pad>": PAD, "<end>": END, "<unknown>": 2, **{word: 3 + place for place, word in enumerate(words)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", END)])
    return made


def reference_images(weights: dict[str, Tensor], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Encode images in numpy: (N, D), L2-normalised."""
    half = SIZE // 2
    rows = (images[:, :half], images[:, half:])
    quarters = [part.mean(axis=(1, 2)) for row in rows for part in (row[:, :, :half], row[:, :, half:])]
    vectors = (np.concatenate(quarters, axis=1) / 255 + 0.1) @ weights["image.weight"].numpy()
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def reference_texts(weights: dict[str, Tensor], captions: Sequence[str]) -> NDArray[np.float32]:
    """Encode captions in numpy: (N, D), L2-normalised."""
    table = weights["text.table"].numpy()
    vectors = np.stack([table[tokenizer().encode(caption).ids].sum(axis=0) for caption in captions])
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Save a toy checkpoint: config.json and weights, no file of transformers."""
    folder = tmp_path / "toy-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "architectures": ["ToyModel"]}))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "image.weight": torch.randn(12, DIM, generator=generator),
        "text.table": torch.randn(VOCABULARY, DIM, generator=generator),
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_registered_family_is_exported(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a family that a test registers becomes a bundle that encodes as the family's own code does."""
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily())
    bundle = Bundle.open(export_checkpoint(toy, tmp_path / "bundle").path)
    manifest = bundle.manifest
    assert (manifest.name, manifest.family, manifest.dim) == ("toy-model", "toy", DIM)
    assert (manifest.logit_scale, manifest.logit_bias) == (20.0, -3.0)
    weights = load_file(toy / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    with Client.local(bundle, precision=Precision.FP32, provider="cpu") as client:
        difference = np.abs(client.towers.encode_images(images) - reference_images(weights, images)).max()
        assert difference <= 2e-6, f"images: largest difference {difference}"
        difference = np.abs(client.encode_texts(CAPTIONS) - reference_texts(weights, CAPTIONS)).max()
        assert difference <= 2e-6, f"texts: largest difference {difference}"


def test_a_tower_that_is_not_normalised_is_refused(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose tower breaks the contract, embeddings of length 1, is refused though its cosines are right."""
    monkeypatch.setitem(FAMILIES, "toy", ToyFamily(unit_length=False))
    with pytest.raises(CheckpointError, match="norms"):
        export_checkpoint(toy, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_unregistered_family_is_refused(toy: Path, tmp_path: Path) -> None:
    """Without its family a checkpoint is refused by its model type."""
    with pytest.raises(CheckpointError, match="'toy'"):
        export_checkpoint(toy, tmp_path / "bundle")
