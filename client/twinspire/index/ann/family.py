"""Interface of a family of indexes, and the registry that spec strings are looked up in.

A family is one class: flat, lists (IVF), graphs (HNSW), those of a GPU, or another library's. A new one subclasses
`IndexFamily`, is decorated with `register`, and can then be named in every spec string; nothing else changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.flat import ScoredRows
from twinspire.index.vectors import Vectors

if TYPE_CHECKING:
    from twinspire.index.ann.codes import Code
    from twinspire.index.ann.spec import IndexSpec

_DISTANCES_PER_CANDIDATE = 22  # computed for each candidate that is kept while a vector is added to a graph
_MINIMUM_SAMPLE = 65_536


class Sink(Protocol):
    """File to write to, from front to back."""

    def write(self, data: bytes, /) -> int:
        """Take all of `data`, and return its length."""


@dataclass(frozen=True, slots=True)
class Option:
    """Whole-number option of a family, such as `m=32`. `default` None: follows from the number of vectors."""

    default: int | None
    minimum: int = 1
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What an index takes: bytes that it holds, and what building it computes and reads.

    `operations` are those of matrix products (a multiply-add is two), `random_bytes` what is read at random places.
    """

    memory_bytes: float
    operations: float = 0.0
    random_bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.memory_bytes + other.memory_bytes,
            self.operations + other.operations,
            self.random_bytes + other.random_bytes,
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that a search may return: a mask (N,), the same as bits, and how many there are."""

    mask: NDArray[np.bool_]
    bits: NDArray[np.uint8]
    kept: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Selection:
        """Return the selection of the rows for which `mask` (N,) is True."""
        return cls(mask, np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)))

    @property
    def share(self) -> float:
        """Share of all rows that are selected."""
        return self.kept / max(1, len(self.mask))


@dataclass(frozen=True, slots=True)
class SearchParameters:
    """Parameters of one search: results wanted per query, candidates to find for them, effort, and rows to return."""

    k: int
    candidates: int
    effort: int
    selection: Selection | None = None


class IndexFamily(ABC):
    """Index of one family over the first rows of a vector file; rows count from 0.

    Class attributes and class methods describe the family, an instance is one index. `AnnIndex` drives it: it resolves
    defaults, rescores candidates and shares queries among threads. A spec is checked before an instance is made.
    """

    name: ClassVar[str]
    """Name in spec strings."""
    examples: ClassVar[tuple[str, ...]] = ()
    """Spec strings that errors list; empty: the name."""
    options: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    codes: ClassVar[tuple[type[Code], ...]] = ()
    """Codes that it can store vectors in."""
    takes_pca: ClassVar[bool] = False
    """Whether vectors may be projected before they are stored."""
    is_graph: ClassVar[bool] = False
    """Whether a search walks from neighbour to neighbour."""
    is_tunable: ClassVar[bool] = True
    """Whether more effort finds more."""
    effort_name: ClassVar[str] = "effort"
    """The library's own name of the effort, such as nprobe."""
    rescore_factor: ClassVar[int] = 1
    """Default number of candidates that are rescored per result; above 1 where its scores are no inner products."""
    rescores_itself: ClassVar[bool] = False
    """Whether `search` rescores the candidates; otherwise `AnnIndex` does, from the vector file."""
    filters: ClassVar[bool] = False
    """Whether `search` applies a selection; otherwise more candidates are asked for, and those not selected dropped."""
    splits_queries: ClassVar[bool] = False
    """Whether several threads may search at once, each some of the queries; otherwise `search` gets all of them."""
    can_add: ClassVar[bool] = False
    """Whether vectors can be added to a built index; otherwise it is rebuilt."""
    maximum_results: ClassVar[int | None] = None
    """Greatest number of candidates of a search, None for no limit."""
    package: ClassVar[str | None] = None
    """Distribution whose version benchmarks record."""

    def __init__(self, spec: IndexSpec, *, threads: int) -> None:
        self.spec = spec
        self.threads = threads

    @classmethod
    def require(cls) -> None:
        """Import what the family computes with, and let it initialise itself; nothing unless overridden.

        Raises `MissingDependencyError` where it is not installed, `ProviderError` where a GPU is missing.
        """
        return

    @classmethod
    def is_exact(cls, spec: IndexSpec) -> bool:  # noqa: ARG003
        """Whether `spec` is exact search over the vector file itself, with nothing to build."""
        return False

    @classmethod
    def list_count(cls, spec: IndexSpec, count: int) -> int | None:  # noqa: ARG003
        """Return the number of lists of an index of `count` vectors, None for a family without lists."""
        return None

    @classmethod
    def sample_size(cls, spec: IndexSpec, count: int) -> int:
        """Return how many of `count` vectors an index is trained on."""
        return min(count, max(64 * (cls.list_count(spec, count) or 0), _MINIMUM_SAMPLE))

    @classmethod
    @abstractmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:
        """Predict what an index of `count` vectors of `dim` numbers takes, without the vector file."""

    @abstractmethod
    def build(self, vectors: Vectors, *, seed: int) -> None:
        """Train on `vectors` (N, D), L2-normalised, float32 or float16, and add them as rows 0 to N - 1."""

    def add(self, vectors: Vectors) -> None:  # noqa: ARG002
        """Add `vectors` (N, D) as the rows that follow; not called while searches run. Overridden with `can_add`."""
        raise InputError(f"an index {self.spec} cannot be extended: build it again")

    @abstractmethod
    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Return scores and rows of the best candidates for `queries` (Q, D), each (Q, n), best first.

        A family that `rescores_itself` rescores the candidates and returns the k best. -1 is no row.
        """

    @abstractmethod
    def save(self, file: Sink) -> None:
        """Write the index to `file`."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Read what `save` wrote. Raises `IndexStoreError` for a file of something else."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many rows it covers."""

    @property
    def lists(self) -> int | None:
        """Number of lists, None for a family without lists."""
        return None

    @property
    def default_effort(self) -> int:
        """Effort of a search that gives none."""
        return 64

    @property
    def maximum_effort(self) -> int:
        """Effort above which no more is found."""
        return max(1, len(self))


def graph_cost(count: int, m: int, ef_construction: int, vector_bytes: float) -> Cost:
    """Predict what an HNSW graph of `count` vectors takes besides the vectors, of `vector_bytes` each."""
    distances = float(count) * ef_construction * _DISTANCES_PER_CANDIDATE
    return Cost(count * (4 * 2 * m + 4 * m / (m - 1) + 12), random_bytes=distances * vector_bytes)


_FAMILIES: dict[str, type[IndexFamily]] = {}
Family = TypeVar("Family", bound=type[IndexFamily])


def register(family: Family) -> Family:
    """Make a family known to spec strings, in place of one of the same name; a class decorator."""
    _FAMILIES[family.name] = family
    return family


def registered_families() -> Mapping[str, type[IndexFamily]]:
    """Return the known families by name, in the order of registration."""
    return MappingProxyType(_FAMILIES)
