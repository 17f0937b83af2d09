"""Raw results of a tuning, one JSON object a line, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from twinspire._arguments import file_errors
from twinspire_bench.tune.knobs import Point, point
from twinspire_bench.tune.measure import Load

JOURNAL = "loads.jsonl"


class Visit(NamedTuple):
    """What a measurement of a point is: the sweep is round 0, each further one measures the best points again."""

    options: Point
    round: int


class Journal:
    """The file of raw results in a folder, of runs with the same `setup` (bundle, budget, machine, versions).

    `scores` are those of finished measurements, `loads` all visits of finished measurements. Raises `InputError` where
    the file cannot be read or written.
    """

    def __init__(self, folder: Path, setup: str) -> None:
        self._path, self._setup = folder / JOURNAL, setup
        self.scores: dict[Visit, float] = {}
        self.loads: dict[Visit, list[Load]] = defaultdict(list)
        with file_errors(f"{self._path} cannot be read", self._path):
            folder.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # the line in which a run was killed
                continue
            if row["setup"] == setup:
                visit = Visit(point(row["options"]), row["round"])
                self.scores[visit] = row["goodput_per_s"]
                self.loads[visit] = [Load(**load) for load in row["loads"]]

    def add(self, visit: Visit, score: float, loads: list[Load]) -> None:
        """Append a finished measurement."""
        row: dict[str, Any] = {
            "setup": self._setup,
            "options": dict(visit.options),
            "round": visit.round,
            "goodput_per_s": score,
            "loads": [asdict(load) for load in loads],
        }
        with file_errors(f"{self._path} cannot be written", self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.scores[visit], self.loads[visit] = score, loads
