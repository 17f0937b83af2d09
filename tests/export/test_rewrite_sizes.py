"""The published sizes with all rewrites, against transformers' own `CLIPModel`.

Width, resolution and patch size decide what a rewrite and an exporter could get wrong, so each size has them in full
but two blocks of depth: one for all tokens and the last one, for the pooled token. What depth adds is rounding: the
deepest size is tested whole, in torch. ViT-B/32 goes whole through export and int8 in `test_full_size.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the export needs torch")

import torch
from torch import Tensor
from transformers import CLIPModel

from twinspire.bundle import ImageSettings, ImageTowerSpec, Padding, TextSettings, TextTowerSpec, Tower
from twinspire.contract import embedding_output, image_input, text_input
from twinspire_export.engine_check import EngineRunner, check_engine
from twinspire_export.families.clip import image_tower, text_tower
from twinspire_export.onnx_export import Exporter, export_graph
from twinspire_export.random_checkpoints import CONTEXT_LENGTH, SHAPES, VOCABULARY_SIZE, ModelSize, random_model
from twinspire_export.rewrite import apply_rewrites

TOLERANCE = 1e-5  # of components of unit vectors
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def settings(size: int) -> ImageSettings:
    """Give CLIP's preprocessing for images of `size` pixels."""
    return ImageSettings.centre_crop(size, mean=MEAN, std=STD)


def pictures(size: int, count: int) -> Tensor:
    """Draw (count, size, size, 3) uint8."""
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def captions(count: int, length: int) -> Tensor:
    """Draw (count, length) int32, each ended at another place."""
    ids = torch.randint(0, VOCABULARY_SIZE - 2, (count, length), generator=torch.Generator().manual_seed(length))
    for row in range(count):
        ids[row, length - 1 - row :] = VOCABULARY_SIZE - 1
    return ids.to(torch.int32)


@torch.inference_mode()
def reference(model: CLIPModel, given: Tensor) -> Tensor:
    """Encode images or token ids by transformers: (N, D), L2-normalised."""
    if given.dim() == 2:
        features = model.get_text_features(input_ids=given.long())
    else:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        features = model.get_image_features(pixel_values=(given.permute(0, 3, 1, 2).float() / 255 - mean) / std)
    return torch.nn.functional.normalize(features, dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize("size", ModelSize)
def test_size_through_onnx(size: ModelSize, tmp_path: Path) -> None:
    """At full width and resolution the exported, rewritten engines keep the contract and give what CLIPModel gives."""
    shape, model = SHAPES[size], random_model(size, layers=2)
    towers = {
        Tower.IMAGE: (image_tower(model, settings(shape.image_size)), [pictures(shape.image_size, 2)]),
        Tower.TEXT: (text_tower(model), [captions(3, 5), captions(2, CONTEXT_LENGTH)]),
    }
    output = embedding_output(shape.dim)
    specs = {
        Tower.IMAGE: ImageTowerSpec(
            settings=settings(shape.image_size), input=image_input(shape.image_size, shape.image_size), output=output
        ),
        Tower.TEXT: TextTowerSpec(
            settings=TextSettings(context_length=CONTEXT_LENGTH, pad_id=0, eos_id=0, padding=Padding.TRIM),
            input=text_input(),
            output=output,
        ),
    }
    for tower, (plain, inputs) in towers.items():
        file = tmp_path / f"{tower}.onnx"
        name = "image" if tower is Tower.IMAGE else "input_ids"
        export_graph(apply_rewrites(plain), file, inputs={name: inputs[0]}, exporter=Exporter.OPTIMUM)
        check_engine(file, tower, specs[tower])
        runner = EngineRunner(file)
        for given in inputs:
            difference = np.abs(runner.embed([given.numpy()]) - reference(model, given).numpy()).max()
            print(f"{tower}: largest difference {difference:.1e}")
            assert difference <= TOLERANCE, f"{tower}, {tuple(given.shape)}: largest difference {difference}"


@pytest.mark.thorough
def test_deepest_size_whole() -> None:
    """All rewrites of ViT-L/14-336, 24 and 12 blocks deep, leave its embeddings as they are."""
    size = ModelSize.VIT_L_14_336
    shape, model = SHAPES[size], random_model(size)
    given = (pictures(shape.image_size, 2), captions(3, 16))
    for plain, inputs in zip((image_tower(model, settings(shape.image_size)), text_tower(model)), given, strict=True):
        with torch.inference_mode():
            difference = (apply_rewrites(plain)(inputs) - reference(model, inputs)).abs().max().item()
        print(f"{type(plain).__name__}: largest difference {difference:.1e}")
        assert difference <= TOLERANCE, f"{type(plain).__name__}: largest difference {difference}"
