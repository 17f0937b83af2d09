"""Texts to token ids, ragged: padding is the runtime's affair."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from twinspire._arguments import as_list, require_text
from twinspire.bundle import TextSettings
from twinspire.errors import BundleError, InputError

__all__ = ["Tokenizer"]

_log = logging.getLogger("twinspire")


class Tokenizer:
    """A bundle's tokenizer.json, held to its text settings. Safe to use from several threads.

    Raises BundleError where the file is no tokenizer or does not end a text with the end token.
    """

    def __init__(self, path: str | os.PathLike[str], settings: TextSettings) -> None:
        self.settings = settings
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{os.fspath(path)} is no tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._said_cut = False
        self._lock = threading.Lock()
        empty = self._tokenizer.encode("").ids
        if empty[-1:] != [settings.eos_id]:
            raise BundleError(
                f"{os.fspath(path)} makes {empty} of an empty text: expected it to end with the end token "
                f"{settings.eos_id}, by a post-processor"
            )

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Encode texts: for each a 1-D int32 array, start and end token included, without padding.

        A text longer than the context is cut, its end token kept; the first time, a warning is logged. "" is
        start and end. Raises InputError with the position of what is no text.
        """
        encodings = self._tokenizer.encode_batch_fast(_checked(texts))
        longest = max((len(encoding) for encoding in encodings), default=0)
        if longest > self.settings.context_length:
            self._say_cut(longest)
        return [self._within_context(encoding.ids) for encoding in encodings]

    def _within_context(self, ids: list[int]) -> NDArray[np.int32]:
        if len(ids) > self.settings.context_length:
            ids = [*ids[: self.settings.context_length - 1], self.settings.eos_id]
        return np.array(ids, np.int32)

    def _say_cut(self, length: int) -> None:
        with self._lock:
            first, self._said_cut = not self._said_cut, True
        if first:
            _log.warning(
                "a text of %d tokens was cut to the context of %d; this is said once",
                length,
                self.settings.context_length,
            )


def _checked(texts: Any) -> list[str]:  # noqa: ANN401 - whatever the caller gave
    if isinstance(texts, Set):
        raise InputError("expected a list of texts, got a set: what has no order cannot be told apart afterwards")
    return [require_text(text, f"text {position}") for position, text in enumerate(as_list(texts, "texts"))]
