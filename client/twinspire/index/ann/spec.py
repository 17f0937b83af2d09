"""Kinds of index: what they are called and what can be set.

A kind is written as words with commas between: `pca256,ivf,pq64`, `hnsw,sq8,m=32`. In front may stand `pcaN`, then
comes the family, behind it how vectors are coded (`sq8`, `pqM`, `pqMx4`), then options. A coded or projected kind
finds candidates only; their scores are computed again from the vector file, so what comes out has exact scores.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum

from twinspire.errors import InputError

EXACT_BELOW = 100_000
"""`auto` searches exactly where there are fewer items."""

_CAGRA_NEIGHBOURS = (4, 224)
"""FAISS halves a graph's degree for the upper layers of the processor's copy and crashes where that is 1; cuVS's search
by several blocks keeps 32 candidates and the neighbours of one in 256 places."""
_EXAMPLES = "flat, ivf, ivf,sq8, ivf,pq64, ivf,pq128x4, hnsw, hnsw,sq8, pca256,hnsw, cagra, gpu-flat, gpu-ivf, auto"


class Family(StrEnum):
    """How an index finds its candidates."""

    AUTO = "auto"
    FLAT = "flat"
    IVF = "ivf"
    HNSW = "hnsw"
    CAGRA = "cagra"
    GPU_FLAT = "gpu-flat"
    GPU_IVF = "gpu-ivf"

    @property
    def needs_gpu(self) -> bool:
        """Whether only a GPU can build and search it."""
        return self in (Family.CAGRA, Family.GPU_FLAT, Family.GPU_IVF)

    @property
    def is_graph(self) -> bool:
        """Whether a search goes from neighbour to neighbour."""
        return self in (Family.HNSW, Family.CAGRA)

    @property
    def effort_name(self) -> str:
        """FAISS's name of what a search sets to find more."""
        names = {Family.IVF: "nprobe", Family.GPU_IVF: "nprobe", Family.HNSW: "efSearch", Family.CAGRA: "itopk_size"}
        return names.get(self, "effort")


class Scheme(StrEnum):
    """How vectors are made smaller."""

    SQ = "sq"
    PQ = "pq"


_CODED = {Family.IVF: (Scheme.SQ, Scheme.PQ), Family.HNSW: (Scheme.SQ,)}
_OPTIONS = {
    "nlist": (Family.IVF, Family.GPU_IVF),
    "m": (Family.HNSW, Family.CAGRA),
    "ef_construction": (Family.HNSW, Family.CAGRA),
}


