"""Files of added images: named by their content, written whole and never overwritten."""

from __future__ import annotations

import io
import os
from pathlib import Path

from twinspire._atomic import draft_path, sync
from twinspire.images import ImageLimits, load_thumbnail
from twinspire.images.formats import open_header
from twinspire.images.pillow_warnings import quiet_pillow

_CHECKED_SIZE = 64
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "HEIF": ".heic"}


def checked_suffix(data: bytes, limits: ImageLimits) -> str:
    """Return the suffix of an encoded image's format: ".jpg".

    Raises ImageError for anything but a whole image within the limits, which are checked before it is decoded.
    """
    load_thumbnail(data, _CHECKED_SIZE, limits=limits)
    with quiet_pillow(), open_header(io.BytesIO(data)) as image:
        name = image.format or ""
    return _SUFFIXES.get(name, f".{name.lower()}")


def write_new(path: Path, data: bytes) -> bool:
    """Write a file that appears whole or not at all, durably; return whether it is new. What is there stays.

    Raises OSError.
    """
    draft = draft_path(path, suffix=".partial")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return True
