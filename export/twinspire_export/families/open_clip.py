"""Checkpoints in OpenCLIP's own layout: `open_clip_config.json` and safetensors in OpenCLIP's names.

https://github.com/mlfoundations/open_clip. Their weights are put into transformers' `CLIPModel`, which computes the
same; OpenCLIP is not needed. What that class cannot compute is refused by the name of the setting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizerFast

from twinspire.bundle import CropRounding, ImageSettings, Interpolation, Resize
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced
from twinspire_export.families.clip import LEGACY_EOS_ID, POOLING, ClipCheckpoint, text_settings
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import OPEN_CLIP_CONFIG, tokenizer_json
from twinspire_export.families.open_clip_weights import load_clip_model
from twinspire_export.onnx_export import Exporter
from twinspire_export.rewrite import ALL
from twinspire_export.weights import stored_shapes, weight_files

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESIZE = {"shortest": Resize.SHORTEST_SIDE, "squash": Resize.STRETCH, "longest": Resize.PAD}
# As OpenCLIP resizes to evaluate: `random` is for training alone.
_INTERPOLATIONS = {
    "bicubic": Interpolation.BICUBIC,
    "bilinear": Interpolation.BILINEAR,
    "random": Interpolation.BICUBIC,
}

_ANY = object()  # a setting that changes nothing here: of training, of weights before they are loaded, or read below
_OFF: tuple[object, ...] = (None, False, {})
_CUSTOM_BLOCKS = dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), _OFF
)
_TOWER = {
    **dict.fromkeys(("layers", "width", "mlp_ratio", "norm_kwargs", "output_tokens", "final_ln_after_pool"), _ANY),
    **_CUSTOM_BLOCKS,
    "ls_init_value": _OFF,
    "act_kwargs": _OFF,
    "block_type": (None, "default"),
}
# Every setting of a part of the config with the values that `CLIPModel` can compute; all others are refused.
_MODEL = dict.fromkeys(
    ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"), _ANY
) | {"nonscalar_logit_scale": _OFF, "multimodal_cfg": _OFF, "cast_dtype": _ANY, "output_dict": _ANY}
_VISION = _TOWER | {
    **dict.fromkeys(("image_size", "head_width", "patch_size", "patch_dropout", "pos_embed_type"), _ANY),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool"), _ANY),
    **dict.fromkeys(("timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"), _ANY),
    "timm_model_name": _OFF,
    "attentional_pool": _OFF,
    "no_ln_pre": _OFF,
    "pool_type": ("tok",),
}
_TEXT = _TOWER | {
    **dict.fromkeys(("context_length", "vocab_size", "heads", "pad_id", "bos_id", "eos_id", "hf_tokenizer_name"), _ANY),
    **dict.fromkeys(("hf_model_pretrained", "hf_proj_type", "hf_pooler_type", "tiktoken_name"), _ANY),
    "hf_model_name": _OFF,
    "text_arch": ("clip",),
    "tokenizer_mode": (None, ""),
    "tokenizer_type": (None, ""),
    "tokenizer_kwargs": _OFF,
    "variable_text": _OFF,
    "embed_cls": _OFF,
    "no_causal_mask": _OFF,
    "pool_type": ("argmax",),
    "proj_bias": _OFF,
    "proj_type": ("linear",),
}


class OpenClipFamily(ModelFamily):
    """CLIP's towers under OpenCLIP's names, with exact or quick GELU and torchvision's crop."""

    model_type = "open_clip"
    architecture = "CLIP"
    exporter = Exporter.OPTIMUM
    title = "OpenCLIP, DataComp, DFN"
    examples = ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "apple/DFN2B-CLIP-ViT-L-14")
    rewrites = ALL

    def weight_files(self, folder: Path) -> tuple[Path, ...]:
        """List the weights: `open_clip_model.safetensors`, or model.safetensors in OpenCLIP's names."""
        if (folder / OPEN_CLIP_WEIGHTS).is_file():
            return (folder / OPEN_CLIP_WEIGHTS,)
        if not list(folder.glob("model*.safetensors")):
            found = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt")))
            raise CheckpointError(
                f"the checkpoint {folder} has no {OPEN_CLIP_WEIGHTS}"
                + (f", only {found}, which are pickled and never opened" if found else "")
                + ". Copy it from the model's repository, or save the weights as safetensors under that name"
            )
        return weight_files(folder)

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> ClipCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        try:
            document = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
            model_config, preprocessing = document["model_cfg"], document.get("preprocess_cfg") or {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CheckpointError(
                f"{folder / OPEN_CLIP_CONFIG} is not JSON with a 'model_cfg' ({exc!r}). Download the checkpoint again"
            ) from exc
        _check(model_config, folder)
        config = clip_config(model_config)
        stored_shapes(files)  # raises where a file is damaged
        image = image_settings(preprocessing, int(config.vision_config.image_size), folder)
        with silenced("transformers"):
            tokenizer = load_tokenizer(folder)
            model, bias = load_clip_model(config, files, folder)
        serialised = tokenizer_json(tokenizer, folder)
        return ClipCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(config.projection_dim),
            image=image,
            text=text_settings(tokenizer, serialised, config.text_config, folder),
            tokenizer_json=serialised,
            pooling=POOLING,
            logit_scale=float(model.logit_scale.detach().double().exp()),
            logit_bias=bias,
            model=model,
            tokenizer=tokenizer,
            processor=CLIPImageProcessor(image_mean=list(image.mean), image_std=list(image.std)),
        )


