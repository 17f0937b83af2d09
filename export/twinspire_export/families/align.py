"""ALIGN: checkpoints of transformers' `AlignModel`, https://arxiv.org/abs/2102.05918."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import AlignModel, EfficientNetImageProcessor

from twinspire.bundle import Tower
from twinspire.errors import CheckpointError
from twinspire_export.convolutional import ConvolutionalTower
from twinspire_export.dependencies import silenced
from twinspire_export.families.bert_text import load_bert_tokenizer, text_settings
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    fit_one_file,
    image_settings,
    load_model,
    load_processor,
    tokenizer_json,
)
from twinspire_export.rewrite import ALL
from twinspire_export.text_encoder import TextPooling, encoder_of


class AlignFamily(ModelFamily):
    """An EfficientNet, whose pooled map is the embedding, and a BERT pooled at its first token."""

    model_type = "align"
    architecture = "AlignModel"
    title = "ALIGN"
    examples = ("kakaobrain/align-base",)
    rewrites = ALL

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> AlignCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            processor = load_processor(EfficientNetImageProcessor, folder)
            tokenizer = load_bert_tokenizer(folder)
            model: AlignModel = load_model(AlignModel, folder, files)
        dim = int(model.config.projection_dim)
        width = int(model.vision_model.encoder.blocks[-1].projection.project_bn.num_features)
        if dim != width:
            raise CheckpointError(
                f"{folder}: texts are projected to {dim} numbers ('projection_dim' in config.json), but images have no "
                f"projection and {width} (the last of 'out_channels' times 'width_coefficient'); they must be equal"
            )
        temperature = float(model.temperature.detach().double())
        if not temperature > 0:
            raise CheckpointError(
                f"{folder}: the tensor 'temperature', by which cosines are divided, is {temperature}; expected a "
                "positive number. Copy or download the checkpoint again"
            )
        serialised = tokenizer_json(tokenizer, folder)
        return AlignCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=dim,
            image=image_settings(processor, model.config.vision_config, folder),
            text=text_settings(tokenizer, serialised, model.text_model, folder),
            tokenizer_json=serialised,
            pooling=TextPooling.FIRST_TOKEN,
            logit_scale=1 / temperature,
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignCheckpoint(HuggingFaceCheckpoint):
    """An opened `AlignModel`."""

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes."""
        if tower is Tower.IMAGE:
            return ConvolutionalTower.of_efficientnet(self.model.vision_model, None, self.image)
        return fit_one_file(encoder_of(self.model.text_model, head=[self.model.text_projection]))
