"""OpenAI's CLIP and its retrainings: checkpoints of transformers' `CLIPModel`, https://arxiv.org/abs/2103.00020."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from twinspire.bundle import ImageSettings, Padding, TextSettings, Tower
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    check_vocabulary,
    crop_rounding_of,
    image_settings,
    load_model,
    load_processor,
    load_tokenizer,
    tokenizer_json,
)
from twinspire_export.onnx_export import Exporter
from twinspire_export.rewrite import ALL
from twinspire_export.towers import ImageTower, Patches, TextTower
from twinspire_export.transformer import Block, Linear, Norm

if TYPE_CHECKING:
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPVisionTransformer

POOLING = "end token"
"""Both ways of pooling that transformers knows end at the same token; `text_settings` checks it."""

LEGACY_EOS_ID = 2
"""`eos_token_id` in configs older than transformers' #24773: transformers then pools at the highest token id."""


class ClipFamily(ModelFamily):
    """A ViT with a class token, and a causal text transformer pooled at its end token."""

    model_type = "clip"
    architecture = "CLIPModel"
    exporter = Exporter.OPTIMUM
    title = "CLIP and its retrainings"
    examples = ("openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14")
    rewrites = ALL

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> ClipCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            processor = load_processor(CLIPImageProcessor, folder)
            tokenizer = load_tokenizer(folder)
            model: CLIPModel = load_model(CLIPModel, folder, files)
        serialised = tokenizer_json(tokenizer, folder)
        return ClipCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(model.config.projection_dim),
            image=image_settings(processor, model.config.vision_config, folder, crop_rounding=crop_rounding_of(folder)),
            text=text_settings(tokenizer, serialised, model.config.text_config, folder),
            tokenizer_json=serialised,
            pooling=POOLING,
            logit_scale=float(model.logit_scale.detach().double().exp()),
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipCheckpoint(HuggingFaceCheckpoint):
    """An opened `CLIPModel`."""

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes, step by step."""
        return image_tower(self.model, self.image) if tower is Tower.IMAGE else text_tower(self.model)


def image_tower(model: CLIPModel, settings: ImageSettings) -> ImageTower:
    """Return the image tower of `model` with the rescaling and normalisation of `settings` inside."""
    return vision_tower(model.vision_model, model.visual_projection, settings)


def vision_tower(vision: CLIPVisionTransformer, projection: nn.Linear, settings: ImageSettings) -> ImageTower:
    """Return `vision` and the projection of its pooled class token as an image tower."""
    return ImageTower(
        patches=Patches(vision.embeddings.patch_embedding, settings),
        class_token=vision.embeddings.class_embedding,
        positions=vision.embeddings.position_embedding.weight,
        norm=Norm(vision.pre_layrnorm),
        blocks=map(Block.of, vision.encoder.layers),
        final_norm=Norm(vision.post_layernorm),
        projection=Linear.of(projection),
    )


def text_tower(model: CLIPModel, *, legacy: bool = True) -> TextTower:
    """Return the text tower of `model`; `legacy` says whether `LEGACY_EOS_ID` has its meaning."""
    text = model.text_model
    end_id = int(text.config.eos_token_id)
    return TextTower(
        tokens=text.embeddings.token_embedding.weight,
        positions=text.embeddings.position_embedding.weight,
        blocks=map(Block.of, text.encoder.layers),
        final_norm=Norm(text.final_layer_norm),
        projection=Linear.of(model.text_projection),
        end_id=None if legacy and end_id == LEGACY_EOS_ID else end_id,
    )


def text_settings(
    tokenizer: PreTrainedTokenizerFast,
    serialised: str,
    text_config: CLIPTextConfig,
    folder: Path,
    *,
    legacy: bool = True,
) -> TextSettings:
    """Translate the tokenizer and the text tower's config; `legacy` says whether `LEGACY_EOS_ID` has its meaning.

    Raises CheckpointError where they do not fit each other: pooling would be at the wrong token, or an id has no
    embedding.
    """
    plain = Tokenizer.from_str(serialised)
    highest_id = check_vocabulary(plain, int(text_config.vocab_size), folder)
    pooled_at, eos_id = text_config.eos_token_id, tokenizer.eos_token_id
    empty = list(plain.encode("").ids)
    if eos_id is None or not empty or empty[-1] != eos_id:
        raise CheckpointError(
            f"{folder}: the tokenizer must end every text with its end token, where the text tower is pooled, but it "
            f"encodes the empty text as {empty}, and its end token is {eos_id}. Give tokenizer.json a post-processor "
            "that appends the end token"
        )
    legacy = legacy and pooled_at == LEGACY_EOS_ID
    if legacy and eos_id != highest_id:
        raise CheckpointError(
            f"{folder}: 'eos_token_id' {LEGACY_EOS_ID} in config.json makes transformers pool at the highest token id, "
            f"which is {highest_id}, but the tokenizer's end token is {eos_id}. Give the end token the highest id, or "
            "set another 'eos_token_id'"
        )
    if not legacy and pooled_at != eos_id:
        raise CheckpointError(
            f"{folder}: the text tower of config.json is pooled at the token {pooled_at} ('eos_token_id'), but the "
            f"tokenizer ends texts with {eos_id}; they must be equal"
        )
    return TextSettings(
        context_length=int(min(text_config.max_position_embeddings, tokenizer.model_max_length)),
        # Any id will do right of the end token; without a padding token the end token itself is the safe one.
        pad_id=int(eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id),
        eos_id=int(eos_id),
        padding=Padding.TRIM,
    )
