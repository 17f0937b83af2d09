"""Any image backbone with any text encoder: checkpoints of transformers' `VisionTextDualEncoderModel`.

LiT, https://arxiv.org/abs/2111.07991, is the way in which most of them are trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from twinspire.bundle import ImageSettings, Tower
from twinspire.errors import CheckpointError
from twinspire_export.convolutional import ConvolutionalTower
from twinspire_export.dependencies import silenced
from twinspire_export.families.bert_text import load_bert_tokenizer, text_settings
from twinspire_export.families.clip import vision_tower
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    fit_one_file,
    load_model,
    tokenizer_json,
)
from twinspire_export.families.image_processors import backbone_image_settings, load_image_processor
from twinspire_export.families.vit import dinov2_tower, vit_tower
from twinspire_export.rewrite import ALL
from twinspire_export.swin import SwinTower
from twinspire_export.text_encoder import TextPooling, encoder_of, masked_mean

VISION: dict[str, Callable[[Any, nn.Linear, ImageSettings], nn.Module]] = {
    "vit": vit_tower,
    "clip_vision_model": lambda model, *rest: vision_tower(model.vision_model, *rest),
    "dinov2": dinov2_tower,
    "swin": SwinTower.of,
    "resnet": ConvolutionalTower.of_resnet,
    "efficientnet": ConvolutionalTower.of_efficientnet,
}
"""The image backbones, by `model_type` of the vision config."""

TEXT = ("bert", "roberta", "xlm-roberta", "camembert")
"""The text encoders, by `model_type` of the text config: those that take the token types that transformers passes."""

POOLING = "text_pooling"
"""A key of config.json that transformers does not know: `pooler`, what transformers computes, or `mean`."""

_WIDTHS: dict[str, Callable[[Any], int]] = {
    "resnet": lambda config: int(config.hidden_sizes[-1]),
    "efficientnet": lambda config: int(config.hidden_dim),
}
"""The width of the pooled map in configs without the `hidden_size` that `VisionTextDualEncoderModel` reads."""


class DualEncoderFamily(ModelFamily):
    """An image backbone and a text encoder, each with a linear projection behind its pooled output."""

    model_type = "vision-text-dual-encoder"
    architecture = "VisionTextDualEncoderModel"
    title = "Any vision with any text"
    examples = ("clip-italian/clip-italian",)
    rewrites = ALL

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> DualEncoderCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            config = _config(folder)
            pooling = _pooling(config, folder)
            processor = load_image_processor(folder)
            tokenizer = load_bert_tokenizer(folder)
            model: VisionTextDualEncoderModel = load_model(VisionTextDualEncoderModel, folder, files, config=config)
        serialised = tokenizer_json(tokenizer, folder)
        vision_config = model.config.vision_config
        if vision_config.model_type == "dinov2":  # whose positions are interpolated to any size
            vision_config = SimpleNamespace(num_channels=vision_config.num_channels)
        return DualEncoderCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(model.config.projection_dim),
            image=backbone_image_settings(processor, vision_config, folder),
            text=text_settings(tokenizer, serialised, model.text_model, folder),
            tokenizer_json=serialised,
            pooling=pooling,
            logit_scale=float(model.logit_scale.detach().double().exp()),
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DualEncoderCheckpoint(HuggingFaceCheckpoint):
    """An opened `VisionTextDualEncoderModel`."""

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes, step by step."""
        model = self.model
        if tower is Tower.IMAGE:
            kind = model.config.vision_config.model_type
            return VISION[kind](model.vision_model, model.visual_projection, self.image)
        if self.pooling == TextPooling.MEAN:
            return fit_one_file(encoder_of(model.text_model, pooling=TextPooling.MEAN, head=[model.text_projection]))
        return fit_one_file(encoder_of(model.text_model, pooler=True, head=[model.text_projection]))

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode normalised images: `pixel_values` (N, 3, S, S) to (N, D).

        As `get_image_features`, which fails on the pooled map of ResNet, (N, W, 1, 1).
        """
        pooled = self.model.vision_model(pixel_values=pixel_values).pooler_output
        features: Tensor = self.model.visual_projection(pooled.flatten(1))
        return features

    def text_features(self, input_ids: Tensor) -> Tensor:
        """Encode texts without padding: `input_ids` (N, L) int64 to (N, D)."""
        if self.pooling != TextPooling.MEAN:
            return super().text_features(input_ids)
        hidden = self.model.text_model(input_ids=input_ids).last_hidden_state
        pooled = masked_mean(hidden, torch.ones_like(input_ids, dtype=torch.bool))[:, 0]
        features: Tensor = self.model.text_projection(pooled)
        return features


def _config(folder: Path) -> VisionTextDualEncoderConfig:
    """Read config.json. Raises CheckpointError for backbones that are not supported."""
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part, supported in (("vision_config", tuple(VISION)), ("text_config", TEXT)):
        settings = document.get(part)
        kind = settings.get("model_type") if isinstance(settings, dict) else None
        if kind not in supported:
            raise CheckpointError(
                f"{folder}: the {part.split('_', maxsplit=1)[0]} backbone of config.json is {kind!r} ('{part}', "
                f"'model_type'); expected one of {', '.join(supported)}"
            )
    config = VisionTextDualEncoderConfig.from_dict(document)
    vision = config.vision_config
    if vision.model_type in _WIDTHS:
        vision.hidden_size = _WIDTHS[vision.model_type](vision)
    return config


def _pooling(config: VisionTextDualEncoderConfig, folder: Path) -> str:
    """Return the pooling that config.json asks for, as the space names it."""
    known = {"pooler": "pooler", "mean": TextPooling.MEAN}
    name = getattr(config, POOLING, "pooler")
    if name not in known:
        raise CheckpointError(f"{folder}: '{POOLING}' in config.json is {name!r}; expected {' or '.join(known)}")
    return known[name]
