"""The models that join a CLIP image tower with a text tower built as BERT or RoBERTa, pooled at its first token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from transformers import AutoTokenizer

from twinspire.bundle import Tower
from twinspire_export import onnx_export
from twinspire_export.dependencies import silenced
from twinspire_export.families.bert_text import load_bert_tokenizer, text_settings
from twinspire_export.families.clip import image_tower
from twinspire_export.families.family import CheckpointSource, ModelFamily
from twinspire_export.families.huggingface import (
    HuggingFaceCheckpoint,
    image_settings,
    load_model,
    load_processor,
    tokenizer_json,
)
from twinspire_export.rewrite import ALL
from twinspire_export.text_encoder import TextPooling, encoder_of
from twinspire_export.transformer import frozen

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


class ClipWithBertFamily(ModelFamily):
    """A ViT with a class token, and a BERT-like text transformer pooled at its first token."""

    rewrites = ALL
    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type[BaseImageProcessor]]
    tokenizer_class: ClassVar[Any] = AutoTokenizer
    context_length: ClassVar[int]
    """The tokens of the longest text that the authors' code encodes, which cuts longer ones."""

    @abstractmethod
    def text_model(self, model: Any) -> Any:  # noqa: ANN401 - several classes
        """Return the text tower of `model` that `encoder_of` takes."""

    @abstractmethod
    def head(self, model: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        """Return the layers of `model` that turn the first token into an embedding."""

    @abstractmethod
    def text_features(self, model: Any, input_ids: Tensor) -> Tensor:  # noqa: ANN401
        """Encode texts without padding by transformers' modules: `input_ids` (N, L) int64 to (N, D)."""

    def open(self, source: CheckpointSource, files: tuple[Path, ...]) -> ClipWithBertCheckpoint:
        """Open a checkpoint. Raises what `ModelFamily.open` says."""
        folder = source.folder
        with silenced("transformers"):
            processor = load_processor(self.processor_class, folder)
            tokenizer = load_bert_tokenizer(folder, self.tokenizer_class)
            model = load_model(self.model_class, folder, files)
        serialised = tokenizer_json(tokenizer, folder)
        text_model = self.text_model(model)
        return ClipWithBertCheckpoint(
            source=source,
            family=self,
            files=files,
            dim=int(model.config.projection_dim),
            image=image_settings(processor, model.config.vision_config, folder),
            text=text_settings(tokenizer, serialised, text_model, folder, context_length=self.context_length),
            tokenizer_json=serialised,
            pooling=TextPooling.FIRST_TOKEN,
            logit_scale=float(model.logit_scale.detach().double().exp()),
            model=model,
            tokenizer=tokenizer,
            processor=processor,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipWithBertCheckpoint(HuggingFaceCheckpoint):
    """An opened model of such a family."""

    family: ClipWithBertFamily

    def tower(self, tower: Tower) -> nn.Module:
        """Return a new module of a tower that computes what transformers computes, step by step.

        A text tower too large for an engine has its table of tokens in float16.
        """
        if tower is Tower.IMAGE:
            return image_tower(self.model, self.image)
        encoder = encoder_of(self.family.text_model(self.model), head=self.family.head(self.model))
        if onnx_export.weight_bytes(encoder) > onnx_export.MAX_GRAPH_BYTES:
            # XLM-RoBERTa's vocabulary of 250,002 tokens: with its large size, 2.1 GiB, of which the table is 1.0.
            encoder.tokens = frozen(encoder.tokens.half())
        return encoder

    def text_features(self, input_ids: Tensor) -> Tensor:
        """Encode texts without padding: `input_ids` (N, L) int64 to (N, D)."""
        return self.family.text_features(self.model, input_ids)
