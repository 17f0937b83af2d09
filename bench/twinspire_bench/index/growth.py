"""Targets of workers that fill one index, build it, search it, and are killed; `twinspire_bench.growth` runs them.

They use `twinspire.Index` alone, as programs of its users do.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError
from twinspire.index import Index, Item, ItemKind
from twinspire_bench.index.inputs import Blocks, Distribution, SyntheticVectors, generated
from twinspire_bench.index.measurement import resident_bytes

_SPACE = "bench"
_K = 10
_BATCH = 1024
_SINGLE_QUERIES = 200
_ROUNDS = 5
_SAME_SCORE = 1e-6
_SAMPLE_S = 0.02
_KILL_AFTER_S = 2.0


@dataclass(frozen=True, kw_only=True)
class GrowthTask:
    """What a worker measures: the index folder, the vectors it is filled with, the spec and the threads."""

    folder: str
    sizes: tuple[int, ...]
    dim: int
    distribution: Distribution
    dtype: str
    spec: str
    threads: int
    query_count: int = 1_000
    seed: int = 0

    @classmethod
    def of(cls, document: dict[str, Any]) -> GrowthTask:
        """Return the task that a worker was given as JSON."""
        return cls(
            **{**document, "sizes": tuple(document["sizes"]), "distribution": Distribution(document["distribution"])}
        )

    @property
    def index(self) -> Path:
        """The folder of the index."""
        return Path(self.folder, "index")

    def items(self) -> Blocks:
        """Return the blocks of all items."""
        return generated(self._drawn(self.sizes[-1]))[0]

    def queries(self) -> NDArray[np.float32]:
        """Return queries of the same clusters, (Q, D): drawn as if they followed the first item, not all of them."""
        items, queries = generated(self._drawn(1))
        list(items)
        return np.concatenate(list(queries))

    def _drawn(self, size: int) -> SyntheticVectors:
        return SyntheticVectors(
            size=size, dim=self.dim, queries=self.query_count, distribution=self.distribution, seed=self.seed
        )


def growing(document: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that fills the index of a `GrowthTask` to its next size; a target of `Worker`."""
    task = GrowthTask.of(document)
    stream = _batches(task.items())
    sizes = iter(task.sizes)
    left = np.empty((0, task.dim), np.float32)  # of a batch that a size has cut
    Index.create(task.index, space=_SPACE, dim=task.dim, dtype=task.dtype).close()

    def grow() -> dict[str, Any]:
        nonlocal left
        size = next(sizes)
        with Index.open(task.index, mode="write") as index, _memory() as memory:
            before, taken_s = len(index), 0.0
            while (at := len(index)) < size:
                left = left if len(left) else next(stream)
                vectors, left = left[: size - at], left[size - at :]
                described = _items(at, len(vectors))
                start_s = time.perf_counter()
                index.add(vectors, described, space=_SPACE)
                taken_s += time.perf_counter() - start_s
            stats = index.stats()
        return {
            "items": size,
            "add_per_s": (size - before) / taken_s,
            "catalogue_bytes": stats.catalogue_bytes,
            "vectors_bytes": stats.vectors_bytes,
            "memory": memory,
        }

    return grow


