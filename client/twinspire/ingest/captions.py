"""Sources of captions and metadata of images: a captions file, or text files beside the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeAlias

from twinspire._arguments import as_list, as_member
from twinspire.errors import InputError
from twinspire.ingest.caption_files import read_caption_file
from twinspire.ingest.discovery import absolute
from twinspire.ingest.files import read_text
from twinspire.ingest.metadata import BOOKKEEPING_KEYS, FILE_KEYS, same_value
from twinspire.stores.items import metadata_as_json

SIDECAR_SUFFIX = ".txt"
_MAX_SIDECAR_BYTES = 64 * 2**10


class CaptionSource(Protocol):
    """Gives captions and metadata of images."""

    def of(self, image: Path) -> Sequence[str]:
        """Return the captions of the image at this absolute path; none where the source has none."""

    def metadata_of(self, image: Path) -> Mapping[str, Any]:
        """Return the metadata of the image, a JSON object; empty where the source has none."""


class _Entry(NamedTuple):
    captions: list[str]
    metadata: dict[str, Any]


_Key: TypeAlias = Path | tuple[str, ...]  # a whole path, or the parts of its end


class OnConflict(StrEnum):
    """How to store a column whose key is also read from the image's file, such as `name`, `width` or `year`."""

    TABLE = "table"  # store the column's value instead of the file's
    FILE = "file"  # store the file's value and leave the column out
    PREFIX = "prefix"  # store both, the column as table_KEY

    @classmethod
    def parse(cls, name: str) -> OnConflict:
        """Return the member of this name. Raises `InputError` that names all."""
        return as_member(name, cls, "on_conflict, how to store a column whose key the image's file has too")


class Captions:
    """Captions and metadata of images, by the names of their files.

    `captions` maps names to captions, `metadata` maps names to JSON objects. A name is a path from `folder` where that
    file exists, else the end of a path: `a.jpg` and `2024/a.jpg` both match `/photos/2024/a.jpg`, and the longest
    match counts. `on_conflict` decides about keys that are read from the image's file too; `bytes`, `modified`,
    `inode`, `fused_captions` and `overridden`, by which changed files are recognised, are always prefixed or left out.
    Raises `InputError` for metadata that contradicts itself or is not JSON.
    """

    def __init__(
        self,
        captions: Mapping[str, Sequence[str]],
        *,
        folder: Path,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        on_conflict: OnConflict | str = OnConflict.TABLE,
    ) -> None:
        self._folder = folder
        self._on_conflict = OnConflict.parse(on_conflict)
        self._entries: dict[_Key, _Entry] = {}
        self._keys: dict[str, _Key] = {}
        self._longest = 0
        for name, texts in captions.items():
            self._add(name, as_list(texts, "captions"), {}, where=name)
        for name, values in (metadata or {}).items():
            self._add(name, (), values, where=name)

    @classmethod
    def read(cls, path: Path, *, on_conflict: OnConflict | str = OnConflict.TABLE) -> Captions:
        """Read a captions file: COCO's or Karpathy's JSON, Flickr30k's lines, or a table (CSV, TSV, JSONL, JSON list).

        A table has a column for the image, and one for its caption or others, which are its metadata, or both. Values
        of JSON stay as they are; in CSV and TSV numbers, true and false are read as such and empty cells are left out.
        Rows of the same image are merged. Raises `InputError` that names the place.
        """
        read = cls({}, folder=absolute(path).parent, on_conflict=on_conflict)
        for row in read_caption_file(path)[1]:
            if "\0" in row.image:
                raise InputError(f"{row.where}: no file can be called {row.image!r}")
            texts = dict.fromkeys(caption.strip() for caption in row.captions if caption.strip())
            if texts or row.metadata:
                read._add(row.image, texts, row.metadata, where=row.where, once=True)
        if not read._entries:
            raise InputError(f"{path} has no captions and no metadata of any image: expected a row for each image")
        return read

    @property
    def has_captions(self) -> bool:
        """Whether any image has a caption, and not metadata alone."""
        return any(entry.captions for entry in self._entries.values())

    def mentions(self, image: Path) -> bool:
        """Whether there is a caption or metadata of the image at this absolute path."""
        return self._find(image) is not None

    def of(self, image: Path) -> Sequence[str]:
        """Return the captions of the image at this absolute path; none where there are none."""
        return entry.captions if (entry := self._find(image)) is not None else ()

    def metadata_of(self, image: Path) -> Mapping[str, Any]:
        """Return the metadata of the image at this absolute path; empty where there is none."""
        return entry.metadata if (entry := self._find(image)) is not None else {}

    def _find(self, image: Path) -> _Entry | None:
        if (exact := self._entries.get(image)) is not None:
            return exact
        parts = image.parts
        for length in range(min(self._longest, len(parts)), 0, -1):
            if (entry := self._entries.get(parts[-length:])) is not None:
                return entry
        return None

    def _add(
        self, name: str, captions: Iterable[str], metadata: Mapping[str, Any], *, where: str, once: bool = False
    ) -> None:
        """Add captions and metadata to an image's entry; with `once` no caption that it has already."""
        entry = self._entries.setdefault(self._key(name), _Entry([], {}))
        entry.captions.extend([caption for caption in captions if not once or caption not in entry.captions])
        for key, value in metadata.items():
            stored = self._stored_key(key)
            if stored is None:
                continue
            try:
                metadata_as_json({key: value})
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            if stored in entry.metadata and not same_value(entry.metadata[stored], value):
                raise InputError(
                    f"{where} has {key} = {value!r} for {name}, an earlier row has {entry.metadata[stored]!r}: "
                    "expected one value for an image"
                )
            entry.metadata[stored] = value

    def _stored_key(self, key: str) -> str | None:
        """Return the key of metadata that a column becomes; None where it is left out."""
        if key not in FILE_KEYS:
            return key
        if self._on_conflict is OnConflict.FILE:
            return None
        return f"table_{key}" if self._on_conflict is OnConflict.PREFIX or key in BOOKKEEPING_KEYS else key

    def _key(self, name: str) -> _Key:
        if (key := self._keys.get(name)) is None:
            path = absolute(self._folder / name)
            if Path(name).is_absolute() or path.is_file():
                key = path
            else:
                key = PurePosixPath(name.replace("\\", "/")).parts
                self._longest = max(self._longest, len(key))
            self._keys[name] = key
        return key


class Sidecars:
    """Captions in text files beside the images: `cat.jpg.txt`, else `cat.txt`, one caption a line."""

    def of(self, image: Path) -> Sequence[str]:
        """Return the lines of the image's text file. Raises `InputError` for one that cannot be read."""
        for sidecar in sidecars_of(image):
            if sidecar.is_file():
                if sidecar.stat().st_size > _MAX_SIDECAR_BYTES:
                    limit = f"{_MAX_SIDECAR_BYTES // 1024} KiB"
                    raise InputError(f"its captions file {sidecar.name} is larger than {limit}: expected a few lines")
                return [line.strip() for line in read_text(sidecar, "captions file").splitlines() if line.strip()]
        return ()

    def metadata_of(self, image: Path) -> Mapping[str, Any]:  # noqa: ARG002 - of every source
        """Return nothing: a text file has captions alone."""
        return {}


def sidecars_of(image: Path) -> tuple[Path, Path]:
    """Return the paths at which an image's text file may be, the one that takes precedence first."""
    return image.with_name(image.name + SIDECAR_SUFFIX), image.with_suffix(SIDECAR_SUFFIX)
