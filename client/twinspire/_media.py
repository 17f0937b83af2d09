"""Access to images and sounds that callers pass: paths, encoded bytes and binary file objects, within limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from twinspire.errors import ImageError, ItemError


class ByteLimits(Protocol):
    """Limits with the most bytes of an encoded item."""

    @property
    def max_bytes(self) -> int:
        """The most bytes."""


@dataclass(frozen=True)
class Origin:
    """An item's position in the caller's list, its name, and the class of its errors."""

    position: int
    name: str
    error_class: type[ItemError] = ImageError

    def error(self, cause: str) -> ItemError:
        """Return the error for this item."""
        return self.error_class(self.position, self.name, cause)


def origin_of(item: Any, position: int, error_class: type[ItemError] = ImageError) -> Origin:  # noqa: ANN401
    """Return an item's position and name: its path or file name where it has one, else its type."""
    if isinstance(item, (str, os.PathLike)):
        printable = os.fsdecode(item).encode(errors="backslashreplace").decode()  # names need not be UTF-8
        return Origin(position, printable, error_class)
    name = getattr(item, "name", None) or getattr(item, "filename", None)
    return Origin(position, name if isinstance(name, str) else type(item).__name__, error_class)


@contextmanager
def opened_path(path: Path, limits: ByteLimits, origin: Origin) -> Iterator[BinaryIO]:
    """Open a regular file of at most `max_bytes`. Raises the item's error; never blocks on a pipe or device."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise origin.error(f"a folder: expected the file of one {origin.error_class.noun}")
        if not stat.S_ISREG(status.st_mode):
            raise origin.error("not a regular file")
        _check_bytes(status.st_size, limits, origin)
        if status.st_size == 0:
            raise _empty(origin)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise origin.error("no such file") from None
    except OSError as error:
        raise origin.error(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise origin.error(f"not a usable path: {error}") from error


def begin_encoded(item: Any, limits: ByteLimits, origin: Origin) -> Path | bytes | None:  # noqa: ANN401
    """Return a path as it is, and the bytes of encoded data or of a binary file object; None for anything else.

    File objects are read here, in the caller's thread. Raises the item's error.
    """
    if isinstance(item, (str, os.PathLike)):
        if not os.fspath(item):
            raise origin.error("empty path")
        return Path(os.fsdecode(item))
    if isinstance(item, (bytes, bytearray, memoryview)):
        return take_bytes(item, limits, origin)
    return read_file_object(item, limits, origin) if hasattr(item, "read") else None


def read_path(path: Path, limits: ByteLimits, origin: Origin) -> bytes:
    """Read a regular file of at most `max_bytes`. Raises what `opened_path` raises."""
    with opened_path(path, limits, origin) as file:
        data = file.read(limits.max_bytes + 1)
    return _whole(data, limits, origin)


def read_file_object(file: Any, limits: ByteLimits, origin: Origin) -> bytes:  # noqa: ANN401 - duck-typed
    """Read a binary file object from its position to its end, at most `max_bytes`. Raises the item's error."""
    parts: list[bytes] = []
    size_bytes = 0
    while size_bytes <= limits.max_bytes:
        try:
            part = file.read(limits.max_bytes + 1 - size_bytes)
        except (OSError, ValueError) as error:
            raise origin.error(f"cannot be read: {error}") from error
        if not isinstance(part, bytes):
            raise origin.error(f"returns {type(part).__name__} when read: expected bytes, open it in mode 'rb'")
        if not part:
            break
        parts.append(part)
        size_bytes += len(part)
    return _whole(b"".join(parts), limits, origin)


def take_bytes(data: bytes | bytearray | memoryview, limits: ByteLimits, origin: Origin) -> bytes:
    """Return an encoded item that is in memory. Raises the item's error where it is empty or too large."""
    _check_bytes(memoryview(data).nbytes, limits, origin)
    return _whole(bytes(data), limits, origin)


def size_refusal(size_bytes: int, limits: ByteLimits) -> str | None:
    """Return why an encoded item of this size is refused, None where it is within the limit."""
    if size_bytes <= limits.max_bytes:
        return None
    return (
        f"{size_bytes / 2**20:.1f} MiB, above the limit of {limits.max_bytes / 2**20:g}. "
        f"If you trust the file, raise the limit with {type(limits).__name__}(max_bytes=...)"
    )


def _check_bytes(size_bytes: int, limits: ByteLimits, origin: Origin) -> None:
    if (refusal := size_refusal(size_bytes, limits)) is not None:
        raise origin.error(refusal)


def _whole(data: bytes, limits: ByteLimits, origin: Origin) -> bytes:
    _check_bytes(len(data), limits, origin)
    if not data:
        raise _empty(origin)
    return data


def _empty(origin: Origin) -> ItemError:
    return origin.error(f"empty: expected an encoded {origin.error_class.noun}")
