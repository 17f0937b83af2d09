"""A bundle's preprocessing, written again with Pillow, NumPy and tokenizers for peers that run its ONNX files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 32


def fitted(file: str, settings: dict[str, Any]) -> NDArray[np.uint8]:
    """Read an image file upright and fit it to the image tower: (H, W, 3) uint8."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    filter_ = Image.Resampling[settings["interpolation"].upper()]
    height, width, side = (settings[name] for name in ("height", "width", "shortest_side"))
    match settings["resize"]:
        case "stretch":
            return np.asarray(image.resize((width, height), filter_))
        case "pad":
            ratio = max(image.width / width, image.height / height)
            resized = image.resize((max(1, round(image.width / ratio)), max(1, round(image.height / ratio))), filter_)
            canvas = Image.new("RGB", (width, height))
            canvas.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
            return np.asarray(canvas)
        case "stretch_and_crop":
            resized = image.resize((side, side), filter_)
        case _:
            longer = int(side * max(image.size) / min(image.size))
            resized = image.resize((side, longer) if image.width <= image.height else (longer, side), filter_)
    rounded = round if settings["crop_rounding"] == "round" else math.floor
    left, top = (rounded((length - crop) / 2) for length, crop in zip(resized.size, (width, height), strict=True))
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def image_batches(files: list[str], settings: dict[str, Any], threads: int) -> Iterator[NDArray[np.uint8]]:
    """Yield batches (n, H, W, 3) uint8, decoded by `threads` threads while the caller encodes those before."""
    with ThreadPoolExecutor(threads) as pool:
        arrays = pool.map(partial(fitted, settings=settings), files)
        for start in range(0, len(files), BATCH):
            yield np.stack([next(arrays) for _ in files[start : start + BATCH]])


class TokenIds:
    """A bundle's tokenizer.json."""

    def __init__(self, task: dict[str, Any]) -> None:
        import tokenizers

        settings = task["text"]
        self._tokenizer = tokenizers.Tokenizer.from_file(task["tokenizer"])
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings["context_length"])
        if settings["padding"] == "max_length":
            self._tokenizer.enable_padding(length=settings["context_length"], pad_id=settings["pad_id"])

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text, with start and end: (1, L) int32."""
        return np.array([self._tokenizer.encode(text).ids], np.int32)
