"""Tokenization: texts to token ids, without padding, which the runtimes add."""

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
from twinspire.bundle import TOKENIZER_NAME, TextSettings
from twinspire.errors import BundleError, InputError

__all__ = ["Tokenizer"]

_log = logging.getLogger("twinspire")


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

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Encode each text as a 1-D int32 array, start and end token included, without padding.

        A text longer than the context is cut and its end token kept; the first one logs a warning. "" is
        start and end. Raises InputError with the position of what is not a str.
        """
        encodings = self._tokenizer.encode_batch_fast(_checked(texts))
        longest = max((len(encoding) for encoding in encodings), default=0)
        if longest > self.settings.context_length:
            self._warn_once(longest)
        return [self._within_context(encoding.ids) for encoding in encodings]

    def _within_context(self, ids: list[int]) -> NDArray[np.int32]:
        if len(ids) > self.settings.context_length:
            ids = [*ids[: self.settings.context_length - 1], self.settings.eos_id]
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


def _checked(texts: Any) -> list[str]:  # noqa: ANN401 - whatever the caller gave
    if isinstance(texts, Set):
        raise InputError("expected a list of texts, got a set: sets have no order, the embeddings do", option="texts")
    return [require_text(text, f"text {position}") for position, text in enumerate(as_list(texts, "texts"))]
