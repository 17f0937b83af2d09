"""Image and sound files: reading one with its hash and status, and comparing it with its item."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import is_utf8
from twinspire._media import size_refusal
from twinspire._times import iso_utc
from twinspire.errors import InputError
from twinspire.ingest.kinds import FILE_KINDS, FileKinds
from twinspire.stores import ItemKind, StoredItem

WRITTEN_TO = "is being written to: add it when it is complete"
"""The cause of a failure that ends by itself."""

HELD_BYTES = 64 * 2**20
"""Files up to this size are kept in memory from reading to decoding; larger ones are opened again."""


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file as it was when it was read. `content` is its bytes, or its path where it exceeds `HELD_BYTES`."""

    path: Path
    kind: ItemKind
    content: bytes | Path
    content_hash: str  # SHA-256 of the bytes, in hex
    size_bytes: int
    modified: str | float  # ISO 8601, UTC, to the microsecond; see `modified_of`
    inode: int  # tells files of equal size and time apart that were swapped

    @property
    def held_bytes(self) -> int:
        """The memory that its content takes."""
        return len(self.content) if isinstance(self.content, bytes) else 0


def read_file(path: Path, kinds: FileKinds) -> ReadFile:
    """Read a regular file; never blocks on a pipe or device. A file above the limits is refused without being read.

    Raises `OSError`, `UnicodeEncodeError` for a name that is not UTF-8, and `InputError` for what is not a regular
    file, for one that is too large and for one that is being written to.
    """
    str(path).encode()  # uris are text: fail here rather than after the work
    kind, status = kinds.of_file(path), path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        raise InputError("is not a regular file")
    if (refusal := size_refusal(status.st_size, kinds.limits[kind])) is not None:
        raise InputError(refusal)
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        content: bytes | Path
        if before.st_size > HELD_BYTES:
            digest, content = hashlib.file_digest(file, "sha256"), path
            size_bytes = file.tell()
        else:
            content = file.read()
            digest, size_bytes = hashlib.sha256(content), len(content)
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns) or size_bytes != after.st_size:
        raise InputError(WRITTEN_TO)
    return ReadFile(path, kind, content, digest.hexdigest(), size_bytes, modified_of(after), after.st_ino)


def read_text(path: Path, what: str) -> str:
    """Return a UTF-8 file without its byte order mark. Raises `InputError`, in which the file is called `what`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): expected a text file; convert it") from error
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # lone surrogates or a NUL in the name
        raise InputError(f"the {what} {str(path)!r} cannot be read: {error}") from error


def modified_of(status: os.stat_result) -> str | float:
    """Return when a file was last written to in ISO 8601, UTC; outside of the years 1 to 9999 in seconds since 1970."""
    seconds = round(status.st_mtime_ns / 1e9, 6)
    try:
        return iso_utc(seconds)
    except (ValueError, OverflowError):
        return seconds


def cause_of(error: OSError | UnicodeEncodeError | InputError) -> str:
    """Return why a file could not be read."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8: rename it"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return str(error)


def files_of(items: Iterable[StoredItem]) -> list[StoredItem]:
    """Return the items that are files, images and sounds, among some."""
    return [item for item in items if item.kind in FILE_KINDS]


def looks_the_same(item: StoredItem) -> bool:
    """Whether an item's file has the size, modification time and inode that the item records."""
    try:
        status = Path(item.uri).stat()
    except (OSError, ValueError):
        return False
    known = tuple(item.metadata.get(key) for key in ("bytes", "modified", "inode"))
    return known == (status.st_size, modified_of(status), status.st_ino)


def is_missing(path: Path) -> bool:
    """Whether nothing exists at a path; false where permissions hide it."""
    return _status_of(path) is None


def has_vanished(path: Path) -> bool:
    """Whether nothing exists at a path, and no dangling link either."""
    return is_missing(path) and not os.path.lexists(path)


def is_gone(path: Path) -> bool:
    """Whether no file exists at a path; false where it is unknown."""
    status = _status_of(path)
    return status is None or stat.S_ISDIR(status.st_mode)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder or a link to one; false where it is unknown."""
    status = _status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def has_its_content(item: StoredItem, kinds: FileKinds) -> bool:
    """Whether an item's file exists and has the content of the item; true where it is unknown."""
    path = Path(item.uri)
    if is_gone(path):
        return False
    if looks_the_same(item):
        return True
    try:
        return read_file(path, kinds).content_hash == item.content_hash
    except (OSError, UnicodeEncodeError, InputError):
        return True


def is_text(path: Path) -> bool:
    """Whether UTF-8 can encode a path, as uris require."""
    return is_utf8(str(path))


_UNKNOWN = os.stat_result([0] * 10)  # neither a folder nor a file


def _status_of(path: Path) -> os.stat_result | None:
    """Return the status of a path: None where nothing exists, `_UNKNOWN` where it cannot be read."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError:
        return _UNKNOWN
