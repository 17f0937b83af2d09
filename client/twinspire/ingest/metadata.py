"""Metadata of image and sound files (name, size, EXIF, duration), and how it merges with that of other sources."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from twinspire.audio.decode import audio_header
from twinspire.bundle import DecodeMode
from twinspire.images.formats import open_header
from twinspire.images.pillow_warnings import quiet_pillow
from twinspire.ingest.files import ReadFile
from twinspire.stores.items import ItemKind

OVERRIDDEN = "overridden"
"""The key that lists those of `FILE_KEYS` whose values come from a caption source instead of the file."""

DECODE = "decode"
"""The key of the mode that an item's file was decoded in, where that is not exact."""
BOOKKEEPING_KEYS = frozenset(["bytes", "modified", "inode", "fused_captions", DECODE, OVERRIDDEN])
"""Keys that tell whether a file has changed and how its vector was made: no source may override them."""

FILE_KEYS = BOOKKEEPING_KEYS.union(
    "name folder width height format taken year camera latitude longitude duration_s sample_rate channels".split()  # noqa: SIM905
)
"""Keys that are read from the file; all others come from users and sources."""

_TURNED = range(5, 9)  # EXIF orientations that swap width and height
_MAX_NAME = 200
_SCALED_FORMATS = ("JPEG", "MPO")


def file_metadata(file: ReadFile, decode: DecodeMode = DecodeMode.EXACT) -> dict[str, Any]:
    """Return the metadata of an image's or sound's file, a JSON object.

    Always `name` (of the file), `folder` (its absolute path), `bytes`, `modified` (ISO 8601, UTC) and `inode`. Of an
    image `width`, `height` (after EXIF's rotation) and `format` where the header can be read; `taken` (ISO 8601, local
    time, with its UTC offset where EXIF has it), `year`, `camera`, `latitude` and `longitude` (degrees, south and west
    negative) where EXIF has them and they are valid. Of a sound `duration_s` (seconds), `sample_rate` (Hz), `channels`
    and `format`. Damaged EXIF is left out and never an error. `decode` is in it for a JPEG that is not decoded exactly.
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
        metadata |= audio_header(source) if file.kind is ItemKind.AUDIO else _image_header(source)
    except MemoryError:
        raise
    except Exception:  # headers raise anything; the decoder decides later what is an image
        return metadata
    if decode is not DecodeMode.EXACT and metadata.get("format") in _SCALED_FORMATS:
        metadata[DECODE] = decode.value
    return metadata


def _image_header(source: io.BytesIO | Path) -> dict[str, Any]:
    with quiet_pillow(), open_header(source) as image:
        found = {"width": image.width, "height": image.height, "format": image.format}
        if exif := image.getexif():
            if exif.get(ExifTags.Base.Orientation) in _TURNED:
                found |= {"width": image.height, "height": image.width}
            found |= _from_exif(exif)
    return found


def same_value(a: object, b: object) -> bool:
    """Whether two values are equal as JSON: true is not 1, and 1 is not 1.0."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def combined(read: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata read from a file merged with that given by a source, which wins where both have a key."""
    usable = _usable(given)
    metadata = {**read, **usable}
    if overridden := sorted(FILE_KEYS.intersection(usable)):
        metadata[OVERRIDDEN] = overridden
    return metadata


def refreshed(before: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's metadata updated with what was read from its file, whose content is the same."""
    overridden = _overridden(before)
    return {**before, **{key: value for key, value in read.items() if key not in overridden}}


def replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's metadata after its content changed: `after`, as of a new item, and the keys of others."""
    earlier, later = _overridden(before), _overridden(after)
    kept = {key: value for key, value in before.items() if key in earlier or key not in FILE_KEYS}
    new = {key: value for key, value in after.items() if key not in earlier or key in later}
    return {**kept, **new, **({OVERRIDDEN: sorted(earlier | later)} if earlier | later else {})}


def with_given(metadata: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return metadata merged with that given by a source; None where it has all of it already."""
    usable = _usable(given)
    overridden = _overridden(metadata) | FILE_KEYS.intersection(usable)
    if overridden == _overridden(metadata) and all(
        key in metadata and same_value(metadata[key], value) for key, value in usable.items()
    ):
        return None
    return {**metadata, **usable, **({OVERRIDDEN: sorted(overridden)} if overridden else {})}


def _usable(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in BOOKKEEPING_KEYS}


def _overridden(metadata: Mapping[str, Any]) -> frozenset[str]:
    keys = metadata.get(OVERRIDDEN)
    return (
        FILE_KEYS.intersection(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else frozenset()
    )


def _from_exif(exif: Image.Exif) -> dict[str, Any]:
    found: dict[str, Any] = {}
    details = exif.get_ifd(ExifTags.IFD.Exif)
    for time, offset in (
        (details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.OffsetTimeOriginal)),
        (details.get(ExifTags.Base.DateTimeDigitized), details.get(ExifTags.Base.OffsetTimeDigitized)),
    ):
        if "taken" not in found and (taken := _time(time)) is not None:
            found |= {"taken": taken.isoformat() + _offset(offset), "year": taken.year}
    make, model = (_text(exif.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    if camera := model if make and model.lower().startswith(make.split()[0].lower()) else f"{make} {model}".strip():
        found["camera"] = camera
    position = exif.get_ifd(ExifTags.IFD.GPSInfo)
    latitude = _degrees(position.get(ExifTags.GPS.GPSLatitude), position.get(ExifTags.GPS.GPSLatitudeRef), "S", 90)
    longitude = _degrees(position.get(ExifTags.GPS.GPSLongitude), position.get(ExifTags.GPS.GPSLongitudeRef), "W", 180)
    if latitude is not None and longitude is not None:
        found |= {"latitude": latitude, "longitude": longitude}
    return found


def _text(value: object) -> str:
    """Return text on one line without control characters; empty for what is not text."""
    if not isinstance(value, str):
        return ""
    printable = "".join(character for character in value if unicodedata.category(character)[0] != "C")
    return " ".join(printable.split())[:_MAX_NAME]


def _time(value: object) -> datetime | None:
    try:
        return datetime.strptime(_text(value), "%Y:%m:%d %H:%M:%S")  # cameras write local time
    except ValueError:
        return None


def _offset(value: object) -> str:
    offset = _text(value)
    return offset if re.fullmatch(r"[+-]\d\d:\d\d", offset) else ""


def _degrees(value: object, reference: object, negative: str, limit: int) -> float | None:
    """Return decimal degrees from EXIF's degrees, minutes and seconds; None where they are not valid."""
    try:
        degrees, minutes, seconds = (float(part) for part in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    total = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(total) or not 0 <= total <= limit:
        return None
    return round(-total if _text(reference).upper() == negative else total, 6)
