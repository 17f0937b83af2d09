"""Image towers of ViT, https://arxiv.org/abs/2010.11929, and DINOv2, https://arxiv.org/abs/2304.07193."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from twinspire.bundle import ImageSettings
from twinspire.errors import CheckpointError
from twinspire_export.towers import ImageTower, Patches
from twinspire_export.transformer import Block, Linear, Mlp, Norm


def vit_tower(model: Any, projection: nn.Linear, settings: ImageSettings) -> ImageTower:  # noqa: ANN401
    """Return transformers' `ViTModel`, its pooler (dense and activation) and a projection as an image tower."""
    embeddings, pooler = model.embeddings, model.pooler
    return ImageTower(
        patches=Patches(embeddings.patch_embeddings.projection, settings),
        class_token=embeddings.cls_token.flatten(),
        positions=embeddings.position_embeddings[0],
        norm=None,
        blocks=map(Block.of_vit, model.encoder.layer),
        final_norm=Norm(model.layernorm),
        projection=Mlp(Linear.of(pooler.dense), pooler.activation, Linear.of(projection)),
    )


def dinov2_tower(model: Any, projection: nn.Linear, settings: ImageSettings) -> ImageTower:  # noqa: ANN401
    """Return transformers' `Dinov2Model` and a projection of its class token as an image tower.

    Raises CheckpointError for the giant one, whose MLP is gated.
    """
    if model.config.use_swiglu_ffn:
        raise CheckpointError(
            "the DINOv2 has a gated MLP ('use_swiglu_ffn'), which is not supported; use a smaller one"
        )
    embeddings = model.embeddings
    patches = Patches(embeddings.patch_embeddings.projection, settings)
    tokens = torch.empty(1, patches.side**2 + 1, patches.width)  # only their number is read
    return ImageTower(
        patches=patches,
        class_token=embeddings.cls_token.flatten(),
        positions=embeddings.interpolate_pos_encoding(tokens, settings.height, settings.width)[0],
        norm=None,
        blocks=map(Block.of_dinov2, model.encoder.layer),
        final_norm=Norm(model.layernorm),
        projection=Linear.of(projection),
    )
