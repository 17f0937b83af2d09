"""Data sets from captions files: COCO's, Karpathy's, Flickr30k's, and tables."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from twinspire.errors import InputError
from twinspire.ingest.caption_files import SUFFIXES, CaptionForm, read_caption_file
from twinspire.ingest.tables import CaptionRow, listed, type_of
from twinspire_eval.datasets.captioned import (
    Caption,
    CaptionedImages,
    DatasetOptions,
    first_repeated,
    sample_positions,
    sampled_name,
)
from twinspire_eval.datasets.published_sizes import as_test_set

ALL = "all"
"""The split that takes every image."""
_KARPATHY_TEST_SETS = {"dataset_coco.json": "coco", "dataset_flickr30k.json": "flickr30k"}
_PROBED = 20  # images that are looked for in a folder to see whether it is theirs


@dataclass(frozen=True)
class CaptionFileDataset:
    """Data sets of one form of captions files, written `FORM:PATH`; PATH is a file, or a folder with one such file.

    `patterns` match the names of such files, `folders` are where their images may be, seen from the file's folder;
    `{part}` stands for the end of the file's name: `captions_val2017.json` has the images of `val2017`.
    """

    form: CaptionForm
    description: str
    patterns: tuple[str, ...]
    folders: tuple[str, ...]

    @property
    def name(self) -> str:
        """The word before the colon."""
        return self.form.value

    @property
    def usage(self) -> str:
        """How it is written and what it is."""
        return f"{self.name}:PATH, {self.description}"

    def open(self, argument: str, options: DatasetOptions) -> CaptionedImages:
        """Open the captions file at a path."""
        if not argument:
            raise InputError(f"the data set '{self.name}:' names no path: expected {self.usage}")
        return open_captions(_user_path(argument), self.form, options)


CAPTION_FILE_DATASETS = {
    dataset.form: dataset
    for dataset in (
        CaptionFileDataset(
            CaptionForm.COCO,
            "captions in COCO's form",
            ("*captions*.json",),
            ("images", "{part}", "images/{part}", "..", "../images", "../{part}", "../images/{part}"),
        ),
        CaptionFileDataset(
            CaptionForm.KARPATHY,
            "dataset_coco.json or dataset_flickr30k.json",
            ("dataset_*.json", "dataset.json"),
            (
                *("images", "Images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset"),
                *("../images", "../flickr30k-images", "../flickr30k_images", ".."),
            ),
        ),
        CaptionFileDataset(
            CaptionForm.FLICKR30K,
            "results_20130124.token or results.csv",
            ("*.token", "*.token.txt", "results*.csv"),
            (
                *("flickr30k-images", "flickr30k_images", "images", "Images", "Flicker8k_Dataset"),
                *("flickr30k_images/flickr30k_images", "../flickr30k-images", "../flickr30k_images", "../images"),
            ),
        ),
        CaptionFileDataset(
            CaptionForm.TABLE,
            "CSV, TSV, JSONL or a JSON list, with the columns image and caption",
            ("*.csv", "*.tsv", "*.jsonl", "captions.txt"),
            ("images", "Images", "pictures", "../images", "../pictures"),
        ),
    )
}


@dataclass
class CaptionedFile:
    """An image of a captions file; `files` are the names that its file may have in a folder, likeliest first."""

    id: str
    files: tuple[str, ...]
    split: str | None
    captions: list[Caption] = field(default_factory=list)


class CaptionsAlone:
    """The captions of a file of any form without its images, written `captions:PATH`: they find each other."""

    name = "captions"
    usage = "captions:PATH, a captions file of any form, to find the other captions of an image by each"

    def open(self, argument: str, options: DatasetOptions) -> CaptionedImages:
        """Open the captions file at a path."""
        if not argument:
            raise InputError(f"the data set '{self.name}:' names no path: expected {self.usage}")
        if options.images is not None:
            raise InputError(f"{self.name}: takes no folder of images, got {options.images}: leave it out")
        return open_captions(_user_path(argument), None, options, with_images=False)


def _user_path(argument: str) -> Path:
    return Path(os.path.expanduser(argument))  # noqa: PTH111 - shells leave coco:~/x as it is; never raises


def open_captions(
    path: Path, form: CaptionForm | None, options: DatasetOptions, *, with_images: bool = True
) -> CaptionedImages:
    """Open a captions file, of a form that is recognised by default, or the one such file in a folder."""
    path = _captions_file(path, form)
    form, images = list_images(path, form)
    if form is CaptionForm.KARPATHY and options.split is None and options.published_split:
        options = replace(options, split="test")
    if form is CaptionForm.KARPATHY and options.split is None:
        splits = ", ".join(sorted({str(image.split) for image in images}))
        raise InputError(
            f"{path} has the splits {splits}: choose one (--split), since models are trained on some; results are "
            f"published on test, {ALL} takes every image"
        )
    images = _of_split(images, options.split, path)
    if (repeated := first_repeated([image.id for image in images])) is not None:
        raise InputError(f"{path}: the image {repeated!r} is listed more than once: expected each once")
    sampled = [images[position] for position in sample_positions(len(images), options.limit, seed=options.seed)]
    name = f"{path.name} ({form})" + ("" if options.split in (None, ALL) else f", {options.split}")
    name += "" if with_images else ", captions alone"
    data = CaptionedImages(
        sampled_name(name, len(sampled), len(images), seed=options.seed),
        tuple(image.id for image in sampled),
        _find_images(sampled, path, CAPTION_FILE_DATASETS[form].folders, options.images) if with_images else (),
        tuple(tuple(image.captions) for image in sampled),
    )
    test_set = _KARPATHY_TEST_SETS.get(path.name) if form is CaptionForm.KARPATHY and options.split == "test" else None
    return as_test_set(data, test_set) if test_set and with_images and len(sampled) == len(images) else data


def list_images(path: Path, form: CaptionForm | None = None) -> tuple[CaptionForm, list[CaptionedFile]]:
    """Return the form of a captions file and its images with their captions, in the file's order.

    Raises InputError that names the place, also for images without a caption.
    """
    if form is None and not path.name.lower().endswith(SUFFIXES):
        raise InputError(
            f"{path}: a captions file is recognised by its name: expected one that ends in {', '.join(SUFFIXES)}, or "
            f"the form in front, such as {CaptionForm.FLICKR30K}:{path}"
        )
    form, rows = read_caption_file(path, form, strict=True)
    images: dict[Hashable, CaptionedFile] = {}
    for row in rows:
        # An image is an id in COCO's form, an entry in Karpathy's, else a file.
        key = {CaptionForm.COCO: row.id, CaptionForm.KARPATHY: row.where}.get(form, row.image)
        image = _image_of(row)
        known = images.setdefault(key, image)
        if (known.id, known.split) != (image.id, image.split):
            raise InputError(
                f"{row.where}: the image {row.image} has the id {image.id} and the split {image.split} here, in an "
                f"earlier row {known.id} and {known.split}: expected the same in all its rows"
            )
        known.captions += _captions_of(row)
    if not images:
        raise InputError(f"{path} has no rows with captions: expected one for each image or caption")
    if without := [image.id for image in images.values() if not image.captions]:
        raise InputError(
            f"{path}: {len(without):,} of {len(images):,} images have no caption, such as the one with the id "
            f"{without[0]}: expected at least one each; take those images out"
        )
    return form, list(images.values())


def _image_of(row: CaptionRow) -> CaptionedFile:
    image = row.image.strip()
    name = image if row.id in (None, "") else row.id
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise InputError(f"{row.where}: 'id' holds {type_of(name)}: expected a text or a whole number")
    files = (f"{row.folder}/{image}", image) if row.folder else (image,)
    return CaptionedFile(str(name), files, _optional_text(row, "split", row.split))


def _captions_of(row: CaptionRow) -> Iterator[Caption]:
    language = _optional_text(row, "language", row.language)
    for caption in row.captions:
        if not caption.strip():
            raise InputError(f"{row.where}: the caption is empty: expected words; add them or take it out")
        yield Caption(caption.strip(), language)


def _optional_text(row: CaptionRow, name: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{row.where}: {name!r} holds {type_of(value)}: expected a text")
    return value.strip()


def _captions_file(path: Path, form: CaptionForm | None) -> Path:
    """Return a captions file: the path itself, or the only one in a folder."""
    if not _is_folder(path):
        if not _is_file(path):
            raise InputError(f"{path}: there is no such file or folder; expected the captions of a data set")
        return path
    datasets = CAPTION_FILE_DATASETS.values() if form is None else [CAPTION_FILE_DATASETS[form]]
    patterns = dict.fromkeys(pattern for dataset in datasets for pattern in dataset.patterns)
    for folder in (path, path / "annotations"):
        found = sorted(_matching(folder, patterns))
        if len(found) == 1:
            return found[0]
        if found:
            names = listed([file.relative_to(path) for file in found], at_most=10)
            raise InputError(f"{path}/ holds {names}: name the captions file to open, such as {found[0]}")
    raise InputError(
        f"{path}/ holds no captions file: expected one of {', '.join(patterns)} in it or in {path}/annotations/. "
        "If the file has another name, give its path"
    )


def _matching(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    try:
        files = [file for file in folder.iterdir() if _is_file(file)] if _is_folder(folder) else []
    except OSError as error:
        raise InputError(f"{folder}/ cannot be read: {error.strerror}") from error
    return (file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns))


def _of_split(images: list[CaptionedFile], split: str | None, path: Path) -> list[CaptionedFile]:
    if split is None or split == ALL:
        return images
    splits = Counter(image.split for image in images if image.split is not None)
    if not splits:
        raise InputError(f"{path} names no splits, so it has no {split!r}: leave the split out")
    if split not in splits:
        counts = ", ".join(f"{name} ({count:,})" for name, count in sorted(splits.items()))
        raise InputError(f"{path} has no split {split!r}: expected {counts} or {ALL}")
    return [image for image in images if image.split == split]


def _find_images(images: Sequence[CaptionedFile], path: Path, folders: Iterable[str], given: Path | None) -> list[Path]:
    """Return the images' files: in the folder that is `given`, else in the one of `folders` that has most of them."""
    if given is not None and not _is_folder(given):
        raise InputError(f"there is no folder {given}: expected the folder with the images of {path}")
    part = path.stem.rpartition("_")[2]
    below = (Path(os.path.normpath(path.parent / folder.format(part=part))) for folder in folders)
    places = [given] if given is not None else [*dict.fromkeys([path.parent, *filter(_is_folder, below)])]
    tries = [(place, way) for place in places for way in range(max(len(image.files) for image in images))]
    probed = images[:: max(1, len(images) // _PROBED)]
    place, way = max(tries, key=lambda at: sum(_is_file(_file_of(image, *at)) for image in probed))
    files = [_file_of(image, place, way) for image in images]
    missing = [position for position, file in enumerate(files) if not _is_file(file)]
    if not missing:
        return files
    example = images[missing[0]].files[0]
    if len(missing) == len(files):
        searched = listed([f"{place}/" for place in places], at_most=12)
        raise InputError(
            f"{path}: its images were not found, such as {example!r}; searched {searched}. Name the folder that holds "
            "them (--images)"
        )
    raise InputError(
        f"{path}: {len(missing):,} of its {len(files):,} images are not in {place}/, such as {example!r}. Add them, or "
        "take them out of the captions file"
    )


def _file_of(image: CaptionedFile, place: Path, way: int) -> Path:
    return place / image.files[min(way, len(image.files) - 1)]


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises for names that no file can have


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - as above
