"""Outliers for random checkpoints, as trained transformers have them: int8 recipes are tested on them.

Two kinds are known. Outlier channels: a few channels of the residual stream that are tens of times the others in every
token (https://arxiv.org/abs/2208.07339). Massive activations: one or two channels in which a few tokens, such as the
first, take values of hundreds to thousands after an early MLP, so that attention rests on these tokens
(https://arxiv.org/abs/2402.17762).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPModel

ACTIVATION = 100.0
"""The value behind the MLP's activation function that makes a massive activation."""

_SAMPLES = 16

_MARGIN = 2.0
"""Logits by which massive tokens exceed all others together, on average: then most heads rest on them."""


@torch.no_grad()
def add_outliers(model: CLIPModel, *, channels: int = 5, factor: float = 20.0, seed: int = 0) -> list[int]:
    """Make `channels` of both towers' residual stream `factor` times as large as they were. Returns their indices.

    All that is added to these channels is multiplied: embeddings, attention outputs, MLP outputs. The norms' weights
    undo it for what reads the stream, so that the other channels matter as before, as in trained models.
    """
    width = min(model.config.vision_config.hidden_size, model.config.text_config.hidden_size)
    chosen = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:channels]
    vision, text = model.vision_model, model.text_model
    for parameter in (vision.pre_layrnorm.weight, vision.pre_layrnorm.bias):
        parameter[chosen] *= factor
    for table in (text.embeddings.token_embedding.weight, text.embeddings.position_embedding.weight):
        table[:, chosen] *= factor
    for tower, final_norm in ((vision, vision.post_layernorm), (text, text.final_layer_norm)):
        width = len(final_norm.weight)
        norms = [final_norm]
        for layer in tower.encoder.layers:
            norms += [layer.layer_norm1, layer.layer_norm2]
            for output in (layer.self_attn.out_proj, layer.mlp.fc2):
                output.weight[chosen] *= factor
                output.bias[chosen] *= factor
        for norm in norms:
            norm.weight[chosen] /= factor
            norm.weight *= math.sqrt((width - channels + channels * factor**2) / width)
    return chosen.tolist()


@torch.no_grad()
def add_massive_activations(
    model: CLIPModel, *, layer: int = 1, value: float = 500.0, seed: int = 0
) -> dict[str, list[tuple[int, int]]]:
    """Let the MLP of block `layer` add about `value` to one channel of a few tokens, on which attention then rests.

    Returns these tokens and channels by the name of the tower, `vision` and `text`: the class token and a patch, and
    the start token. Later blocks read little else from them, and the final norm ignores these channels.
    """
    generator = torch.Generator().manual_seed(seed)
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size) ** 2
    images = torch.randn(_SAMPLES, 3, 7, 7, generator=generator)
    pixels = nn.functional.interpolate(images, size=config.image_size, mode="bicubic")
    text = model.config.text_config
    ids = torch.randint(0, text.vocab_size, (_SAMPLES, 12), generator=generator)
    ids[:, 0], ids[:, -1] = text.bos_token_id, text.eos_token_id
    made = {}
    towers: tuple[tuple[str, Any, nn.LayerNorm, tuple[int, ...], Callable[[], Any]], ...] = (
        ("vision", model.vision_model, model.vision_model.post_layernorm, (0, 1 + patches // 2),
         lambda: model.get_image_features(pixels)),
        ("text", model.text_model, model.text_model.final_layer_norm, (0,), lambda: model.get_text_features(ids)),
    )  # fmt: skip
    for name, tower, final_norm, tokens, run in towers:
        channels = torch.randperm(len(final_norm.weight), generator=generator)[: len(tokens)].tolist()
        # A patch is told from others by its position alone: random images have no patches that stand out.
        tower.embeddings.position_embedding.weight[list(tokens)] *= 10
        mlp, later = tower.encoder.layers[layer].mlp, tower.encoder.layers[layer + 1 :]
        with _inputs_of([mlp.fc1]) as (given,):
            run()
        for neuron, (token, channel) in enumerate(zip(tokens, channels, strict=True)):
            _detect(mlp.fc1, neuron, given[-1], token)
            mlp.fc2.weight[:, neuron] = 0
            mlp.fc2.weight[channel, neuron] = value / ACTIVATION
        final_norm.weight[channels] = 0
        for block in later:
            block.self_attn.v_proj.weight[:, channels] = 0
            with _inputs_of([block.self_attn.k_proj]) as (given,):
                run()
            _attend(block.self_attn, given[-1], tokens)
        made[name] = list(zip(tokens, channels, strict=True))
    return made


def _detect(linear: nn.Linear, neuron: int, given: Tensor, token: int) -> None:
    """Make a neuron give about ACTIVATION for `token` of `given` (N, L, W), and less than 0 for the others."""
    others = torch.cat([given[:, :token], given[:, token + 1 :]], dim=1)
    direction = given[:, token].mean(dim=0) - others.mean(dim=(0, 1))
    wanted, unwanted = given[:, token] @ direction, others @ direction
    threshold = (wanted.min() + unwanted.max()) / 2
    gain = ACTIVATION / (wanted.mean() - threshold)
    linear.weight[neuron] = gain * direction
    linear.bias[neuron] = -gain * threshold


def _attend(attention: Any, given: Tensor, tokens: tuple[int, ...]) -> None:  # noqa: ANN401 - transformers has several
    """Raise the logits of `tokens` of `given` (N, L, W), alike for all queries, above those of all others together."""
    count, chosen = attention.num_heads, list(tokens)
    query, key = (
        project(given).unflatten(-1, (count, -1)).transpose(1, 2)  # (N, H, L, D)
        for project in (attention.q_proj, attention.k_proj)
    )
    logits = attention.scale * query @ key.transpose(2, 3)  # (N, H, L, L)
    others = logits.clone()
    others[..., chosen] = -torch.inf
    missing = (others.logsumexp(dim=-1, keepdim=True) - logits[..., chosen]).mean(dim=(0, 2))  # (H, T)
    keys = key[:, :, chosen].mean(dim=0)  # (H, T, D)
    # The smallest change of the queries that adds what is missing to all of these tokens.
    change = torch.linalg.pinv(attention.scale * keys) @ (missing + _MARGIN).unsqueeze(-1)  # (H, D, 1)
    attention.q_proj.bias += change.reshape(-1)


@contextmanager
def _inputs_of(modules: list[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Record what `modules` are called with."""
    found: list[list[Tensor]] = [[] for _ in modules]
    hooks = [
        module.register_forward_pre_hook(lambda _, given, into=into: into.append(given[0]))
        for module, into in zip(modules, found, strict=True)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
