"""Codes that indexes store vectors in: scalar quantization of 8 bits a number, and product quantization."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.faiss_support import faiss_library, linear_transform

KMEANS_ROUNDS = 8
_POINTS_PER_CENTROID = 512
_ROUGH_SAMPLE = 16_384
_ROUGH_LISTS = 256
_ROUGH_ROUNDS = 4
_ALLOCATION_OPERATIONS = _ROUGH_ROUNDS * 2.0 * _ROUGH_SAMPLE * _ROUGH_LISTS  # for each number of a vector
_WEIGHT = 0.25  # as a power of the variance; 0 and 0.5 were tried (bench/LOG.md)
_FLOOR = 1e-3


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


class Code(ABC):
    """How vectors are made smaller."""

    form: ClassVar[str]
    """Form of its words in spec strings."""
    rescore_factor: ClassVar[int]
    """Default number of candidates that are rescored per result."""
    keeps_order: ClassVar[bool] = False
    """Whether codes are so fine that they hardly change the order of results."""

    @property
    def minimum_vectors(self) -> int:
        """Number of vectors below which it cannot be trained."""
        return 1

    @property
    def scans_all_queries(self) -> bool:
        """Whether a search takes the lists of all queries at once, so that cutting them up is slower."""
        return False

    @classmethod
    @abstractmethod
    def parse(cls, word: str) -> Code | None:
        """Return the code that a word of a spec string names, None for another word. Raises `InputError`."""

    def check(self, width: int) -> None:  # noqa: ARG002
        """Raise `InputError` where vectors of `width` numbers cannot be coded so; no width unless overridden."""
        return

    @abstractmethod
    def bytes_of(self, width: int) -> int:
        """Return the bytes of the code of a vector of `width` numbers."""

    def cost(self, count: int, sample: int, width: int) -> Cost:  # noqa: ARG002
        """Predict what codes of `count` vectors, trained on `sample` of them, take."""
        return Cost(count * self.bytes_of(width))

    def transform(self, sample: NDArray[np.float32]) -> Any | None:  # noqa: ANN401, ARG002
        """Return FAISS's transformation to apply to vectors before they are coded, None for none."""
        return None

    @abstractmethod
    def lists(self, coarse: Any, width: int, count: int) -> Any:  # noqa: ANN401
        """Return FAISS's IVF index of `count` lists of such codes, with `coarse` as quantizer."""


@dataclass(frozen=True, slots=True)
class Sq8(Code):
    """Scalar quantization: 8 bits a number."""

    form = "sq8"
    rescore_factor = 3
    keeps_order = True

    @classmethod
    def parse(cls, word: str) -> Code | None:
        """Return the code for `sq8`."""
        return cls() if word == "sq8" else None

    def __str__(self) -> str:
        return "sq8"

    def bytes_of(self, width: int) -> int:
        """Return one byte a number."""
        return width

    def lists(self, coarse: Any, width: int, count: int) -> Any:  # noqa: ANN401
        """Return an IndexIVFScalarQuantizer."""
        faiss = faiss_library()
        eight_bits, metric = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        return faiss.IndexIVFScalarQuantizer(coarse, width, count, eight_bits, metric)


