"""Whole models of published sizes with random weights: `make test-published-sizes`, half an hour on two cores."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("torch", reason="the export needs torch")
pytest.importorskip("nncf", reason="quantizing needs nncf")

import torch
from transformers import AutoModel, PreTrainedModel

from twinspire import Client
from twinspire.bundle import Bundle, Precision, Tower
from twinspire_eval.scenes import Language, Split, scene_set
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.random_checkpoints import ModelSize, save_random_checkpoint
from twinspire_export.random_families import FamilySize

MEMORY_BYTES = 24 * 2**30


@pytest.mark.published_sizes
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size", [*FamilySize, ModelSize.VIT_L_14])
def test_published_size(size: FamilySize | ModelSize, tmp_path: Path) -> None:
    """A published size exports to transformers' embeddings, quantizes above the bar and runs, within 24 GiB."""
    checkpoint = save_random_checkpoint(size, tmp_path / "checkpoint")
    scenes = scene_set(12, seed=5, split=Split.HELDOUT)
    images, captions = [scene.draw() for scene in scenes], [scene.captions[Language.ENGLISH] for scene in scenes]

    base = export_checkpoint(checkpoint, tmp_path / "fp32", name="published")
    assert np.abs(cosines(base, checkpoint, images[8:], captions[8:]) - 1).max() <= 1e-5

    bundle = quantize_bundle(base, tmp_path / "int8", images=images[:8], captions=captions[:8])
    for tower in (Tower.IMAGE, Tower.TEXT):
        certificate = bundle.manifest.engines[tower][Precision.INT8].certificate
        assert certificate is not None
        assert certificate.min_cosine >= 0.995, f"{tower}: {certificate.min_cosine}"
    with Client.local(bundle, precision=Precision.INT8, provider="cpu") as client:
        assert np.isfinite(client.encode_images(images[8:])).all()
        assert np.isfinite(client.encode_texts(captions[8:])).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY_BYTES


@torch.inference_mode()
def cosines(bundle: Bundle, checkpoint: Path, images: list[Image.Image], captions: list[str]) -> NDArray[np.float32]:
    """Return the cosines of the bundle's fp32 embeddings of images and texts to those of transformers' model."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    with Client.local(bundle, precision=Precision.FP32, provider="cpu") as client:
        rows, sequences = client.preprocess(images), client.tokenize(captions)
        ours = np.concatenate([client.towers.encode_images(rows), client.towers.encode_texts(sequences)])
    mean, std = (torch.tensor(values)[:, None, None] for values in (bundle.image.mean, bundle.image.std))
    pixels = (torch.from_numpy(rows).permute(0, 3, 1, 2) / 255 - mean) / std
    length = bundle.text.context_length if bundle.text.padding == "max_length" else None
    texts = []
    for sequence in sequences:
        ids = torch.full((1, length or sequence.size), bundle.text.pad_id)
        ids[0, : sequence.size] = torch.from_numpy(sequence)
        texts.append(text_features(model, ids))
    theirs = torch.cat([model.get_image_features(pixels), *texts])
    found: NDArray[np.float32] = (ours * torch.nn.functional.normalize(theirs, dim=-1).numpy()).sum(axis=1)
    return found


def text_features(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Return the features of one text; transformers 4 fails to pool Chinese-CLIP's, whose formula stands here."""
    if model.config.model_type == "chinese_clip":
        features: torch.Tensor = model.text_projection(model.text_model(ids).last_hidden_state[:, 0])
    else:
        features = model.get_text_features(ids)
    return features
