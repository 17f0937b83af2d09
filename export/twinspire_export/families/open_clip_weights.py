"""OpenCLIP's tensors under the names of transformers' `CLIPModel`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_utils import no_init_weights

from twinspire.errors import CheckpointError
from twinspire_export.families.huggingface import listing

IGNORED = ("attn_mask", "text.attn_mask")
"""A buffer that old versions of OpenCLIP stored."""

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IN_PROJECTION = ("q_proj", "k_proj", "v_proj")


def load_clip_model(config: CLIPConfig, files: tuple[Path, ...], folder: Path) -> tuple[CLIPModel, float | None]:
    """Return a `CLIPModel` in float32 with OpenCLIP's weights, and the logits' bias.

    Raises CheckpointError where tensors are missing, unknown or of another shape.
    """
    stored: dict[str, Tensor] = {}
    for file in files:
        stored.update(load_file(file))
    prefix = "text." if "text.token_embedding.weight" in stored else ""
    bias = stored.pop("logit_bias", None)
    with no_init_weights():
        model = CLIPModel(config).eval()
    expected = model.state_dict()
    targets = dict(_targets(config, prefix))
    if missing := sorted(targets.keys() - stored.keys()):
        raise CheckpointError(f"the checkpoint {folder} is missing {listing(missing)}. Copy or download it again")
    if unknown := sorted(stored.keys() - targets.keys() - set(IGNORED)):
        raise CheckpointError(
            f"the checkpoint {folder} has {listing(unknown)} that open_clip_config.json does not explain: a part of "
            "this model is not supported"
        )
    loaded: dict[str, Tensor] = {}
    for name, parts in targets.items():
        tensor = stored[name].float()
        if name in ("visual.proj", f"{prefix}text_projection") and tensor.ndim == 2:
            tensor = tensor.T  # OpenCLIP multiplies by it from the right
        shape = (sum(expected[part].shape[0] for part in parts), *expected[parts[0]].shape[1:]) if parts[1:] else None
        shape = tuple(expected[parts[0]].shape) if shape is None else shape
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"the checkpoint {folder} does not fit its open_clip_config.json: {name} (stored "
                f"{tuple(stored[name].shape)}; expected {shape}, outputs first)"
            )
        loaded.update(zip(parts, tensor.chunk(len(parts)) if parts[1:] else [tensor], strict=True))
    model.load_state_dict({name: tensor.contiguous() for name, tensor in loaded.items()}, strict=True, assign=True)
    return model, None if bias is None else float(bias)


def _targets(config: CLIPConfig, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each tensor and the names of those that it is for transformers."""
    yield "logit_scale", ("logit_scale",)
    yield "visual.class_embedding", ("vision_model.embeddings.class_embedding",)
    yield "visual.conv1.weight", ("vision_model.embeddings.patch_embedding.weight",)
    yield "visual.positional_embedding", ("vision_model.embeddings.position_embedding.weight",)
    yield "visual.proj", ("visual_projection.weight",)
    yield f"{prefix}token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)
    yield f"{prefix}positional_embedding", ("text_model.embeddings.position_embedding.weight",)
    yield f"{prefix}text_projection", ("text_projection.weight",)
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        f"{prefix}ln_final": "text_model.final_layer_norm",
    }
    layers = {
        "visual": ("vision_model", config.vision_config.num_hidden_layers),
        prefix.rstrip("."): ("text_model", config.text_config.num_hidden_layers),
    }
    for kind in ("weight", "bias"):
        for name, target in norms.items():
            yield f"{name}.{kind}", (f"{target}.{kind}",)
        for tower, (owner, count) in layers.items():
            for number in range(count):
                block = f"{tower}.transformer.resblocks.{number}".lstrip(".")
                layer = f"{owner}.encoder.layers.{number}"
                yield (
                    f"{block}.attn.in_proj_{kind}",
                    tuple(f"{layer}.self_attn.{part}.{kind}" for part in _IN_PROJECTION),
                )
                for name, target in _BLOCK.items():
                    yield f"{block}.{name}.{kind}", (f"{layer}.{target}.{kind}",)
