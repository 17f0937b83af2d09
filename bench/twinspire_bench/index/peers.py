"""Other libraries' indexes, as families beside our own: hnswlib, usearch and ScaNN."""

from __future__ import annotations

import importlib
import math
import subprocess
import tarfile
import tempfile
from abc import abstractmethod
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError, MissingDependencyError
from twinspire.index.ann import Cost, IndexFamily, IndexSpec, Option, SearchParameters, Sink, register
from twinspire.index.ann.family import graph_cost
from twinspire.index.flat import ScoredRows
from twinspire.index.vectors import Vectors

SCANN_INSTALLATION = (
    "make an environment for it (`python -m venv scann-env && scann-env/bin/pip install scann==1.4.2`) and pass "
    "--scann-python scann-env/bin/python"
)
_CHECK_S = 60
_SCANN_SAMPLE = 250_000
_SCANN_BATCH = 256
_SCANN_KMEANS_ROUNDS = 12


class Peer(IndexFamily):
    """Index that another library builds, searches with its own threads and stores in files: here, a tar archive.

    Made for measurements: searches set the effort on the index, so only one thread may call them.
    """

    package: ClassVar[str]
    _index: Any = None

    def save(self, file: Sink) -> None:
        """Write an archive of the library's files."""
        with tempfile.TemporaryDirectory() as folder:
            self._store(Path(folder))
            with tarfile.open(mode="w|", fileobj=file) as archive:  # type: ignore[call-overload]
                archive.add(folder, ".")

    def load(self, path: Path) -> None:
        """Unpack the archive, and let the library read its files."""
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
            self._restore(Path(folder))

    @abstractmethod
    def _store(self, folder: Path) -> None:
        """Let the library store its files."""

    @abstractmethod
    def _restore(self, folder: Path) -> None:
        """Let the library read its files."""


class _Graph(Peer):
    """HNSW graph of another library."""

    module: ClassVar[str]
    """Module with the library's class `Index`."""
    options = MappingProxyType({"m": Option(16, minimum=2), "ef_construction": Option(128)})
    is_graph = True

    @classmethod
    def require(cls) -> None:
        """Import the library."""
        cls._library()

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:
        """Predict float32 vectors and the graph."""
        return Cost(4 * count * dim) + graph_cost(count, spec.option("m"), spec.option("ef_construction"), 4 * dim)

    @classmethod
    def _library(cls) -> Any:  # noqa: ANN401
        """Return the library's class of an index."""
        try:
            return importlib.import_module(cls.module).Index
        except ModuleNotFoundError as error:
            raise MissingDependencyError(cls.package, "peers", f"measuring {cls.package}") from error


