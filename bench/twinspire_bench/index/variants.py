"""What is measured: kinds of this project's index, and indexes of other libraries."""

from __future__ import annotations

import re
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError, MissingDependencyError
from twinspire.index.ann import AnnIndex, IndexSpec
from twinspire.index.ann.faiss_support import computing_with
from twinspire.index.ann.files import write_snapshot
from twinspire.index.flat import nearest
from twinspire_bench.index.scann_peer import Scann
from twinspire_bench.index.variant import Variant, Vectors

PEERS = ("hnswlib", "usearch", "scann")


class Own(Variant):
    """A kind of this project's index."""

    def __init__(self, kind: IndexSpec, threads: int) -> None:
        super().__init__(threads)
        self._kind = kind
        efforts = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 192, 256, 512]
        if kind.is_exact:
            efforts = [1]
        reaches = [6, 12, 20, 40] if kind.is_lossy else [1]
        self.settings = [(effort, reach) for reach in reaches for effort in efforts]
        self._ann: AnnIndex | None = None
        self._vectors: Vectors = np.empty((0, 0), np.float32)

    def build(self, vectors: Vectors) -> None:
        """Build it."""
        self._vectors = vectors
        if not self._kind.is_exact:
            self._ann = AnnIndex.build(self._kind, vectors, threads=self.threads)

    def save(self, path: Path) -> None:
        """Store it as a snapshot."""
        if self._ann is None:
            path.touch()
        else:
            write_snapshot(self._ann, path)

    def load(self, path: Path, vectors: Vectors) -> None:
        """Load the snapshot."""
        self._vectors = vectors
        if not self._kind.is_exact:
            self._ann = AnnIndex.read(path, self._kind)

    def search(self, queries: Vectors, k: int, effort: int, reach: int) -> NDArray[np.int64]:
        """Search; coded kinds read the vector file for exact scores."""
        with computing_with(self.threads):
            if self._ann is None:
                return nearest(self._vectors, queries, k)[1]
            return self._ann.search(queries, k, self._vectors, effort=effort, reach=reach)[1]


class _Graph(Variant):
    """A graph of another library."""

    def __init__(self, options: dict[str, int], threads: int) -> None:
        super().__init__(threads)
        self._m = options.get("m", 16)
        self._breadth = options.get("ef_construction", 128)
        self.settings = [
            (effort, 1) for effort in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
        ]
        self._index: Any = None
        self._library: Any = self._loaded()

    @staticmethod
    @abstractmethod
    def _loaded() -> Any:  # noqa: ANN401
        """Load the library."""


class Hnswlib(_Graph):
    """hnswlib: https://github.com/nmslib/hnswlib."""

    package = "hnswlib"

    def build(self, vectors: Vectors) -> None:
        """Build it."""
        self._index = self._library.Index(space="ip", dim=vectors.shape[1])
        self._index.init_index(len(vectors), ef_construction=self._breadth, M=self._m, random_seed=0)
        self._index.set_num_threads(self.threads)
        self._index.add_items(vectors, num_threads=self.threads)

    def save(self, path: Path) -> None:
        """Store it."""
        self._index.save_index(str(path))

    def load(self, path: Path, vectors: Vectors) -> None:
        """Load it."""
        self._index = self._library.Index(space="ip", dim=vectors.shape[1])
        self._index.load_index(str(path))
        self._index.set_num_threads(self.threads)

    def search(self, queries: Vectors, k: int, effort: int, reach: int) -> NDArray[np.int64]:  # noqa: ARG002
        """Search with `ef`."""
        self._index.set_ef(max(effort, k))
        rows, _ = self._index.knn_query(queries, k, num_threads=self.threads)
        return np.asarray(rows, np.int64)

    @staticmethod
    def _loaded() -> Any:  # noqa: ANN401
        try:
            import hnswlib
        except ModuleNotFoundError as error:
            raise MissingDependencyError("hnswlib", "peers", "measuring hnswlib") from error
        return hnswlib


class Usearch(_Graph):
    """usearch: https://github.com/unum-cloud/usearch. Vectors are kept as float32, as the others keep them."""

    package = "usearch"

    def build(self, vectors: Vectors) -> None:
        """Build it."""
        self._index = self._made(vectors.shape[1])
        self._index.add(np.arange(len(vectors), dtype=np.uint64), np.ascontiguousarray(vectors), threads=self.threads)

    def save(self, path: Path) -> None:
        """Store it."""
        self._index.save(str(path))

    def load(self, path: Path, vectors: Vectors) -> None:
        """Load it."""
        self._index = self._made(vectors.shape[1])
        self._index.load(str(path))

    def search(self, queries: Vectors, k: int, effort: int, reach: int) -> NDArray[np.int64]:  # noqa: ARG002
        """Search with `expansion_search`."""
        self._index.expansion_search = max(effort, k)
        return np.asarray(self._index.search(queries, k, threads=self.threads).keys, np.int64).reshape(len(queries), -1)

    @staticmethod
    def _loaded() -> Any:  # noqa: ANN401
        try:
            from usearch.index import Index
        except ModuleNotFoundError as error:
            raise MissingDependencyError("usearch", "peers", "measuring usearch") from error
        return Index

    def _made(self, dim: int) -> Any:  # noqa: ANN401
        return self._library(ndim=dim, metric="ip", dtype="f32", connectivity=self._m, expansion_add=self._breadth)


def is_peer(text: str) -> bool:
    """Return whether `text` names another library's index."""
    return text.split(",")[0] in PEERS


def variant(text: str, threads: int) -> Variant:
    """Return the variant that `text` names: a kind, `hnswlib` or `usearch` with m= and ef_construction=, or `scann`."""
    name, *words = text.split(",")
    if not is_peer(text):
        return Own(IndexSpec.parse(text), threads)
    options = {}
    for word in words:
        found = re.fullmatch(r"(m|ef_construction)=(\d+)", word)
        if found is None or name == "scann":
            expected = "scann" if name == "scann" else f"{name},m=16,ef_construction=128"
            raise InputError(f"the peer {text!r} is not known: expected such as {expected}")
        options[found[1]] = int(found[2])
    if name == "scann":
        return Scann(threads)
    return Hnswlib(options, threads) if name == "hnswlib" else Usearch(options, threads)
