"""Captions files in the forms in which they are published, and tables: one reader for ingest and evaluation.

| form | file |
|---|---|
| `coco` | COCO's captions: https://cocodataset.org/#format-data, "Image Captioning" |
| `karpathy` | the splits of Karpathy and Fei-Fei (2015, arXiv:1412.2306) of COCO, Flickr30k and Flickr8k |
| `flickr30k` | Flickr30k's and Flickr8k's `.token` (`a.jpg#0<TAB>caption`) and `results.csv` (`a.jpg| 0| caption`) |
| `table` | CSV, TSV, JSON Lines or a JSON list of objects, see `tables` |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from twinspire.errors import InputError
from twinspire.ingest.files import read_text
from twinspire.ingest.tables import (
    JSON_TYPES,
    CaptionRow,
    cell_rows,
    json_lines,
    listed,
    object_rows,
    parse_json,
    type_of,
)

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".token")
"""Endings of names of captions files whose form can be recognised."""

_TOKEN = re.compile(r"(?P<file>[^\t]+)#(\d+)\t(?P<caption>.*)")
# One line of the results.csv that is passed on, that of 2199200278.jpg, has lost its second bar.
_BARS = re.compile(r"(?P<file>[^|]+)\|\s*(\d+)(?:\s*\||\s\s+)(?P<caption>.*)")
_SHOWN = 60  # characters of a line in a message


class CaptionForm(StrEnum):
    """The form of a captions file."""

    COCO = "coco"
    KARPATHY = "karpathy"
    FLICKR30K = "flickr30k"
    TABLE = "table"


def read_caption_file(
    path: Path, form: CaptionForm | None = None, *, strict: bool = False
) -> tuple[CaptionForm, Iterator[CaptionRow]]:
    """Return the form of a captions file, by default recognised by its name and content, and its rows.

    COCO's rows are its annotations, in the order of its images, and an image without one is a row without captions.
    With `strict`, tables must have a caption in each row, see `cell_rows`. Raises `InputError` that names the place,
    for what is wrong in a row when that row is read.
    """
    text = read_text(path, "captions file")
    suffix = path.suffix.lower()
    if suffix == ".json" or form in (CaptionForm.COCO, CaptionForm.KARPATHY):
        document = parse_json(text, str(path))
        form = form or _form_of_document(document, path)
        if form is CaptionForm.COCO:
            return form, _coco_rows(path, document)
        if form is CaptionForm.KARPATHY:
            return form, _karpathy_rows(path, document)
        if form is CaptionForm.FLICKR30K:
            raise InputError(
                f"{path} is JSON: expected lines such as a.jpg#0, a tab and a caption, or a.jpg| 0| caption"
            )
        if not isinstance(document, list):
            raise InputError(f"{path} holds {type_of(document)}: expected a list of objects with 'image' and 'caption'")
        entries = ((f"{path}: entry {position}", entry) for position, entry in enumerate(document))
        return form, object_rows(entries, strict=strict)
    form = form or _form_of_text(text, path)
    if form is CaptionForm.FLICKR30K:
        return form, _flickr_rows(path, text)
    if suffix in (".jsonl", ".ndjson"):
        return form, object_rows(json_lines(path, text), strict=strict)
    return form, cell_rows(path, text, strict=strict)


def _form_of_document(document: object, path: Path) -> CaptionForm:
    if isinstance(document, list):
        return CaptionForm.TABLE
    if isinstance(document, dict):
        images = document.get("images")
        if isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0]:
            return CaptionForm.KARPATHY
        if "images" in document and "annotations" in document:
            return CaptionForm.COCO
    raise InputError(
        f"{path} {_found(document)}: expected captions in COCO's form ('images' and 'annotations'), in Karpathy's "
        "('images' with 'sentences'), or a list of objects with 'image' and 'caption'"
    )


def _form_of_text(text: str, path: Path) -> CaptionForm:
    name = path.name.lower()
    if name.endswith((".token", ".token.txt")) or (name.endswith((".csv", ".txt")) and _has_bars(text)):
        return CaptionForm.FLICKR30K
    if name.endswith(SUFFIXES):
        return CaptionForm.TABLE
    raise InputError(
        f"{path}: a captions file is recognised by its name: expected one that ends in {', '.join(SUFFIXES)}"
    )


def _coco_rows(path: Path, document: object) -> Iterator[CaptionRow]:
    """Give the annotations, image by image. One may name its `language`, as those of generated scenes do."""
    document = _checked(path, document, "COCO's", "images", "annotations")
    names: dict[int | str, tuple[str, str]] = {}  # by id: the place and the file's name
    for position, image in enumerate(_objects(document, "images", path)):
        where = f"{path}: image {position}"
        number = _field(image, "id", (int, str), where)
        if number in names:
            raise InputError(f"{where} has the id {number} of an earlier image: expected every id once")
        names[number] = where, _field(image, "file_name", str, where)
    rows: dict[int | str, list[CaptionRow]] = {number: [] for number in names}
    for position, annotation in enumerate(_objects(document, "annotations", path)):
        where = f"{path}: annotation {position}"
        number = _field(annotation, "image_id", (int, str), where)
        if "caption" not in annotation and {"bbox", "segmentation", "keypoints"} & set(annotation):
            raise InputError(
                f"{where} outlines an object: expected a 'caption'. Use COCO's file captions_*.json instead"
            )
        caption = _field(annotation, "caption", str, where, may_be_empty=True)
        if number not in rows:
            raise InputError(
                f"{where} has the image_id {number!r}: expected the id of an entry of 'images', of the same JSON type"
            )
        rows[number].append(
            CaptionRow(where, names[number][1], [caption], id=number, language=annotation.get("language"))
        )
    for number, (where, name) in names.items():
        yield from rows[number] or [CaptionRow(where, name, id=number)]


def _karpathy_rows(path: Path, document: object) -> Iterator[CaptionRow]:
    document = _checked(path, document, "Karpathy's", "images")
    for position, image in enumerate(_objects(document, "images", path)):
        where = f"{path}: image {position}"
        name = _field(image, "filename", str, where)
        sentences = _field(image, "sentences", list, where)
        if not sentences or not all(isinstance(sentence, dict) for sentence in sentences):
            raise InputError(f"{where}: 'sentences' must be a list of one object or more with 'raw'")
        yield CaptionRow(
            where,
            name,
            [_field(sentence, "raw", str, f"{where}, sentence {place}") for place, sentence in enumerate(sentences)],
            _field(image, "filepath", str, where) if "filepath" in image else "",
            split=_field(image, "split", str, where),
        )


def _flickr_rows(path: Path, text: str) -> Iterator[CaptionRow]:
    bars = _has_bars(text)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, line in lines[1:] if bars else lines:
        where = f"{path}, line {number}"
        if (match := (_BARS if bars else _TOKEN).fullmatch(line.rstrip("\r"))) is None:
            shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
            expected = "name.jpg| 0| caption" if bars else "name.jpg#0, a tab and the caption"
            raise InputError(f"{where} is {shown!r}: expected {expected}")
        yield CaptionRow(where, match["file"].strip(), [match["caption"]])


def _has_bars(text: str) -> bool:
    """Whether a file begins as Flickr30k's results.csv does."""
    return text.lstrip()[:64].replace(" ", "").lower().startswith("image_name|")


