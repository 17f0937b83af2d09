"""Infinity (infinity-emb) on the checkpoint with its PyTorch engine, called in the process instead of over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from infinity_emb import EngineArgs, SyncEngineArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAME = "peer"


class CheckpointInfinity:
    """All images in one request, which it batches by 32; a text in one of its own."""

    description = "checkpoint in float32, PyTorch engine, without HTTP"

    def __init__(self, task: dict[str, Any]) -> None:
        torch.set_num_threads(task["threads"])
        arguments = EngineArgs(
            model_name_or_path=task["checkpoint"],
            served_model_name=_NAME,
            engine="torch",
            device="cpu",
            dtype="float32",
            bettertransformer=False,  # needs a part of optimum that newer versions have no more
            model_warmup=False,
            batch_size=32,
            trust_remote_code=False,
        )
        self._engines = SyncEngineArray.from_args([arguments])

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        images: list[str | bytes] = [Path(file).read_bytes() for file in files]
        vectors, _ = self._engines.image_embed(model=_NAME, images=images).result()
        return np.stack(vectors)

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        vectors, _ = self._engines.embed(model=_NAME, sentences=[text]).result()
        return np.asarray(vectors[0])


def open_peer(task: dict[str, Any]) -> CheckpointInfinity:
    """Load the checkpoint and start Infinity's threads."""
    return CheckpointInfinity(task)
