"""The history: a folder of records by machine and commit, and the figures that are followed in it.

    HISTORY/MACHINE/COMMIT/STEP-SUITE-WHAT-VISIT.json

MACHINE names the processor, COMMIT is the code's, with `-dirty` where tracked files were changed. WHAT is a digest of
the command that measured and of the bundle, so that only equal measurements are put side by side.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinspire.errors import InputError
from twinspire_eval.machine import Hardware
from twinspire_eval.records import SAMPLES, Record

_NAME = re.compile(r"(?P<step>[a-z]+)-(?P<suite>[a-z]+)-(?P<what>[0-9a-f]{8})-(?P<visit>\d+)\.json")


def machine_name(hardware: Hardware) -> str:
    """Return the folder name of a machine: its processor, cores and a digest of what else speed depends on."""
    of = f"{hardware.cpu_model}, {hardware.cores} cores, {hardware.instruction_sets}, {hardware.gpu}"
    words = re.sub(r"\((?:R|TM)\)|CPU|Processor|@.*", " ", hardware.cpu_model)
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "processor"
    return f"{slug}-{hardware.cores}-cores-{hashlib.sha256(of.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Entry:
    """A record of the history, and what its file name says."""

    file: Path
    record: Record
    machine: str
    commit: str
    step: str
    suite: str
    what: str
    visit: int


@dataclass(frozen=True)
class Figure:
    """A followed number of a record: name, value, unit, and whether more is better.

    `is_derived`: it is a ratio or a difference of others, which the gate judges in its place.
    """

    name: str
    value: float
    unit: str
    more_is_better: bool = True
    is_derived: bool = False


@dataclass(frozen=True)
class Point:
    """A figure of a step at one commit on one machine: its values over all visits, in the order of time."""

    machine: str
    commit: str
    step: str
    created: str
    figure: Figure
    values: tuple[float, ...]
    files: tuple[Path, ...]


def entries(folder: Path) -> list[Entry]:
    """Read the records in a history, or in a part of it, oldest first.

    Raises InputError where the folder has none, and for a record that cannot be read, with its name.
    """
    found = []
    for file in sorted(folder.rglob("*.json")) if folder.is_dir() else []:
        match = _NAME.fullmatch(file.name)
        if match is None:
            continue
        record = Record.load(file)
        words = match.groupdict()
        found.append(
            Entry(
                file,
                record,
                machine_name(record.hardware),
                record.git_commit or "no-commit",
                words["step"],
                words["suite"],
                words["what"],
                int(words["visit"]),
            )
        )
    if not found:
        raise InputError(f"{folder} has no records: run `twinspire bench run --suite smoke --history {folder}` first")
    return sorted(found, key=lambda entry: (entry.record.created, entry.file.name))


def points(found: Sequence[Entry]) -> list[Point]:
    """Return each figure at each commit, oldest first; runs of one commit are one point."""
    gathered: dict[tuple[str, ...], list[tuple[Entry, Figure]]] = defaultdict(list)
    for entry in found:
        for figure in figures(entry.record):
            gathered[entry.machine, entry.commit, entry.step, entry.what, figure.name].append((entry, figure))
    return [
        Point(
            group[0][0].machine,
            group[0][0].commit,
            group[0][0].step,
            group[0][0].record.created,
            replace(group[0][1], value=float(np.median([figure.value for _, figure in group]))),
            tuple(figure.value for _, figure in group),
            tuple(entry.file for entry, _ in group),
        )
        for group in gathered.values()
    ]


def panels(found: Sequence[Entry]) -> dict[tuple[str, str], dict[str, list[Point]]]:
    """Return the points to draw together: by step and unit, and there by figure, oldest first."""
    drawn: dict[tuple[str, str], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in points(found):
        drawn[point.step, point.figure.unit][point.figure.name].append(point)
    return drawn


def short_commit(commit: str, *, mark: str = "-dirty") -> str:
    """Return the first eight digits of a commit, and `mark` where its tree had uncommitted changes."""
    return commit[:8] + (mark if commit.endswith("-dirty") else "")


def figures(record: Record) -> Iterator[Figure]:
    """Give the figures of a record that are followed; none for a kind that is not."""
    results = record.results
    if record.kind == "latency":
        yield from _latency(results)
    elif record.kind == "recall":
        for engine, language, direction, found in recalls(results):
            yield Figure(f"R@1 {engine} {language} {direction}", 100 * found["r1"]["value"], "%")
    elif record.kind == "index":
        for distribution, found in results["distributions"].items():
            for spec, variant in found["variants"].items():
                if variant["queries_per_s"] is not None:
                    name = f"{distribution}, {found['vectors']:,} x {found['dim']}, {spec}"
                    yield Figure(name, variant["queries_per_s"], "queries/s")
        if results["durable_add_per_s"] is not None:
            yield Figure("durable add", results["durable_add_per_s"], "items/s")
    elif record.kind == "ingest":
        yield Figure("files to index", results["images_per_s"]["median"], "images/s")
    elif record.kind == "served":
        yield from _served(results)
    elif record.kind == "gateway":
        busy, alone = results["images_in_flight"], results["one_image_in_flight"]
        for way, speed in busy["images_per_s"].items():
            yield Figure(f"16 images in flight, {way}", speed["median"], "images/s")
        yield Figure("gateway / client, images", busy["gateway_of_client"]["value"], "ratio", is_derived=True)
        added = alone["added_ms"]["median"]
        yield Figure("one image, added by the gateway", added, "ms", more_is_better=False, is_derived=True)


def _latency(results: Mapping[str, Any]) -> Iterator[Figure]:
    for tower, speed in (("image", "images_per_s"), ("text", "texts_per_s"), ("audio", "sounds_per_s")):
        for engine, cases in results.get(tower, {}).items():
            for case, found in cases.items():
                name = f"{tower} {engine}, {case.removesuffix(', in flight 1')}"
                if "batch 1," in case:
                    yield Figure(name, found["latency_ms"]["p50"], "ms", more_is_better=False)
                elif speed in found:
                    yield Figure(name, found[speed]["median"], speed.replace("_per_", "/"))


def _served(results: Mapping[str, Any]) -> Iterator[Figure]:
    for inputs in ("images", "texts"):
        busy = results[f"{inputs}_in_flight"]
        yield Figure(f"served / in process, {inputs}", busy["ratio"]["value"], "ratio", is_derived=True)
        for where, speed in busy[f"{inputs}_per_s"].items():
            yield Figure(f"{inputs} in flight, {where}", speed["median"], f"{inputs}/s")
    added = results["one_image_in_flight"]["added_ms"]["median"]
    yield Figure("one image, added by serving", added, "ms", more_is_better=False, is_derived=True)


def recalls(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Give engine, language, direction and figures of a recall record's results."""
    for engine, by_language in results["engines"].items():
        for language, both in by_language.items():
            for direction, found in both.items():
                yield engine, language, direction, found


def ranks(found: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rank of the first own item of each query of a recall record, from 1, (Q,)."""
    return np.array(found["first_ranks"][SAMPLES], np.int64)
