"""Probes: a few inputs with reference embeddings, to check a runtime before it serves."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import BundleError, InputError

_UNIT_TOLERANCE = 1e-3
# What NumPy raises for files that are not .npz or hold other arrays.
_UNREADABLE = (InputError, OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False, kw_only=True)
class Probes:
    """Inputs of both towers and their embeddings by the fp32 reference.

    `image` is (N, H, W, 3) uint8 RGB, `image_embedding` (N, D) float32, L2-normalised, or (N, Q, D) where an image has
    Q vectors; `input_ids` are M 1-D
    int32 arrays with start and end token and no padding, `text_embedding` (M, D) float32, L2-normalised.

    Raises InputError where a shape, dtype or norm differs.
    """

    image: NDArray[np.uint8]
    input_ids: Sequence[NDArray[np.int32]]
    image_embedding: NDArray[np.float32]
    text_embedding: NDArray[np.float32]

    def __post_init__(self) -> None:
        image, ids = self.image, self.input_ids
        if image.dtype != np.uint8 or image.ndim != 4 or image.shape[3] != 3:
            raise InputError(f"image is {image.dtype} {image.shape}: expected uint8 (N, H, W, 3)")
        for position, row in enumerate(ids):
            if row.dtype != np.int32 or row.ndim != 1 or not row.size:
                raise InputError(f"input_ids[{position}] is {row.dtype} {row.shape}: expected int32 (L,)")
        _check_embedding("image_embedding", self.image_embedding, len(image), ranks=(2, 3))
        _check_embedding("text_embedding", self.text_embedding, len(ids))
        if self.image_embedding.shape[-1] != self.text_embedding.shape[1]:
            raise InputError(
                f"image_embedding has {self.image_embedding.shape[-1]} columns, text_embedding "
                f"{self.text_embedding.shape[1]}: expected as many"
            )

    def save(self, path: Path) -> None:
        """Write an .npz without pickled objects; the token ids are concatenated, with their lengths beside them."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                image=self.image,
                ids=np.concatenate(self.input_ids) if self.input_ids else np.zeros(0, np.int32),
                lengths=np.array([len(row) for row in self.input_ids], np.int32),
                image_embedding=self.image_embedding,
                text_embedding=self.text_embedding,
            )

    @classmethod
    def load(cls, path: Path) -> Probes:
        """Read a file of `save`. Raises BundleError that names the file."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                ids, lengths = stored["ids"], stored["lengths"]
                if lengths.ndim != 1 or lengths.sum() != ids.size:
                    raise InputError(f"lengths {lengths.tolist()} do not add up to {ids.size} ids")
                return cls(
                    image=stored["image"],
                    input_ids=np.split(ids, np.cumsum(lengths)[:-1]) if lengths.size else [],
                    image_embedding=stored["image_embedding"],
                    text_embedding=stored["text_embedding"],
                )
        except _UNREADABLE as error:
            raise BundleError(f"{path} holds no probes: {error}") from error


def _check_embedding(name: str, value: NDArray[np.float32], rows: int, *, ranks: tuple[int, ...] = (2,)) -> None:
    if value.dtype != np.float32 or value.ndim not in ranks or len(value) != rows:
        raise InputError(f"{name} is {value.dtype} {value.shape}: expected float32 ({rows}, D)")
    norms = np.linalg.norm(value, axis=-1)
    if not np.all(np.abs(norms - 1) <= _UNIT_TOLERANCE):  # also false for NaN
        raise InputError(f"{name} has norms from {norms.min():.4f} to {norms.max():.4f}: expected 1")
