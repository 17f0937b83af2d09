"""twinspire: a bundle's engines in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire import Client, LocalTowers


class TwinspireTowers:
    """A client of the engines at the `precision` of the options, with the provider that `auto` takes."""

    def __init__(self, task: dict[str, Any]) -> None:
        self._client = Client.local(task["bundle"], precision=task["options"]["precision"], threads=task["threads"])
        assert isinstance(self._client.towers, LocalTowers)
        self.description = f"{self._client.towers.runtime}; decodes in threads beside it"

    def encode_images(self, files: Sequence[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        return self._client.encode_images(files)

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        vector: NDArray[np.float32] = self._client.encode_texts([text])[0]
        return vector


def open_peer(task: dict[str, Any]) -> TwinspireTowers:
    """Load the engines."""
    return TwinspireTowers(task)
