"""Adapter of toy stores, exact in NumPy. `options.behaviour` says what one does wrong."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ToyStore:
    """All vectors in memory."""

    durability = "keeps items in memory"

    def __init__(self, task: dict[str, Any]) -> None:
        self.behaviour, self.dim = task["options"]["behaviour"], task["dim"]
        self.can_filter = self.behaviour != "no filter"
        self.filtering = "by a mask" if self.can_filter else "none: a toy"
        self.folders: list[str] = []

    def create(self, folder: str) -> None:
        """Forget all items; the folder must be new and empty."""
        if self.behaviour == "hang":
            child = subprocess.Popen(["sleep", "600"])
            Path(os.environ["TOY_CHILD"]).write_text(str(child.pid))
            time.sleep(600)
        assert list(Path(folder).iterdir()) == []
        assert folder not in self.folders
        self.folders.append(folder)
        self.vectors, self.marks = np.empty((0, self.dim), np.float32), np.empty(0, np.int64)

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Append items."""
        assert ids == list(range(len(self.vectors), len(self.vectors) + len(vectors)))
        self.vectors = np.concatenate([self.vectors, vectors])
        self.marks = np.concatenate([self.marks, marks])

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search, wrongly where the behaviour says so."""
        scores = self.vectors @ query
        if mark is not None and self.behaviour != "ignores filters":
            scores[self.marks != mark] = -np.inf
        order = np.argsort(-scores)
        if self.behaviour == "half of the hits" and k > 1:
            order[1:k:2] = -1
        return [int(row) for row in order[:k] if row < 0 or np.isfinite(scores[row])]

    def close(self) -> None:
        """Forget all items."""
        del self.vectors


def open_peer(task: dict[str, Any]) -> ToyStore:
    """Return the store."""
    return ToyStore(task)
