"""Test sets of captioned images, each in the folder and the files in which it is distributed.

| name | files, default split |
|---|---|
| `coco-cn` | `coco-cn-version1805v1.1/`: `imageid.human-written-caption.txt`, `coco-cn_test.txt`; `test` |
| `flickr30k-cn` | `flickr30k_cn_test.txt`, or Chinese-CLIP's `test_imgs.tsv` and `test_texts.jsonl`; `test` |
| `muge` | Chinese-CLIP's `valid_imgs.tsv` and `valid_texts.jsonl`; `valid`, the `test` split has no answers |
| `xflickrco` | IGLUE's `annotations/LANGUAGE/test.jsonl`; `test` |
| `xm3600` | Crossmodal-3600's `captions.jsonl` and `images/`; `test`, or `first`: one caption each |

COCO's and Flickr30k's own images are searched for in and beside the folder of the captions.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.ingest.files import read_text
from twinspire.ingest.tables import json_lines, listed, type_of
from twinspire_eval.datasets.base64_images import Base64Images
from twinspire_eval.datasets.caption_files import CaptionedFile
from twinspire_eval.datasets.captioned import (
    Caption,
    CaptionedImages,
    DatasetOptions,
    LazyImages,
    sample_positions,
    sampled_name,
)
from twinspire_eval.datasets.published_sizes import as_test_set

_COCO = ("train2014", "val2014", "images/train2014", "images/val2014", "../train2014", "../val2014", "coco/val2014")
_FLICKR30K = ("flickr30k-images", "flickr30k_images", "../flickr30k-images", "../flickr30k_images")
_NUMBERED = re.compile(r"(?P<image>[^\t#]+)#\d+\t(?P<caption>.*\S.*)")


class PublishedDataset(ABC):
    """A test set in the form in which it is distributed, written `NAME:FOLDER`."""

    name: ClassVar[str]
    description: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    """The default one first."""
    folders: ClassVar[tuple[str, ...]] = ()
    """Where its images may be, seen from the folder of the captions."""

    @property
    def usage(self) -> str:
        """How it is written and what it is."""
        return f"{self.name}:FOLDER, {self.description}"

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Return whether a folder holds this test set, by the names of its files."""

    @abstractmethod
    def read(self, folder: Path, split: str) -> list[CaptionedFile]:
        """Return the images of a split with their captions. Raises InputError that names the place."""

    def open(self, argument: str, options: DatasetOptions) -> CaptionedImages:
        """Open the test set in a folder."""
        if not argument:
            raise InputError(f"the data set '{self.name}:' names no folder: expected {self.usage}")
        folder = Path(os.path.expanduser(argument))  # noqa: PTH111 - shells leave muge:~/x as it is; never raises
        split = options.split or self.splits[0]
        if split not in self.splits:
            raise InputError(f"{self.name} has no split {split!r}: expected {' or '.join(self.splits)}")
        if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for names that no file can have
            raise InputError(f"{folder} is no folder: expected {self.usage}")
        listed_images = self.read(folder, split)
        positions = sample_positions(len(listed_images), options.limit, seed=options.seed)
        sampled = [listed_images[position] for position in positions]
        if not any(image.captions for image in sampled):
            raise InputError(f"{folder}/: no image of the split {split} has a caption: expected some")
        whole = len(sampled) == len(listed_images)
        data = CaptionedImages(
            sampled_name(f"{self.name}, {split}", len(sampled), len(listed_images), seed=options.seed),
            tuple(image.id for image in sampled),
            self.images(folder, sampled, options.images),
            tuple(tuple(image.captions) for image in sampled),
            may_lack_captions=True,
        )
        test_set = self.test_set(split)
        return as_test_set(data, test_set) if whole and test_set is not None else data

    def test_set(self, split: str) -> str | None:
        """Return the name under which figures of a split are published, None where none are."""
        return self.name if split == self.splits[0] else None

    def images(self, folder: Path, listed_images: Sequence[CaptionedFile], given: Path | None) -> Sequence[ImageItem]:
        """Return the images' files, each in the first folder that has it: `given`, or one of `folders`."""
        if given is not None and not os.path.isdir(given):  # noqa: PTH112
            raise InputError(f"there is no folder {given}: expected the folder with the images of {folder}/")
        places = [given] if given is not None else [folder, *(folder / name for name in ("images", *self.folders))]
        found = [_first_file(places, image.files) for image in listed_images]
        missing = [image for image, file in zip(listed_images, found, strict=True) if file is None]
        if missing:
            searched = listed([os.path.normpath(place) for place in places], at_most=12)
            raise InputError(
                f"{folder}/: {len(missing):,} of {len(found):,} images were not found, such as "
                f"{missing[0].files[0]!r}; searched {searched}. "
                "Name the folder that holds them (--images)"
            )
        return [file for file in found if file is not None]


