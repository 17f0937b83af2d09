"""Image arguments: accepted types, their limits, and pixels in arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire._media import Origin
from twinspire.errors import InputError

ImageItem: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8]
)
"""A path, an encoded file's bytes, a binary file object, a PIL image, or RGB(A) or grey pixels as uint8 (H, W),
(H, W, 1), (H, W, 3) or (H, W, 4)."""

_ARRAY_SHAPES = "uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The largest image that is decoded: pixels, by its header, and encoded bytes. Both are checked before decoding."""

    max_pixels: int = 64 * 10**6
    max_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise InputError(f"{self}: expected limits of at least 1")


def check_pixels(size: tuple[int, int], limits: ImageLimits, origin: Origin) -> None:
    """Raise ImageError for an empty image or one above the limit of pixels."""
    width, height = size
    if width < 1 or height < 1:
        raise origin.error(f"{width} x {height} pixels: expected at least 1 x 1")
    if width * height > limits.max_pixels:
        raise origin.error(
            f"{width * height / 1e6:.1f} megapixels ({width} x {height}), above the limit of "
            f"{limits.max_pixels / 1e6:g}. If you trust the file, raise the limit: --max-megapixels on the command "
            "line, ImageLimits(max_pixels=...) in Python"
        )


def image_of_array(array: NDArray[Any], limits: ImageLimits, origin: Origin) -> Image.Image:
    """Return uint8 pixels as a PIL image of mode L, RGB or RGBA. Raises ImageError for any other array."""
    found = f"an array of {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise origin.error(f"{found}: expected {_ARRAY_SHAPES}. Scale the values to 0..255 and convert them")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ". The channels come first: pass array.transpose(1, 2, 0)" if first else ""
        raise origin.error(f"{found}: expected {_ARRAY_SHAPES}{hint}")
    check_pixels((array.shape[1], array.shape[0]), limits, origin)
    pixels = array[:, :, 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(np.ascontiguousarray(pixels))
