"""Inputs of the benchmark: vectors, queries and the scores of exact search; generated from a seed or read from HDF5.

The distributions of synthetic vectors, one easy to cut into lists, two hard, are pinned: the same size, seed and
version give the same vectors.

D is the number of dimensions, z a draw of independent normal numbers, B a random orthonormal basis, and
s_i = i^-p / |(1^-p, ..., D^-p)| the standard deviation of direction i, so that a point B(s z) is about 1 long. Items
and queries are brought to length 1.

clusters: an item is c_j + 0.7 B(s z) + g, a query c_j + 0.7 B(s z) - g. p = 0.5 (variances 1, 1/2, 1/3, ..., as
    embeddings have few directions that matter), j uniform of 1,000 centres c_j = B(s z), and g a random direction of
    length 0.7: items are shifted one way and queries the other, as two towers shift theirs (Liang et al., Mind the Gap,
    NeurIPS 2022). Items and queries of one cluster have a cosine of 0.2 to 0.4, as images and captions in CLIP.
power-law: the same with 20,000 centres, and j drawn with a probability in proportion to 1/j. So a few clusters are cut
    into many lists, and most lists hold many clusters, which differ in their spread.
spectrum: an item is B(s z), a query another one. p = 0.4, without clusters or gap: nothing that lists could follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError, MissingDependencyError
from twinspire.index.flat import nearest

MAXIMUM_K = 100
_VERSION = 1
_DESCRIPTION = "vectors.json"
SPREAD = 0.7
GAP = 1.4
BLOCK = 50_000

Blocks = Iterator[NDArray[np.float32]]
"""Blocks of unit vectors, (n, D) float32 each."""


class Distribution(StrEnum):
    """Distribution of vectors; the formulas are in the module's docstring."""

    CLUSTERS = "clusters"
    POWER_LAW = "power-law"
    SPECTRUM = "spectrum"

    @property
    def clusters(self) -> int:
        """Default number of clusters; 0: none."""
        return {Distribution.CLUSTERS: 1_000, Distribution.POWER_LAW: 20_000, Distribution.SPECTRUM: 0}[self]


@dataclass(frozen=True, kw_only=True)
class SyntheticVectors:
    """Vectors to generate: `size` items of `dim` numbers, and queries. `clusters` None: the distribution's default."""

    size: int
    dim: int
    queries: int = 1_000
    distribution: Distribution = Distribution.CLUSTERS
    clusters: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "dim", "queries"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a whole number from 1 up")
        if self.clusters is None:
            object.__setattr__(self, "clusters", self.distribution.clusters)
        elif self.clusters < 1 or self.distribution is Distribution.SPECTRUM:
            raise InputError(
                f"clusters {self.clusters} of the distribution {self.distribution}: expected a whole number from 1 up, "
                "and none for spectrum"
            )

    @property
    def name(self) -> str:
        """Name in records, and of the folder."""
        return f"{self.distribution}-v{_VERSION}-{self.size}x{self.dim}-{self.clusters}-{self.queries}-{self.seed}"

    @property
    def description(self) -> dict[str, Any]:
        """What the folder's description has to be."""
        return asdict(self) | {"version": _VERSION}


@dataclass(frozen=True)
class VectorSet:
    """Files in one folder: `vectors.npy` (N, D) and `queries.npy` (Q, D), L2-normalised float32, and `exact.npy`."""

    folder: Path
    name: str

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) float32, a mapping of the file."""
        mapped: NDArray[np.float32] = np.load(self.folder / "vectors.npy", mmap_mode="r")
        return mapped

    @property
    def queries(self) -> NDArray[np.float32]:
        """(Q, D) float32."""
        loaded: NDArray[np.float32] = np.load(self.folder / "queries.npy")
        return loaded

    @property
    def exact_scores(self) -> NDArray[np.float32]:
        """Scores of exact search, (Q, 100) or fewer, best first."""
        loaded: NDArray[np.float32] = np.load(self.folder / "exact.npy")
        return loaded


def generate(synthetic: SyntheticVectors, folder: Path) -> VectorSet:
    """Generate into `folder`, or reuse what an earlier call generated there. Raises `InputError` for other vectors."""
    if not _is_complete(folder, synthetic.description):
        vectors, queries = generated(synthetic)
        _store(folder / "vectors.npy", vectors, (synthetic.size, synthetic.dim))
        _store(folder / "queries.npy", queries, (synthetic.queries, synthetic.dim))
        _finish(folder, synthetic.description)
    return VectorSet(folder, synthetic.name)


def read_hdf5(file: Path, folder: Path, *, queries: int | None = None) -> VectorSet:
    """Copy `train` and `test` of an ann-benchmarks file into `folder`, normalised; the exact results are searched anew.

    Raises `InputError` for another file, and for a distance that is not angular (of unit vectors the inner product
    gives the same order): https://github.com/erikbern/ann-benchmarks#data-sets
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingDependencyError("h5py", "peers", "reading HDF5") from error
    found = {"hdf5": file.name, "bytes": file.stat().st_size if file.is_file() else 0, "queries": queries}
    if not _is_complete(folder, found):
        try:
            with h5py.File(file, "r") as opened:
                missing = [name for name in ("train", "test") if name not in opened]
                distance = opened.attrs.get("distance", "none")
                if missing or distance != "angular":
                    raise InputError(
                        f"{file}: expected an ann-benchmarks file with train, test and the distance angular; "
                        + (f"it has no {missing[0]}" if missing else f"its distance is {distance}")
                    )
                for name, source, count in (("vectors", "train", None), ("queries", "test", queries)):
                    rows = opened[source].shape[0] if count is None else min(count, opened[source].shape[0])
                    blocks = (_unit(opened[source][at : min(at + BLOCK, rows)]) for at in range(0, rows, BLOCK))
                    _store(folder / f"{name}.npy", blocks, (rows, opened[source].shape[1]))
        except OSError as error:
            raise InputError(f"{file} cannot be read as HDF5: {error}") from error
        _finish(folder, found)
    return VectorSet(folder, file.stem)