class CocoCn(PublishedDataset):
    """COCO-CN, version 201805: captions that people wrote in Chinese, on images of COCO 2014."""

    name = "coco-cn"
    description = "COCO-CN: imageid.human-written-caption.txt and coco-cn_test.txt"
    splits = ("test", "val", "train")
    folders = _COCO

    def recognises(self, folder: Path) -> bool:
        """Return whether the captions' file is there."""
        return (folder / "imageid.human-written-caption.txt").is_file()

    def read(self, folder: Path, split: str) -> list[CaptionedFile]:
        """Return the images that the split's file lists, in its order."""
        part = folder / f"coco-cn_{split}.txt"
        ids = [line.strip() for line in read_text(part, "list of images").splitlines() if line.strip()]
        images = {name: CaptionedFile(name, (f"{name}.jpg",), split) for name in ids}
        for _, name, text in _numbered_lines(folder / "imageid.human-written-caption.txt"):
            if name in images:
                images[name].captions.append(Caption(text, "zh"))
        _check_captions(part, images.values())
        return list(images.values())


class Base64Dataset(PublishedDataset):
    """A data set in the form of Chinese-CLIP: images in base64 in a TSV, texts with the ids of their images in a JSONL.

    A text may belong to several images. Source: Chinese-CLIP's README, "Data Preprocessing".
    """

    def recognises(self, folder: Path) -> bool:
        """Return whether the texts are there and the folder is called as the data set."""
        return (folder / f"{self.splits[0]}_texts.jsonl").is_file() and _letters(self.name) in _letters(folder.name)

    def read(self, folder: Path, split: str) -> list[CaptionedFile]:
        """Return the images of the TSV, in its order."""
        stored = Base64Images(folder / f"{split}_imgs.tsv")
        images = {name: CaptionedFile(name, (), split) for name in stored.ids}
        path = folder / f"{split}_texts.jsonl"
        for where, row in json_lines(path, read_text(path, "texts")):
            text, ids = _value(row, "text", str, where), _value(row, "image_ids", list, where)
            if not ids:
                raise InputError(
                    f"{where}: 'image_ids' is empty: expected a split with answers, such as {self.splits[0]}; that of "
                    "MUGE's test is not public"
                )
            key = str(_value(row, "text_id", (int, str), where)) if len(ids) > 1 else None
            for name in dict.fromkeys(map(str, ids)):
                if name not in images:
                    raise InputError(f"{where} names the image {name}: expected one of {stored.path}")
                images[name].captions.append(Caption(text, "zh", key))
        return list(images.values())

    def images(self, folder: Path, listed_images: Sequence[CaptionedFile], given: Path | None) -> Sequence[ImageItem]:
        """Return the images of the TSV, each decoded from base64 when it is accessed."""
        split = listed_images[0].split
        if given is not None:
            raise InputError(f"{self.name} has its images in {split}_imgs.tsv, got the folder {given}: leave it out")
        stored = Base64Images(folder / f"{split}_imgs.tsv")
        return LazyImages(len(listed_images), lambda place: stored.read(listed_images[place].id))


class Muge(Base64Dataset):
    """MUGE, products of a shop with queries in Chinese; a query belongs to several images."""

    name = "muge"
    description = "MUGE: valid_imgs.tsv and valid_texts.jsonl"
    splits = ("valid", "train", "test")


class Flickr30kCn(Base64Dataset):
    """Flickr30k-CN: captions of Flickr30k's test split that people translated into Chinese."""

    name = "flickr30k-cn"
    description = "Flickr30k-CN: flickr30k_cn_test.txt, or test_imgs.tsv and test_texts.jsonl"
    splits = ("test", "valid", "train")
    folders = _FLICKR30K

    def recognises(self, folder: Path) -> bool:
        """Return whether the captions are there in one of the two forms."""
        return self._captions(folder, "test").is_file() or super().recognises(folder)

    def read(self, folder: Path, split: str) -> list[CaptionedFile]:
        """Return the images in the order of the captions, or of the TSV."""
        path = self._captions(folder, split)
        if not path.is_file():
            return super().read(folder, split)
        images: dict[str, CaptionedFile] = {}
        for _, name, text in _numbered_lines(path):
            images.setdefault(name, CaptionedFile(name, (name,), split)).captions.append(Caption(text, "zh"))
        return list(images.values())

    def images(self, folder: Path, listed_images: Sequence[CaptionedFile], given: Path | None) -> Sequence[ImageItem]:
        """Return Flickr30k's files, or the images of the TSV."""
        if self._captions(folder, str(listed_images[0].split)).is_file():
            return PublishedDataset.images(self, folder, listed_images, given)
        return super().images(folder, listed_images, given)

    @staticmethod
    def _captions(folder: Path, split: str) -> Path:
        return folder / f"flickr30k_cn_{split}.txt"


