"""Measurement of one index, in a worker process of its own: building it, and searching it with rising effort."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire._dependencies import package_version
from twinspire.index.ann import AnnIndex, IndexSpec, SearchParameters
from twinspire.index.flat import nearest
from twinspire_bench.index.inputs import VectorSet
from twinspire_bench.index.peers import Peer

_LIST_EFFORTS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 512)
_GRAPH_EFFORTS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
_CANDIDATES = (20, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_RESCORE_FACTORS = (5, 10, 15, 20, 40)
_SAME_SCORE = 1e-6
_ENOUGH = 0.6  # of the way from the wanted recall to 1: searches of more effort are not measured
_REPEATS = 5
_LONG_S = 1.0
_SINGLE_QUERIES = 200
_BLOCK_ROWS = 1 << 16

Search = Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]
"""Takes queries (Q, D), effort and rescore factor; returns rows (Q, k)."""


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """What a worker measures. `module` registers the family of `spec`; the index lies in `file`."""

    spec: str
    module: str
    threads: int
    vectors: str
    file: str
    k: int
    recall: float


def building(document: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that builds the index of an `IndexTask`; a target of `Worker`."""
    return partial(_build, IndexTask(**document))


def searching(document: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a function that searches the built index of an `IndexTask`; a target of `Worker`."""
    return partial(_search, IndexTask(**document))


def _build(task: IndexTask) -> dict[str, Any]:
    spec, vectors = _spec(task), VectorSet(Path(task.vectors), "").vectors
    _read_into_page_cache(vectors)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    ann = None if spec.is_exact else AnnIndex.build(spec, vectors, threads=task.threads)
    build_s, build_cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    with Path(task.file).open("wb") as file:
        if ann is not None:
            ann.save(file)
    package = spec.family.package
    return {
        "version": None if package is None else package_version(package),
        "build_s": build_s,
        "build_cpu_s": build_cpu_s,
        "file_bytes": Path(task.file).stat().st_size,
    }


def _search(task: IndexTask) -> dict[str, Any]:
    spec, inputs = _spec(task), VectorSet(Path(task.vectors), "")
    vectors, queries, exact = inputs.vectors, inputs.queries, inputs.exact_scores[:, : task.k]
    spec.family.require()
    before = private_bytes()
    search = _opened(task, spec, vectors)
    search(queries[:10], *next(_settings(spec)))
    memory_bytes = max(0, private_bytes() - before)
    _read_into_page_cache(vectors)
    points: list[dict[str, float]] = []
    finished: set[int] = set()
    enough = task.recall + _ENOUGH * (1 - task.recall)
    for effort, factor in _settings(spec):
        if factor in finished:
            continue
        start_s = time.perf_counter()
        rows = search(queries, effort, factor)
        warm_s = time.perf_counter() - start_s
        recall = recall_of(rows, vectors, queries, exact)
        earlier = [point["recall"] for point in points if point["rescore_factor"] == factor]
        if recall >= enough or (earlier and recall <= earlier[-1] + 2e-4):  # more effort finds no more
            finished.add(factor)
        times: list[float] = []
        while len(times) < (_REPEATS if sum(times) < _LONG_S else 2 if warm_s < _LONG_S else 1):
            start_s = time.perf_counter()
            search(queries, effort, factor)
            times.append(time.perf_counter() - start_s)
        queries_per_s = len(queries) / statistics.median(times)
        points.append({"effort": effort, "rescore_factor": factor, "recall": recall, "queries_per_s": queries_per_s})
    best = best_at(points, task.recall)
    single_query_ms = None
    if best is not None:
        some = queries[:_SINGLE_QUERIES]
        start_s = time.perf_counter()
        for query in some:
            search(query[None], int(best["effort"]), int(best["rescore_factor"]))
        single_query_ms = 1000 * (time.perf_counter() - start_s) / len(some)
    return {"memory_bytes": memory_bytes, "points": points, "single_query_ms": single_query_ms}


def _spec(task: IndexTask) -> IndexSpec:
    importlib.import_module(task.module)
    return IndexSpec.parse(task.spec)


def _opened(task: IndexTask, spec: IndexSpec, vectors: NDArray[np.float32]) -> Search:
    """Read the index, and return its search."""
    if spec.is_exact:
        return lambda queries, effort, factor: nearest(vectors, queries, task.k)[1]  # noqa: ARG005
    ann = AnnIndex.read(Path(task.file), spec, threads=task.threads)
    index, k = ann.index, task.k
    if isinstance(index, Peer):  # ranks its results itself: `AnnIndex` would add 30 us to each call
        return lambda queries, effort, factor: index.search(queries, SearchParameters(k, k * factor, effort))[1]
    return lambda queries, effort, factor: ann.search(queries, k, vectors, effort=effort, rescore_factor=factor)[1]


def _settings(spec: IndexSpec) -> Iterator[tuple[int, int]]:
    """Give the efforts and rescore factors to measure, rising efforts for each factor."""
    efforts: tuple[int, ...] = _GRAPH_EFFORTS if spec.family.is_graph else _LIST_EFFORTS
    if spec.family.effort_is_candidates:
        efforts = _CANDIDATES
    for factor in _RESCORE_FACTORS if spec.has_rescore_factor else (1,):
        for effort in efforts if spec.family.is_tunable else (1,):
            yield effort, factor


def _read_into_page_cache(vectors: NDArray[np.float32]) -> None:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        vectors[start : start + _BLOCK_ROWS].sum()


def best_at(points: list[dict[str, float]], recall: float) -> dict[str, float] | None:
    """Return the fastest point that reaches `recall`, None where none does."""
    fitting = [point for point in points if point["recall"] >= recall]
    return max(fitting, key=lambda point: point["queries_per_s"]) if fitting else None


def recall_of(
    rows: NDArray[np.int64], vectors: NDArray[np.float32], queries: NDArray[np.float32], exact: NDArray[np.float32]
) -> float:
    """Return the recall@k of `rows` (Q, k), given the scores of exact search, (Q, k).

    Any row with the score of the k-th or more counts, each row once.
    """
    found = 0
    for query, places, scores in zip(queries, rows, exact, strict=True):
        distinct = np.unique(places[places >= 0])
        found += int((vectors[distinct] @ query >= scores[-1] - _SAME_SCORE).sum())
    return float(min(1.0, found / exact.size))


def private_bytes() -> int:
    """Return the anonymous memory of this process: what it holds for itself, without mapped files."""
    return resident_bytes()["anonymous_bytes"]


def resident_bytes() -> dict[str, int]:
    """Return the memory of this process: `anonymous_bytes`, and `file_bytes` of mapped files, which can be dropped."""
    names = {"RssAnon:": "anonymous_bytes", "RssFile:": "file_bytes"}
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    found = {names[words[0]]: int(words[1]) * 1024 for words in lines if words and words[0] in names}
    if len(found) < len(names):
        raise OSError("/proc/self/status has no RssAnon and RssFile")
    return found
