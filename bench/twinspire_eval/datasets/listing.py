"""What every captions file comes down to, how one is read, and where its images are found."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import Caption, CaptionedImages, drawn_positions, first_repeated, sampled_name

ALL = "all"
"""The split that takes every image."""
_TRIED = 20
"""How many images are looked for in each folder to see whether it is theirs."""


@dataclass(frozen=True)
class Listed:
    """One image of a captions file: its file's name, in the ways that it may lie in the folder, likeliest first."""

    id: str
    files: tuple[str, ...]
    captions: tuple[Caption, ...]
    split: str | None = None


def read_text(path: Path) -> str:
    """Read a file of UTF-8, with or without byte order mark. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; expected a file of captions") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: expected a file of captions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): expected a text file; convert it") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a JSON file. Raises InputError with the place of what is wrong."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}. Was it copied whole?"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{path} is no file of captions: {error}") from error
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a file of captions") from None


def entries(document: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """Return the list of objects under `key`. Raises InputError where it is something else or empty."""
    found = document[key]
    if not isinstance(found, list) or not found:
        raise InputError(f"{path}: {key!r} holds {kind_of(found)}: expected a list of objects")
    wrong = next((place for place, entry in enumerate(found) if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise InputError(f"{path}: {key!r} holds {kind_of(found[wrong])} at place {wrong}: expected an object")
    return found


def field(entry: dict[str, Any], key: str, kinds: type | tuple[type, ...], where: str) -> Any:  # noqa: ANN401
    """Return one value of an object, of one of the types. Raises InputError that names the place `where` it stands."""
    if key not in entry:
        raise InputError(f"{where} has {named(list(entry))}: expected {key!r} among them")
    value = entry[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join(_KINDS[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InputError(f"{where}: {key!r} holds {kind_of(value)}: expected {wanted}")
    if value == "":
        raise InputError(f"{where}: {key!r} is empty: expected a text")
    return value


def caption_of(text: str, language: str | None, where: str) -> Caption:
    """Make a caption of a text, without the space around it. Raises InputError where nothing is left."""
    if not text.strip():
        raise InputError(f"{where}: the caption is empty: expected words; add them or take it out")
    return Caption(text.strip(), language)


def named(names: Sequence[object], *, shown: int = 6) -> str:
    """Write a few names in a row, and how many there are more."""
    if not names:
        return "nothing"
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(str(name) for name in names[:shown]) + more


def kind_of(value: object) -> str:
    """Say in JSON's words what a value is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (list, dict)) and not value:
        return f"an empty {'list' if isinstance(value, list) else 'object'}"
    return _KINDS.get(type(value), type(value).__name__)


_KINDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def assemble(
    listed: Sequence[Listed],
    *,
    source: Path,
    name: str,
    folders: Sequence[str],
    pictures: Path | None,
    split: str | None,
    limit: int | None,
    seed: int,
) -> CaptionedImages:
    """Take a split of a listing, draw from it, find its images' files and put it together.

    `folders` are where images may lie, seen from the folder of the captions file `source`; `images`, if not None,
    is where they do. Raises InputError for a split that is not there and for images that are not.
    """
    taken = _of_split(listed, split, source)
    repeated = first_repeated([entry.id for entry in taken])
    if repeated is not None:
        raise InputError(f"{source}: the picture {repeated!r} is listed more than once: expected each once")
    positions = drawn_positions(len(taken), limit, seed=seed)
    drawn = [taken[position] for position in positions]
    if split is not None and split != ALL:
        name = f"{name}, {split}"
    return CaptionedImages(
        sampled_name(name, len(drawn), len(taken), seed=seed),
        tuple(entry.id for entry in drawn),
        _found(drawn, source, folders, pictures),
        tuple(entry.captions for entry in drawn),
    )


def _of_split(listed: Sequence[Listed], split: str | None, source: Path) -> list[Listed]:
    if split is None or split == ALL:
        return list(listed)
    there = Counter(entry.split for entry in listed if entry.split is not None)
    if not there:
        raise InputError(f"{source} tells no splits, so there is no {split!r}: leave the split out")
    if split not in there:
        counts = ", ".join(f"{name} ({count:,})" for name, count in sorted(there.items()))
        raise InputError(f"{source} has no split {split!r}: expected {counts} or {ALL}")
    return [entry for entry in listed if entry.split == split]


def _found(drawn: Sequence[Listed], source: Path, folders: Sequence[str], pictures: Path | None) -> list[Path]:
    if pictures is not None and not is_folder(pictures):
        raise InputError(f"there is no folder {pictures}: expected the one that holds the pictures of {source}")
    places = [pictures] if pictures is not None else _existing(source.parent, folders)
    step = max(1, len(drawn) // _TRIED)
    tries = [(place, way) for place in places for way in range(max(len(entry.files) for entry in drawn))]
    here = [sum(is_file(_file(entry, place, way)) for entry in drawn[::step]) for place, way in tries]
    place, way = tries[here.index(max(here))]
    files = [_file(entry, place, way) for entry in drawn]
    missing = [file for file in files if not is_file(file)]
    if not missing:
        return files
    example = drawn[files.index(missing[0])].files[0]
    if len(missing) == len(files):
        looked = named([f"{place}/" for place in places], shown=12)
        raise InputError(
            f"{source}: its pictures are not there, such as {example!r}; looked in {looked}. Name the folder that "
            "holds them (--pictures)"
        )
    raise InputError(
        f"{source}: {len(missing):,} of its {len(files):,} pictures are not in {place}/, such as {example!r}. "
        "Add them, or take them out of the file of captions"
    )


def _file(entry: Listed, place: Path, way: int) -> Path:
    return place / entry.files[min(way, len(entry.files) - 1)]


def _existing(base: Path, folders: Sequence[str]) -> list[Path]:
    """The folders that are there, none twice, the captions file's own first."""
    places = [base]
    for folder in folders:
        place = Path(os.path.normpath(base / folder))
        if is_folder(place) and place not in places:
            places.append(place)
    return places


def is_file(path: Path) -> bool:
    """Whether a file is there; no for a name that no file can have, where `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a folder is there; no for a name that none can have."""
    return os.path.isdir(path)  # noqa: PTH112
