"""The vector file: a header of 64 bytes, then vectors of float32 or float16 one after the other, by row.

The file is append-only up to the committed number of rows, which the catalogue holds together with a checksum;
what lies behind it is the tail of a change that never finished, and means nothing. `compact` writes a new file,
of the next number, without the rows that no item has any more.

The checksum is CRC-32 of all committed bytes behind the header. It is a running one: from its value and the
appended bytes alone comes the next value, so an `add` reads nothing back and a reader that already checked n
vectors checks only the new ones. (The state of a cryptographic hash cannot be stored that way, and nobody is
kept out here: what has to be found is a flipped bit, a lost page, a mixed-up file.) It finds every burst of
up to 32 bits, and misses one other damage in 4 billion; zlib's runs at 3.2 GB/s, so 1 million vectors of 256
numbers are checked in a third of a second.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
import zlib
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError
from twinspire.index import disk
from twinspire.index.error_mapping import RESTORE

CHECKSUM_OF_NOTHING = 0
HEADER_BYTES = 64  # a cache line, so that vectors lie aligned in a mapping
Vectors = NDArray[np.floating[Any]]
"""(N, D) float32 or float16, as they lie in the file."""
_HEADER = struct.Struct("<8sII8s")  # magic, version of the layout, dim, dtype as numpy writes it
_MAGIC = b"TWINSPVF"
_LAYOUT = 1
_NAME = re.compile(r"vectors-(\d+)\.f(?:32|16)")
_BLOCK_BYTES = 8 << 20


class VectorType(StrEnum):
    """How the numbers of a vector are stored. float16 takes half the room and rounds to 11 bits."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type, little-endian."""
        return np.dtype("<f4" if self is VectorType.FLOAT32 else "<f2")


class LostVectorFileError(IndexStoreError):
    """The vector file that the catalogue names is not there."""


def vectors_name(number: int, dtype: VectorType) -> str:
    """Return the name of the vector file of this number, counted from 1."""
    return f"vectors-{number}.{'f32' if dtype is VectorType.FLOAT32 else 'f16'}"


