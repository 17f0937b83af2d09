"""Families of indexes, and the specs that name them: strings such as `pca256,ivf,pq64` and `hnsw,sq8,m=32`.

A family is one class: flat, lists (IVF), graphs (HNSW), binary codes, those of a GPU, or another library's. A new one
subclasses `IndexFamily`, is decorated with `register`, and can then be named in every spec string; nothing else
changes.

A spec string is a list of words with commas between: optionally `pcaN`, which projects vectors to N dimensions, then
the family, then how vectors are coded (`sq8`, `pqM`, `pqMx4`), then options. A coded or projected index finds
candidates only; they are rescored from the vector file, so that all scores are exact.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.ann.codes import CODES, Code, Cost
from twinspire.index.flat import ScoredRows
from twinspire.index.vectors import Vectors

_DISTANCES_PER_CANDIDATE = 22  # computed for each candidate that is kept while a vector is added to a graph
_MINIMUM_SAMPLE = 65_536

AUTO = "auto"
"""Stands for a spec: the number of vectors and the free memory decide which."""
_PCA_RESCORE_FACTOR = 10


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
class Selection:
    """Rows that a search may return: a mask (N,), the same as bits, and how many there are.

    Where a row has several vectors, there is a bit for each of them.
    """

    mask: NDArray[np.bool_]
    bits: NDArray[np.uint8]
    kept: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_], vectors_per_item: int = 1) -> Selection:
        """Return the selection of the rows for which `mask` (N,) is True."""
        of_vectors = mask if vectors_per_item == 1 else np.repeat(mask, vectors_per_item)
        return cls(mask, np.packbits(of_vectors, bitorder="little"), int(np.count_nonzero(mask)))

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
    effort_is_candidates: ClassVar[bool] = False
    """Whether the effort is the number of candidates that are rescored: for up to 10 results, in proportion for more.

    Then there is no rescore factor."""
    minimum_vectors: ClassVar[int] = 1
    """Number of vectors below which it is of no use: exact search takes hardly longer."""
    rescore_factor: ClassVar[int] = 1
    """Default number of candidates that are rescored per result; above 1 where its scores are no inner products."""
    rescores_itself: ClassVar[bool] = False
    """Whether `search` rescores the candidates; otherwise `AnnIndex` does, from the vector file."""
    filters: ClassVar[bool] = False
    """Whether `search` applies a selection; otherwise more candidates are asked for, and those not selected dropped."""
    splits_queries: ClassVar[bool] = False
    """Whether several threads may search at once, each some of the queries; otherwise `search` gets all of them."""
    takes_several: ClassVar[bool] = True
    """Whether items may have several vectors, which `AnnIndex` groups; not where it `rescores_itself`."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """Parsed spec: family, projection, code, and the given options. Raises `InputError` if they do not fit together."""

    family: type[IndexFamily]
    pca: int | None = None
    code: Code | None = None
    options: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        family = self.family
        if self.pca is not None and (self.pca < 1 or not family.takes_pca):
            projected = ", ".join(name for name, known in registered_families().items() if known.takes_pca)
            raise InputError(f"pca{self.pca} before {family.name}: expected pcaN, N from 1 up, before {projected}")
        if self.code is not None and not isinstance(self.code, family.codes):
            able = [f"{name},{code.form}" for name, known in registered_families().items() for code in known.codes]
            raise InputError(f"{family.name} cannot hold {self.code} codes: expected such as {', '.join(able)}")
        for name, value in self.options:
            option = family.options.get(name)
            if option is None:
                raise InputError(
                    f"{family.name} has no option {name}: expected one of {', '.join(family.options) or 'none'}"
                )
            if value < option.minimum or (option.maximum is not None and value > option.maximum):
                range_ = f"from {option.minimum} " + ("up" if option.maximum is None else f"to {option.maximum}")
                raise InputError(f"{family.name}: the option {name} must be a whole number {range_}, got {value}")

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Return the spec that `text` names. Raises `InputError`, which lists examples, for an unknown one."""
        words = [word.strip().lower() for word in text.split(",")]
        pca = None
        if found := re.fullmatch(r"pca(\d+)", words[0]):
            pca, words = int(found[1]), words[1:]
        family = registered_families().get(words[0]) if words else None
        if family is None:
            raise InputError(f"unknown index spec {text!r}: {_expected()}")
        code: Code | None = None
        options: dict[str, int] = {}
        for word in words[1:]:
            parsed = next((made for made in (known.parse(word) for known in CODES) if made is not None), None)
            option = re.fullmatch(r"(\w+)=(\d+)", word)
            if parsed is not None and code is None:
                code = parsed
            elif option is not None and option[1] not in options and _is_option(option[1]):
                options[option[1]] = int(option[2])
            else:
                raise InputError(
                    f"unknown part {word!r} in the index spec {text!r}: {_expected()}, "
                    "and options such as nlist=1024, m=32, ef_construction=200"
                )
        ordered = tuple(sorted(options.items(), key=lambda item: [*family.options, item[0]].index(item[0])))
        return cls(family=family, pca=pca, code=code, options=ordered)

    def __str__(self) -> str:
        words = [f"pca{self.pca}"] if self.pca is not None else []
        words.append(self.family.name)
        if self.code is not None:
            words.append(str(self.code))
        return ",".join([*words, *(f"{name}={value}" for name, value in self.options)])

    def option(self, name: str) -> int:
        """Return an option, or its default."""
        value = dict(self.options).get(name, self.family.options[name].default)
        assert value is not None, f"{name} has no default"
        return value

    @property
    def is_exact(self) -> bool:
        """Whether it is exact search over the vector file itself, with nothing to build."""
        return self.family.is_exact(self)

    @property
    def is_lossy(self) -> bool:
        """Whether the index's scores are approximate, so that candidates are rescored."""
        return self.family.effort_is_candidates or self.default_rescore_factor > 1

    @property
    def has_rescore_factor(self) -> bool:
        """Whether the number of candidates to rescore follows from a factor, not from the effort."""
        return self.is_lossy and not self.family.effort_is_candidates

    @property
    def default_rescore_factor(self) -> int:
        """Number of candidates that are rescored per result by default; more for coarser codes, 1: none are."""
        coded = 1 if self.code is None else self.code.rescore_factor
        return max(self.family.rescore_factor, coded, 1 if self.pca is None else _PCA_RESCORE_FACTOR)

    def check(self, dim: int) -> None:
        """Raise `InputError` where vectors of `dim` numbers cannot be held so."""
        if self.pca is not None and self.pca >= dim:
            raise InputError(
                f"{self}: expected a projection to fewer than the vectors' {dim} dimensions, got pca{self.pca}"
            )
        if self.code is not None:
            self.code.check(self.width(dim))

    def require_vectors(self, count: int) -> None:
        """Raise `InputError` where `count` vectors are too few to train it, or for it to be of use."""
        coded = 1 if self.code is None else self.code.minimum_vectors
        minimum = max(self.family.minimum_vectors, coded, self.pca or 1, self.family.list_count(self, count) or 1)
        if count < minimum:
            raise InputError(
                f"an index built as {self} needs at least {minimum} vectors, got {count}: search exactly (flat) until "
                "there are more"
            )

    def width(self, dim: int) -> int:
        """Return the number of dimensions after the projection."""
        return dim if self.pca is None else self.pca

    def vector_bytes(self, dim: int) -> int:
        """Return the bytes that the index holds of a vector of `dim` numbers."""
        return 4 * self.width(dim) if self.code is None else self.code.bytes_of(self.width(dim))


def parse_choice(text: str) -> IndexSpec | None:
    """Return the spec that `text` names, None for `auto`. Raises `InputError` for an unknown one."""
    return None if text.strip().lower() == AUTO else IndexSpec.parse(text)


def _is_option(name: str) -> bool:
    return any(name in family.options for family in registered_families().values())


def _expected() -> str:
    examples = [text for family in registered_families().values() for text in family.examples or (family.name,)]
    return f"expected a spec such as {', '.join(examples)} (`index build` also takes auto, which chooses one)"
