"""transformers on the checkpoint, in fp32 or bf16, in batches of 32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH = 32


class CheckpointTransformers:
    """A model with `get_image_features` and `get_text_features`: CLIP, SigLIP and their relatives."""

    def __init__(self, task: dict[str, Any]) -> None:
        torch.set_num_threads(task["threads"])
        checkpoint, self._dtype = task["checkpoint"], getattr(torch, task["options"]["dtype"])
        self.description = f"checkpoint in {task['options']['dtype']}, slow image processor; decodes in between"
        self._model = AutoModel.from_pretrained(checkpoint, dtype=self._dtype).eval()
        # The fast processors need torchvision.
        self._processor = AutoImageProcessor.from_pretrained(checkpoint, use_fast=False)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        # SigLIP was trained on texts of full length without a mask; not every tokenizer of its says so.
        self._full_length = task["text"]["padding"] == "max_length"
        self._length = task["text"]["context_length"]

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        parts = []
        for start in range(0, len(files), _BATCH):
            images = [Image.open(file).convert("RGB") for file in files[start : start + _BATCH]]
            pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._dtype)
            with torch.inference_mode():
                parts.append(self._model.get_image_features(pixel_values=pixels).float().numpy())
        return np.concatenate(parts)

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        padding = "max_length" if self._full_length else "longest"
        inputs = self._tokenizer([text], padding=padding, max_length=self._length, truncation=True, return_tensors="pt")
        if self._full_length:
            inputs.pop("attention_mask", None)
        with torch.inference_mode():
            vector: NDArray[np.float32] = self._model.get_text_features(**inputs)[0].float().numpy()
        return vector


def open_peer(task: dict[str, Any]) -> CheckpointTransformers:
    """Load the checkpoint."""
    return CheckpointTransformers(task)
