"""Captions in COCO's form: https://cocodataset.org/#format-data, "Image Captioning"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twinspire.errors import InputError
from twinspire_eval.datasets.captioned import Caption
from twinspire_eval.datasets.listing import Listed, caption_of, entries, field, kind_of, named

_EXPECTED = "expected COCO's captions: an object with the lists 'images' and 'annotations'"


def is_coco(document: object) -> bool:
    """Whether a JSON document has the outline of COCO's captions."""
    return isinstance(document, dict) and "images" in document and "annotations" in document


def read_coco(path: Path, document: object) -> list[Listed]:
    """List the images of a captions file. An annotation may name its `language`, as those of drawn scenes do."""
    if not isinstance(document, dict):
        raise InputError(f"{path} holds {kind_of(document)}: {_EXPECTED}; without coco: in front it is looked at")
    if not is_coco(document):
        raise InputError(f"{path} has the keys {named(list(document))}: {_EXPECTED}")
    images = entries(document, "images", path)
    files: dict[int | str, str] = {}
    for position, image in enumerate(images):
        where = f"{path}: image {position}"
        name = field(image, "id", (int, str), where)
        if name in files:
            raise InputError(f"{where} has the id {name} of an earlier one: expected each id once")
        files[name] = field(image, "file_name", str, where)
    captions: dict[int | str, list[Caption]] = {name: [] for name in files}
    for position, annotation in enumerate(entries(document, "annotations", path)):
        owner, caption = _annotation(annotation, f"{path}: annotation {position}")
        if owner not in captions:
            raise InputError(
                f"{path}: annotation {position} is of the image {owner!r}, which 'images' does not list: expected one "
                "of its ids; numbers and texts differ"
            )
        captions[owner].append(caption)
    silent = [name for name, said in captions.items() if not said]
    if silent:
        raise InputError(
            f"{path}: {len(silent):,} of {len(files):,} images have no caption, such as the one with the id "
            f"{silent[0]}: expected at least one each; take those images out"
        )
    return [Listed(str(name), (file,), tuple(captions[name])) for name, file in files.items()]


def coco_folders(path: Path) -> list[str]:
    """Where the images may lie, seen from the file's folder: also as COCO's archives are unpacked."""
    part = path.stem.rpartition("_")[2]  # captions_val2017.json has the images of val2017
    below = ["images", part, f"images/{part}"]
    return [*below, "..", *(f"../{folder}" for folder in below)]


def _annotation(annotation: dict[str, Any], where: str) -> tuple[int | str, Caption]:
    owner = field(annotation, "image_id", (int, str), where)
    if "caption" not in annotation and {"bbox", "segmentation", "keypoints"} & set(annotation):
        raise InputError(f"{where} outlines an object: expected a 'caption'. Take COCO's file captions_*.json instead")
    language = field(annotation, "language", str, where) if annotation.get("language") is not None else None
    return owner, caption_of(field(annotation, "caption", str, where), language, where)
