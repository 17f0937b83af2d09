"""MetaCLIP 2, trained on texts in 300 languages: checkpoints of transformers' `MetaClip2Model`.

https://arxiv.org/abs/2507.22062. CLIP's towers with the vocabulary of XLM-V, 901,629 tokens, or that of mT5.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import CLIPImageProcessor, MetaClip2Model, PreTrainedTokenizerFast

from twinspire.bundle import Padding, TextSettings, Tower
from twinspire.errors import CheckpointError
from twinspire_export.dependencies import silenced
from twinspire_export.families.clip import POOLING, image_tower, text_settings, text_tower
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    check_vocabulary,
    fit_one_file,
    image_settings,
    load_model,
    load_processor,
    load_tokenizer,
    tokenizer_json,
)
from twinspire_export.families.siglip_text import SENTENCEPIECE_FILE, SiglipTokenizer, open_tokenizer
from twinspire_export.onnx_export import Exporter
from twinspire_export.rewrite import ALL

if TYPE_CHECKING:
    from transformers import MetaClip2TextConfig


class MetaClip2Family(ModelFamily):
    """CLIP's towers; the end token has id 2 (XLM-V) or 1 (mT5), and `eos_token_id` 2 has no legacy meaning."""

    model_type = "metaclip_2"
    architecture = "MetaClip2Model"
    exporter = Exporter.OPTIMUM
    title = "MetaCLIP 2"
    examples = ("facebook/metaclip-2-worldwide-huge-quickgelu", "facebook/metaclip-2-worldwide-b32")
    rewrites = ALL

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> MetaClip2Checkpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            processor = load_processor(CLIPImageProcessor, folder)
            # The checkpoints with mT5's vocabulary have SigLIP's multilingual tokenizer.
            has_sentencepiece = (folder / SENTENCEPIECE_FILE).is_file()
            tokenizer = open_tokenizer(folder) if has_sentencepiece else load_tokenizer(folder)
            model: MetaClip2Model = load_model(MetaClip2Model, folder, files)
        text = model.config.text_config
        if isinstance(tokenizer, SiglipTokenizer):
            serialised, settings = tokenizer.plain.to_str(), mt5_settings(tokenizer, text, folder)
        else:
            serialised = tokenizer_json(tokenizer, folder)
            settings = text_settings(tokenizer, serialised, text, folder, legacy=False)
        return MetaClip2Checkpoint(
            source=source,
            family=self,
            files=files,
            dim=int(model.config.projection_dim),
            image=image_settings(processor, model.config.vision_config, folder),
            text=settings,
            tokenizer_json=serialised,
            pooling=POOLING,
            logit_scale=float(model.logit_scale.detach().double().exp()),
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaClip2Checkpoint(HuggingFaceCheckpoint):
    """An opened `MetaClip2Model`."""

    tokenizer: PreTrainedTokenizerFast | SiglipTokenizer

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes, step by step."""
        if tower is Tower.IMAGE:
            return image_tower(self.model, self.image)
        return fit_one_file(text_tower(self.model, legacy=False))

    def token_ids(self, caption: str) -> list[int]:
        """Tokenize by the original code, cut to the context."""
        if isinstance(self.tokenizer, SiglipTokenizer):
            return [*self.tokenizer.reference(caption)[: self.text.context_length - 1], self.text.eos_id]
        return super().token_ids(caption)


def mt5_settings(tokenizer: SiglipTokenizer, config: MetaClip2TextConfig, folder: Path) -> TextSettings:
    """Translate the settings of mT5's vocabulary. Raises CheckpointError where tower and tokenizer do not fit."""
    check_vocabulary(tokenizer.plain, int(config.vocab_size), folder)
    if config.eos_token_id != tokenizer.end_id:
        raise CheckpointError(
            f"{folder}: the text tower of config.json is pooled at the token {config.eos_token_id} ('eos_token_id'), "
            f"but the tokenizer ends texts with {tokenizer.end_id}; they must be equal"
        )
    return TextSettings(
        context_length=int(config.max_position_embeddings),
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.end_id,
        padding=Padding.TRIM,
    )
