"""The two towers of a Hugging Face `CLIPModel`, wrapped to the tensor contract that every runtime shares.

They call the model's own modules, but write down what surrounds them: transformers' `forward` decides on
shapes in Python, which a trace would freeze. That the result is the same is what the certificate of each
export measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings

if TYPE_CHECKING:
    from transformers import CLIPModel

MASKED = -1e4
"""What the causal mask adds to a masked logit: its exp is exactly 0, yet it is finite in float16."""

LEGACY_EOS_ID = 2
"""`eos_token_id` in configs older than transformers' #24773: pooling is then at the highest token id."""


class ImageTower(nn.Module):
    """Pictures to embeddings: `(N, S, S, 3) uint8 -> (N, D) float32, L2-normalised`.

    Rescaling by 1/255, mean and standard deviation are part of the graph.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: CLIPModel, settings: ImageSettings) -> None:
        super().__init__()
        self.config = model.config.vision_config
        self.vision = model.vision_model
        self.projection = model.visual_projection
        self.width = int(self.config.hidden_size)
        self.patches = (int(self.config.image_size) // int(self.config.patch_size)) ** 2
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, D) float32, L2-normalised."""
        embeddings = self.vision.embeddings
        pixels = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0  # (N, 3, S, S), 0 to 1
        pixels = (pixels - self.mean) / self.std
        patches = embeddings.patch_embedding(pixels)  # (N, W, side, side)
        patches = patches.reshape(-1, self.width, self.patches).transpose(1, 2)  # (N, P, W)
        start = embeddings.class_embedding.view(1, 1, -1).repeat(image.shape[0], 1, 1)  # (N, 1, W)
        hidden = torch.cat([start, patches], dim=1) + embeddings.position_embedding.weight  # (N, 1 + P, W)
        hidden = self.vision.pre_layrnorm(hidden)
        hidden = self.vision.encoder(inputs_embeds=hidden).last_hidden_state
        return _unit(self.projection(self.vision.post_layernorm(hidden[:, 0])))


class TextTower(nn.Module):
    """Token ids to embeddings: `(N, L) int32 -> (N, D) float32, L2-normalised`.

    L is anything up to the context length. The mask is causal and the output is taken at the end token, so
    what stands right of it never matters.
    """

    end_id: Tensor

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.config = model.config.text_config
        self.text = model.text_model
        self.projection = model.text_projection
        self.width = int(self.config.hidden_size)
        self.pooled_at_highest = self.config.eos_token_id == LEGACY_EOS_ID
        self.register_buffer("end_id", torch.tensor(self.config.eos_token_id, dtype=torch.int32))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32, L2-normalised."""
        embeddings = self.text.embeddings
        rows, length = input_ids.shape[0], input_ids.shape[1]
        positions = torch.arange(length)
        later = positions.view(1, 1, 1, -1) > positions.view(1, 1, -1, 1)  # (1, 1, L, L)
        mask = later.to(torch.float32) * MASKED

        hidden = embeddings.token_embedding(input_ids) + embeddings.position_embedding.weight[:length]  # (N, L, W)
        hidden = self.text.encoder(inputs_embeds=hidden, causal_attention_mask=mask).last_hidden_state

        ids = input_ids if self.pooled_at_highest else (input_ids == self.end_id).to(torch.int32)
        end = ids.argmax(dim=1)  # (N,), the first of equal ones
        # One Gather by an integer index; indexing with two tensors would become a chain of shape arithmetic.
        flat = hidden.reshape(-1, self.width)  # (N * L, W)
        pooled = flat.index_select(0, torch.arange(rows) * length + end)  # (N, W)
        return _unit(self.projection(self.text.final_layer_norm(pooled)))


def _unit(vectors: Tensor) -> Tensor:
    """Scale the rows of (N, D) to length 1."""
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit
