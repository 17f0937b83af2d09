"""A process that builds or searches one variant: `python -m twinspire_bench.index.worker build|search TASK`.

TASK is a JSON object; the answer goes to the file that it names, for libraries print what they like.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire_bench.index.inputs import Material
from twinspire_bench.index.variants import variant

_SAME_SCORE = 1e-6
_ENOUGH = 0.6  # of the way from the recall that is asked for to all: a dearer search is not measured
_REPEATS = 5
_VISIT_S = 1.0
_SINGLE = 200


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does. `file` is where the index lies, `answer` where the figures go."""

    name: str
    threads: int
    material: str
    file: str
    answer: str
    k: int
    recall: float

    def to_json(self) -> str:
        """Return the object as text."""
        return json.dumps(asdict(self))


def main(arguments: list[str]) -> None:
    """Do the task."""
    stage, text = arguments
    task = Task(**json.loads(text))
    found = _build(task) if stage == "build" else _search(task)
    Path(task.answer).write_text(json.dumps(found))


def _build(task: Task) -> dict[str, Any]:
    vectors = Material(Path(task.material), "").vectors
    for start in range(0, len(vectors), 1 << 16):  # into the page cache, for whoever comes first
        vectors[start : start + (1 << 16)].sum()
    index = variant(task.name, task.threads)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    index.build(vectors)
    build_s, build_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    file = Path(task.file)
    index.save(file)
    package = None if index.package is None else version(index.package)
    return {"version": package, "build_s": build_s, "build_cpu_s": build_cpu_s, "file_bytes": _size(file)}


def _search(task: Task) -> dict[str, Any]:
    material = Material(Path(task.material), "")
    vectors, queries, truth = material.vectors, material.queries, material.truth[:, : task.k]
    index = variant(task.name, task.threads)
    index.start()
    before = private_bytes()
    index.load(Path(task.file), vectors)
    effort, reach = index.settings[0]
    index.search(queries[:10], task.k, effort, reach)
    memory_bytes = max(0, private_bytes() - before)
    for start in range(0, len(vectors), 1 << 16):
        vectors[start : start + (1 << 16)].sum()
    points: list[dict[str, float]] = []
    enough: set[int] = set()
    most = task.recall + _ENOUGH * (1 - task.recall)
    for effort, reach in index.settings:
        if reach in enough:
            continue
        start_s = time.perf_counter()
        rows = index.search(queries, task.k, effort, reach)
        warm_s = time.perf_counter() - start_s
        recall = recall_of(rows, vectors, queries, truth)
        before_s = [point["recall"] for point in points if point["reach"] == reach]
        if before_s and recall <= before_s[-1] + 2e-4 and recall < most:
            enough.add(reach)  # more lists give no more
        taken: list[float] = []
        while len(taken) < (_REPEATS if sum(taken) < _VISIT_S else 2 if warm_s < _VISIT_S else 1):
            start_s = time.perf_counter()
            index.search(queries, task.k, effort, reach)
            taken.append(time.perf_counter() - start_s)
        seconds = statistics.median(taken or [warm_s])
        point = {"effort": effort, "reach": reach, "recall": recall, "queries_per_s": len(queries) / seconds}
        points.append(point)
        if recall >= most:
            enough.add(reach)
    best = best_at(points, task.recall)
    single = None
    if best is not None:
        start_s = time.perf_counter()
        some = queries[:_SINGLE]
        for query in some:
            index.search(query[None], task.k, int(best["effort"]), int(best["reach"]))
        single = 1000 * (time.perf_counter() - start_s) / len(some)
    return {"memory_bytes": memory_bytes, "points": points, "single_query_ms": single}


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size


def best_at(points: list[dict[str, float]], recall: float) -> dict[str, float] | None:
    """Return the fastest point that reaches `recall`, None where none does."""
    fitting = [point for point in points if point["recall"] >= recall]
    return max(fitting, key=lambda point: point["queries_per_s"]) if fitting else None


def recall_of(
    rows: NDArray[np.int64], vectors: NDArray[np.float32], queries: NDArray[np.float32], truth: NDArray[np.float32]
) -> float:
    """Return the share of the k best that `rows` (Q, k) has.

    What has the score of the k-th in `truth` (Q, k) or more counts, each row once.
    """
    found = 0
    for query, places, exact in zip(queries, rows, truth, strict=True):
        distinct = np.unique(places[places >= 0])
        scores = vectors[distinct] @ query
        found += int((scores >= exact[-1] - _SAME_SCORE).sum())
    return float(min(1.0, found / truth.size))


def private_bytes() -> int:
    """Return the anonymous memory of this process: what it holds for itself, without the files that it maps."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


if __name__ == "__main__":
    main(sys.argv[1:])
