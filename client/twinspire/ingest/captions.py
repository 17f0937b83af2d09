"""What is said about pictures: a file of captions (COCO, CSV, TSV, JSONL), or a text file beside each picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from twinspire.errors import InputError
from twinspire.ingest.finding import absolute

PICTURE_COLUMNS = ("picture", "image", "path", "file", "file_name", "filename", "filepath", "image_path", "name")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts")
_EXPECTED = (
    f"expected one of {', '.join(PICTURE_COLUMNS)} for the picture and one of {', '.join(CAPTION_COLUMNS)} for what is "
    "said about it"
)
_MOST_BYTES = 64 * 2**10  # of a sidecar


class CaptionSource(Protocol):
    """Gives the captions of pictures."""

    def of(self, picture: Path) -> Sequence[str]:
        """Return the captions of the picture at this absolute path; none where nothing is said about it."""


class Captions:
    """The captions of a file.

    `said` maps pictures, as the file names them, to captions. A name is a path, from the file's folder where a
    picture is there, else the end of a path: `a.jpg` and `2024/a.jpg` both name `/photos/2024/a.jpg`. Where several
    names fit a picture the longest counts.
    """

    def __init__(self, said: Mapping[str, Sequence[str]], *, folder: Path) -> None:
        self._exact: dict[Path, list[str]] = {}
        self._by_end: dict[tuple[str, ...], list[str]] = {}
        for name, captions in said.items():
            path = absolute(folder / name)
            if Path(name).is_absolute() or path.is_file():
                self._exact.setdefault(path, []).extend(captions)
            else:
                self._by_end.setdefault(PurePosixPath(name.replace("\\", "/")).parts, []).extend(captions)
        self._longest = max((len(end) for end in self._by_end), default=0)

    @classmethod
    def read(cls, path: Path) -> Captions:
        """Read a file of captions: COCO's JSON, or CSV, TSV or JSONL with a column for the picture and the caption.

        Rows of the same picture are put together. Raises `InputError` that names the place.
        """
        text = _text_of(path)
        said: dict[str, list[str]] = {}
        for where, name, captions in _rows(path, text):
            words = [caption.strip() for caption in captions if caption.strip()]
            if "\0" in name:
                raise InputError(f"{where}: no file can be called {name!r}")
            said.setdefault(name, []).extend(word for word in words if word not in said.get(name, ()))
        if not any(said.values()):
            raise InputError(f"{path} has no captions in it: {_EXPECTED}")
        return cls(said, folder=absolute(path).parent)

    def of(self, picture: Path) -> Sequence[str]:
        """Return the captions of the picture at this absolute path."""
        if (exact := self._exact.get(picture)) is not None:
            return exact
        parts = picture.parts
        for length in range(min(self._longest, len(parts)), 0, -1):
            if (captions := self._by_end.get(parts[-length:])) is not None:
                return captions
        return ()


class Sidecars:
    """Captions in text files beside the pictures: `cat.jpg.txt`, else `cat.txt`, a caption on each line."""

    def of(self, picture: Path) -> Sequence[str]:
        """Return the lines of the picture's text file. Raises `InputError` for one that cannot be read."""
        for sidecar in sidecars_of(picture):
            if sidecar.is_file():
                if sidecar.stat().st_size > _MOST_BYTES:
                    raise InputError(f"its caption file {sidecar.name} is larger than {_MOST_BYTES // 1024} KiB")
                return [line.strip() for line in _text_of(sidecar).splitlines() if line.strip()]
        return ()


def sidecars_of(picture: Path) -> tuple[Path, Path]:
    """Return where a picture's text file may be, the one that counts first."""
    return picture.with_name(picture.name + ".txt"), picture.with_suffix(".txt")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: expected captions (COCO's JSON, CSV, TSV or JSONL)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): expected a text file; convert it") from error
    except OSError as error:
        raise InputError(f"the captions {path} cannot be read: {error.strerror or error}") from error


def _rows(path: Path, text: str) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Give place, picture and captions of each row."""
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
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
        picture, caption = (row.get(_column(row, names, where)) for names in (PICTURE_COLUMNS, CAPTION_COLUMNS))
        captions = [said for said in (caption if isinstance(caption, list) else [caption]) if isinstance(said, str)]
        wrong = not isinstance(caption, str) and (not isinstance(caption, list) or len(captions) < len(caption))
        if not isinstance(picture, str) or not picture or wrong:
            raise InputError(f"{where}: got picture {picture!r} and caption {caption!r}: expected texts")
        yield where, picture, captions


def _column(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise InputError(f"{where} has the columns {', '.join(map(str, row)) or '(none)'}: {_EXPECTED}")
    return found


def _table_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    try:
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


def _coco_rows(path: Path, document: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    try:
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for place, entry in enumerate(document["annotations"]):
            where = f"{path}: annotation {place}"
            name, caption = names[entry["image_id"]], entry["caption"]
            if not isinstance(name, str) or not isinstance(caption, str):
                raise InputError(f"{where}: got picture {name!r} and caption {caption!r}: expected texts")
            yield where, name, [caption]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no file of captions in COCO's form: expected the lists 'images' (id, file_name) and "
            f"'annotations' (image_id, caption); {error} is missing or of another kind"
        ) from error
