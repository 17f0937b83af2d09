"""What the index says about itself and about what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinspire.index.ann.reports import SnapshotStats
from twinspire.index.vectors import VectorType
from twinspire.stores.items import ItemKind


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What `compact` did: how many rows without an item it dropped, and sizes before and after.

    `bytes_before` and `bytes_after` are of the vector file, the others of the catalogue with SQLite's log.
    """

    dropped_rows: int
    bytes_before: int
    bytes_after: int
    catalogue_bytes_before: int
    catalogue_bytes_after: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` read and found wrong; `problems` is empty where all is well."""

    path: Path
    items: int
    rows: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What an index holds and how large it is on disk. `dead_rows` are rows that `compact` would drop.

    `snapshot` is None where it is searched exactly.
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
