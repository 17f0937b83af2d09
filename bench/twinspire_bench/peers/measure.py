"""Measurement of peers: each beside twinspire, in turn and in the same rounds, so that other load affects both."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from twinspire.errors import EngineError, TwinspireError
from twinspire_bench.peers.catalogue import CataloguedPeer, PeerKind
from twinspire_bench.peers.environments import Environments
from twinspire_bench.peers.inputs import ComparisonInputs
from twinspire_bench.peers.judgement import cosines, recall
from twinspire_bench.peers.processes import PeerProcess
from twinspire_eval.records import series
from twinspire_eval.statistics import paired_ratio

NEEDS_CHECKPOINT = "needs --checkpoint, the folder of the checkpoint that the bundle was exported from"
_ROUND_NAMES = count()

Answers = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class PeerMeasurement:
    """What is measured, and how. `time_limit_s` is that of opening a peer, and of each of its rounds."""

    inputs: ComparisonInputs
    environments: Environments
    threads: int
    rounds: int
    k: int
    time_limit_s: float
    say: Callable[[str], None]


@dataclass(frozen=True)
class PeerResults:
    """Results by kind and name, and why the other peers have none."""

    rows: dict[PeerKind, dict[str, dict[str, Any]]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the results of a record."""
        return {**{str(kind): rows for kind, rows in self.rows.items()}, "not_measured": self.not_measured}


def measure_peers(
    measurement: PeerMeasurement, peers: Sequence[CataloguedPeer], results: PeerResults, *, on_row: Callable[[], None]
) -> None:
    """Measure peers into `results`; the references of their kinds must be among them. `on_row` is called after each.

    A peer that cannot be installed, fails or takes too long is in `not_measured`, and the others go on.
    """
    for kind in dict.fromkeys(peer.kind for peer in peers):
        reference = next(peer for peer in peers if peer.kind is kind and peer.is_reference)
        others = [peer for peer in peers if peer.kind is kind and not peer.is_reference]
        try:
            _measure_kind(measurement, reference, others, results, on_row)
        except EngineError as error:  # of the reference
            lost = [peer for peer in (reference, *others) if not _has_row(results, peer)]
            results.not_measured.update({peer.name: _reason(error, peer) for peer in lost})
            on_row()


def _reason(error: Exception, peer: CataloguedPeer) -> str:
    """Return why a peer is not measured, which may be an error of the reference beside it."""
    return str(error).removeprefix(f"{peer.name}: ")


def _has_row(results: PeerResults, peer: CataloguedPeer) -> bool:
    return peer.name in results.rows.get(peer.kind, {}) or peer.name in results.not_measured


def _measure_kind(
    measurement: PeerMeasurement,
    reference: CataloguedPeer,
    others: Sequence[CataloguedPeer],
    results: PeerResults,
    on_row: Callable[[], None],
) -> None:
    say, rows = measurement.say, results.rows.setdefault(reference.kind, {})
    say(f"starting {reference.name}")
    with _started(measurement, reference) as ours:
        answers = [ours.measure() for _ in range(measurement.rounds)]
        rows[reference.name] = _row(measurement, ours, answers, None)
        on_row()
        for peer in others:
            try:
                rows[peer.name] = _measured(measurement, peer, ours, answers)
            except (TwinspireError, OSError) as error:
                results.not_measured[peer.name] = _reason(error, peer)
                say(f"{peer.name} is not measured: {results.not_measured[peer.name]}")
            rows[reference.name] = _row(measurement, ours, answers, None)
            on_row()


def _measured(measurement: PeerMeasurement, peer: CataloguedPeer, ours: _Started, answers: Answers) -> dict[str, Any]:
    """Measure a peer and the reference in turn, and append what the reference answers."""
    if peer.needs_checkpoint and measurement.inputs.task["checkpoint"] is None:
        raise EngineError(NEEDS_CHECKPOINT)
    measurement.say(f"starting {peer.name}")
    with _started(measurement, peer) as theirs:
        pair: dict[bool, Answers] = {True: [], False: []}
        for turn in range(measurement.rounds):
            measurement.say(f"{peer.name}: round {turn + 1} of {measurement.rounds}")
            for is_ours in (turn % 2 == 0, turn % 2 == 1):
                pair[is_ours].append((ours if is_ours else theirs).measure())
        answers += pair[True]
        return _row(measurement, theirs, pair[False], pair[True])