def _check(model: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError for the first setting that `CLIPModel` cannot compute."""
    file = folder / OPEN_CLIP_CONFIG
    parts = {"model_cfg": (model, _MODEL), "vision_cfg": (model["vision_cfg"], _VISION)}
    for part, (settings, supported) in {**parts, "text_cfg": (model["text_cfg"], _TEXT)}.items():
        if not isinstance(settings, dict):
            raise CheckpointError(f"{file}: {part!r} is {settings!r}, expected an object; pass the file of OpenCLIP")
        for name, value in settings.items():
            allowed = supported.get(name, _OFF)
            if allowed is _ANY or value in allowed:  # type: ignore[operator]  # a tuple
                continue
            advice = "Use another checkpoint"
            if "siglip" in str(value).lower():
                advice = "Use the model's repository in transformers' format, such as google/siglip2-base-patch16-224"
            raise CheckpointError(
                f"{file}: {name!r} in {part!r} is {value!r}, which cannot be exported: only CLIP's own transformers "
                f"with OpenAI's tokenizer can. {advice}"
            )
    if not isinstance(layers := model["vision_cfg"].get("layers", 12), int):
        raise CheckpointError(
            f"{file}: 'layers' in 'vision_cfg' is {layers}, a ResNet, which cannot be exported. Use a checkpoint with "
            "a vision transformer"
        )


def clip_config(model: dict[str, Any]) -> CLIPConfig:
    """Translate OpenCLIP's `model_cfg`."""
    vision, text = model["vision_cfg"], model["text_cfg"]
    # OpenCLIP's own default is the exact GELU, transformers' the quick one.
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    width = int(vision.get("width", 768))

    def tower(settings: dict[str, Any], width: int, heads: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": int(width * settings.get("mlp_ratio", 4.0)),
            "num_hidden_layers": int(settings.get("layers", 12)),
            "num_attention_heads": heads,
            "hidden_act": activation,
            "layer_norm_eps": float((settings.get("norm_kwargs") or {}).get("eps", 1e-5)),
        }

    return CLIPConfig(
        projection_dim=int(model["embed_dim"]),
        vision_config={
            **tower(vision, width, width // int(vision.get("head_width", 64))),
            "image_size": int(vision.get("image_size", 224)),
            "patch_size": int(vision.get("patch_size", 16)),
        },
        text_config={
            **tower(text, int(text.get("width", 512)), int(text.get("heads", 8))),
            "vocab_size": int(text.get("vocab_size", 49408)),
            "max_position_embeddings": int(text.get("context_length", 77)),
            "eos_token_id": LEGACY_EOS_ID,  # pool at the highest id, as OpenCLIP's `argmax` does
        },
    )


def image_settings(preprocessing: dict[str, Any], size: int, folder: Path) -> ImageSettings:
    """Translate OpenCLIP's `preprocess_cfg` for images of `size`. Raises CheckpointError for unknown values."""
    mode, interpolation = (
        preprocessing.get("resize_mode") or "shortest",
        preprocessing.get("interpolation") or "bicubic",
    )
    for name, value, known in (("resize_mode", mode, _RESIZE), ("interpolation", interpolation, _INTERPOLATIONS)):
        if value not in known:
            raise CheckpointError(
                f"{folder / OPEN_CLIP_CONFIG}: {name!r} in 'preprocess_cfg' is {value!r}; expected {', '.join(known)}"
            )
    if _RESIZE[mode] is Resize.PAD and preprocessing.get("fill_color"):
        raise CheckpointError(
            f"{folder / OPEN_CLIP_CONFIG}: 'fill_color' in 'preprocess_cfg' is {preprocessing['fill_color']}; a bundle "
            "pads with black, 0"
        )
    is_crop = _RESIZE[mode] is Resize.SHORTEST_SIDE
    return ImageSettings(
        height=size,
        width=size,
        resize=_RESIZE[mode],
        shortest_side=size if is_crop else None,
        crop_rounding=CropRounding.ROUND if is_crop else None,
        interpolation=_INTERPOLATIONS[interpolation],
        mean=_triple(preprocessing.get("mean"), _MEAN),
        std=_triple(preprocessing.get("std"), _STD),
    )


def _triple(given: Any, default: tuple[float, float, float]) -> tuple[float, float, float]:  # noqa: ANN401
    """Return three numbers: those given, one for all channels, or the default."""
    if given is None:
        return default
    red, green, blue = given if isinstance(given, list) else [given] * 3
    return float(red), float(green), float(blue)


def load_tokenizer(folder: Path) -> CLIPTokenizerFast:
    """Load OpenAI's tokenizer. Raises CheckpointError where its files are missing or malformed."""
    files = ("tokenizer.json",), ("vocab.json", "merges.txt")
    if not any(all((folder / name).is_file() for name in names) for names in files):
        raise CheckpointError(
            f"the checkpoint {folder} has no tokenizer: expected tokenizer.json, or vocab.json and merges.txt. "
            "OpenCLIP brings OpenAI's with its code: copy these files from openai/clip-vit-base-patch32"
        )
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # the tokenizers library raises bare Exception for a file that it cannot read
        raise CheckpointError(f"transformers cannot load the tokenizer of the checkpoint {folder}: {exc}") from exc
