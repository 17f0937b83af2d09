"""Reports of building and tuning an index, and the description of its snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from twinspire.index.ann.cost_model import Prediction


@dataclass(frozen=True, slots=True)
class GroupRecall:
    """Recall@k of one group of queries, and the time of a query in a batch of all of them."""

    queries: str
    count: int
    recall: float
    query_ms: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Setting that a build chose for searches, and what it was measured on.

    `effort` is nprobe of `lists`, efSearch of a graph or the number of candidates to rescore, as `effort_name` says.
    `rescore_factor` is the number of candidates rescored per result, 0 for an index that holds the vectors themselves
    and for one where `effort_is_candidates`.
    """

    target: float
    k: int
    effort: int
    effort_name: str
    lists: int | None
    rescore_factor: int
    measured: tuple[GroupRecall, ...]
    effort_is_candidates: bool = False

    @property
    def recall(self) -> float:
        """Lowest recall@k of the groups."""
        return min(group.recall for group in self.measured)

    @property
    def reached(self) -> bool:
        """Whether each group reaches the target; otherwise the setting is the best that was measured."""
        return self.recall >= self.target

    @property
    def rescored_candidates(self) -> int:
        """Number of candidates rescored for k results."""
        return self.effort if self.effort_is_candidates else self.k * self.rescore_factor

    @property
    def query_ms(self) -> float:
        """Time of a query in a batch, over all groups."""
        queries = sum(group.count for group in self.measured)
        return sum(group.count * group.query_ms for group in self.measured) / queries


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build` built: the spec, the number of rows, what was predicted and what it took.

    `calibration` is None where search is exact and where there are too few items to measure on; `calibration_s` is the
    time that it took, which is not part of `build_s`.
    """

    spec: str
    rows: int
    predicted: Prediction
    build_s: float
    file_bytes: int
    calibration: Calibration | None = None
    calibration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TuneReport:
    """Setting that `tune` stored, its recall@k on the queries, and the time of a query in a batch of all.

    `rescore_factor` is 0 where the effort is the number of candidates.
    """

    effort: int
    rescore_factor: int
    recall: float
    query_ms: float
    exact_query_ms: float
    queries: int
    k: int
    measured: tuple[GroupRecall, ...] = ()


@dataclass(frozen=True, slots=True)
class SnapshotStats:
    """The snapshot: its spec, the rows it covers (those behind are searched exactly), settings, size and damage.

    `effort` and `rescore_factor` are None for the defaults. `damage` is the reason why it cannot be used, None for
    none.
    """

    spec: str
    rows: int
    effort: int | None
    rescore_factor: int | None
    file_bytes: int
    damage: str | None
