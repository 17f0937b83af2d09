"""`open_dataset`: from what a user writes to a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from twinspire.errors import InputError
from twinspire_eval.datasets import flickr, karpathy, table
from twinspire_eval.datasets.captioned import CaptionedImages
from twinspire_eval.datasets.coco import coco_folders, is_coco, read_coco
from twinspire_eval.datasets.listing import Listed, assemble, is_file, is_folder, kind_of, named, read_json, read_text
from twinspire_eval.datasets.scenes import open_scenes


class Form(StrEnum):
    """What a data set is read from."""

    SCENES = "scenes"
    COCO = "coco"
    KARPATHY = "karpathy"
    FLICKR30K = "flickr30k"
    TABLE = "table"


FORMS: dict[Form, str] = {
    Form.SCENES: "scenes:COUNT:SEED, drawn here; both numbers may be left out",
    Form.COCO: "coco:PATH, captions in COCO's form",
    Form.KARPATHY: "karpathy:PATH, dataset_coco.json or dataset_flickr30k.json",
    Form.FLICKR30K: "flickr30k:PATH, results_20130124.token or results.csv",
    Form.TABLE: "table:PATH, CSV, TSV, JSONL or a JSON list, with the columns image and caption",
}
"""How each is written. A PATH is a file, or a folder with one such file; a path alone is looked at."""

_PATTERNS: dict[Form, tuple[str, ...]] = {
    Form.COCO: ("*captions*.json",),
    Form.KARPATHY: ("dataset_*.json", "dataset.json"),
    Form.FLICKR30K: ("*.token", "*.token.txt", "results*.csv"),
    Form.TABLE: ("*.csv", "*.tsv", "*.jsonl", "captions.txt"),
}
_ANY = tuple(dict.fromkeys(pattern for patterns in _PATTERNS.values() for pattern in patterns))
_TABLES = (".csv", ".tsv", ".txt")


def open_dataset(
    spec: str | os.PathLike[str],
    *,
    pictures: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> CaptionedImages:
    """Open a data set, in one of `FORMS`; images are not read before they are asked for, but all must be there.

    `images` is the folder of the images, by default found beside the captions. `split` takes a part of a data set
    that tells its parts: `test` of Karpathy's, `train` of the scenes, which are else held-out ones; `all` takes every
    image. `limit` draws so many images with `seed`.

    Raises InputError for anything that is no such data set, with what was expected in its place.
    """
    form, argument = _parsed(os.fspath(spec))
    if form is Form.SCENES:
        if pictures is not None:
            raise InputError(f"scenes are drawn, there is no folder {pictures} to take them from: leave it out")
        return open_scenes(argument, split=split, limit=limit, seed=seed)
    home = os.path.expanduser(argument)  # noqa: PTH111 - a shell leaves coco:~/x as it is; raises nothing
    path = _captions_file(Path(home), form)
    form, content = _read(path, form)
    listed, folders = _listed(path, form, content, split)
    name = f"{path.name} ({form})"
    return assemble(
        listed, source=path, name=name, folders=folders, pictures=pictures, split=split, limit=limit, seed=seed
    )


def _parsed(spec: str) -> tuple[Form | None, str]:
    before, colon, argument = spec.partition(":")
    if before == Form.SCENES and (colon or not _is_there(Path(spec))):
        return Form.SCENES, argument
    if colon and before in tuple(Form):
        if not argument:
            raise InputError(f"the data set {spec!r} names no path: expected {FORMS[Form(before)]}")
        return Form(before), argument
    if not spec or not _is_there(Path(spec)):
        forms = "; ".join(FORMS.values())
        raise InputError(f"there is no data set {spec!r}: expected a file or folder that is there, or one of {forms}")
    return None, spec


def _is_there(path: Path) -> bool:
    return is_file(path) or is_folder(path)


def _captions_file(path: Path, form: Form | None) -> Path:
    """Find the one captions file where a folder is named."""
    if not is_folder(path):
        if not is_file(path):
            raise InputError(f"{path}: there is no such file or folder; expected the captions of a data set")
        return path
    patterns = _ANY if form is None else _PATTERNS[form]
    for folder in (path, path / "annotations"):
        found = sorted(_matching(folder, patterns))
        if len(found) == 1:
            return found[0]
        if found:
            names = named([file.relative_to(path) for file in found], shown=10)
            raise InputError(f"{path}/ holds {names}: name the file of captions that is meant, such as {found[0]}")
    raise InputError(
        f"{path}/ holds no file of captions: expected one of {', '.join(patterns)} in it or in {path}/annotations/. "
        "Name the file if it is called otherwise"
    )


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    try:
        files = [file for file in folder.iterdir() if is_file(file)] if is_folder(folder) else []
    except OSError as error:
        raise InputError(f"{folder}/ cannot be read: {error.strerror}") from error
    return (file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns))


def _read(path: Path, form: Form | None) -> tuple[Form, Any]:
    """Read a captions file, once: its form and a JSON document or a text."""
    if path.suffix == ".json" or form in (Form.COCO, Form.KARPATHY):
        document = read_json(path)
        return form or _form_of_document(document, path), document
    text = read_text(path)
    return form or _form_of_text(text, path), text


def _form_of_document(document: object, path: Path) -> Form:
    if karpathy.is_karpathy(document):
        return Form.KARPATHY
    if isinstance(document, list):
        return Form.TABLE
    if is_coco(document):
        return Form.COCO
    came = f"has the keys {named(list(document))}" if isinstance(document, dict) else f"holds {kind_of(document)}"
    raise InputError(
        f"{path} {came}: expected captions in COCO's form ('images' and 'annotations'), in Karpathy's ('images' with "
        "'sentences'), or a list of objects with 'image' and 'caption'"
    )


def _form_of_text(text: str, path: Path) -> Form:
    if path.suffix == ".jsonl":
        return Form.TABLE
    if path.name.endswith((".token", ".token.txt")):
        return Form.FLICKR30K
    if path.suffix in _TABLES:
        return Form.FLICKR30K if flickr.has_bars(text) else Form.TABLE
    raise InputError(
        f"{path}: a file of that name may be anything; expected .json, .jsonl, .csv, .tsv or .token, or the form in "
        f"front, such as {Form.FLICKR30K}:{path}"
    )


def _listed(path: Path, form: Form, content: Any, split: str | None) -> tuple[list[Listed], Sequence[str]]:  # noqa: ANN401
    """List the images of what was read, and the folders in which they may lie."""
    if form is Form.COCO:
        return read_coco(path, content), coco_folders(path)
    if form is Form.KARPATHY:
        return karpathy.read_karpathy(path, content, split), karpathy.FOLDERS
    if form is Form.FLICKR30K:
        if not isinstance(content, str):
            raise InputError(f"{path} is JSON: expected {FORMS[form]}. Leave {form}: out to have it looked at")
        return flickr.read_flickr(path, content), flickr.FOLDERS
    return table.read_rows(path, _rows(path, content)), table.FOLDERS


def _rows(path: Path, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401 - JSON or text
    if isinstance(content, str):
        return table.json_rows(path, content) if path.suffix == ".jsonl" else table.csv_rows(path, content)
    if not isinstance(content, list):
        raise InputError(f"{path} holds {kind_of(content)}: expected a list of objects with 'image' and 'caption'")
    return table.list_rows(path, content)
