"""Upright and RGB, from every mode that Pillow decodes to."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageCms

from twinspire.images.items import Origin

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its EXIF orientation says. Damaged EXIF data says nothing.

    The image must be loaded first: reading a PNG's EXIF data loads it, and swallowing an error there would
    let a truncated file through.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the parser raises whatever it stumbles over; the pixels are whole
        return image
    turn = _TURN.get(orientation) if isinstance(orientation, int) else None
    return image.transpose(turn) if turn is not None else image


def to_rgb(image: Image.Image, origin: Origin) -> Image.Image:
    """Convert a loaded image of any mode by value, transparency on white. Raises ImageError where it cannot be."""
    if image.mode.startswith("I"):
        return _from_16_bit(image, origin)
    if image.mode == "F":
        raise origin.error("has floating-point pixels, whose range is not known: convert it to 8 bits first")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # only in-place conversion gives None
        return converted
    if image.has_transparency_data:
        if image.mode == "La":  # has no way to RGBA but this
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
        raise origin.error(f"has integer pixels from {low} to {high}: expected 0 to 65535")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