class _Started:
    """A peer's process after a first round, which warms it up, with the judgement of its vectors."""

    def __init__(self, measurement: PeerMeasurement, peer: CataloguedPeer, process: PeerProcess, work: Path) -> None:
        self.peer, self.versions, self._process, self._work = peer, process.versions, process, work
        self.cosines: dict[str, dict[str, Any]] = {}
        self.measure(save=work)
        if peer.kind is PeerKind.EMBEDDING:
            inputs = measurement.inputs
            for tower, reference in (("image", inputs.images), ("text", inputs.texts)):
                self.cosines[tower] = cosines(work / f"{tower}s.npy", reference)

    def measure(self, save: Path | None = None) -> dict[str, Any]:
        """Measure a round."""
        folder = self._work / f"round-{next(_ROUND_NAMES)}"
        return self._process.measure({"folder": str(folder), "save": None if save is None else str(save)})

    def other_vectors(self) -> dict[str, str]:
        """Return by tower why its vectors are not those of the bundle; empty where they are."""
        found = {}
        for tower, cosine in self.cosines.items():
            if cosine["reason"] is not None:
                found[tower] = cosine["reason"]
            elif cosine["mean"] < self.peer.min_cosine:
                found[tower] = f"cosine {cosine['mean']:.2f}"
        return found


@contextmanager
def _started(measurement: PeerMeasurement, peer: CataloguedPeer) -> Iterator[_Started]:
    """Start a peer and warm it up; end it and remove its files at the end of the block."""
    work = Path(tempfile.mkdtemp(prefix=f"{peer.name}-", dir=measurement.inputs.work))
    inputs = measurement.inputs.work
    task = {
        **measurement.inputs.task,
        "work": str(work),
        "inputs": str(inputs / "inputs.json" if peer.kind is PeerKind.EMBEDDING else inputs),
    }
    try:
        with PeerProcess(
            peer,
            task,
            threads=measurement.threads,
            environments=measurement.environments,
            time_limit_s=measurement.time_limit_s,
        ) as process:
            yield _Started(measurement, peer, process, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _row(measurement: PeerMeasurement, started: _Started, answers: Answers, ours: Answers | None) -> dict[str, Any]:
    """Return the row of a peer; `ours` are the answers of the reference in the same rounds."""
    make = _embedding_row if started.peer.kind is PeerKind.EMBEDDING else _store_row
    return {**make(measurement.inputs, measurement.k, started, answers, ours), "versions": started.versions}


def _embedding_row(
    inputs: ComparisonInputs, _k: int, started: _Started, answers: Answers, ours: Answers | None
) -> dict[str, Any]:
    other = started.other_vectors()
    ratios: dict[str, Any] = {"images": None, "texts": None}
    if ours is not None and "image" not in other:
        ratios["images"] = paired_ratio(
            [answer["images_s"] for answer in answers], [answer["images_s"] for answer in ours]
        )
    if ours is not None and "text" not in other:
        ratios["texts"] = paired_ratio(_medians(answers, "text_ms"), _medians(ours, "text_ms"))
    return {
        "images_per_s": series([len(inputs.images) / answer["images_s"] for answer in answers], "median"),
        "text_ms": series(_all(answers, "text_ms"), "p50", "p95"),
        "twinspire_times_as_fast": ratios,
        "cosine_to_fp32": started.cosines,
        "other_vectors": other,
        "description": answers[-1]["description"],
    }


def _store_row(
    inputs: ComparisonInputs, k: int, _started: _Started, answers: Answers, ours: Answers | None
) -> dict[str, Any]:
    scores = inputs.texts @ inputs.images.T  # (M, N)
    marked = np.where(inputs.marks == 1, scores, -np.inf)
    last = answers[-1]
    has_filter = last["filtered_ms"] is not None
    return {
        "added_per_s": series([len(inputs.images) / answer["add_s"] for answer in answers], "median"),
        "found_ms": series([answer["found_ms"] for answer in answers], "median"),
        "search_ms": series(_all(answers, "search_ms"), "p50", "p95"),
        "recall": recall(last["ids"], scores, k),
        "filtered_ms": series(_all(answers, "filtered_ms"), "p50", "p95") if has_filter else None,
        "filtered_recall": recall(last["filtered_ids"], marked, k) if has_filter else None,
        "twinspire_times_as_fast": {
            "search": None
            if ours is None
            else paired_ratio(_medians(answers, "search_ms"), _medians(ours, "search_ms"))
        },
        "durability": last["durability"],
        "filtering": last["filtering"],
    }


def _all(answers: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value for answer in answers for value in answer[name]]


def _medians(answers: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(np.median(answer[name])) for answer in answers]
