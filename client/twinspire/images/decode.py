"""Images of any form to upright RGB. Formats are an allow-list: some of Pillow's readers start other programs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile

from twinspire._media import Origin, begin_encoded, origin_of, read_path, take_bytes
from twinspire.errors import ImageError, ItemError, MissingDependencyError
from twinspire.images.formats import FORMATS, PREFIX_BYTES, is_heif, open_heif
from twinspire.images.items import ImageItem, ImageLimits, check_pixels, image_of_array
from twinspire.images.pillow_warnings import quiet_pillow

_EXPECTED = f"expected {', '.join(FORMATS)} or, with the extra 'heif', HEIC"
DEFAULT_LIMITS = ImageLimits()
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_Factory: TypeAlias = Callable[[IO[bytes], str | bytes], ImageFile.ImageFile]

Pending = Image.Image | bytes | Path
"""An image that any thread may finish loading: pixels in memory, an encoded file, or the path of one."""


def load_image(item: ImageItem, *, position: int = 0, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Load an image as upright RGB.

    The EXIF orientation is applied, transparency composed on white, any colour mode converted by value (16
    bit by value / 257, rounded; colour profiles are not applied), and of an animation the first frame taken.
    A PIL image that was given is not changed; where it was opened but not loaded yet, it is loaded.

    Raises ImageError, with `position` and the cause, for anything but a whole image within the limits.
    """
    origin = origin_of(item, position)
    return finish(begin(item, limits, origin), limits, origin)


def encoded_size(data: bytes) -> tuple[int, int]:
    """Return the width and height in pixels of an encoded image, as it is stored, from its header.

    Raises ImageError for what is no image.
    """
    with quiet_pillow():
        return _open(data, origin_of(data, 0)).size


def load_thumbnail(data: bytes, size: int, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Load an encoded image as `load_image` does, reduced to at most `size` pixels a side and never enlarged.

    It has no metadata and no colour profile. A JPEG is decoded at a half, a quarter or an eighth of its size where that
    is at least twice what is asked for. Raises ImageError as `load_image` does.
    """
    origin = origin_of(data, 0)
    with quiet_pillow():
        image = _open(take_bytes(data, limits, origin), origin)
        check_pixels(image.size, limits, origin)
        factor = 2 * size / max(image.size)
        image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
        load(image, origin)
    reduced = finish(image, limits, origin).copy()
    reduced.thumbnail((size, size))
    return Image.frombytes(reduced.mode, reduced.size, reduced.tobytes())


def begin(item: ImageItem, limits: ImageLimits, origin: Origin) -> Pending:
    """Do the part of loading that must run in the caller's thread: read file objects, load PIL images.

    Neither is safe to use from two threads, and one may be in a list twice. Raises ImageError.
    """
    value: Any = item
    if isinstance(value, Image.Image):
        check_pixels(value.size, limits, origin)
        load(value, origin)
        return value
    if isinstance(value, np.ndarray):
        return image_of_array(value, limits, origin)
    if (encoded := begin_encoded(value, limits, origin)) is not None:
        return encoded
    raise origin.error(
        f"type {type(value).__name__}: expected a path, bytes, a binary file, a PIL image or a uint8 array"
    )


def finish(pending: Pending, limits: ImageLimits, origin: Origin) -> Image.Image:
    """Finish loading, in any thread: read and decode, turn upright, convert to RGB. Raises ImageError."""
    image = opened(pending, limits, origin)
    load(image, origin)
    return to_rgb(image, origin, turn=turn_of(image))


def opened(pending: Pending, limits: ImageLimits, origin: Origin) -> Image.Image:
    """Return pixels in memory as they are, or read an encoded image up to its header. Raises ImageError."""
    if isinstance(pending, Path):
        pending = read_path(pending, limits, origin)
    if isinstance(pending, Image.Image):
        return pending
    with quiet_pillow():
        image = _open(pending, origin)
        check_pixels(image.size, limits, origin)
        return image


def _open(data: bytes, origin: Origin) -> ImageFile.ImageFile:
    """Read the header.

    This is the core of `Image.open` without its check for decompression bombs, whose limit is global to the
    process, and which only warns up to twice that.
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
        except Exception as error:  # readers raise any exception on damaged files
            raise origin.error(f"damaged {name}: {error}") from error
    raise origin.error(f"not an image of a known format: {_EXPECTED}")


def _readers(data: bytes, origin: Origin) -> Iterator[tuple[str, _Factory]]:
    """Yield the formats that a file's first bytes match, and the readers of their headers."""
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


def load(image: Image.Image, origin: Origin) -> None:
    """Decode an image that was opened; one in memory stays as it is. Raises ImageError."""
    try:
        with quiet_pillow():
            image.load()
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise _bomb(error, origin) from error
    except Exception as error:  # decoders raise any exception on damaged files
        name = getattr(image, "format", None) or "image"
        raise origin.error(f"truncated or damaged {name}: {error}") from error


def _bomb(error: Image.DecompressionBombError, origin: Origin) -> ItemError:
    """Return the error where a reader applies Pillow's own limit, whatever ours is."""
    return origin.error(f"too large according to its header, not decoded: {error}")


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return what turns an image upright by its EXIF orientation, None for nothing. Damaged EXIF data is ignored.

    Images other than JPEG must be loaded first: reading a PNG's EXIF data loads it, and ignoring an error there would
    accept a truncated file.
    """
    try:
        with quiet_pillow():
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the parser raises any exception; the pixels are whole
        return None
    return _TURN.get(orientation) if isinstance(orientation, int) else None


def to_rgb(image: Image.Image, origin: Origin, *, turn: Image.Transpose | None = None) -> Image.Image:
    """Turn a loaded image and convert it, transparency on white. Raises ImageError where that fails."""
    try:
        with quiet_pillow():
            return _to_rgb(image if turn is None else image.transpose(turn), origin)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise origin.error(f"mode {image.mode} cannot be converted to RGB: {error}") from error


def _to_rgb(image: Image.Image, origin: Origin) -> Image.Image:
    """Convert an image of any mode by value."""
    if image.mode.startswith("I"):
        return _from_16_bit(image, origin)
    if image.mode == "F":
        raise origin.error("floating-point pixels, whose range is unknown: convert the image to 8 bits first")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # only in-place conversion gives None
        return converted
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow cannot convert it to RGBA directly
            image = image.convert("LA")
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image, origin: Origin) -> Image.Image:
    """Map 0..65535 to 0..255 by value / 257, rounded; Pillow's own conversion of mode I clips at 255."""
    values = np.asarray(image).astype(np.int64)  # (H, W); big-endian modes come out right
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise origin.error(f"integer pixels from {low} to {high}: expected 0 to 65535")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