def vectors_number(name: str) -> int | None:
    """Return the number of the vector file of this name, None for the name of another file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def header(dim: int, dtype: VectorType = VectorType.FLOAT32) -> bytes:
    """Return the 64 bytes that start a file of vectors of `dim` numbers."""
    return _HEADER.pack(_MAGIC, _LAYOUT, dim, dtype.numpy.str.encode()).ljust(HEADER_BYTES, b"\0")


def as_stored(vectors: Vectors, dtype: VectorType = VectorType.FLOAT32) -> memoryview:
    """Return `vectors` (N, D) as the bytes that the file holds for them."""
    return np.ascontiguousarray(vectors, dtype=dtype.numpy).reshape(-1).view(np.uint8).data


def checksum_of(data: memoryview | bytes, before: int = CHECKSUM_OF_NOTHING) -> int:
    """Return the running checksum after `data`, given the one before it."""
    return zlib.crc32(data, before)


def create_vector_file(path: Path, dim: int, dtype: VectorType) -> None:
    """Write the file of no vectors and wait until the disk has it; its name in the folder is not synced."""
    fd = disk.create(path)
    try:
        disk.write_at(fd, header(dim, dtype), 0)
        disk.sync(fd)
    finally:
        os.close(fd)


class Mapping:
    """The first vectors of a vector file as memory, which stays valid when the file is closed or removed.

    Where the file is truncated, the kernel ends the process at the next access (SIGBUS), so `check` goes before each
    use. It cannot help where another process truncates the file in the middle of one; behind the use it tells zeros,
    which the rest of the last page would give, from vectors.
    """

    def __init__(self, fd: int, path: Path, dtype: np.dtype[Any], count: int, dim: int) -> None:
        self._path = path
        self._bytes = HEADER_BYTES + count * dim * dtype.itemsize
        try:
            self._memory = mmap.mmap(fd, self._bytes, access=mmap.ACCESS_READ)  # duplicates the descriptor
        except ValueError as error:  # longer than the file
            raise self._truncated(os.fstat(fd).st_size) from error
        values = np.frombuffer(self._memory, dtype, count * dim, HEADER_BYTES)
        self.vectors: Vectors = values.reshape(count, dim)

    def check(self) -> None:
        """Raise `IndexStoreError` where the file is shorter than the mapping by now."""
        size = self._memory.size()
        if size < self._bytes:
            raise self._truncated(size)

    def _truncated(self, size: int) -> IndexStoreError:
        return IndexStoreError(
            f"{self._path} was truncated: {self._bytes} bytes of it are committed, it has {size}. {RESTORE}"
        )


class VectorFile:
    """One open vector file. Raises `IndexStoreError` for damage, else `OSError`."""

    def __init__(self, path: Path, dim: int, dtype: VectorType, *, writable: bool = False) -> None:
        self._path = path
        self._dim = dim
        self._dtype = dtype.numpy
        self._row_bytes = dim * self._dtype.itemsize
        try:
            self._fd = disk.open_file(self._path, writable=writable)
        except FileNotFoundError as error:
            raise LostVectorFileError(
                f"the index {path.parent} has lost its vector file {path.name}. {RESTORE}"
            ) from error
        try:
            if os.pread(self._fd, HEADER_BYTES, 0) != header(dim, dtype):
                raise IndexStoreError(
                    f"{self._path} does not start as a file of {dim}-dimensional {dtype} vectors does: "
                    f"it is damaged or belongs to another index. {RESTORE}"
                )
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self._path.name

    def verify(self, start: int, before: int, end: int, after: int) -> None:
        """Check that rows `start` to `end` are there and turn checksum `before` into `after`."""
        first, last = self._offset(start), self._offset(end)
        size = os.fstat(self._fd).st_size
        if size < last:
            raise IndexStoreError(
                f"{self._path} is too short: the catalogue counts {end} vectors, which take {last} bytes; "
                f"the file has {size}. {RESTORE}"
            )
        checksum = before
        # Read, not mapped: a failing disk then is an OSError and not the signal SIGBUS.
        for offset in range(first, last, _BLOCK_BYTES):
            checksum = checksum_of(self._read(min(_BLOCK_BYTES, last - offset), offset), checksum)
        if checksum != after:
            raise IndexStoreError(
                f"{self._path} is damaged: vectors {start} to {end - 1} give checksum {checksum:08x}, "
                f"the catalogue says {after:08x}. {RESTORE}"
            )

    def mapped(self, count: int) -> Mapping:
        """Return a read-only mapping of the first `count` vectors, (count, D), float32 or float16."""
        return Mapping(self._fd, self._path, self._dtype, count, self._dim)

    def append(self, count: int, data: memoryview) -> None:
        """Write `data`, made by `as_stored`, behind the first `count` vectors; wait until the disk has it."""
        size = os.fstat(self._fd).st_size
        if size < self._offset(count):
            raise IndexStoreError(
                f"{self._path} was truncated: {self._offset(count)} bytes of it are committed, it has {size}. {RESTORE}"
            )
        self.write(count, data)
        self.sync()

    def write(self, count: int, data: memoryview) -> None:
        """Write `data`, made by `as_stored`, behind the first `count` vectors; no waiting."""
        disk.write_at(self._fd, data, self._offset(count))

    def sync(self) -> None:
        """Wait until the disk has what was written."""
        disk.sync(self._fd)

    def truncate(self, count: int) -> None:
        """Cut off whatever lies behind the first `count` vectors."""
        if os.fstat(self._fd).st_size > self._offset(count):
            disk.truncate(self._fd, self._offset(count))

    def size_bytes(self) -> int:
        """Return the size of the file."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; mappings of it stay valid. Does nothing the second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _offset(self, count: int) -> int:
        return HEADER_BYTES + count * self._row_bytes

    def _read(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise OSError(errno.EIO, f"{self._path} became shorter while it was read")
        return data
