"""Encoded image to upright RGB. Formats are an allow-list: some of Pillow's readers start other programs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image, ImageFile

from twinspire.errors import ImageError, MissingDependencyError
from twinspire.images.colour import to_rgb, upright
from twinspire.images.formats import FORMATS, PREFIX_BYTES, is_heif, open_heif
from twinspire.images.items import (
    ImageItem,
    ImageLimits,
    Origin,
    check_pixels,
    image_of_array,
    origin_of,
    read_file_object,
    read_path,
    take_bytes,
)
from twinspire.images.pillow_warnings import quiet_pillow

_EXPECTED = f"expected {', '.join(FORMATS)} or, with the extra 'heif', HEIC"
DEFAULT_LIMITS = ImageLimits()
_Factory: TypeAlias = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]

Pending = Image.Image | bytes | Path
"""An image that any thread may finish: pixels in memory, an encoded file, or the path of one."""


def load_image(item: ImageItem, *, position: int = 0, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Load an image as upright RGB.

    The EXIF orientation is applied, transparency composed on white, any colour mode converted by value (16
    bit by value / 257, rounded; colour profiles are not applied), and of an animation the first frame taken.
    A PIL image that was given is not changed; where it was opened but not loaded yet, it is loaded.

    Raises ImageError, with `position` and the cause, for anything that is no whole image within the limits.
    """
    origin = origin_of(item, position)
    return finish(begin(item, limits, origin), limits, origin)


def begin(item: ImageItem, limits: ImageLimits, origin: Origin) -> Pending:
    """Do what must be done in the caller's thread: read file objects and load PIL images.

    Neither may be touched by two threads at once, and one may stand in a list twice. Raises ImageError.
    """
    value: Any = item
    if isinstance(value, (str, os.PathLike)):
        if not os.fspath(value):
            raise origin.error("is an empty path")
        return Path(os.fsdecode(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return take_bytes(value, limits, origin)
    if isinstance(value, Image.Image):
        check_pixels(value.size, limits, origin)
        _load(value, origin)
        return value
    if isinstance(value, np.ndarray):
        return image_of_array(value, limits, origin)
    if hasattr(value, "read"):
        return read_file_object(value, limits, origin)
    raise origin.error(
        f"is of type {type(value).__name__}: expected a path, bytes, a binary file, a PIL image or a uint8 array"
    )


def finish(pending: Pending, limits: ImageLimits, origin: Origin) -> Image.Image:
    """Do the rest, in any thread: read and decode, turn upright, convert to RGB. Raises ImageError."""
    if isinstance(pending, Path):
        pending = read_path(pending, limits, origin)
    image = pending if isinstance(pending, Image.Image) else _decode(pending, limits, origin)
    try:
        with quiet_pillow():
            return to_rgb(upright(image), origin)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise origin.error(f"mode {image.mode} cannot be converted to RGB: {error}") from error


def _decode(data: bytes, limits: ImageLimits, origin: Origin) -> Image.Image:
    with quiet_pillow():
        image = _open(data, origin)
        check_pixels(image.size, limits, origin)
        _load(image, origin)
        return image


def _open(data: bytes, origin: Origin) -> ImageFile.ImageFile:
    """Read the header.

    This is the heart of `Image.open` without its check for decompression bombs, whose limit is one for the
    process and which warns instead of refusing up to twice that.
    """
    for name, factory in _readers(data, origin):
        try:
            return factory(io.BytesIO(data), "")
        except MemoryError:
            raise
        except MissingDependencyError as error:
            raise origin.error(str(error)) from error
        except Image.DecompressionBombError as error:
            raise _bomb(error, origin) from error
        except Exception as error:  # readers raise whatever their parsing stumbles over
            raise origin.error(f"is a damaged {name}: {error}") from error
    raise origin.error(f"is no picture that can be read: {_EXPECTED}")


def _readers(data: bytes, origin: Origin) -> Iterator[tuple[str, _Factory]]:
    """Give the formats that a file may be of by its first bytes, and what reads their headers."""
    if is_heif(data[:PREFIX_BYTES]):
        yield "HEIF", open_heif
    prefix = data[:16]
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[name]
        accepted = accept(prefix) if accept else False
        if isinstance(accepted, str):
            raise origin.error(f"{name} is not supported by this build of Pillow: {accepted}")
        if accepted:
            yield name, factory


def _load(image: Image.Image, origin: Origin) -> None:
    try:
        with quiet_pillow():
            image.load()
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise _bomb(error, origin) from error
    except Exception as error:  # decoders raise whatever the damage leads to
        kind = getattr(image, "format", None) or "picture"
        raise origin.error(f"is a truncated or damaged {kind}: {error}") from error


def _bomb(error: Image.DecompressionBombError, origin: Origin) -> ImageError:
    """Some readers keep Pillow's own limit, whatever ours is."""
    return origin.error(f"was not decoded, it is too large by its header: {error}")
