"""Reports of an index: statistics, verification and compaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinspire.index.ann.reports import SnapshotStats
from twinspire.index.vectors import VectorType
from twinspire.stores.items import ItemKind


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Result of `compact`: the number of dropped rows, which had no item, and file sizes.

    `bytes_before` and `bytes_after` are of the vector file, the others of the catalogue with SQLite's log.
    """

    dropped_rows: int
    bytes_before: int
    bytes_after: int
    catalogue_bytes_before: int
    catalogue_bytes_after: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of `verify`: what was read, and the problems that were found."""

    path: Path
    items: int
    rows: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Content of an index and its size on disk. `compact` would drop `dead_rows`.

    `snapshot` is None if the index is searched exactly.
    """

    path: Path
    space: str
    dim: int
    dtype: VectorType
    items: int
    items_by_kind: Mapping[ItemKind, int]
    rows: int
    dead_rows: int
    generation: int
    schema_version: int
    vectors_bytes: int
    catalogue_bytes: int
    snapshot: SnapshotStats | None = None
    vectors_per_item: int = 1