@register
class Hnswlib(_Graph):
    """hnswlib: https://github.com/nmslib/hnswlib."""

    name = package = "hnswlib"
    module = "hnswlib"
    examples = ("hnswlib,m=16,ef_construction=128",)
    effort_name = "ef"

    def build(self, vectors: Vectors, *, seed: int) -> None:
        """Build it."""
        m, ef_construction = self.spec.option("m"), self.spec.option("ef_construction")
        self._index = self._library()(space="ip", dim=vectors.shape[1])
        self._index.init_index(len(vectors), ef_construction=ef_construction, M=m, random_seed=seed)
        self._index.add_items(vectors, num_threads=self.threads)

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Search with `ef`."""
        self._index.set_ef(max(parameters.effort, parameters.candidates))
        rows, distances = self._index.knn_query(queries, parameters.candidates, num_threads=self.threads)
        return 1 - distances, rows.astype(np.int64)

    def __len__(self) -> int:
        return int(self._index.get_current_count())

    def _store(self, folder: Path) -> None:
        self._index.save_index(str(folder / "index"))
        (folder / "dim").write_text(str(self._index.dim))

    def _restore(self, folder: Path) -> None:
        self._index = self._library()(space="ip", dim=int((folder / "dim").read_text()))
        self._index.load_index(str(folder / "index"))


@register
class Usearch(_Graph):
    """usearch: https://github.com/unum-cloud/usearch. Vectors are stored as float32, as by the others."""

    name = package = "usearch"
    module = "usearch.index"
    examples = ("usearch,m=16,ef_construction=128",)
    effort_name = "expansion_search"

    def build(self, vectors: Vectors, *, seed: int) -> None:  # noqa: ARG002
        """Build it."""
        m, ef_construction = self.spec.option("m"), self.spec.option("ef_construction")
        self._index = self._library()(
            ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=m, expansion_add=ef_construction
        )
        self._index.add(np.arange(len(vectors), dtype=np.uint64), np.ascontiguousarray(vectors), threads=self.threads)

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Search with `expansion_search`."""
        self._index.expansion_search = max(parameters.effort, parameters.candidates)
        found = self._index.search(queries, parameters.candidates, threads=self.threads)
        rows = found.keys.reshape(len(queries), -1).astype(np.int64)
        return 1 - found.distances.reshape(rows.shape), rows

    def __len__(self) -> int:
        return len(self._index)

    def _store(self, folder: Path) -> None:
        self._index.save(str(folder / "index"))

    def _restore(self, folder: Path) -> None:
        self._index = self._library().restore(str(folder / "index"))


@register
class Scann(Peer):
    """ScaNN (https://github.com/google-research/google-research/tree/master/scann): a tree and anisotropic codes.

    Parameters as https://github.com/google-research/google-research/blob/master/scann/docs/algorithms.md recommends.
    Its dependencies conflict with ours, so another interpreter (`--scann-python`), which needs NumPy and ScaNN only,
    runs the process that measures it.
    """

    name = package = "scann"
    effort_name = "leaves_to_search"
    rescore_factor = 10
    rescores_itself = True
    _count = 0

    @classmethod
    def require(cls) -> None:
        """Import ScaNN."""
        import scann  # noqa: F401

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:  # noqa: ARG003
        """Predict float32 vectors and codes of 2 bits a number; k-means and the assignment of all vectors."""
        leaves = _leaves(count)
        trained = _SCANN_KMEANS_ROUNDS * min(count, _SCANN_SAMPLE)
        return Cost(count * (4 * dim + dim / 4) + 4 * leaves * dim, 2.0 * leaves * dim * (trained + count))

    def build(self, vectors: Vectors, *, seed: int) -> None:  # noqa: ARG002
        """Build about as many leaves as the square root of the vectors."""
        import scann

        self._count, leaves = len(vectors), _leaves(len(vectors))
        builder = scann.scann_ops_pybind.builder(np.ascontiguousarray(vectors), 10, "dot_product")
        tree = builder.set_n_training_threads(self.threads).tree(
            num_leaves=leaves,
            num_leaves_to_search=max(1, leaves // 10),
            training_sample_size=min(len(vectors), _SCANN_SAMPLE),
        )
        self._index = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Search leaves and rescore candidates; a single query in one thread."""
        options = {
            "final_num_neighbors": parameters.k,
            "pre_reorder_num_neighbors": parameters.candidates,
            "leaves_to_search": parameters.effort,
        }
        if len(queries) == 1 or self.threads == 1:
            rows, scores = self._index.search_batched(queries, **options)
        else:
            size = min(_SCANN_BATCH, math.ceil(len(queries) / self.threads))
            rows, scores = self._index.search_batched_parallel(queries, batch_size=size, **options)
        return scores, rows.astype(np.int64)

    def __len__(self) -> int:
        return self._count

    def _store(self, folder: Path) -> None:
        self._index.serialize(str(folder), relative_path=True)
        (folder / "count").write_text(str(self._count))

    def _restore(self, folder: Path) -> None:
        import scann

        self._count = int((folder / "count").read_text())
        self._index = scann.scann_ops_pybind.load_searcher(str(folder))
        self._index.set_num_threads(self.threads)


def _leaves(count: int) -> int:
    return max(1, round(math.sqrt(count)))


def check_scann(python: Path | None) -> Path:
    """Return the interpreter that can import ScaNN. Raises `InputError` that says how to install one."""
    if python is None:
        raise InputError(f"ScaNN cannot be installed into this environment: {SCANN_INSTALLATION}")
    command = [str(python), "-c", "import numpy, scann"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_CHECK_S)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"{python} cannot be run as a Python interpreter with ScaNN ({error}): {SCANN_INSTALLATION}"
        ) from error
    if done.returncode != 0:
        cause = [str(done.returncode), *done.stderr.strip().splitlines()][-1]
        raise InputError(f"{python} cannot import scann ({cause}): {SCANN_INSTALLATION}")
    return python
