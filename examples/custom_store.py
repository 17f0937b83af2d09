"""Register a store of your own: `timed://PATH` opens the index at PATH and measures how long its searches take.

One that keeps items itself is tests/stores/numpy_store.py; it has to pass tests/stores/conformance.py.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from twinspire import Client, Index, Searcher, open_index, sample_bundle
from twinspire.ingest import add_images, find_images
from twinspire.stores import Hit, OpenMode, VectorStore, register_store
from twinspire_eval.scenes import Split, draw_dataset


class TimedStore:
    """A store that passes every call on to another one and keeps the time of each vector search."""

    def __init__(self, store: VectorStore) -> None:
        self.store, self.uri, self.search_ms = store, f"timed://{store.uri}", list[float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def __len__(self) -> int:
        return len(self.store)

    def search(self, *arguments: Any, **options: Any) -> list[list[Hit]]:
        """Return the hits of the store."""
        start = time.perf_counter()
        hits = self.store.search(*arguments, **options)
        self.search_ms.append((time.perf_counter() - start) * 1e3)
        return hits


def open_timed(uri: str, *, mode: OpenMode) -> TimedStore:
    """Open `timed://PATH`."""
    return TimedStore(open_index(uri.removeprefix("timed://"), mode=mode))


def main() -> None:
    """Fill an index through the store, search it, and print hits and times."""
    register_store("timed", open_timed)
    with tempfile.TemporaryDirectory() as folder, Client.local(sample_bundle()) as client:
        draw_dataset(Path(folder) / "scenes", 100, seed=7, split=Split.HELDOUT)
        Index.create(Path(folder) / "index", space=client.space, dim=client.dim).close()
        with closing(open_index(f"timed://{folder}/index", mode="write")) as store:
            add_images(store, client, find_images([Path(folder) / "scenes"]))
            for query in ("a red bus", "a blue boat"):
                hit = Searcher(client, store).search(query, 1).hits[0]
                print(f"{query}: {hit.score:.3f}  {hit.uri}  {store.search_ms[-1]:.1f} ms")


if __name__ == "__main__":
    main()
