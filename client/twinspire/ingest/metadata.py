"""What an image's file says of itself: name, size, and what the camera wrote into it (EXIF)."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

from twinspire.images.formats import open_header
from twinspire.images.pillow_warnings import quiet_pillow
from twinspire.ingest.files import ReadFile

OVERRIDDEN = "overridden"
"""The key of metadata that lists those of `FILE_KEYS` whose values are not the file's but a caption source's."""

BOOKKEEPING_KEYS = frozenset(["bytes", "modified", "inode", "fused_captions", OVERRIDDEN])
"""Keys that decide whether a file has changed and what its vector was made of: no source may override them."""

FILE_KEYS = BOOKKEEPING_KEYS.union(
    "name folder width height format taken year camera latitude longitude".split()  # noqa: SIM905
)
"""Keys of metadata that are read from the file; others are whoever added them."""

_TURNED = range(5, 9)  # EXIF orientations that swap width and height
_LONGEST_NAME = 200


def image_metadata(file: ReadFile) -> dict[str, Any]:
    """Return the metadata of an image's file, a JSON object.

    Always `name` (of the file), `folder` (its absolute path), `bytes`, `modified` (ISO 8601, UTC) and `inode`;
    `width`, `height` (as it is seen: turned as EXIF says) and `format` where the header can be read; `taken` (ISO 8601,
    local time, with its offset where there), `year`, `camera`, `latitude` and `longitude` (degrees, south and west
    negative) where the camera wrote them and they make sense. Damaged EXIF is left out and never an error.
    """
    metadata: dict[str, Any] = {
        "name": file.path.name,
        "folder": str(file.path.parent),
        "bytes": file.size_bytes,
        "modified": file.modified,
        "inode": file.inode,
    }
    source = io.BytesIO(file.content) if isinstance(file.content, bytes) else file.content
    try:
        with quiet_pillow(), open_header(source) as image:
            metadata |= {"width": image.width, "height": image.height, "format": image.format}
            if exif := image.getexif():
                if exif.get(ExifTags.Base.Orientation) in _TURNED:
                    metadata |= {"width": image.height, "height": image.width}
                metadata |= _told_by_camera(exif)
    except MemoryError:
        raise
    except Exception:  # noqa: S110 - the decoder has the say on what is an image; headers raise whatever they stumble over
        pass
    return metadata


def same_value(a: object, b: object) -> bool:
    """Whether two values of metadata are written alike in JSON: true is not 1, and 1 is not 1.0."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def combined(read: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata read from a file with what a source says of it; where both have a key the source counts."""
    usable = _usable(told)
    metadata = {**read, **usable}
    if overridden := sorted(FILE_KEYS.intersection(usable)):
        metadata[OVERRIDDEN] = overridden
    return metadata


def refreshed(before: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's metadata with what was read anew from its file, whose content is the same."""
    theirs = _overridden(before)
    return {**before, **{key: value for key, value in read.items() if key not in theirs}}


def replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's metadata when its file has other content: `after`, as of a new item, and what others wrote."""
    theirs = _overridden(before)
    kept = {key: value for key, value in before.items() if key in theirs or key not in FILE_KEYS}
    own = {key: value for key, value in after.items() if key not in theirs or key in _overridden(after)}
    metadata = {**kept, **own}
    if overridden := sorted(theirs | _overridden(after)):
        metadata[OVERRIDDEN] = overridden
    return metadata


def with_told(metadata: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return metadata with what is told about an image in it; None where it has all that already."""
    usable = _usable(told)
    overridden = _overridden(metadata) | FILE_KEYS.intersection(usable)
    if overridden == _overridden(metadata) and all(
        key in metadata and same_value(metadata[key], value) for key, value in usable.items()
    ):
        return None
    return {**metadata, **usable, **({OVERRIDDEN: sorted(overridden)} if overridden else {})}


def _usable(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key not in BOOKKEEPING_KEYS}


def _overridden(metadata: Mapping[str, Any]) -> frozenset[str]:
    keys = metadata.get(OVERRIDDEN)
    return (
        FILE_KEYS.intersection(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else frozenset()
    )


def _told_by_camera(exif: Image.Exif) -> dict[str, Any]:
    told: dict[str, Any] = {}
    details = exif.get_ifd(ExifTags.IFD.Exif)
    for time, offset in (
        (details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.OffsetTimeOriginal)),
        (details.get(ExifTags.Base.DateTimeDigitized), details.get(ExifTags.Base.OffsetTimeDigitized)),
    ):
        if "taken" not in told and (taken := _time(time)) is not None:
            told |= {"taken": taken.isoformat() + _offset(offset), "year": taken.year}
    make, model = (_text(exif.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    if camera := model if make and model.lower().startswith(make.split()[0].lower()) else f"{make} {model}".strip():
        told["camera"] = camera
    position = exif.get_ifd(ExifTags.IFD.GPSInfo)
    latitude = _degrees(position.get(ExifTags.GPS.GPSLatitude), position.get(ExifTags.GPS.GPSLatitudeRef), "S", 90)
    longitude = _degrees(position.get(ExifTags.GPS.GPSLongitude), position.get(ExifTags.GPS.GPSLongitudeRef), "W", 180)
    if latitude is not None and longitude is not None:
        told |= {"latitude": latitude, "longitude": longitude}
    return told


def _text(value: object) -> str:
    """Return text on one line without what no name has; empty for what is no text."""
    if not isinstance(value, str):
        return ""
    printable = "".join(character for character in value if unicodedata.category(character)[0] != "C")
    return " ".join(printable.split())[:_LONGEST_NAME]


def _time(value: object) -> datetime | None:
    try:
        return datetime.strptime(_text(value), "%Y:%m:%d %H:%M:%S")  # cameras write local time
    except ValueError:
        return None


def _offset(value: object) -> str:
    offset = _text(value)
    return offset if re.fullmatch(r"[+-]\d\d:\d\d", offset) else ""


def _degrees(value: object, reference: object, negative: str, limit: int) -> float | None:
    """Return decimal degrees of EXIF's degrees, minutes and seconds; None where they are none."""
    try:
        degrees, minutes, seconds = (float(part) for part in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    total = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(total) or not 0 <= total <= limit:
        return None
    return round(-total if _text(reference).upper() == negative else total, 6)
