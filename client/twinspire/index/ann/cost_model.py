"""What an index of a kind will take in memory and time, before it is built; and which kind `auto` is.

Memory is what a process holds for itself; the vector file, which every kind reads too, is shared through the page
cache. Time is counted in operations of matrix products and in distances along a graph, at the speed of this machine.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinspire.errors import InputError
from twinspire.index.ann.faiss_support import checked_threads
from twinspire.index.ann.spec import EXACT_BELOW, Family, IndexSpec, Scheme

_ID_BYTES = 8
_KMEANS_ROUNDS = 8
_ALLOCATION_OPERATIONS = 4 * 2.0 * 16_384 * 256  # k-means of `recipes`, for each number of a vector
_BUSY = 0.35  # of the products' speed that is reached between them
_GRAPH_DISTANCES = 22  # for each candidate that is kept while a vector is added to a graph
_MEMORY_BYTES_PER_S = 8e9  # of one thread, at random places


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an index is expected to take: bytes that each process holds, and seconds to build it."""

    memory_bytes: int
    build_s: float


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast this machine computes: operations a second of one thread's matrix products (a multiply-add is two)."""

    op_per_s: float


def measured_speed() -> Speed:
    """Measure a matrix product for some 50 ms."""
    a = np.ones((768, 768), np.float32)
    a @ a
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - start)
    return Speed(2 * 768**3 / min(taken) / len(os.sched_getaffinity(0)))


def predict(
    kind: IndexSpec, count: int, dim: int, *, threads: int | None = None, speed: Speed | None = None
) -> Prediction:
    """Return what `kind` over `count` vectors of `dim` numbers will take, built by so many threads (all cores).

    Memory comes within some percent; time within a factor of two or so, on a machine that does nothing else.
    """
    kind.check(dim)
    if kind.family is Family.AUTO:
        raise InputError("auto is no kind by itself: choose one with `choose`, then predict it")
    if kind.is_exact:
        return Prediction(0, 0.0)
    threads = checked_threads(threads)
    per_s = (speed or measured_speed()).op_per_s * threads * _BUSY
    width = kind.width(dim)
    code_bytes = kind.code.bytes_of(width) if kind.code is not None else 4 * width
    memory, operations, distances = float(count * code_bytes), 0.0, 0.0
    sample = kind.sample(count)
    if kind.pca is not None:
        memory += 4 * dim * width
        operations += 2.0 * sample * dim * dim + 2.0 * count * dim * width
    if kind.code is not None and kind.code.scheme is Scheme.PQ:
        levels = 1 << kind.code.bits
        memory += 4 * width * (width + levels)
        operations += _ALLOCATION_OPERATIONS * width + 2.0 * count * width * (width + levels)
        operations += _KMEANS_ROUNDS * 2.0 * min(sample, 512 * levels) * width * levels
    if kind.family in (Family.IVF, Family.GPU_IVF):
        lists = kind.lists(count)
        memory += count * _ID_BYTES + 4 * lists * width
        operations += 2.0 * lists * width * (_KMEANS_ROUNDS * min(sample, 64 * lists) + count)
    elif kind.family in (Family.HNSW, Family.CAGRA):
        neighbours = kind.neighbours()
        memory += count * (4 * 2 * neighbours + 4 * neighbours / (neighbours - 1) + 12)
        distances = float(count * kind.breadth() * _GRAPH_DISTANCES)
    seconds = operations / per_s + distances * code_bytes / (_MEMORY_BYTES_PER_S * threads)
    return Prediction(int(memory), seconds)


def choose(
    count: int,
    dim: int,
    *,
    memory_bytes: int | None = None,
    build_s: float | None = None,
    threads: int | None = None,
) -> IndexSpec:
    """Return what `auto` is for `count` vectors of `dim` numbers.

    Exact below 100,000. Above, lists of PQ codes of 4 bits: the longest with a quarter, an eighth or a sixteenth as
    many parts as there are numbers that fits in `memory_bytes` (by default half of what is free) and is built in
    `build_s` (no bound); exact where none does. On two cores these have at a recall of 0.95 several times the
    queries/s of ivf, ivf,sq8 and hnswlib's graphs, in the least memory (bench/LOG.md).
    """
    exact = IndexSpec(family=Family.FLAT)
    if count < EXACT_BELOW:
        return exact
    allowed = _free_bytes() // 2 if memory_bytes is None else memory_bytes
    speed = measured_speed()
    for share in (4, 8, 16):
        kind = IndexSpec.parse(f"ivf,pq{max(1, dim // share)}x4")
        found = predict(kind, count, dim, threads=threads, speed=speed)
        if found.memory_bytes <= allowed and (build_s is None or found.build_s <= build_s):
            return kind
    return exact


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
