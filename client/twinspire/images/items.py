"""Image arguments: accepted types, and access to their bytes or pixels within the limits."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinspire.errors import ImageError, InputError

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


@dataclass(frozen=True)
class Origin:
    """An image's position in the caller's list, and its name, for error messages."""

    position: int
    name: str

    def error(self, cause: str) -> ImageError:
        """Return the error for this image."""
        return ImageError(self.position, self.name, cause)


def origin_of(item: Any, position: int) -> Origin:  # noqa: ANN401 - whatever the caller gave
    """Return an item's position and name: its path or file name where it has one, else its type."""
    if isinstance(item, (str, os.PathLike)):
        printable = os.fsdecode(item).encode(errors="backslashreplace").decode()  # names need not be UTF-8
        return Origin(position, printable)
    name = getattr(item, "name", None) or getattr(item, "filename", None)
    return Origin(position, name if isinstance(name, str) else type(item).__name__)


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


def read_path(path: Path, limits: ImageLimits, origin: Origin) -> bytes:
    """Read a regular file of at most `max_bytes`. Raises ImageError; never blocks on a pipe or device."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise origin.error("a folder: expected an image file")
        if not stat.S_ISREG(status.st_mode):
            raise origin.error("not a regular file: expected an image file")
        _check_bytes(status.st_size, limits, origin)
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise origin.error("no such file") from None
    except OSError as error:
        raise origin.error(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise origin.error(f"not a usable path: {error}") from error
    return _whole(data, limits, origin)


def read_file_object(file: Any, limits: ImageLimits, origin: Origin) -> bytes:  # noqa: ANN401 - duck-typed
    """Read a binary file object from its current position to its end, at most `max_bytes`. Raises ImageError."""
    parts: list[bytes] = []
    size_bytes = 0
    while size_bytes <= limits.max_bytes:
        try:
            part = file.read(limits.max_bytes + 1 - size_bytes)
        except (OSError, ValueError) as error:
            raise origin.error(f"cannot be read: {error}") from error
        if not isinstance(part, bytes):
            raise origin.error(f"returns {type(part).__name__} when read: expected bytes, open it in mode 'rb'")
        if not part:
            break
        parts.append(part)
        size_bytes += len(part)
    return _whole(b"".join(parts), limits, origin)


def take_bytes(data: bytes | bytearray | memoryview, limits: ImageLimits, origin: Origin) -> bytes:
    """Return an encoded image that is in memory. Raises ImageError where it is empty or too large."""
    _check_bytes(memoryview(data).nbytes, limits, origin)
    return _whole(bytes(data), limits, origin)


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


def size_refusal(size_bytes: int, limits: ImageLimits) -> str | None:
    """Return why an encoded image of this size is refused, None where it is within the limit."""
    if size_bytes <= limits.max_bytes:
        return None
    return (
        f"{size_bytes / 2**20:.1f} MiB, above the limit of {limits.max_bytes / 2**20:g}. "
        "If you trust the file, raise the limit with ImageLimits(max_bytes=...)"
    )


def _check_bytes(size_bytes: int, limits: ImageLimits, origin: Origin) -> None:
    if (refusal := size_refusal(size_bytes, limits)) is not None:
        raise origin.error(refusal)


def _whole(data: bytes, limits: ImageLimits, origin: Origin) -> bytes:
    _check_bytes(len(data), limits, origin)
    if not data:
        raise origin.error("empty: expected an encoded image")
    return data
