"""What adding and following need of an index, and what they tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire.index import AddReport, Item, ItemKind, StoredItem


class FailedImage(NamedTuple):
    """A file that was not added, or a folder that was not looked at, and why."""

    path: Path
    cause: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many were added, were there already, failed, and changed: took new content, metadata, place or caption.

    `captioned` counts those of the added and changed that got a caption, `moved` those of the changed that took another
    place, `removed` the items whose files are gone. `skipped` counts the files that are no images by their suffix.
    """

    added: int
    already: int
    failed: list[FailedImage]
    captioned: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)


class Happened(StrEnum):
    """What became of an image."""

    ADDED = "added"
    CHANGED = "changed"
    CAPTIONED = "captioned"
    MOVED = "moved"
    REMOVED = "removed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FolderEvent:
    """One thing that was done: to which file, under which id; `before` is where a moved one was, `cause` why it failed.

    A failed file that the index holds from before is left in the index as it was. `captioned` tells whether the item
    got a caption.
    """

    happened: Happened
    path: Path
    id: int | None = None
    before: Path | None = None
    cause: str | None = None
    captioned: bool = False


class Tally:
    """Counts events; what they come to is an `IngestReport`."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Happened, 0)
        self._captioned = 0
        self._changed: set[Path] = set()
        self._failed: list[FailedImage] = []

    def take(self, event: FolderEvent) -> None:
        """Take in one event."""
        self._counts[event.happened] += 1
        self._captioned += event.captioned
        if event.happened is Happened.FAILED:
            self._failed.append(FailedImage(event.path, event.cause or ""))
        elif event.happened not in (Happened.ADDED, Happened.REMOVED):
            self._changed.add(event.path)

    def report(self, *, already: int, skipped: Mapping[str, int]) -> IngestReport:
        """Return what it came to."""
        return IngestReport(
            self._counts[Happened.ADDED],
            already,
            self._failed,
            self._captioned,
            len(self._changed),
            self._counts[Happened.MOVED],
            self._counts[Happened.REMOVED],
            dict(skipped),
        )


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

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return the vectors of these items, (N, D) float32, L2-normalised."""

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