def building(document: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that builds the index of a `GrowthTask`; a target of `Worker`."""
    task = GrowthTask.of(document)

    def build() -> dict[str, Any]:
        with Index.open(task.index, mode="write") as index, _memory() as memory:
            start_cpu_s = time.process_time()
            report = index.build(task.spec, threads=task.threads)
            taken_cpu_s = time.process_time() - start_cpu_s
        return {
            "spec": report.spec,
            "build_s": report.build_s,
            "calibration_s": report.calibration_s,
            "build_cpu_s": taken_cpu_s,
            "file_bytes": report.file_bytes,
            "memory": memory,
        }

    return build


def searching_exactly(document: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that searches exactly and stores the scores; a target of `Worker`."""
    task = GrowthTask.of(document)

    def search() -> dict[str, Any]:
        queries = task.queries()
        with Index.open(task.index, mode="write") as index:
            index.build("flat")
        with Index.open(task.index) as index:
            start_s = time.perf_counter()
            scores = _scores(index, queries)
            taken_s = time.perf_counter() - start_s
        np.save(Path(task.folder, "exact.npy"), scores)
        return {"queries_per_s": len(queries) / taken_s}

    return search


def searching(document: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that searches the built index of a `GrowthTask` as a new process; a target of `Worker`.

    The first batch finds nothing of the vectors in the page cache; the others what the ones before have read.
    """
    task = GrowthTask.of(document)

    def search() -> dict[str, Any]:
        queries = task.queries()
        exact = np.load(Path(task.folder, "exact.npy"))
        forget(task.index)
        start_s = time.perf_counter()
        with Index.open(task.index) as index, _memory() as memory:
            index.search(queries[:1], space=_SPACE, k=_K)
            opened_s = time.perf_counter() - start_s
            rates = []
            for _ in range(_ROUNDS + 1):
                start_s = time.perf_counter()
                scores = _scores(index, queries)
                rates.append(len(queries) / (time.perf_counter() - start_s))
            single_s = []
            for query in queries[:_SINGLE_QUERIES]:
                start_s = time.perf_counter()
                index.search(query[None], space=_SPACE, k=_K)
                single_s.append(time.perf_counter() - start_s)
        return {
            "recall": float((scores >= exact[:, -1:] - _SAME_SCORE).mean()),
            "open_s": opened_s,
            "cold_queries_per_s": rates[0],
            "queries_per_s": {"median": statistics.median(rates[1:]), "low": min(rates[1:]), "high": max(rates[1:])},
            "single_query_ms": 1000 * statistics.median(single_s),
            "memory": memory,
        }

    return search


def adding(folder: str, document: str) -> None:
    """Add further items for ever, printing the number of durable ones; run in a process that is killed."""
    task = GrowthTask.of(json.loads(document))
    with Index.open(folder, mode="write") as index:
        for vectors in _batches(task.items()):
            index.add(vectors, _items(len(index), len(vectors)), space=_SPACE)
            print(len(index), flush=True)


def killed(task: GrowthTask) -> dict[str, Any]:
    """Kill a process that adds, open the index again for writing and check every item; return the times.

    Raises EngineError where an item that was reported durable is missing or damaged.
    """
    code = "import sys; from twinspire_bench.index.growth import adding; adding(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(task.index), json.dumps(asdict(task))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:  # noqa: S603
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            raise EngineError(f"the process that adds to {task.index} ended by itself: see its output above")
        timer = threading.Timer(_KILL_AFTER_S, lambda: process.send_signal(signal.SIGKILL))
        timer.start()
        reported = [int(first)] + [int(line) for line in process.stdout if line.endswith("\n")]
        timer.join()
    start_s = time.perf_counter()
    with Index.open(task.index, mode="write") as index:
        opened_s = time.perf_counter() - start_s
        if len(index) < reported[-1]:
            raise EngineError(f"after a kill: {reported[-1]} items were durable, {len(index)} are there")
        start_s = time.perf_counter()
        verified = index.verify()
        verify_s = time.perf_counter() - start_s
        if not verified.ok:
            raise EngineError(f"after a kill: {'; '.join(verified.problems)}")
        return {
            "reported": reported[-1],
            "items": len(index),
            "open_s": opened_s,
            "verify_s": verify_s,
            "add_per_s": (reported[-1] - task.sizes[-1]) / _KILL_AFTER_S,
        }


def forget(folder: Path) -> None:
    """Drop the files of an index from the page cache, as far as no process maps them."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _batches(blocks: Blocks) -> Iterator[NDArray[np.float32]]:
    for block in blocks:
        yield from np.split(block, range(_BATCH, len(block), _BATCH))


def _items(start: int, count: int) -> list[Item]:
    return [
        Item(f"/images/{number:08}.jpg", ItemKind.IMAGE, content_hash=hashlib.sha256(b"%d" % number).hexdigest())
        for number in range(start, start + count)
    ]


def _scores(index: Index, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array([[hit.score for hit in hits] for hits in index.search(queries, space=_SPACE, k=_K)])


@contextmanager
def _memory() -> Iterator[dict[str, int]]:
    """Sample this process's memory during a block: its peak of anonymous memory and of mapped file pages, in bytes."""
    peak = {"anonymous_bytes": 0, "file_bytes": 0}
    stopped = threading.Event()

    def sample() -> None:
        while True:
            for name, held in resident_bytes().items():
                peak[name] = max(peak[name], held)
            if stopped.wait(_SAMPLE_S):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()
