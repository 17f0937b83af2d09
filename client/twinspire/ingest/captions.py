"""What is said about images: a file of captions and metadata (COCO, CSV, TSV, JSON), or a text beside each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, TypeAlias

from twinspire._arguments import as_list, as_member
from twinspire.errors import InputError
from twinspire.ingest.discovery import absolute
from twinspire.ingest.metadata import BOOKKEEPING_KEYS, FILE_KEYS, same_value
from twinspire.ingest.tables import EXPECTED, rows_of
from twinspire.stores.items import metadata_as_json

SIDECAR_SUFFIX = ".txt"
_MOST_BYTES = 64 * 2**10  # of a sidecar


class CaptionSource(Protocol):
    """Gives the captions of images."""

    def of(self, picture: Path) -> Sequence[str]:
        """Return the captions of the image at this absolute path; none where nothing is said about it."""

    def metadata_of(self, picture: Path) -> Mapping[str, Any]:
        """Return what else is said about it, a JSON object; empty where nothing is."""


class _Told(NamedTuple):
    captions: list[str]
    metadata: dict[str, Any]


_Key: TypeAlias = Path | tuple[str, ...]


class OnConflict(StrEnum):
    """What becomes of a column whose key is also read from the image's file, such as `name`, `width` or `year`."""

    TABLE = "table"  # its value is stored, the file's is not
    FILE = "file"  # the file's value is stored, the column is left out
    PREFIX = "prefix"  # both are stored, the column as table_name

    @classmethod
    def parse(cls, name: str) -> OnConflict:
        """Return the member of this name. Raises `InputError` that names all."""
        return as_member(name, cls, "what counts where a column and the picture's file have the same key")


class Captions:
    """The captions of a file, and the metadata that stands beside them.

    `said` maps images, as the file names them, to captions, `metadata` to a JSON object. A name is a path, from the
    file's folder where an image is there, else the end of a path: `a.jpg` and `2024/a.jpg` both name
    `/photos/2024/a.jpg`. Where several names fit an image the longest counts. `on_conflict` decides about keys that
    are read from the image's file too; `bytes`, `modified`, `inode`, `fused_captions` and `overridden`, by which
    changed files are recognised, are at least prefixed. Raises `InputError` for metadata that contradicts itself or is
    no JSON.
    """

    def __init__(
        self,
        said: Mapping[str, Sequence[str]],
        *,
        folder: Path,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
        on_conflict: OnConflict | str = OnConflict.TABLE,
    ) -> None:
        self._folder = folder
        self._on_conflict = OnConflict.parse(on_conflict)
        self._told: dict[_Key, _Told] = {}  # by the whole path or by its end
        self._keys: dict[str, _Key] = {}
        self._longest = 0
        for name, captions in said.items():
            self._tell(name, as_list(captions, "captions"), {}, where=name)
        for name, values in (metadata or {}).items():
            self._tell(name, (), values, where=name)

    @classmethod
    def read(cls, path: Path, *, on_conflict: OnConflict | str = OnConflict.TABLE) -> Captions:
        """Read a file of captions: COCO's JSON, or CSV, TSV, JSONL or a JSON list with a column for the image.

        Beside it stands a caption, or other columns, which are the image's metadata, or both: values of JSON as they
        are; in CSV and TSV numbers, true and false are read as such, an empty cell says nothing. Rows of the same
        image are put together. Raises `InputError` that names the place.
        """
        read = cls({}, folder=absolute(path).parent, on_conflict=on_conflict)
        says_something = False
        for row in rows_of(path, _text_of(path)):
            if "\0" in row.picture:
                raise InputError(f"{row.where}: no file can be called {row.picture!r}")
            words = dict.fromkeys(caption.strip() for caption in row.captions if caption.strip())
            says_something |= bool(words or row.metadata)
            read._tell(row.picture, words, row.metadata, where=row.where, once=True)
        if not says_something:
            raise InputError(f"{path} has no captions in it, nor anything else about a picture: {EXPECTED}")
        return read

    @property
    def has_words(self) -> bool:
        """Whether there is a caption, and not metadata alone."""
        return any(told.captions for told in self._told.values())

    def names(self, picture: Path) -> bool:
        """Whether the file says anything about the image at this absolute path."""
        return self._about(picture) is not None

    def of(self, picture: Path) -> Sequence[str]:
        """Return the captions of the image at this absolute path."""
        return told.captions if (told := self._about(picture)) is not None else ()

    def metadata_of(self, picture: Path) -> Mapping[str, Any]:
        """Return the metadata of the image at this absolute path; empty where there is none."""
        return told.metadata if (told := self._about(picture)) is not None else {}

    def _about(self, picture: Path) -> _Told | None:
        if (exact := self._told.get(picture)) is not None:
            return exact
        parts = picture.parts
        for length in range(min(self._longest, len(parts)), 0, -1):
            if (told := self._told.get(parts[-length:])) is not None:
                return told
        return None

    def _tell(
        self, name: str, captions: Iterable[str], metadata: Mapping[str, Any], *, where: str, once: bool = False
    ) -> None:
        """Put to an image what is said about it at a place; with `once` no caption twice."""
        told = self._told.setdefault(self._key(name), _Told([], {}))
        told.captions.extend([caption for caption in captions if not once or caption not in told.captions])
        for key, value in metadata.items():
            stored = self._stored_as(key)
            if stored is None:
                continue
            try:
                metadata_as_json({key: value})
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            if stored in told.metadata and not same_value(told.metadata[stored], value):
                raise InputError(
                    f"{where} says {key} = {value!r} of {name}, but {told.metadata[stored]!r} came before: expected "
                    "one value for a picture"
                )
            told.metadata[stored] = value

    def _stored_as(self, key: str) -> str | None:
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
    """Captions in text files beside the images: `cat.jpg.txt`, else `cat.txt`, a caption on each line."""

    def of(self, picture: Path) -> Sequence[str]:
        """Return the lines of the image's text file. Raises `InputError` for one that cannot be read."""
        for sidecar in sidecars_of(picture):
            if sidecar.is_file():
                if sidecar.stat().st_size > _MOST_BYTES:
                    raise InputError(f"its caption file {sidecar.name} is larger than {_MOST_BYTES // 1024} KiB")
                return [line.strip() for line in _text_of(sidecar).splitlines() if line.strip()]
        return ()

    def metadata_of(self, picture: Path) -> Mapping[str, Any]:  # noqa: ARG002 - as of every source
        """Return nothing: a text file has captions alone."""
        return {}


def sidecars_of(picture: Path) -> tuple[Path, Path]:
    """Return where an image's text file may be, the one that counts first."""
    return picture.with_name(picture.name + SIDECAR_SUFFIX), picture.with_suffix(SIDECAR_SUFFIX)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: expected captions (COCO's JSON, CSV, TSV or JSONL)") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): expected a text file; convert it") from error
    except OSError as error:
        raise InputError(f"the captions {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # lone surrogates or a NUL in the name
        raise InputError(f"the captions {str(path)!r} cannot be read: {error}") from error
