"""Measurement of a store, in its own process."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOUND_S = 60.0


class Store(Protocol):
    """What the `open_peer` of a store returns.

    `durability` says what has happened when `add` returns, `filtering` how `search` filters, or why it cannot where
    `can_filter` is False. The task has `threads`, `dim`, `k` and `options`, as the catalogue gives them.
    """

    durability: str
    can_filter: bool
    filtering: str

    def create(self, folder: str) -> None:
        """Make an empty store in an empty folder and open it, in place of the one that is open."""

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Add N items as durably as the store can: vectors (N, D) float32, L2-normalised, and a mark of 0 or 1 each."""

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Return the ids of the `k` items with the largest inner products to a query (D,) float32, best first.

        With a `mark` only of items that have it.
        """

    def close(self) -> None:
        """Close the store that is open."""


def measure(store: Store, task: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Fill a new store in the folder of the request, search it, and add one more item.

    Returns `add_s`, the seconds of adding all vectors of the task; `search_ms` and `ids` of each query; `filtered_ms`
    and `filtered_ids` of each query with the mark 1, or None; `found_ms` from the call that adds one item to the search
    that finds it; and what the store says of its durability and filters.
    """
    vectors, queries, marks = (np.load(Path(task["inputs"], f"{name}.npy")) for name in ("vectors", "queries", "marks"))
    folder = Path(request["folder"])
    folder.mkdir()
    store.create(str(folder))
    start = time.perf_counter()
    store.add(list(range(len(vectors))), vectors, marks.tolist())
    add_s = time.perf_counter() - start
    search_ms, ids = _search(store, queries, task["k"], None)
    filtered = _search(store, queries, task["k"], 1) if store.can_filter else (None, None)
    found_ms = _found_ms(store, len(vectors), np.load(Path(task["inputs"], "another.npy")))
    store.close()
    shutil.rmtree(folder)
    return {
        "add_s": add_s,
        "search_ms": search_ms,
        "ids": ids,
        "filtered_ms": filtered[0],
        "filtered_ids": filtered[1],
        "found_ms": found_ms,
        "durability": store.durability,
        "filtering": store.filtering,
    }


def _search(
    store: Store, queries: NDArray[np.float32], k: int, mark: int | None
) -> tuple[list[float], list[list[int]]]:
    times_ms, ids = [], []
    for query in queries:
        start = time.perf_counter()
        found = store.search(query, k, mark)
        times_ms.append(1000 * (time.perf_counter() - start))
        ids.append([int(number) for number in found])
    return times_ms, ids


def _found_ms(store: Store, number: int, vector: NDArray[np.float32]) -> float:
    """Add one item, search until it is found, and return the time of both. Raises TimeoutError after a minute."""
    start = time.perf_counter()
    store.add([number], vector[None], [0])
    while store.search(vector, 1, None) != [number]:
        if time.perf_counter() - start > _FOUND_S:
            raise TimeoutError(f"an item that was added is not found after {_FOUND_S:g} s")
    return 1000 * (time.perf_counter() - start)
