"""What adding needs of an index, and what it tells at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire.index import AddReport, Item, ItemKind, StoredItem


class FailedPicture(NamedTuple):
    """A file that was not added, and why."""

    path: Path
    cause: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many were added, were there already, failed, and changed: took new content, metadata, place or caption.

    `captioned` counts those of the added and changed that got a caption.
    """

    added: int
    already: int
    failed: list[FailedPicture]
    captioned: int = 0
    changed: int = 0


class ItemIndex(Protocol):
    """What adding needs of an index; `twinspire.Index` is one. Used from several threads."""

    def __len__(self) -> int:
        """How many items there are."""

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` where embeddings of `space` cannot be added."""

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that an item of this kind in the index has."""

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add `items` with their `embeddings`."""

    def find(self, *, uri: str | None = None, content_hash: str | None = None) -> list[StoredItem]:
        """Return the items of this uri or of this content."""

    def update(
        self,
        id: int,  # noqa: A002 - the field's name
        *,
        embedding: NDArray[np.float32] | None = None,
        space: str | None = None,
        uri: str | EllipsisType = ...,
        caption: str | EllipsisType | None = ...,
        metadata: Mapping[str, Any] | EllipsisType = ...,
        content_hash: str | EllipsisType | None = ...,
    ) -> StoredItem:
        """Change what is given of one item."""

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids."""
