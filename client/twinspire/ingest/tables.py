"""Files that say something about images, row by row: COCO's JSON, CSV, TSV, JSONL, or a JSON list of objects."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinspire.errors import InputError

IMAGE_COLUMNS = ("picture", "image", "path", "file", "file_name", "filename", "filepath", "image_path", "name")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts")
EXPECTED = (
    f"expected one of {', '.join(IMAGE_COLUMNS)} for the picture, and one of {', '.join(CAPTION_COLUMNS)} for what "
    "is said about it or other columns for its metadata"
)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")  # JSON's: 007 is no number but a code
_INTEGERS = range(-(2**63), 2**63)  # that a filter compares exactly


@dataclass(frozen=True, slots=True)
class Row:
    """What a row says: the place for messages, the image as it is named there, its captions and its metadata."""

    where: str
    picture: str
    captions: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def rows_of(path: Path, text: str) -> Iterator[Row]:
    """Give the rows of a file whose name is `path` and whose content is `text`.

    Columns that are neither image nor caption are metadata; those without a name are left out. COCO's form has
    captions alone. Raises `InputError` that names the place.
    """
    cells = path.suffix.lower() in (".csv", ".tsv", ".txt")
    if cells:
        rows = _table_rows(path, text)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = _json_lines(path, text)
    elif path.suffix.lower() == ".json":
        document = _parsed(text, str(path))
        if isinstance(document, dict):
            yield from _coco_rows(path, document)
            return
        if not isinstance(document, list):
            raise InputError(f"{path} is no file of captions: expected COCO's form or a list of objects")
        rows = ((f"{path}: entry {place}", row) for place, row in enumerate(document))
    else:
        raise InputError(f"{path} is no file of captions: expected a name ending in .json, .jsonl, .csv or .tsv")
    for where, row in rows:
        if not isinstance(row, dict):
            raise InputError(f'{where}: expected an object such as {{"image": "a.jpg", "caption": "a cat"}}')
        yield _row(where, row, cells=cells)


def _row(where: str, row: Mapping[str, Any], *, cells: bool) -> Row:
    names = [next((name for name in known if name in row), None) for known in (IMAGE_COLUMNS, CAPTION_COLUMNS)]
    others = {name: value for name, value in row.items() if name and name not in names}
    if names[0] is None or (names[1] is None and not others):
        raise InputError(f"{where} has the columns {', '.join(map(str, row)) or '(none)'}: {EXPECTED}")
    picture, caption = row[names[0]], row[names[1]] if names[1] is not None else []
    captions = [said for said in (caption if isinstance(caption, list) else [caption]) if isinstance(said, str)]
    wrong = not isinstance(caption, str) and (not isinstance(caption, list) or len(captions) < len(caption))
    if not isinstance(picture, str) or not picture or wrong:
        raise InputError(f"{where}: got picture {picture!r} and caption {caption!r}: expected texts")
    if cells:
        others = {name: _value(cell) for name, cell in others.items() if cell.strip()}
    return Row(where, picture, captions, others)


def _value(cell: str) -> str | int | float | bool:
    """Return what a cell of a table holds: a number as JSON writes it, true or false, else its text.

    A number that would not stay what it is, an integer of more than 64 bits or an infinite one, is text.
    """
    text = cell.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if match := _NUMBER.fullmatch(text):
        if match[2] is None and match[3] is None and len(text) <= 20:
            return number if (number := int(text)) in _INTEGERS else text
        if match[2] is not None or match[3] is not None:
            return real if math.isfinite(real := float(text)) else text
    return text


def _table_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        twice = next((name for name, count in Counter(columns).items() if name and count > 1), None)
        if twice is not None:
            raise InputError(
                f"{path}, line {reader.line_num} has the column {twice!r} more than once: rename the others"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(
                    f"{where} has another number of cells than the first line: a caption with the separator in it must "
                    "stand in double quotes"
                )
            yield where, {name.strip(): cell for name, cell in row.items()}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no CSV: {error}") from error


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON: {error}") from error


def _coco_rows(path: Path, document: Mapping[str, Any]) -> Iterator[Row]:
    try:
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for place, entry in enumerate(document["annotations"]):
            where = f"{path}: annotation {place}"
            name, caption = names[entry["image_id"]], entry["caption"]
            if not isinstance(name, str) or not isinstance(caption, str):
                raise InputError(f"{where}: got picture {name!r} and caption {caption!r}: expected texts")
            yield Row(where, name, [caption])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no file of captions in COCO's form: expected the lists 'images' (id, file_name) and "
            f"'annotations' (image_id, caption); {error} is missing or of another kind"
        ) from error
