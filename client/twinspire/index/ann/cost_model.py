"""Predicted memory and build time of an index, and the choice of the spec that `auto` stands for.

Memory is what a process holds for itself; the vector file, which every index reads too, is shared through the page
cache. Time is counted in operations of matrix products and in bytes read along a graph, at the speed of this machine.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinspire._cores import thread_count, usable_cores
from twinspire.index.ann.family import IndexSpec

EXACT_BELOW = 100_000
"""Number of items below which `auto` is exact search."""
_UTILISATION = 0.35  # share of the matrix products' speed that a build reaches
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
    """Measure a matrix product for about 50 ms."""
    a = np.ones((768, 768), np.float32)
    a @ a
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - start)
    return Speed(2 * 768**3 / min(taken) / usable_cores())


def predict(
    spec: IndexSpec, count: int, dim: int, *, threads: int | None = None, speed: Speed | None = None
) -> Prediction:
    """Return what an index of `count` vectors of `dim` numbers will take, built by `threads` threads (one per core).

    Memory is right within some percent, time within a factor of about two on an otherwise idle machine.
    """
    spec.check(dim)
    if spec.is_exact:
        return Prediction(0, 0.0)
    threads = thread_count(threads)
    cost = spec.family.cost(spec, count, dim)
    op_per_s = (speed or measured_speed()).op_per_s * threads * _UTILISATION
    seconds = cost.operations / op_per_s + cost.random_bytes / (_MEMORY_BYTES_PER_S * threads)
    return Prediction(int(cost.memory_bytes), seconds)


def choose(count: int, dim: int, *, memory_bytes: int | None = None) -> IndexSpec:
    """Return the spec that `auto` stands for with `count` vectors of `dim` numbers.

    Exact below 100,000. Above, lists of PQ codes of 4 bits: the longest, with a quarter, an eighth or a sixteenth as
    many parts as there are numbers, that fits in `memory_bytes` (default: half of the free memory); exact where none
    does. On two cores these have at a recall of 0.95 several times the queries/s of ivf, ivf,sq8 and hnswlib's graphs,
    in the smallest memory (bench/LOG.md).
    """
    allowed = _free_bytes() // 2 if memory_bytes is None else memory_bytes
    for share in (4, 8, 16) if count >= EXACT_BELOW else ():
        spec = IndexSpec.parse(f"ivf,pq{max(1, dim // share)}x4")
        if spec.family.cost(spec, count, dim).memory_bytes <= allowed:
            return spec
    return IndexSpec.parse("flat")


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
