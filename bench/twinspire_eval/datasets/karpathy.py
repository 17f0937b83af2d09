"""The splits that Karpathy and Fei-Fei (2015, arXiv:1412.2306) made of COCO, Flickr30k and Flickr8k: one JSON each."""

from __future__ import annotations

from pathlib import Path

from twinspire.errors import InputError
from twinspire_eval.datasets.listing import ALL, Listed, caption_of, entries, field, named

_EXPECTED = "expected Karpathy's form: an object whose 'images' have 'filename', 'split' and 'sentences'"


def is_karpathy(document: object) -> bool:
    """Whether a JSON document has the outline of such a file."""
    images = document.get("images") if isinstance(document, dict) else None
    return bool(isinstance(images, list) and images and isinstance(images[0], dict) and "sentences" in images[0])


def read_karpathy(path: Path, document: object, split: str | None) -> list[Listed]:
    """List the images of such a file. Raises InputError where no split is chosen: most of it is training data."""
    if not isinstance(document, dict) or "images" not in document:
        came = f"has the keys {named(list(document))}" if isinstance(document, dict) else "holds no object"
        raise InputError(f"{path} {came}: {_EXPECTED}")
    listed = []
    for position, image in enumerate(entries(document, "images", path)):
        where = f"{path}: image {position}"
        name = field(image, "filename", str, where)
        folder = field(image, "filepath", str, where) if "filepath" in image else ""
        sentences = field(image, "sentences", list, where)
        if not sentences or not all(isinstance(sentence, dict) for sentence in sentences):
            raise InputError(f"{where}: 'sentences' must be a list of objects with 'raw', at least one")
        said = tuple(
            caption_of(field(sentence, "raw", str, f"{where}, sentence {number}"), None, f"{where}, sentence {number}")
            for number, sentence in enumerate(sentences)
        )
        files = (f"{folder}/{name}", name) if folder else (name,)
        listed.append(Listed(name, files, said, field(image, "split", str, where)))
    if split is None:
        splits = ", ".join(sorted({str(entry.split) for entry in listed}))
        raise InputError(
            f"{path} has the splits {splits}: choose one (--split), since models are trained on some; results are "
            f"published on test, {ALL} takes every picture"
        )
    return listed


FOLDERS = [
    *("images", "Images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset"),
    *("../images", "../flickr30k-images", "../flickr30k_images", ".."),
]
"""Where the images may lie, seen from the file's folder."""
