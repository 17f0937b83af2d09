"""What building and tuning did, and what there is."""

from __future__ import annotations

from dataclasses import dataclass

from twinspire.index.ann.predict import Prediction


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build` built: the kind, over how many rows, what was predicted and what it took."""

    kind: str
    rows: int
    predicted: Prediction
    build_s: float
    file_bytes: int


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What `tune` set, the recall@k that it gives on the queries, and the time of a query in a batch of all."""

    effort: int
    reach: int
    recall: float
    query_ms: float
    exact_query_ms: float
    queries: int
    k: int


@dataclass(frozen=True, slots=True)
class SnapshotStats:
    """What answers approximately: kind, rows covered (those behind are searched exactly), settings, size, damage.

    `effort` and `reach` are None where the usual ones are taken. `damage` says why it cannot be used, if so.
    """

    kind: str
    rows: int
    effort: int | None
    reach: int | None
    file_bytes: int
    damage: str | None
