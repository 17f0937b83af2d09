"""Prompt templates: a query said in several ways, its vectors averaged.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 3.1.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, require_text, shown
from twinspire.errors import InputError
from twinspire.search.text_files import read_lines


@dataclass(frozen=True, slots=True)
class Templates:
    """Sentences with {} where the text goes, such as `a photo of {}`. Raises `InputError` for any without just one."""

    sentences: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentences", tuple(as_list(self.sentences, "templates")))
        if not self.sentences:
            raise InputError("no templates came: expected at least one, such as: a photo of {}")
        for sentence in self.sentences:
            if require_text(sentence, "a template").count("{}") != 1:
                raise InputError(
                    f"the template {shown(sentence)}: expected {{}} once, where the text goes: a photo of {{}}"
                )

    @classmethod
    def read(cls, path: str | Path) -> Templates:
        """Read a file with a template a line. Raises `InputError` with the line."""
        lines = read_lines(path, "the templates")
        for number, line in lines:
            if line.count("{}") != 1:
                raise InputError(
                    f"{path}, line {number}: {line!r} is no template: expected {{}} once, where the text goes, "
                    "as in: a photo of {}"
                )
        return cls(tuple(line for _, line in lines))

    def filled(self, text: str) -> list[str]:
        """Return the sentences with `text` in them."""
        return [sentence.replace("{}", text) for sentence in self.sentences]

    def averaged(self, embeddings: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32, L2-normalised: the mean of each text's vectors, of (N * sentences, D).

        Raises `InputError` where the vectors of a text cancel out.
        """
        mean = embeddings.reshape(len(texts), len(self.sentences), -1).mean(axis=1)  # (N, D)
        norms = np.linalg.norm(mean, axis=1, keepdims=True)
        if (norms < 1e-6).any():
            raise InputError("the templates cancel out: their vectors point in opposite ways")
        return np.asarray(mean / norms, np.float32)
