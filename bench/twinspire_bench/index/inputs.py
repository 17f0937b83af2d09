"""What is searched: vectors, queries and what exact search finds for them; generated from a seed, or read from HDF5.

The generators (see `distributions`) are pinned: the same size, seed and version give the same vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError, MissingDependencyError
from twinspire.index.flat import nearest
from twinspire_bench.index.distributions import BLOCK, Distribution, generated

TRUTH = 100
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Vectors to generate: `size` items of `dim` numbers, and `queries`. `clusters` None: the distribution's number."""

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
        """What it is called in records."""
        kind = "drawn" if self.distribution is Distribution.CLUSTERS else self.distribution.value
        return f"{kind}-v{_VERSION}-{self.size}x{self.dim}-{self.clusters}-{self.queries}-{self.seed}"

    @property
    def description(self) -> dict[str, Any]:
        """What a folder remembers, to be told from other vectors."""
        found = asdict(self) | {"version": _VERSION}
        if self.distribution is Distribution.CLUSTERS:
            del found["distribution"]  # folders that were made before there were others stay valid
        return found


@dataclass(frozen=True)
class Material:
    """Files in one folder: `vectors.npy` (N, D) and `queries.npy` (Q, D), float32 of length 1; `truth.npy` (Q, 100)."""

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
    def truth(self) -> NDArray[np.float32]:
        """The scores that exact search finds, (Q, 100) or fewer, best first."""
        loaded: NDArray[np.float32] = np.load(self.folder / "truth.npy")
        return loaded


def drawn_material(drawn: Drawn, folder: Path) -> Material:
    """Generate into `folder`, or take what an earlier call left there. Raises InputError for a folder of others."""
    if not _is_there(folder, drawn.description):
        assert drawn.clusters is not None
        vectors, queries = generated(
            drawn.distribution,
            size=drawn.size,
            queries=drawn.queries,
            dim=drawn.dim,
            clusters=drawn.clusters,
            seed=drawn.seed,
        )
        _store(folder / "vectors.npy", vectors, (drawn.size, drawn.dim))
        _store(folder / "queries.npy", queries, (drawn.queries, drawn.dim))
        _finish(folder, drawn.description)
    return Material(folder, drawn.name)


def hdf5_material(file: Path, folder: Path, *, queries: int | None = None) -> Material:
    """Copy `train` and `test` of an ann-benchmarks file into `folder`, at length 1; the truth is searched anew.

    Raises InputError for a file that is none, and for one whose distance is not angular (of unit vectors the inner
    product gives the same order): https://github.com/erikbern/ann-benchmarks#data-sets
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingDependencyError("h5py", "peers", "reading HDF5") from error
    found = {"hdf5": file.name, "bytes": file.stat().st_size if file.is_file() else 0, "queries": queries}
    if not _is_there(folder, found):
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
    return Material(folder, file.stem)


def _unit(block: NDArray[Any]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(block, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise InputError("the file holds a vector of length 0, which has no direction")
    unit: NDArray[np.float32] = (block / lengths).astype(np.float32)
    return unit


def _is_there(folder: Path, description: dict[str, Any]) -> bool:
    path = folder / "material.json"
    if path.exists():
        if json.loads(path.read_text()) != description:
            raise InputError(f"{folder} holds other material: name another folder, or remove it")
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
    """Search exactly, then say that all is there."""
    material = Material(folder, "")
    scores, _ = nearest(material.vectors, material.queries, TRUTH)
    np.save(folder / "truth.npy", scores)
    (folder / "material.json").write_text(json.dumps(description))
