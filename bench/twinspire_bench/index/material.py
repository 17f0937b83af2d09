"""What is searched: vectors, queries and what exact search finds for them; drawn from a seed, or read from HDF5.

The generator is pinned: the same size, seed and version of this module give the same vectors. Points lie in clusters
whose directions have the variance 1, 1/2, 1/3, ..., as embeddings have few directions that matter; then all items are
shifted one way and all queries the other, as two towers shift theirs (Liang et al., Mind the Gap, NeurIPS 2022), and
brought to length 1. Items and queries of one cluster have a cosine of 0.2 to 0.4, as pictures and captions in CLIP.
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

CLUSTERS = 1_000
SPREAD = 0.7
GAP = 1.4
TRUTH = 100
_BLOCK = 50_000
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Vectors to draw: `size` of `dim` numbers in `clusters` clusters, and `queries` of them shifted."""

    size: int
    dim: int
    queries: int = 1_000
    clusters: int = CLUSTERS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "dim", "queries", "clusters"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: expected a whole number from 1 up")

    @property
    def name(self) -> str:
        """What it is called in records."""
        return f"drawn-v{_VERSION}-{self.size}x{self.dim}-{self.clusters}-{self.queries}-{self.seed}"


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
    """Draw into `folder`, or take what an earlier call drew there. Raises InputError for a folder of other material."""
    if not _is_there(folder, asdict(drawn) | {"version": _VERSION}):
        draw = np.random.default_rng(drawn.seed)
        basis = np.linalg.qr(draw.standard_normal((drawn.dim, drawn.dim)))[0]
        scales = np.arange(1, drawn.dim + 1) ** -0.5
        scales /= np.linalg.norm(scales)
        shape = (scales[:, None] * basis.T).astype(np.float32)  # (D, D): the directions, each as long as it matters
        centres = draw.standard_normal((drawn.clusters, drawn.dim), dtype=np.float32) @ shape
        gap = draw.standard_normal(drawn.dim, dtype=np.float32)
        gap *= np.float32(GAP / 2) / np.linalg.norm(gap)

        def blocks(count: int, shift: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
            for start in range(0, count, _BLOCK):
                some = min(_BLOCK, count - start)
                points = centres[draw.integers(0, drawn.clusters, some)] + shift
                points += np.float32(SPREAD) * (draw.standard_normal((some, drawn.dim), dtype=np.float32) @ shape)
                points /= np.linalg.norm(points, axis=1, keepdims=True)
                yield points

        _store(folder / "vectors.npy", blocks(drawn.size, gap), (drawn.size, drawn.dim))
        _store(folder / "queries.npy", blocks(drawn.queries, -gap), (drawn.queries, drawn.dim))
        _finish(folder, asdict(drawn) | {"version": _VERSION})
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
                    blocks = (_unit(opened[source][at : min(at + _BLOCK, rows)]) for at in range(0, rows, _BLOCK))
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