class XFlickrCo(PublishedDataset):
    """xFlickr&CO of IGLUE: 1,000 images each of Flickr30k and COCO, with a caption in each of eight languages."""

    name = "xflickrco"
    description = "xFlickr&CO: annotations/LANGUAGE/test.jsonl"
    splits = ("test",)
    folders = (*_FLICKR30K, *_COCO)

    def recognises(self, folder: Path) -> bool:
        """Return whether the captions are there in some language."""
        return any(folder.glob("annotations/*/test.jsonl"))

    def read(self, folder: Path, split: str) -> list[CaptionedFile]:
        """Return the images in the order of the first language, with the captions of all."""
        images: dict[str, CaptionedFile] = {}
        paths = sorted(folder.glob(f"annotations/*/{split}.jsonl"))
        if not paths:
            raise InputError(f"{folder}/ holds no captions: expected {self.usage}")
        for path in paths:
            for where, row in json_lines(path, read_text(path, "captions")):
                name = str(_value(row, "id", (int, str), where))
                file = _value(row, "img_path", str, where)
                image = images.setdefault(name, CaptionedFile(name, (file,), split))
                for text in _texts(_value(row, "sentences", list, where), where):
                    image.captions.append(Caption(text, path.parent.name))
        return list(images.values())


class Crossmodal3600(PublishedDataset):
    """Crossmodal-3600: 3,600 images from around the world with captions in 36 languages."""

    name = "xm3600"
    description = "Crossmodal-3600: captions.jsonl and images/"
    splits = ("test", "first")

    def recognises(self, folder: Path) -> bool:
        """Return whether the captions are there, by the first line."""
        path = folder / "captions.jsonl"
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return b'"image/key"' in file.readline()

    def read(self, folder: Path, split: str) -> list[CaptionedFile]:
        """Return the images in the order of the file, with all captions or the first one in each language."""
        images = []
        path = folder / "captions.jsonl"
        for where, row in json_lines(path, read_text(path, "captions")):
            name = _value(row, "image/key", str, where)
            image = CaptionedFile(name, (f"{name}.jpg",), split)
            for language, entry in row.items():
                if isinstance(entry, dict):
                    texts = _texts(_value(entry, "caption", list, f"{where}: {language!r}"), where)
                    image.captions += [Caption(text, language) for text in (texts[:1] if split == "first" else texts)]
            images.append(image)
        return images

    def test_set(self, split: str) -> str | None:
        """Return the name for all captions or for the first ones."""
        return "xm3600-first" if split == "first" else self.name


PUBLISHED_DATASETS: tuple[PublishedDataset, ...] = (CocoCn(), Flickr30kCn(), Muge(), XFlickrCo(), Crossmodal3600())


def recognise(folder: Path) -> PublishedDataset | None:
    """Return the published test set that a folder holds, None where it holds none of them."""
    return next((dataset for dataset in PUBLISHED_DATASETS if dataset.recognises(folder)), None)


def _numbered_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Give the place, image and caption of each line `IMAGE#0`, a tab and a caption."""
    for number, line in enumerate(read_text(path, "captions file").split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            if (match := _NUMBERED.fullmatch(line.rstrip("\r"))) is None:
                raise InputError(f"{where} is {line[:60]!r}: expected IMAGE#0, a tab and a caption")
            yield where, match["image"], match["caption"].strip()


def _check_captions(path: Path, images: Iterable[CaptionedFile]) -> None:
    if without := [image.id for image in images if not image.captions]:
        raise InputError(f"{path}: {len(without):,} of its images have no caption, such as {without[0]}: expected some")


def _value(row: object, key: str, types: type | tuple[type, ...], where: str) -> Any:  # noqa: ANN401 - of the types
    if not isinstance(row, dict) or key not in row:
        found = listed(list(row)) if isinstance(row, dict) else type_of(row)
        raise InputError(f"{where} has {found}: expected an object with {key!r}")
    if not isinstance(row[key], types) or isinstance(row[key], bool) or row[key] == "":
        raise InputError(f"{where}: {key!r} holds {type_of(row[key]) if row[key] != '' else 'an empty text'}")
    return row[key]


def _texts(texts: list[Any], where: str) -> list[str]:
    if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise InputError(f"{where}: a caption is {type_of(wrong[0])} without words: expected a text")
    return [text.strip() for text in texts]


def _first_file(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    for place in places:
        for name in names:
            if os.path.isfile(place / name):  # noqa: PTH113 - Path.is_file raises for names that no file can have
                return place / name
    return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
