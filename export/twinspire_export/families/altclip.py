"""AltCLIP: checkpoints of transformers' `AltCLIPModel`, https://arxiv.org/abs/2211.06679."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AltCLIPModel, CLIPImageProcessor, XLMRobertaTokenizerFast

from twinspire_export.families.clip_with_bert import ClipWithBertFamily


class AltClipFamily(ClipWithBertFamily):
    """CLIP's ViT with a class token, and XLM-RoBERTa, which was taught to give the embeddings of CLIP's text tower."""

    model_type = "altclip"
    architecture = "AltCLIPModel"
    title = "AltCLIP"
    examples = ("BAAI/AltCLIP",)
    model_class = AltCLIPModel
    processor_class = CLIPImageProcessor
    tokenizer_class = XLMRobertaTokenizerFast  # AutoTokenizer knows none for AltCLIP
    # The texts that it was taught on are no longer than CLIP's; the authors' code cuts there (FlagAI, AltCLIP).
    context_length = 77

    def text_model(self, model: AltCLIPModel) -> Any:  # noqa: ANN401 - transformers does not export its class
        """Return the XLM-RoBERTa."""
        return model.text_model.roberta

    def head(self, model: AltCLIPModel) -> Sequence[nn.Module]:
        """Return the norm, the transformation to CLIP's width, and the projection."""
        return [model.text_model.pre_LN, model.text_model.transformation, model.text_projection]

    def text_features(self, model: AltCLIPModel, input_ids: Tensor) -> Tensor:
        """Encode texts by transformers."""
        features: Tensor = model.get_text_features(input_ids=input_ids)
        return features
