"""Probes: a few inputs with reference embeddings, to check a runtime before it serves."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle.settings import Tower
from twinspire.contract import INPUT_NAMES
from twinspire.errors import BundleError, InputError

_UNIT_TOLERANCE = 1e-3
# What NumPy raises for files that are not .npz or hold other arrays.
_UNREADABLE = (InputError, OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


class TowerProbes(NamedTuple):
    """A tower's inputs and their embeddings (N, D) float32, or (N, Q, D) of images with Q vectors, L2-normalised.

    Inputs of the image tower are (N, H, W, 3) uint8 RGB, of the text tower N 1-D int32 arrays with start and end token
    and no padding, of the audio tower (N, F, M) float32 log-mel spectrograms.
    """

    inputs: Sequence[NDArray[Any]] | NDArray[Any]
    embedding: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Probes:
    """Inputs of the towers and their embeddings by the fp32 reference, one or more for each tower that a model has.

    Raises InputError where a shape, dtype or norm differs.
    """

    towers: Mapping[Tower, TowerProbes]

    def __post_init__(self) -> None:
        for tower, (inputs, embedding) in self.towers.items():
            if tower is Tower.TEXT:
                for position, row in enumerate(inputs):
                    if row.dtype != np.int32 or row.ndim != 1 or not row.size:
                        raise InputError(f"input_ids[{position}] is {row.dtype} {row.shape}: expected int32 (L,)")
            elif tower is Tower.AUDIO:
                _check_spectrograms(inputs)
            else:
                _check_pixels(inputs)
            _check_embedding(
                f"{tower}_embedding", embedding, len(inputs), ranks=(2, 3) if tower is Tower.IMAGE else (2,)
            )
        columns = {f"{tower}_embedding": embedding.shape[-1] for tower, (_, embedding) in self.towers.items()}
        if len(set(columns.values())) > 1:
            found = ", ".join(f"{name} {count}" for name, count in columns.items())
            raise InputError(f"the embeddings have {found} columns: expected as many")

    def save(self, path: Path) -> None:
        """Write an .npz without pickled objects; the token ids are concatenated, with their lengths beside them."""
        arrays: dict[str, NDArray[Any]] = {}
        for tower, (inputs, embedding) in self.towers.items():
            if tower is Tower.TEXT:
                arrays["ids"] = np.concatenate([np.zeros(0, np.int32), *inputs])
                arrays["lengths"] = np.array([len(row) for row in inputs], np.int32)
            else:
                arrays[INPUT_NAMES[tower]] = np.asarray(inputs)
            arrays[f"{tower}_embedding"] = embedding
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Probes:
        """Read a file of `save`. Raises BundleError that names the file."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                present = [tower for tower in Tower if f"{tower}_embedding" in stored]
                return cls(
                    {
                        tower: TowerProbes(_stored_inputs(stored, tower), stored[f"{tower}_embedding"])
                        for tower in present
                    }
                )
        except _UNREADABLE as error:
            raise BundleError(f"{path} holds no probes: {error}") from error


def _stored_inputs(stored: Mapping[str, NDArray[Any]], tower: Tower) -> Sequence[NDArray[Any]] | NDArray[Any]:
    if tower is not Tower.TEXT:
        return stored[INPUT_NAMES[tower]]
    ids, lengths = stored["ids"], stored["lengths"]
    if lengths.ndim != 1 or lengths.sum() != ids.size:
        raise InputError(f"lengths {lengths.tolist()} do not add up to {ids.size} ids")
    return np.split(ids, np.cumsum(lengths)[:-1]) if lengths.size else []


def _check_pixels(image: Sequence[NDArray[Any]] | NDArray[Any]) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image is {found}: expected uint8 (N, H, W, 3)")


def _check_spectrograms(audio: Sequence[NDArray[Any]] | NDArray[Any]) -> None:
    if (
        not isinstance(audio, np.ndarray)
        or audio.dtype != np.float32
        or audio.ndim != 3
        or not np.isfinite(audio).all()
    ):
        found = f"{audio.dtype} {audio.shape}" if isinstance(audio, np.ndarray) else type(audio).__name__
        raise InputError(f"audio is {found}: expected finite float32 (N, F, M)")


def _check_embedding(name: str, value: NDArray[np.float32], rows: int, *, ranks: tuple[int, ...] = (2,)) -> None:
    if value.dtype != np.float32 or value.ndim not in ranks or len(value) != rows:
        raise InputError(f"{name} is {value.dtype} {value.shape}: expected float32 ({rows}, D)")
    norms = np.linalg.norm(value, axis=-1)
    if not np.all(np.abs(norms - 1) <= _UNIT_TOLERANCE):  # also false for NaN
        raise InputError(f"{name} has norms from {norms.min():.4f} to {norms.max():.4f}: expected 1")
