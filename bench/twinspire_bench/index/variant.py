"""The interface of what is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire.index.flat import nearest

Vectors = NDArray[np.float32]


class Variant(ABC):
    """An index that can be built, stored, loaded and searched, with as many threads as it was made for."""

    settings: Sequence[tuple[int, int]] = ((1, 1),)
    """Effort and reach to be measured, dearer ones later within one reach."""
    package: str | None = None
    """The package of another library, whose version is recorded."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def start(self) -> None:
        """Load what is loaded at first use, and start threads, before memory is counted."""
        nearest(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 1)

    @abstractmethod
    def build(self, vectors: Vectors) -> None:
        """Build it over `vectors` (N, D)."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Store it."""

    @abstractmethod
    def load(self, path: Path, vectors: Vectors) -> None:
        """Load what `save` stored."""

    @abstractmethod
    def search(self, queries: Vectors, k: int, effort: int, reach: int) -> NDArray[np.int64]:
        """Return the rows found, (Q, k)."""
