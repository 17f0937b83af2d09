"""Adapter of toy embedding peers: a bundle's own engines, and every way to fail. `options.behaviour` says which."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire import Client


class ToyEmbeddingPeer:
    """Vectors of the bundle, changed or withheld as the behaviour says."""

    description = "a toy"

    def __init__(self, task: dict[str, Any]) -> None:
        self.behaviour = task["options"]["behaviour"]
        self.client = Client.local(task["bundle"], precision="fp32", provider="cpu")
        self.rounds = 0
        if self.behaviour == "not opened":
            raise ValueError("no such\nmodel")

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode, or fail."""
        self.rounds += 1
        match self.behaviour:
            case "crash":
                print("out of\nmemory", file=sys.stderr, flush=True)
                os._exit(7)
            case "crash in the second round" if self.rounds == 2:
                os._exit(8)
            case "full disk":
                with Path("/dev/full").open("w") as file:
                    file.write("x" * 100_000)
            case "junk":
                print("progress 10%\n{not JSON}")
                os.write(1, b"more junk\n")
        vectors = self.client.encode_images(files)
        match self.behaviour:
            case "other images":
                return np.roll(vectors, 1, axis=0)
            case "not finite":
                return np.full_like(vectors, np.nan)
            case "other length":
                return vectors[:, :-1]
        return vectors

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode the text."""
        vector: NDArray[np.float32] = self.client.encode_texts([text])[0]
        return vector


def open_peer(task: dict[str, Any]) -> ToyEmbeddingPeer:
    """Return the peer."""
    return ToyEmbeddingPeer(task)
