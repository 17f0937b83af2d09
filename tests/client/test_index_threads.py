"""Threads of a search: how many, whose settings they leave alone, and what a fork leaves of them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support.arrays import random_vectors
from twinspire.index import Index, Item, ItemKind, flat
from twinspire.index.ann import AnnIndex, IndexSpec
from twinspire.index.faiss_support import faiss_library, openmp_threads, search_threads, share_tasks

DIM = 32
drawn = partial(random_vectors, dim=DIM)


def recorded_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record with how many OpenMP threads FAISS searches blocks exactly."""
    faiss, seen = faiss_library(), list[int]()
    original = faiss.knn

    def knn(*arguments: object, **options: object) -> object:
        seen.append(faiss.omp_get_max_threads())
        return original(*arguments, **options)

    monkeypatch.setattr(faiss, "knn", knn)
    return seen


@pytest.mark.parametrize("queries", [1, 40])
def test_exact_search_opens_no_parallel_region(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is searched with one OpenMP thread; what is found is what numpy finds."""
    seen = recorded_threads(monkeypatch)
    vectors = drawn(20_000)
    with openmp_threads(2):
        scores, rows = flat.nearest(vectors, vectors[:queries], 5)
    assert set(seen) == {1}
    exact = vectors[:queries].astype(np.float64) @ vectors.T.astype(np.float64)
    np.testing.assert_array_equal(rows, np.argsort(-exact, axis=1, kind="stable")[:, :5])
    assert np.abs(scores - np.take_along_axis(exact, rows, axis=1)).max() < 1e-6


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivf,pq8x4", "hnsw"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_callers_openmp_setting_is_kept(threads: int, kind: str) -> None:
    """A search leaves the number of OpenMP threads of the thread that calls it as it was."""
    vectors = drawn(3_000)
    ann = None if kind == "flat" else AnnIndex.build(IndexSpec.parse(kind), vectors, threads=2)
    faiss = faiss_library()
    with openmp_threads(threads):
        if ann is None:
            flat.nearest(vectors, vectors[:300], 5)
        else:
            ann.search(vectors[:300], 5, vectors)
        assert faiss.omp_get_max_threads() == threads


def test_threads_are_those_of_openmp_up_to_the_cores() -> None:
    """A setting of one thread is obeyed; one above the number of cores is not."""
    with openmp_threads(1):
        assert search_threads() == 1
    with openmp_threads(10_000):
        assert 1 <= search_threads() < 10_000


@pytest.mark.parametrize("kind", ["ivf", "ivf,pq8x4", "hnsw"])
def test_several_threads_find_what_one_does(kind: str) -> None:
    """However the queries are shared among threads, each gets what it gets in one thread."""
    vectors = drawn(6_000)
    ann = AnnIndex.build(IndexSpec.parse(kind), vectors, threads=2)
    with openmp_threads(1):
        expected = ann.search(vectors[:301], 5, vectors, effort=32)
    with openmp_threads(2):
        found = ann.search(vectors[:301], 5, vectors, effort=32)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def test_every_task_is_done_once_and_by_several_threads() -> None:
    """Tasks are handed out once each; a helper takes its share while the caller is busy."""
    meeting = threading.Barrier(2, timeout=30)

    def work(tasks: Iterator[int]) -> list[int]:
        first = [next(tasks)]
        meeting.wait()  # both have one
        return first + list(tasks)

    parts = share_tasks(range(100), work, 2)
    assert len(parts) == 2
    assert sorted(parts[0] + parts[1]) == list(range(100))


@pytest.mark.parametrize("by_caller", [True, False])
def test_an_error_of_any_thread_is_raised(by_caller: bool) -> None:
    """What fails in the caller or in a helper reaches the caller, when both have ended; the next call works."""
    meeting, caller = threading.Barrier(2, timeout=30), threading.get_ident()

    def work(tasks: Iterator[int]) -> int:
        next(tasks)
        meeting.wait()  # both are at work
        if (threading.get_ident() == caller) is by_caller:
            raise ValueError("broken")
        return sum(1 for _ in tasks)

    with pytest.raises(ValueError, match="broken"):
        share_tasks(range(100), work, 2)
    assert sum(share_tasks(range(100), lambda tasks: sum(1 for _ in tasks), 2)) == 100


FORKING = """
import os, sys
import numpy as np
from twinspire.index import Index

path, kind, mode, queries = sys.argv[1], sys.argv[2], sys.argv[3], np.load(sys.argv[4])
with Index.open(path) as index:
    expected = index.search(queries, k=5, space="s")
child = os.fork()
if child == 0:
    with Index.open(path, mode=mode) as index:
        found = index.search(queries, k=5, space="s")
        if mode == "write":
            index.build(kind)
    os._exit(0 if found == expected else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode"), [("flat", "read"), ("ivf", "write"), ("ivf,pq8x4", "read"), ("hnsw", "write")]
)
def test_a_forked_child_searches_and_builds(kind: str, mode: str, tmp_path: Path) -> None:
    """After searches in the parent a forked child opens the index, finds the same and can build."""
    vectors = drawn(20_000 if kind != "hnsw" else 4_000)
    with Index.create(tmp_path / "index", space="s", dim=DIM) as index:
        index.add(vectors, [Item(f"/{n}.jpg", ItemKind.IMAGE) for n in range(len(vectors))], space="s")
        index.build(kind)
    np.save(tmp_path / "queries.npy", vectors[:40])
    arguments = [str(tmp_path / "index"), kind, mode, str(tmp_path / "queries.npy")]
    done = subprocess.run([sys.executable, "-c", FORKING, *arguments], check=False, timeout=120)
    assert done.returncode == 0
