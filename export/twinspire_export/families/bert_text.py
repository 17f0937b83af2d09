"""Text settings of the models whose text tower is BERT, RoBERTa or XLM-RoBERTa: [CLS] ... [SEP], then padding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from twinspire.bundle import Padding, TextSettings
from twinspire.errors import CheckpointError
from twinspire_export.text_encoder import counts_positions

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("sentencepiece.bpe.model",))
"""The sets of files of which one makes a tokenizer: `load_tokenizer` takes them."""

_NORMALISED = ("WordPiece", "Unigram")
"""The tokenizer models that work on normalised text; a byte-level BPE takes text as it comes."""


def text_settings(
    tokenizer: PreTrainedTokenizerFast,
    serialised: str,
    model: Any,  # noqa: ANN401 - one of many classes, with the same names for their parts
    folder: Path,
    *,
    context_length: int | None = None,
) -> TextSettings:
    """Translate the tokenizer and the text tower `model`, which `encoder_of` takes.

    The context is as long as the positions and the tokenizer's `model_max_length` allow, and at most `context_length`.

    Raises CheckpointError where tokenizer and model do not fit each other: an id has no embedding, a text is not
    enclosed in [CLS] and [SEP], the padding's id is not the model's or stands in a text, or the tokenizer lost its
    normaliser.
    """
    config = model.config
    plain = Tokenizer.from_str(serialised)
    highest_id = max(plain.get_vocab(with_added_tokens=True).values())
    vocabulary, positions = (
        len(table.weight) for table in (model.embeddings.word_embeddings, model.embeddings.position_embeddings)
    )
    if highest_id >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {highest_id}, but the text tower only {vocabulary} embeddings "
            "('vocab_size' in config.json); tokenizer and weights belong to different models"
        )
    start, end, pad_id = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    empty = list(plain.encode("").ids)
    if start is None or end is None or empty != [start, end]:
        raise CheckpointError(
            f"{folder}: the tokenizer must enclose every text in its start token {start} ('cls_token') and its end "
            f"token {end} ('sep_token'), but it encodes the empty text as {empty}. Give tokenizer.json a "
            "post-processor that adds them"
        )
    if pad_id is None or pad_id != config.pad_token_id or pad_id in empty:
        raise CheckpointError(
            f"{folder}: padding is masked by its id, so it must be one id, in no text: the tokenizer pads with "
            f"{pad_id} ('pad_token'), the text tower of config.json has the 'pad_token_id' {config.pad_token_id}"
        )
    parts = json.loads(serialised)
    if parts["model"].get("type") in _NORMALISED and not parts.get("normalizer"):
        raise CheckpointError(
            f"{folder}: tokenizer.json has no normalizer, without which a {parts['model']['type']} tokenizer gives "
            "other ids than the model was trained on. Copy tokenizer.json from the model's repository, or delete it, "
            "so that it is made anew from the vocabulary"
        )
    usable = positions - (int(pad_id) + 1 if counts_positions(model) else 0)
    limits = [usable, tokenizer.model_max_length, *([] if context_length is None else [context_length])]
    return TextSettings(context_length=int(min(limits)), pad_id=int(pad_id), eos_id=int(end), padding=Padding.TRIM)
