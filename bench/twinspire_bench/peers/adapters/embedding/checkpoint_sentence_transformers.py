"""sentence-transformers on the checkpoint, fp32, with its module for CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import CLIPModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CheckpointSentenceTransformers:
    """`encode` of images and of a text, with the default batch size of 32."""

    description = "checkpoint in float32, its module CLIPModel; decodes in between"

    def __init__(self, task: dict[str, Any]) -> None:
        torch.set_num_threads(task["threads"])
        self._model = SentenceTransformer(modules=[CLIPModel(task["checkpoint"])], device="cpu")

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        images = [Image.open(file).convert("RGB") for file in files]
        return np.asarray(self._model.encode(images, show_progress_bar=False))

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        return np.asarray(self._model.encode(text, show_progress_bar=False))


def open_peer(task: dict[str, Any]) -> CheckpointSentenceTransformers:
    """Load the checkpoint."""
    return CheckpointSentenceTransformers(task)
