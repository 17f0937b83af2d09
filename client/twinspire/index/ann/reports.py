"""What building and tuning did, and what there is."""

from __future__ import annotations

from dataclasses import dataclass

from twinspire.index.ann.cost_model import Prediction


@dataclass(frozen=True, slots=True)
class GroupRecall:
    """The recall@k of one group of queries, and the time of a query in a batch of all of them."""

    queries: str
    count: int
    recall: float
    query_ms: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The setting that a build chose for searches, and what it was measured on.

    `effort` is nprobe of so many `lists`, or efSearch of a graph, as `effort_name` says. `rescore_factor` is how
    many candidates are rescored for each result, 0 for kinds that keep the vectors themselves.
    """

    target: float
    k: int
    effort: int
    effort_name: str
    lists: int | None
    rescore_factor: int
    measured: tuple[GroupRecall, ...]

    @property
    def recall(self) -> float:
        """The lowest recall@k of the groups."""
        return min(group.recall for group in self.measured)

    @property
    def reached(self) -> bool:
        """Whether each group has the target; else the setting is the best that was measured."""
        return self.recall >= self.target

    @property
    def rescored_candidates(self) -> int:
        """How many candidates are rescored for k results."""
        return self.k * self.rescore_factor

    @property
    def query_ms(self) -> float:
        """The time of a query in a batch, over all groups."""
        queries = sum(group.count for group in self.measured)
        return sum(group.count * group.query_ms for group in self.measured) / queries


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build` built: the kind, over how many rows, what was predicted and what it took.

    `calibration` is None where the kind is exact, or there are too few items to measure on; `calibration_s` is the time
    that it took, which `build_s` does not hold.
    """

    kind: str
    rows: int
    predicted: Prediction
    build_s: float
    file_bytes: int
    calibration: Calibration | None = None
    calibration_s: float = 0.0


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
    measured: tuple[GroupRecall, ...] = ()


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