@dataclass(frozen=True, slots=True)
class Pq(Code):
    """Product quantization: `parts` of a vector, of 8 or 4 bits each."""

    parts: int
    bits: int = 8

    form = "pqMx4"
    rescore_factor = 20

    def __post_init__(self) -> None:
        if self.parts < 1 or self.bits not in (4, 8):
            raise InputError(f"product quantization needs parts from 1 up, of 4 or 8 bits each, got {self}")

    @classmethod
    def parse(cls, word: str) -> Code | None:
        """Return the code for `pqM` and `pqMx4`."""
        found = re.fullmatch(r"pq(\d+)(?:x(\d+))?", word)
        return cls(int(found[1]), int(found[2] or 8)) if found else None

    def __str__(self) -> str:
        return f"pq{self.parts}" + ("" if self.bits == 8 else f"x{self.bits}")

    @property
    def minimum_vectors(self) -> int:
        """One for each centroid of a part."""
        return 1 << self.bits

    @property
    def scans_all_queries(self) -> bool:
        """FAISS's fast scan, of 4 bits, takes the lists of all queries at once."""
        return self.bits == 4

    def check(self, width: int) -> None:
        """Refuse more parts than numbers."""
        if self.parts > width:
            raise InputError(f"{self}: vectors of {width} numbers cannot be cut into {self.parts} parts")

    def bytes_of(self, width: int) -> int:  # noqa: ARG002
        """Return the bits of all parts, in bytes."""
        return math.ceil(self.parts * self.bits / 8)

    def cost(self, count: int, sample: int, width: int) -> Cost:
        """Predict codes, codebooks and the matrix before them; training, and coding all vectors."""
        levels = 1 << self.bits
        operations = _ALLOCATION_OPERATIONS * width + 2.0 * count * width * (width + levels)
        operations += KMEANS_ROUNDS * 2.0 * min(sample, _POINTS_PER_CENTROID * levels) * width * levels
        return Cost(count * self.bytes_of(width) + 4 * width * (width + levels), operations)

    def transform(self, sample: NDArray[np.float32]) -> Any | None:  # noqa: ANN401
        """Return a linear transformation to a multiple of the parts.

        It rotates vectors to their principal directions and scales these by the fourth root of the variance. Queries
        are multiplied with the inverse, which keeps inner products (see `coarse`): codes are then exact where queries
        are long, not equally exact in all directions. Then it distributes the directions over the parts so that the
        product of the variances is about equal: the eigenvalue allocation of Ge et al., Optimized Product Quantization,
        CVPR 2013. Those are the variances of residuals, here to rough centroids, since residuals are what is coded.
        """
        faiss, width = faiss_library(), sample.shape[1]
        variances, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64) / len(sample))
        weights = np.maximum(variances / variances.mean(), _FLOOR) ** _WEIGHT
        scaling = weights[:, None] * directions.T  # (D, D)
        scaled = (sample[:: max(1, len(sample) // _ROUGH_SAMPLE)] @ scaling.T).astype(np.float32)
        rough = faiss.Kmeans(width, min(_ROUGH_LISTS, len(scaled)), niter=_ROUGH_ROUNDS, min_points_per_centroid=1)
        rough.train(scaled)
        residuals = scaled - rough.centroids[rough.assign(scaled)[1]]
        kept = width // self.parts * self.parts
        return linear_transform(scaling[allocated(residuals.var(axis=0), self.parts, kept)])

    def lists(self, coarse: Any, width: int, count: int) -> Any:  # noqa: ANN401
        """Return an IndexIVFPQFastScan of residuals for 4 bits, an IndexIVFPQ for 8."""
        faiss = faiss_library()
        made = faiss.IndexIVFPQFastScan if self.scans_all_queries else faiss.IndexIVFPQ
        index = made(coarse, width, count, self.parts, self.bits, faiss.METRIC_INNER_PRODUCT)
        index.by_residual = True
        index.pq.cp.min_points_per_centroid = 1  # else k-means prints that it would like more
        index.pq.cp.niter = KMEANS_ROUNDS
        index.pq.cp.max_points_per_centroid = _POINTS_PER_CENTROID
        return index


CODES: tuple[type[Code], ...] = (Sq8, Pq)


def allocated(variances: NDArray[Any], parts: int, kept: int) -> NDArray[np.int64]:
    """Return the `kept` directions of the greatest `variances` (D,), those of the first of `parts` parts first."""
    order = np.argsort(-variances, kind="stable")[:kept]
    logs = np.log(np.maximum(variances, 1e-12))
    logs -= logs[order[-1]]
    members: list[list[int]] = [[] for _ in range(parts)]
    sums = np.zeros(parts)
    for direction in order:
        part = int(np.argmin(sums))
        members[part].append(int(direction))
        sums[part] = sums[part] + logs[direction] if len(members[part]) < kept // parts else np.inf
    return np.concatenate([np.array(part, np.int64) for part in members])
