"""The formats that are decoded, recognised by their first bytes. HEIF needs the package pillow-heif."""

from __future__ import annotations

import importlib
import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageFile

from twinspire.errors import MissingDependencyError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")  # JPEG reads MPO too
HEIF_SUFFIXES = frozenset([".heic", ".heif", ".hif"])
PREFIX_BYTES = 64
"""How many of a file's first bytes `is_heif` needs."""

# Brands of ISO/IEC 23008-12, annex B.4: images and sequences coded in HEVC, of one layer and of several.
_HEVC_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"])
_HEIF_BRANDS = frozenset([b"mif1", b"msf1"])  # the container alone, whatever it holds
_AVIF_BRANDS = frozenset([b"avif", b"avis"])


@cache
def has_heif() -> bool:
    """Whether the package that reads HEIF is installed."""
    return find_spec("pillow_heif") is not None


def is_heif(prefix: bytes) -> bool:
    """Whether a file with these first bytes is HEIF, and not AVIF, which has the same container."""
    if prefix[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(prefix[:4], "big"), len(prefix))
    brands = {prefix[8:12], *(prefix[start : start + 4] for start in range(16, end, 4))}
    if brands & _HEVC_BRANDS:
        return True
    return bool(brands & _HEIF_BRANDS) and not brands & _AVIF_BRANDS


def open_heif(source: IO[bytes] | Path, filename: str | bytes = "") -> ImageFile.ImageFile:
    """Read the header of a HEIF image, without registering its reader in Pillow.

    Raises `MissingDependencyError` without pillow-heif, and any exception of its reader.
    """
    if not has_heif():
        raise MissingDependencyError("pillow-heif", "heif", "Reading HEIC and HEIF images")
    reader: Any = importlib.import_module("pillow_heif").HeifImageFile
    image: ImageFile.ImageFile = reader(source, filename)
    return image


def open_header(source: io.BytesIO | Path) -> Image.Image:
    """Read the header of an image of any known format. Raises any exception of its reader."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            prefix = file.read(PREFIX_BYTES)
    else:
        prefix = source.getvalue()[:PREFIX_BYTES]
    return open_heif(source) if is_heif(prefix) else Image.open(source, formats=FORMATS)
