"""Tables of images and captions: CSV, TSV, a JSON object a line, or one JSON list of objects.

A row is an image with a caption or several; rows of the same image are put together. Columns are found by their
names; those that are not known are passed over.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import Caption, first_repeated
from twinspire_eval.datasets.listing import Listed, caption_of, field, kind_of, named

IMAGE_COLUMNS = ("picture", "image", "path", "file", "file_name", "filename", "filepath", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts")
FOLDERS = ["images", "Images", "pictures", "../images", "../pictures"]
"""Where the images may lie, seen from the file's folder."""

_NUMBERED = re.compile(r"(caption|text)_?\d+")
_EXPECTED = (
    f"expected a column for the picture ({', '.join(IMAGE_COLUMNS)}) and one for what is said about it "
    f"({', '.join(CAPTION_COLUMNS)}); `id`, `language` and `split` may stand beside them"
)
_Row = dict[str, Any]


@dataclasses.dataclass
class _Image:
    id: str
    split: str | None
    captions: list[Caption] = dataclasses.field(default_factory=list)


def read_rows(path: Path, rows: Iterator[tuple[str, _Row]]) -> list[Listed]:
    """List the images of a table, in the order in which they come first. A row comes with the place it stands at."""
    pictures: dict[str, _Image] = {}
    for where, row in rows:
        file = _text(row, _column(row, IMAGE_COLUMNS, where), where)
        split = _text(row, "split", where) if row.get("split") not in (None, "") else None
        name = str(field(row, "id", (str, int), where)) if row.get("id") not in (None, "") else file
        picture = pictures.setdefault(file, _Image(name, split))
        if (picture.id, picture.split) != (name, split):
            raise InputError(
                f"{where}: the picture {file} has the id {name} and the split {split} here, in an earlier row "
                f"{picture.id} and {picture.split}: expected the same in all its rows"
            )
        picture.captions += _captions(row, where)
    if not pictures:
        raise InputError(f"{path} has no rows: expected one for each picture or caption, below the columns' names")
    return [Listed(each.id, (file,), tuple(each.captions), each.split) for file, each in pictures.items()]


def csv_rows(path: Path, text: str) -> Iterator[tuple[str, _Row]]:
    """Read a table with its columns' names in the first line, separated by tabs in a .tsv and by commas elsewhere."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    names: list[str] | None = None
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                repeated = first_repeated(names)
                if repeated is not None:
                    raise InputError(f"{where} has two columns {repeated!r}: expected every name once; number captions")
                _column(dict.fromkeys(names), IMAGE_COLUMNS, where)
                _caption_columns(dict.fromkeys(names), where)
            elif len(cells) != len(names):
                raise InputError(
                    f"{where} has {len(cells)} cells: expected {len(names)} ({', '.join(names)}). A caption with the "
                    "separator in it must stand in double quotes"
                )
            else:
                yield where, _unpacked(dict(zip(names, cells, strict=True)), where)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no CSV: {error}") from error


def json_rows(path: Path, text: str) -> Iterator[tuple[str, _Row]]:
    """Read a JSON object from every line."""
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise InputError(f"{where} is no JSON: {reason}; expected one object a line") from error
            yield where, _object(row, where)


def list_rows(path: Path, rows: list[Any]) -> Iterator[tuple[str, _Row]]:
    """Read the objects of a JSON list."""
    for position, row in enumerate(rows):
        where = f"{path}: entry {position}"
        yield where, _object(row, where)


def _object(row: object, where: str) -> _Row:
    if not isinstance(row, dict):
        raise InputError(f'{where} is {kind_of(row)}: expected an object, such as {{"image": …, "caption": …}}')
    return row


def _unpacked(row: _Row, where: str) -> _Row:
    """Take a cell of several captions apart: a JSON list, as tables made from data frames have it."""
    for column in ("captions", "texts"):
        cell = row.get(column, "")
        if cell.lstrip().startswith("["):
            try:
                row[column] = json.loads(cell)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{where}: {column!r} begins with [ and is no JSON list: {error.msg}; expected "
                    '["one caption", "another"] or one caption'
                ) from error
    return row


def _captions(row: _Row, where: str) -> list[Caption]:
    language = _text(row, "language", where) if row.get("language") not in (None, "") else None
    said: list[Caption] = []
    for column in _caption_columns(row, where):
        value = row[column]
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            came = (
                f"a list with {kind_of(next(text for text in texts if not isinstance(text, str)))}" if texts else None
            )
            raise InputError(
                f"{where}: {column!r} holds {came or 'an empty list' if isinstance(value, list) else kind_of(value)}: "
                "expected a text or a list of texts"
            )
        said += [caption_of(text, language, f"{where}, {column!r}") for text in texts]
    return said


def _column(row: _Row, known: tuple[str, ...], where: str) -> str:
    found = [name for name in known if name in row]
    if not found:
        raise InputError(f"{where} has {named(list(row), shown=12)}: {_EXPECTED}")
    if len(found) > 1:
        raise InputError(f"{where} has the columns {' and '.join(found)}: expected one of them; rename the others")
    return found[0]


def _caption_columns(row: _Row, where: str) -> list[str]:
    numbered = [name for name in row if _NUMBERED.fullmatch(name)]
    return numbered or [_column(row, CAPTION_COLUMNS, where)]


def _text(row: _Row, column: str, where: str) -> str:
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        came = "is empty" if value == "" or isinstance(value, str) else f"holds {kind_of(value)}"
        raise InputError(f"{where}: {column!r} {came}: expected a text")
    return value.strip()
