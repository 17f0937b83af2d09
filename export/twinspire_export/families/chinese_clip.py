"""Chinese-CLIP: checkpoints of transformers' `ChineseCLIPModel`, https://arxiv.org/abs/2211.01335."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import ChineseCLIPImageProcessor, ChineseCLIPModel

from twinspire_export.families.clip_with_bert import ClipWithBertFamily
from twinspire_export.onnx_export import Exporter

if TYPE_CHECKING:
    from transformers import ChineseCLIPTextModel


class ChineseClipFamily(ClipWithBertFamily):
    """A ViT with a class token, and a Chinese BERT (RoBERTa-wwm, whose layout is BERT's)."""

    model_type = "chinese_clip"
    architecture = "ChineseCLIPModel"
    exporter = Exporter.OPTIMUM
    title = "Chinese-CLIP"
    examples = ("OFA-Sys/chinese-clip-vit-base-patch16", "OFA-Sys/chinese-clip-vit-large-patch14")
    model_class = ChineseCLIPModel
    processor_class = ChineseCLIPImageProcessor
    # "all baseline models use 52 as the context length": cn_clip/clip/utils.py of the authors' code, which cuts there.
    # The positions behind it, of 512, are those of the BERT that it began with.
    context_length = 52

    def text_model(self, model: ChineseCLIPModel) -> ChineseCLIPTextModel:
        """Return the text tower, a BERT."""
        return model.text_model

    def head(self, model: ChineseCLIPModel) -> Sequence[nn.Module]:
        """Return the projection."""
        return [model.text_projection]

    def text_features(self, model: ChineseCLIPModel, input_ids: Tensor) -> Tensor:
        """Project the first token, as the authors' code does.

        `get_text_features` of transformers 4.57 asks for a pooler that the model does not have, and fails:
        https://github.com/huggingface/transformers/pull/42351
        """
        hidden: Any = model.text_model(input_ids=input_ids)[0]
        features: Tensor = model.text_projection(hidden[:, 0])
        return features
