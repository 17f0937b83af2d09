"""transformers' CLIP, fp32, as its documentation has it: a contestant, and imported by its process alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel


class Reference:
    """A checkpoint with so many threads."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = CLIPModel.from_pretrained(checkpoint).eval()
        self._processor = CLIPImageProcessor.from_pretrained(checkpoint)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def images(self, pictures: Sequence[Any]) -> torch.Tensor:
        """Encode Pillow's images: (N, D) float32, L2-normalised."""
        with torch.inference_mode():
            inputs = self._processor(images=list(pictures), return_tensors="pt")
            return torch.nn.functional.normalize(self._model.get_image_features(**inputs))

    def texts(self, captions: Sequence[str], *, padded: bool) -> torch.Tensor:
        """Encode captions, padded to the context length or to the longest: (N, D) float32, L2-normalised."""
        with torch.inference_mode():
            padding = "max_length" if padded else "longest"
            inputs = self._tokenizer(list(captions), padding=padding, truncation=True, return_tensors="pt")
            return torch.nn.functional.normalize(self._model.get_text_features(**inputs))
