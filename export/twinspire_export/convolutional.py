"""Convolutional image towers: the backbones of transformers with the tensor contract around them.

Batch norms must be in evaluation mode; the exporter folds them into the convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings
from twinspire_export.towers import pixel_values, unit
from twinspire_export.transformer import Linear


class ConvolutionalTower(nn.Module):
    """A convolutional network and the pooling of its last map: `(N, S, S, 3) uint8 -> (N, D) float32`, L2-normalised.

    `stem` and `stages` are applied to the normalised pixels (N, 3, S, S), one after the other, and give a map
    (N, W, H, H). It is pooled by its mean, or by its maximum where `pools_maximum`; the projection None is for
    embeddings that are the pooled map itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stem: nn.Module,
        stages: nn.Module,
        projection: nn.Linear | None,
        settings: ImageSettings,
        *,
        pools_maximum: bool = False,
    ) -> None:
        super().__init__()
        self.stem, self.stages, self.pools_maximum = stem, stages, pools_maximum
        self.projection = nn.Identity() if projection is None else Linear.of(projection)
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1))

    @classmethod
    def of_resnet(cls, model: Any, projection: nn.Linear, settings: ImageSettings) -> ConvolutionalTower:  # noqa: ANN401
        """Return a tower of transformers' `ResNetModel`, whose modules it shares."""
        # Without the check of the channels in front, which a trace would turn into a constant.
        stem = nn.Sequential(model.embedder.embedder, model.embedder.pooler)
        return cls(stem, model.encoder, projection, settings)

    @classmethod
    def of_efficientnet(
        cls,
        model: Any,  # noqa: ANN401 - two classes
        projection: nn.Linear | None,
        settings: ImageSettings,
    ) -> ConvolutionalTower:
        """Return a tower of transformers' `EfficientNetModel` or `AlignVisionModel`, whose modules it shares."""
        pools_maximum = model.config.pooling_type == "max"
        return cls(model.embeddings, model.encoder, projection, settings, pools_maximum=pools_maximum)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, D) float32."""
        features = self.stages(self.stem(pixel_values(image, self.mean, self.std))).last_hidden_state  # (N, W, H, H)
        pooled = features.amax(dim=(2, 3)) if self.pools_maximum else features.mean(dim=(2, 3))
        return unit(self.projection(pooled.unsqueeze(1))[:, 0])  # through (N, 1, W): see `transformer`