def _unit(block: NDArray[Any]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(block, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise InputError("the file holds a vector of length 0, which has no direction")
    unit: NDArray[np.float32] = (block / lengths).astype(np.float32)
    return unit


def _is_complete(folder: Path, description: dict[str, Any]) -> bool:
    path = folder / _DESCRIPTION
    if path.exists():
        if json.loads(path.read_text()) != description:
            raise InputError(f"{folder} has other vectors: name another folder, or remove it")
        return True
    folder.mkdir(parents=True, exist_ok=True)
    return False


def _store(path: Path, blocks: Iterator[NDArray[np.float32]], shape: tuple[int, int]) -> None:
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)


def _finish(folder: Path, description: dict[str, Any]) -> None:
    """Search exactly, then write the description, which says that the folder is complete."""
    inputs = VectorSet(folder, "")
    scores, _ = nearest(inputs.vectors, inputs.queries, MAXIMUM_K)
    np.save(folder / "exact.npy", scores)
    (folder / _DESCRIPTION).write_text(json.dumps(description))


def generated(synthetic: SyntheticVectors) -> tuple[Blocks, Blocks]:
    """Return the blocks of items and those of queries. Take all items before the first query."""
    dim, clusters, distribution = synthetic.dim, synthetic.clusters, synthetic.distribution
    assert clusters is not None
    draw = np.random.default_rng(synthetic.seed)
    basis = np.linalg.qr(draw.standard_normal((dim, dim)))[0]
    scales = np.arange(1, dim + 1) ** (-0.4 if distribution is Distribution.SPECTRUM else -0.5)
    scales /= np.linalg.norm(scales)
    shape = (scales[:, None] * basis.T).astype(np.float32)  # (D, D): the directions, each as long as it matters
    if distribution is Distribution.SPECTRUM:

        def points(count: int) -> NDArray[np.float32]:
            return _normal(draw, count, shape)

        return _blocks(synthetic.size, points), _blocks(synthetic.queries, points)
    centres = _normal(draw, clusters, shape)
    gap = draw.standard_normal(dim, dtype=np.float32)
    gap *= np.float32(GAP / 2) / np.linalg.norm(gap)
    shares = None
    if distribution is Distribution.POWER_LAW:
        shares = 1 / np.arange(1, clusters + 1)
        shares /= shares.sum()

    def shifted(shift: NDArray[np.float32]) -> Callable[[int], NDArray[np.float32]]:
        def of_clusters(count: int) -> NDArray[np.float32]:
            chosen = draw.integers(0, clusters, count) if shares is None else draw.choice(clusters, count, p=shares)
            found: NDArray[np.float32] = centres[chosen] + shift
            found += np.float32(SPREAD) * _normal(draw, count, shape)
            return found

        return of_clusters

    return _blocks(synthetic.size, shifted(gap)), _blocks(synthetic.queries, shifted(-gap))


def _normal(draw: np.random.Generator, count: int, shape: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw `count` points whose directions have the lengths of the rows of `shape` (D, D): (count, D)."""
    return draw.standard_normal((count, len(shape)), dtype=np.float32) @ shape


def _blocks(count: int, points: Callable[[int], NDArray[np.float32]]) -> Blocks:
    for start in range(0, count, BLOCK):
        found = points(min(BLOCK, count - start))
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        yield found
