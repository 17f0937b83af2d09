"""Events that an ingest run emits, and its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass


class FailedImage(NamedTuple):
    """A file that was not added or a folder that was not read, and why."""

    path: Path
    cause: str


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
    """A change of one item: of which file, under which id; `before` is the old path of a moved file.

    `cause` says why a file failed; if the store has an item of it, that item stays as it was. `captioned` says whether
    the item got a caption.
    """

    happened: Happened
    path: Path
    id: int | None = None
    before: Path | None = None
    cause: str | None = None
    captioned: bool = False


@dataclass(frozen=True, slots=True)
class IngestReport:
    """How many items were added, were in the store already, failed, and changed in content, metadata, path or caption.

    `captioned` counts the added and changed ones that got a caption, `moved` the changed ones with another path,
    `removed` the items whose files are gone. `skipped` counts files by suffix that are not images.
    """

    added: int
    already: int
    failed: list[FailedImage]
    captioned: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)


class Tally:
    """Counts events for an `IngestReport`, and passes each on to `on_event`."""

    def __init__(self, on_event: Callable[[FolderEvent], None] | None) -> None:
        self._on_event = on_event
        self._counts = dict.fromkeys(Happened, 0)
        self._captioned = 0
        self._changed: set[Path] = set()
        self._failed: list[FailedImage] = []

    def count(self, event: FolderEvent) -> None:
        """Count one event and pass it on."""
        self._counts[event.happened] += 1
        self._captioned += event.captioned
        if event.happened is Happened.FAILED:
            self._failed.append(FailedImage(event.path, event.cause or ""))
        elif event.happened not in (Happened.ADDED, Happened.REMOVED):
            self._changed.add(event.path)
        if self._on_event is not None:
            self._on_event(event)

    def report(self, *, already: int, skipped: Mapping[str, int]) -> IngestReport:
        """Return the report of the events that were counted."""
        return IngestReport(
            added=self._counts[Happened.ADDED],
            already=already,
            failed=self._failed,
            captioned=self._captioned,
            changed=len(self._changed),
            moved=self._counts[Happened.MOVED],
            removed=self._counts[Happened.REMOVED],
            skipped=dict(skipped),
        )
