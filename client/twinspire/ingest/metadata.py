"""What a picture's file says of itself: name, size, and what the camera wrote into it (EXIF)."""

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

from twinspire._times import iso_utc
from twinspire.images.decode import FORMATS
from twinspire.images.quiet import quiet_pillow
from twinspire.ingest.reading import ReadFile

FILE_KEYS = frozenset(
    "name folder bytes modified inode width height format taken year camera latitude longitude fused_captions".split()  # noqa: SIM905
)
"""Keys of metadata that are the file's; others are whoever added them."""

_TURNED = range(5, 9)  # EXIF orientations that swap width and height
_LONGEST_NAME = 200


def picture_metadata(file: ReadFile) -> dict[str, Any]:
    """Return the metadata of a picture's file, a JSON object.

    Always `name` (of the file), `folder` (its absolute path), `bytes`, `modified` (ISO 8601, UTC) and `inode`;
    `width`, `height` (as it is seen: turned as EXIF says) and `format` where the header can be read; `taken` (ISO 8601,
    local time, with its offset where there), `year`, `camera`, `latitude` and `longitude` (degrees, south and west
    negative) where the camera wrote them and they make sense. Damaged EXIF is left out and never an error.
    """
    metadata: dict[str, Any] = {
        "name": file.path.name,
        "folder": str(file.path.parent),
        "bytes": file.size_bytes,
        "modified": modified_text(file.modified_s),
        "inode": file.inode,
    }
    source = io.BytesIO(file.content) if isinstance(file.content, bytes) else file.content
    try:
        with quiet_pillow(), Image.open(source, formats=FORMATS) as image:
            metadata |= {"width": image.width, "height": image.height, "format": image.format}
            if exif := image.getexif():
                if exif.get(ExifTags.Base.Orientation) in _TURNED:
                    metadata |= {"width": image.height, "height": image.width}
                metadata |= _told_by_camera(exif)
    except MemoryError:
        raise
    except Exception:  # noqa: S110 - the decoder has the say on what is a picture; headers raise whatever they stumble over
        pass
    return metadata


def modified_text(modified_s: float) -> str | float:
    """Return when a file was last written to in ISO 8601, UTC; a time outside of the years 1 to 9999 as it is."""
    try:
        return iso_utc(modified_s)
    except (ValueError, OverflowError):
        return modified_s


def own_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not the file's, but was put there by somebody else."""
    return {key: value for key, value in metadata.items() if key not in FILE_KEYS}


def same_value(a: object, b: object) -> bool:
    """Whether two values of metadata are written alike in JSON: true is not 1, and 1 is not 1.0."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def with_told(metadata: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return metadata with what is told about a picture in it; None where it has all that already."""
    if all(key in metadata and same_value(metadata[key], value) for key, value in told.items()):
        return None
    return {**metadata, **told}


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
