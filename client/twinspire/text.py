"""Tokenization: texts to token ids, without padding, which the runtimes add."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence, Set
from enum import StrEnum
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from twinspire._arguments import as_list, require_text
from twinspire.bundle import TOKENIZER_NAME, TextSettings
from twinspire.errors import BundleError, InputError, TextLengthError

__all__ = ["Tokenizer", "Truncation"]

_log = logging.getLogger("twinspire")


class Truncation(StrEnum):
    """What becomes of a text that is longer than the context: its end or its start is cut off, or it is an error."""

    END = "end"
    START = "start"
    ERROR = "error"


class Tokenizer:
    """A bundle's tokenizer.json, its path or content, with its text settings. Safe to use from several threads.

    Raises BundleError where the file is not a tokenizer or does not append the end token to a text.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, settings: TextSettings) -> None:
        self.settings = settings
        name = TOKENIZER_NAME if isinstance(source, bytes) else os.fspath(source)
        try:
            if isinstance(source, bytes):
                self._tokenizer = tokenizers.Tokenizer.from_buffer(source)
            else:
                self._tokenizer = tokenizers.Tokenizer.from_file(name)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{name} is not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._warned = False
        self._lock = threading.Lock()
        empty = self._tokenizer.encode("").ids
        if empty[-1:] != [settings.eos_id]:
            raise BundleError(
                f"{name} encodes an empty text as {empty}: expected the end token {settings.eos_id} at the "
                "end, from a post-processor"
            )
        self._prefix = empty[:-1]

    def encode(self, texts: Sequence[str], *, truncation: Truncation | str = "end") -> list[NDArray[np.int32]]:
        """Encode each text as a 1-D int32 array, start and end token included, without padding.

        A text longer than the context is cut as `truncation` says, start and end token kept; the first one logs a
        warning. "" is start and end. Raises InputError with the position of what is not a str, TextLengthError with
        that of the first text that is longer than the context where `truncation` is "error".
        """
        cut = _truncation(truncation)
        encodings = self._tokenizer.encode_batch_fast(_checked(texts))
        limit = self.settings.context_length
        longest = max((len(encoding) for encoding in encodings), default=0)
        if longest > limit:
            if cut is Truncation.ERROR:
                position = next(place for place, encoding in enumerate(encodings) if len(encoding) > limit)
                raise TextLengthError(position, tokens=len(encodings[position]), limit=limit)
            self._warn_once(longest)
        return [self._within_context(encoding.ids, cut) for encoding in encodings]

    def _within_context(self, ids: list[int], cut: Truncation) -> NDArray[np.int32]:
        limit = self.settings.context_length
        if len(ids) > limit:
            if cut is Truncation.START:
                ids = [*self._prefix, *ids[len(ids) - limit + len(self._prefix) :]]
            else:
                ids = [*ids[: limit - 1], self.settings.eos_id]
        return np.array(ids, np.int32)

    def _warn_once(self, length: int) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            _log.warning(
                "a text of %d tokens was cut to the context of %d; further ones are cut without a warning",
                length,
                self.settings.context_length,
            )


def _truncation(value: Truncation | str) -> Truncation:
    try:
        return Truncation(value)
    except ValueError:
        known = ", ".join(repr(each.value) for each in Truncation)
        raise InputError(f"truncation {value!r}: expected one of {known}", option="truncation") from None


def _checked(texts: Any) -> list[str]:  # noqa: ANN401 - whatever the caller gave
    if isinstance(texts, Set):
        raise InputError("expected a list of texts, got a set: sets have no order, the embeddings do", option="texts")
    return [require_text(text, f"text {position}") for position, text in enumerate(as_list(texts, "texts"))]
