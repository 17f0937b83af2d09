"""What adding needs of an index, and what it tells at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire.index import AddReport, Item, ItemKind


class FailedPicture(NamedTuple):
    """A file that was not added, and why."""

    path: Path
    cause: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many were added, how many had content that the index knew, which failed, and how many got a caption."""

    added: int
    already: int
    failed: list[FailedPicture]
    captioned: int = 0


class ItemIndex(Protocol):
    """What adding needs of an index; `twinspire.Index` is one. Used from several threads."""

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` where embeddings of `space` cannot be added."""

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that an item of this kind in the index has."""

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add `items` with their `embeddings`."""
