"""Tables about images, a row or more for each: CSV, TSV, JSON Lines, or a JSON list of objects."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from twinspire.errors import InputError

IMAGE_COLUMNS = ("picture", "image", "path", "file", "file_name", "filename", "filepath", "image_path")
FALLBACK_IMAGE_COLUMN = "name"  # where no other column names the image; beside one it is metadata
CAPTION_COLUMNS = ("caption", "captions", "text", "texts")
_LIST_COLUMNS = ("captions", "texts")  # whose cells may hold a JSON list, as data frames write them
_NUMBERED = re.compile(r"(caption|text)_?\d+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's: 007 is a code, no number
_INTEGERS = range(-(2**63), 2**63)  # the integers that a filter compares exactly
JSON_TYPES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """What one row, line or entry of a captions file says about an image.

    `where` is its place in the file, for messages. `image` is the name of the image's file as it is written there, and
    `folder` the folder of that file where the row names one. `id`, `language` and `split` hold what the file has, of
    any type; in a table they are part of `metadata` too, which has all columns but those of image and captions.
    """

    where: str
    image: str
    captions: Sequence[str] = ()
    folder: str = ""
    id: Any = None
    language: Any = None
    split: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class _Columns(NamedTuple):
    image: str
    captions: list[str]
    others: list[str]


def cell_rows(path: Path, text: str, *, strict: bool) -> Iterator[CaptionRow]:
    """Give the rows of a table with column names in its first line, tabs between the cells of a .tsv, else commas.

    In metadata a number or true and false become values of JSON, empty cells are left out. With `strict` each row must
    have a caption, and one column alone may name the image. Raises `InputError` that names the line.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    columns: _Columns | None = None
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cells):
                continue
            if columns is None:
                names = [cell.strip() for cell in cells]
                if repeated := next((name for place, name in enumerate(names) if name and name in names[:place]), None):
                    raise InputError(f"{where} has two columns {repeated!r}: rename one; number captions (caption_1)")
                columns = _columns([name for name in names if name], where, strict=strict)
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{where} has {len(cells)} cells: expected {len(names)} ({', '.join(names)}). Put a caption "
                    "that contains the separator in double quotes"
                )
            row: dict[str, Any] = dict(zip(names, cells, strict=True))
            for column in columns.captions:
                if column in _LIST_COLUMNS and row[column].lstrip().startswith("["):
                    row[column] = _unpacked(row[column], f"{where}: {column!r}", strict=strict)
            metadata = {name: _value(row[name]) for name in columns.others if row[name].strip()}
            yield _row(row, columns, metadata, where, strict=strict)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not valid CSV: {error}") from error


def object_rows(entries: Iterator[tuple[str, Any]], *, strict: bool) -> Iterator[CaptionRow]:
    """Give the rows of a table of JSON objects, each of which comes with its place; for `strict` see `cell_rows`."""
    for where, row in entries:
        if not isinstance(row, dict):
            raise InputError(
                f'{where} is {type_of(row)}: expected an object such as {{"image": "a.jpg", "caption": "a cat"}}'
            )
        columns = _columns([name for name in row if name], where, strict=strict)
        yield _row(row, columns, {name: row[name] for name in columns.others}, where, strict=strict)


def json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Give the JSON document of every line, with its place."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


def parse_json(text: str, where: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return a JSON document. Raises `InputError` that names the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not valid JSON: {error.msg}: line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{where} cannot be read as JSON: {error}") from error
    except RecursionError:
        raise InputError(f"{where} cannot be read as JSON: it is nested too deeply") from None


def type_of(value: object) -> str:
    """Return what a value is in JSON's words: "a text", "an empty list", "null"."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | dict) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'object'}"
    return JSON_TYPES.get(type(value), type(value).__name__)


def listed(names: Sequence[object], *, at_most: int = 6) -> str:
    """Return the first names in a row, and how many more there are."""
    more = f" and {len(names) - at_most:,} more" if len(names) > at_most else ""
    return ", ".join(map(str, names[:at_most])) + more if names else "nothing"


def _columns(names: Sequence[str], where: str, *, strict: bool) -> _Columns:
    """Find the columns of the image and of captions by their names."""
    images = [name for name in IMAGE_COLUMNS if name in names]
    captions = [name for name in CAPTION_COLUMNS if name in names]
    if strict:
        for found in (images, captions):
            if len(found) > 1:
                raise InputError(f"{where} has the columns {' and '.join(found)}: expected one of them; rename others")
    if not images and FALLBACK_IMAGE_COLUMN in names:
        images = [FALLBACK_IMAGE_COLUMN]
    captions = captions[:1] + [name for name in names if _NUMBERED.fullmatch(name)]
    others = [name for name in names if name not in images[:1] and name not in captions]
    if not images or not (captions or (others and not strict)):
        metadata = "" if strict else ", or other columns for its metadata"
        raise InputError(
            f"{where} has the columns {listed(names, at_most=12)}: expected a column for the image "
            f"({', '.join((*IMAGE_COLUMNS, FALLBACK_IMAGE_COLUMN))}) and one for its caption "
            f"({', '.join(CAPTION_COLUMNS)}){metadata}"
        )
    return _Columns(images[0], captions, others)


def _row(
    row: Mapping[str, Any], columns: _Columns, metadata: Mapping[str, Any], where: str, *, strict: bool
) -> CaptionRow:
    image = row[columns.image]
    if not isinstance(image, str) or not image.strip():
        found = "is empty" if isinstance(image, str) else f"holds {type_of(image)}"
        raise InputError(f"{where}: {columns.image!r} {found}: expected the name of a file")
    captions: list[str] = []
    for column in columns.captions:
        value = row[column]
        texts = value if isinstance(value, list) else [value]
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong or (strict and not texts):
            found = f"a list with {type_of(wrong[0])}" if isinstance(value, list) and wrong else type_of(value)
            raise InputError(f"{where}: {column!r} holds {found}: expected a text or a list of texts")
        captions += texts
    return CaptionRow(
        where,
        image,
        captions,
        id=row.get("id"),
        language=row.get("language"),
        split=row.get("split"),
        metadata=metadata,
    )


def _unpacked(cell: str, where: str, *, strict: bool) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        if strict:
            raise InputError(
                f'{where} begins with [ and is not a JSON list ({error}): expected ["one", "another"] or one caption'
            ) from error
        return cell


def _value(cell: str) -> str | int | float | bool:
    """Return what a cell holds: a number as JSON writes it, true or false, else its text.

    A number that would change, an integer of more than 64 bits or an infinite one, stays text.
    """
    text = cell.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if match := _NUMBER.fullmatch(text):
        if match[2] is None and match[3] is None:
            return number if len(text) <= 20 and (number := int(text)) in _INTEGERS else text
        return real if math.isfinite(real := float(text)) else text
    return text