def _checked(path: Path, document: object, form: str, *keys: str) -> dict[str, Any]:
    if not isinstance(document, dict) or not set(keys) <= set(document):
        names = " and ".join(map(repr, keys))
        raise InputError(f"{path} {_found(document)}: expected {form} form, an object with {names}")
    return document


def _found(document: object) -> str:
    return f"has the keys {listed(list(document))}" if isinstance(document, dict) else f"holds {type_of(document)}"


def _objects(document: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """Return the list of objects under `key`. Raises `InputError` where it is something else or empty."""
    entries = document[key]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: {key!r} holds {type_of(entries)}: expected a list of objects")
    wrong = next((place for place, entry in enumerate(entries) if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise InputError(f"{path}: {key!r} holds {type_of(entries[wrong])} at place {wrong}: expected an object")
    return entries


def _field(
    entry: dict[str, Any], key: str, types: type | tuple[type, ...], where: str, *, may_be_empty: bool = False
) -> Any:  # noqa: ANN401 - of one of the types
    if key not in entry:
        raise InputError(f"{where} has {listed(list(entry))}: expected {key!r} among them")
    value = entry[key]
    if not isinstance(value, types) or isinstance(value, bool):
        expected = " or ".join(JSON_TYPES[one] for one in (types if isinstance(types, tuple) else (types,)))
        raise InputError(f"{where}: {key!r} holds {type_of(value)}: expected {expected}")
    if value == "" and not may_be_empty:
        raise InputError(f"{where}: {key!r} is empty: expected a text")
    return value
