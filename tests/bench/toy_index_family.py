"""A toy family of indexes, brute force in NumPy, as another package would bring it; importing it registers it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann import Cost, IndexFamily, IndexSpec, Option, SearchParameters, Sink, register
from twinspire.index.flat import ScoredRows
from twinspire.index.vectors import Vectors


@register
class Toy(IndexFamily):
    """All vectors in an array; the option `parts` is there to be parsed."""

    name = "toy"
    options = {"parts": Option(1, maximum=8)}  # noqa: RUF012 - shared by all, never changed
    is_tunable = False
    can_add = True
    _vectors: NDArray[np.float32]

    @classmethod
    def cost(cls, spec: IndexSpec, count: int, dim: int) -> Cost:
        """Predict the vectors."""
        return Cost(4 * count * dim)

    def build(self, vectors: Vectors, *, seed: int) -> None:
        """Copy the vectors."""
        self._vectors = np.array(vectors, np.float32)

    def add(self, vectors: Vectors) -> None:
        """Append to the copy."""
        self._vectors = np.concatenate([self._vectors, np.asarray(vectors, np.float32)])

    def search(self, queries: NDArray[np.float32], parameters: SearchParameters) -> ScoredRows:
        """Sort all scores."""
        scores = queries @ self._vectors.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, : parameters.candidates]
        return np.take_along_axis(scores, rows, axis=1), rows

    def save(self, file: Sink) -> None:
        """Write an .npy file."""
        header = np.array(self._vectors.shape, np.int64).tobytes()
        file.write(header + self._vectors.tobytes())

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        data = path.read_bytes()
        self._vectors = np.frombuffer(data[16:], np.float32).reshape(np.frombuffer(data[:16], np.int64))

    def __len__(self) -> int:
        return len(self._vectors)
