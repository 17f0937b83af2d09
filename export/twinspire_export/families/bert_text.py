"""Tokenizers and text settings of models whose text tower is BERT, RoBERTa or XLM-RoBERTa: [CLS] ... [SEP]."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from twinspire.bundle import Padding, TextSettings
from twinspire.errors import CheckpointError
from twinspire_export.families.huggingface import check_vocabulary, load_tokenizer
from twinspire_export.text_encoder import counts_positions

_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("sentencepiece.bpe.model",))
"""The sets of files of which one makes a tokenizer."""

_NORMALISED = ("WordPiece", "Unigram")
"""The tokenizer models that work on normalised text; a byte-level BPE takes text as it comes."""


def load_bert_tokenizer(
    folder: Path,
    tokenizer_class: Any = AutoTokenizer,  # noqa: ANN401 - AutoTokenizer is no tokenizer itself
) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a BERT-like text tower, of the class that its config names, or of `tokenizer_class`.

    Raises CheckpointError where its files are missing or malformed, or it lost its normaliser.
    """
    file = folder / "tokenizer.json"
    if file.is_file():  # transformers fails on it with another message
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # malformed: `load_tokenizer` says so
            _check_normaliser(file.read_text(encoding="utf-8"), folder)
    with _protobuf_classes_of_transformers():
        return load_tokenizer(folder, _TOKENIZER_FILES, tokenizer_class)


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
    vocabulary, positions = (
        len(table.weight) for table in (model.embeddings.word_embeddings, model.embeddings.position_embeddings)
    )
    check_vocabulary(plain, vocabulary, folder)
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
    _check_normaliser(serialised, folder)
    usable = positions - (int(pad_id) + 1 if counts_positions(model) else 0)
    limits = [usable, tokenizer.model_max_length, *([] if context_length is None else [context_length])]
    return TextSettings(context_length=int(min(limits)), pad_id=int(pad_id), eos_id=int(end), padding=Padding.TRIM)


def _check_normaliser(serialised: str, folder: Path) -> None:
    """Raise CheckpointError where a tokenizer.json whose model works on normalised text has no normaliser."""
    parts = json.loads(serialised)
    kind = parts["model"].get("type")
    if kind in _NORMALISED and not parts.get("normalizer"):
        raise CheckpointError(
            f"{folder}: tokenizer.json has no normalizer, without which a {kind} tokenizer gives other ids than the "
            "model was trained on. Copy tokenizer.json from the model's repository, or delete it, so that it is made "
            "anew from the vocabulary"
        )


@contextmanager
def _protobuf_classes_of_transformers() -> Iterator[None]:
    """Let transformers convert sentencepiece models with the protobuf classes that it carries itself.

    Where sentencepiece is installed it takes sentencepiece's, which are for one release of protobuf: those of 0.2.3
    need protobuf 7, while tritonclient needs one below 7.
    """
    # By name: `transformers` itself has a function of the module's name.
    converters: Any = import_module("transformers.convert_slow_tokenizer")
    original = converters.import_protobuf
    converters.import_protobuf = lambda *_: import_module("transformers.utils.sentencepiece_model_pb2_new")
    try:
        yield
    finally:
        converters.import_protobuf = original