@dataclass(frozen=True, slots=True)
class Code:
    """How a vector is coded: SQ with 8 bits a number, or PQ with `parts` parts of `bits` bits (8, or 4: faster)."""

    scheme: Scheme
    parts: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        if self.scheme is Scheme.SQ and (self.parts != 0 or self.bits != 8):
            raise InputError(f"scalar quantization has 8 bits a number, got {self.bits} and {self.parts} parts")
        if self.scheme is Scheme.PQ and (self.parts < 1 or self.bits not in (4, 8)):
            raise InputError(f"product quantization needs parts from 1 up of 4 or 8 bits, got {self}")

    def __str__(self) -> str:
        if self.scheme is Scheme.SQ:
            return "sq8"
        return f"pq{self.parts}" + ("x4" if self.bits == 4 else "")

    def bytes_of(self, dim: int) -> int:
        """Return the bytes that the code of a vector of `dim` numbers takes."""
        return dim if self.scheme is Scheme.SQ else math.ceil(self.parts * self.bits / 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A kind of index. Options that are None follow from the number of vectors. Raises `InputError`."""

    family: Family
    pca: int | None = None
    code: Code | None = None
    nlist: int | None = None
    m: int | None = None
    ef_construction: int | None = None

    def __post_init__(self) -> None:
        if self.pca is not None and (self.pca < 1 or self.family is Family.AUTO or self.family.needs_gpu):
            raise InputError(
                f"pca{self.pca} in front of {self.family}: expected pcaN, N from 1 up, before flat, ivf, hnsw"
            )
        if self.code is not None and self.code.scheme not in _CODED.get(self.family, ()):
            raise InputError(f"{self.family} cannot hold {self.code} codes: ivf takes sq8 and pq, hnsw sq8")
        for name, families in _OPTIONS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if self.family not in families:
                raise InputError(f"{self.family} has no option {name}: it belongs to {', '.join(families)}")
            if value < 1 or (name == "m" and value < 2):
                raise InputError(
                    f"the option {name} must be a whole number from {2 if name == 'm' else 1} up, got {value}"
                )
        least, most = _CAGRA_NEIGHBOURS
        if self.family is Family.CAGRA and self.m is not None and not least <= self.m <= most:
            raise InputError(
                f"the option m of {self.family} must be a whole number from {least} to {most}, got {self.m}"
            )

    @classmethod
    def parse(cls, text: str) -> IndexSpec:
        """Return the kind that `text` names. Raises `InputError` that lists what there is."""
        words = [word.strip().lower() for word in text.split(",")]
        pca = None
        if found := re.fullmatch(r"pca(\d+)", words[0]):
            pca, words = int(found[1]), words[1:]
        if not words or words[0] not in tuple(Family):
            raise InputError(f"the kind of index {text!r} is not known: expected such as {_EXAMPLES}")
        family, code = Family(words[0]), None
        options: dict[str, int] = {}
        for word in words[1:]:
            if word == "sq8" and code is None:
                code = Code(Scheme.SQ)
            elif (found := re.fullmatch(r"pq(\d+)(?:x(\d+))?", word)) and code is None:
                code = Code(Scheme.PQ, int(found[1]), int(found[2] or 8))
            elif (found := re.fullmatch(r"(\w+)=(\d+)", word)) and found[1] in _OPTIONS and found[1] not in options:
                options[found[1]] = int(found[2])
            else:
                raise InputError(
                    f"the kind of index {text!r} is not known, because of {word!r}: expected such as {_EXAMPLES}, "
                    f"and options such as nlist=1024, m=32, ef_construction=200"
                )
        return cls(family=family, pca=pca, code=code, **options)

    def __str__(self) -> str:
        words = [f"pca{self.pca}"] if self.pca is not None else []
        words.append(self.family.value)
        if self.code is not None:
            words.append(str(self.code))
        words += [f"{name}={value}" for name in _OPTIONS if (value := getattr(self, name)) is not None]
        return ",".join(words)

    @property
    def is_exact(self) -> bool:
        """Whether it is plain exact search over the vector file, with nothing to build."""
        return self.family is Family.FLAT and self.pca is None

    @property
    def is_lossy(self) -> bool:
        """Whether what it holds are not the vectors themselves, so that scores have to be computed again."""
        return self.pca is not None or self.code is not None or self.family is Family.CAGRA

    @property
    def is_tunable(self) -> bool:
        """Whether more effort finds more."""
        return self.family not in (Family.FLAT, Family.GPU_FLAT, Family.AUTO)

    def check(self, dim: int) -> None:
        """Raise `InputError` where vectors of `dim` numbers cannot be held so."""
        if self.pca is not None and self.pca >= dim:
            raise InputError(f"{self}: pca{self.pca} must make vectors of {dim} numbers shorter")
        width = self.width(dim)
        if self.code is not None and self.code.parts > width:
            raise InputError(f"{self}: vectors of {width} numbers cannot be cut into {self.code.parts} parts")

    def width(self, dim: int) -> int:
        """Return how many numbers a vector has behind the projection."""
        return dim if self.pca is None else self.pca

    def lists(self, count: int) -> int:
        """Return the number of lists of an `ivf` of `count` vectors: about the root of it, as a power of two."""
        if self.nlist is not None:
            return self.nlist
        return 1 << max(round(math.log2(max(count, 1) ** 0.5)), 0)

    def neighbours(self) -> int:
        """Return how many neighbours a vector has in a graph."""
        return self.m if self.m is not None else 32 if self.family is Family.CAGRA else 16

    def breadth(self) -> int:
        """Return how many candidates are kept while a graph is built."""
        if self.ef_construction is not None:
            return self.ef_construction
        return 64 if self.family is Family.CAGRA else 100

    def sample(self, count: int) -> int:
        """Return how many of `count` vectors it is trained on."""
        per_list = 64 * self.lists(count) if self.family in (Family.IVF, Family.GPU_IVF) else 0
        return min(count, max(per_list, 65_536))
