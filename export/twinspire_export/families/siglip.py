"""SigLIP, and SigLIP 2 at a fixed resolution: checkpoints of transformers' `SiglipModel`.

https://arxiv.org/abs/2303.15343 and https://arxiv.org/abs/2502.14786. The two differ in their tokenizers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import SiglipImageProcessor, SiglipModel

from twinspire.bundle import ImageSettings, Padding, TextSettings, Tower
from twinspire.errors import CheckpointError
from twinspire_export.attention_pool import AttentionPool
from twinspire_export.dependencies import silenced
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    check_vocabulary,
    image_settings,
    load_model,
    load_processor,
)
from twinspire_export.families.siglip_text import SiglipTokenizer, open_tokenizer
from twinspire_export.onnx_export import Exporter
from twinspire_export.towers import AttentionPoolImageTower, LastTokenTextTower, Patches
from twinspire_export.transformer import Attention, Block, Linear, Mlp, Norm

if TYPE_CHECKING:
    from transformers import SiglipTextConfig


class SiglipFamily(ModelFamily):
    """A ViT pooled by attention, and a text transformer without mask that is pooled at the last of 64 tokens."""

    model_type = "siglip"
    architecture = "SiglipModel"
    exporter = Exporter.OPTIMUM
    title = "SigLIP, SigLIP 2 (fixed resolution)"
    examples = ("google/siglip-base-patch16-224", "google/siglip2-base-patch16-224")
    rewrites = ("normalisation", "patches", "norms", "scale", "probe", "qkv", "pooled")

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> SiglipCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            processor = load_processor(SiglipImageProcessor, folder)
            tokenizer = open_tokenizer(folder)
            model: SiglipModel = load_model(SiglipModel, folder, files)
        if not model.vision_model.use_head:
            raise CheckpointError(
                f"{folder}: 'vision_use_head' is false in config.json: the image tower has no attention pool, so its "
                "embeddings are not comparable with texts. Use a checkpoint of both towers"
            )
        vision, text = model.config.vision_config, model.config.text_config
        if text.projection_size != vision.hidden_size:
            raise CheckpointError(
                f"{folder}: images have {vision.hidden_size} dimensions, texts {text.projection_size} "
                "('projection_size'); they must be equal"
            )
        return SiglipCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(vision.hidden_size),
            image=image_settings(processor, vision, folder),
            text=text_settings(tokenizer, text, folder),
            tokenizer_json=tokenizer.plain.to_str(),
            pooling="last token",
            logit_scale=float(model.logit_scale.detach().double().exp()),
            logit_bias=float(model.logit_bias.detach()),
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SiglipCheckpoint(HuggingFaceCheckpoint):
    """An opened `SiglipModel`; `tokenizer` is a `SiglipTokenizer`."""

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes, step by step."""
        return image_tower(self.model, self.image) if tower is Tower.IMAGE else text_tower(self.model)

    def token_ids(self, caption: str) -> list[int]:
        """Tokenize by the original code, padded to the context, at whose last token the tower is pooled."""
        text = self.text
        ids = [*self.tokenizer.reference(caption)[: text.context_length - 1], text.eos_id]
        return ids + [text.pad_id] * (text.context_length - len(ids))


def image_tower(model: SiglipModel, settings: ImageSettings) -> AttentionPoolImageTower:
    """Return the image tower of `model` with the rescaling and normalisation of `settings` inside."""
    vision = model.vision_model
    return AttentionPoolImageTower(
        patches=Patches(vision.embeddings.patch_embedding, settings),
        positions=vision.embeddings.position_embedding.weight,
        blocks=map(Block.of, vision.encoder.layers),
        final_norm=Norm(vision.post_layernorm),
        attention_pool=attention_pool(vision.head),
    )


def attention_pool(head: Any) -> AttentionPool:  # noqa: ANN401 - transformers does not export the class
    """Return the pool of a `SiglipMultiheadAttentionPoolingHead`."""
    attention: nn.MultiheadAttention = head.attention
    width, heads = attention.embed_dim, attention.num_heads
    joint = Linear(attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (joint.rows(part * width, (part + 1) * width) for part in range(3))
    return AttentionPool(
        head.probe,
        Attention(query, key, value, Linear.of(attention.out_proj), heads=heads, scale=(width // heads) ** -0.5),
        Norm(head.layernorm),
        Mlp.of(head.mlp),
    )


def text_tower(model: SiglipModel) -> LastTokenTextTower:
    """Return the text tower of `model`."""
    text = model.text_model
    return LastTokenTextTower(
        tokens=text.embeddings.token_embedding.weight,
        positions=text.embeddings.position_embedding.weight,
        blocks=map(Block.of, text.encoder.layers),
        final_norm=Norm(text.final_layer_norm),
        projection=Linear.of(text.head),
    )


def text_settings(tokenizer: SiglipTokenizer, config: SiglipTextConfig, folder: Path) -> TextSettings:
    """Translate the tokenizer and the text tower's config. Raises CheckpointError where they do not fit each other."""
    check_vocabulary(tokenizer.plain, int(config.vocab_size), folder)
    return TextSettings(
        context_length=min(int(config.max_position_embeddings), tokenizer.max_length),
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.end_id,
        padding=Padding.MAX_LENGTH,
    )
