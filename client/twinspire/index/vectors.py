"""The vector file: a header of 64 bytes, then vectors of float32 or float16, row by row.

A row is the vector of an item or, in an index with several vectors an item, all of them. The file is append-only up to
the committed number of rows, which the catalogue holds together with a checksum; bytes behind them are the tail of an
unfinished change and ignored. `compact` writes a new file, of the next number, without the rows that have no item any
more.

The checksum is the CRC-32 of all committed bytes behind the header, a running one: its value and the appended bytes
give the next value, so an `add` reads nothing back and a reader that has checked n vectors checks only the new ones.
(The state of a cryptographic hash cannot be stored that way. It would keep out attackers; here a flipped bit, a lost
page or a swapped file has to be found.) It finds every burst of up to 32 bits, and misses one in 4 billion of other
damages; zlib computes it at 3.2 GB/s, so 1 million vectors of 256 numbers are checked in a third of a second.
"""

from __future__ import annotations

import errno
import math
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
HEADER_BYTES = 64  # a cache line, so that vectors are aligned in a mapping
Vectors = NDArray[np.floating[Any]]
"""(N, D), or (N, Q, D) of Q vectors an item, float32 or float16, as in the file."""
# Magic, version of the layout, dim, dtype as numpy writes it, vectors an item (0 is one).
_HEADER = struct.Struct("<8sII8sI")
_MAGIC = b"TWINSPVF"
_LAYOUT = 1
_NAME = re.compile(r"vectors-(\d+)\.f(?:32|16)")
_BLOCK_BYTES = 8 << 20


class VectorType(StrEnum):
    """Type of the stored numbers. float16 takes half the room and rounds to 11 bits."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type, little-endian."""
        return np.dtype("<f4" if self is VectorType.FLOAT32 else "<f2")


class LostVectorFileError(IndexStoreError):
    """The vector file that the catalogue names does not exist."""


def vectors_name(number: int, dtype: VectorType) -> str:
    """Return the name of the vector file of this number, counted from 1."""
    return f"vectors-{number}.{'f32' if dtype is VectorType.FLOAT32 else 'f16'}"


def vectors_number(name: str) -> int | None:
    """Return the number in the name of a vector file, None for another name."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def header(dim: int, dtype: VectorType = VectorType.FLOAT32, vectors_per_item: int = 1) -> bytes:
    """Return the 64 bytes at the start of a file of vectors of `dim` numbers."""
    several = 0 if vectors_per_item == 1 else vectors_per_item
    return _HEADER.pack(_MAGIC, _LAYOUT, dim, dtype.numpy.str.encode(), several).ljust(HEADER_BYTES, b"\0")


def as_stored(vectors: Vectors, dtype: VectorType = VectorType.FLOAT32) -> memoryview:
    """Return `vectors` as bytes of the file."""
    return np.ascontiguousarray(vectors, dtype=dtype.numpy).reshape(-1).view(np.uint8).data


def checksum_of(data: memoryview | bytes, before: int = CHECKSUM_OF_NOTHING) -> int:
    """Return the running checksum after `data`, from the one before it."""
    return zlib.crc32(data, before)


def create_vector_file(path: Path, dim: int, dtype: VectorType, vectors_per_item: int = 1) -> None:
    """Write and sync a file without vectors; the folder is not synced."""
    fd = disk.create(path)
    try:
        disk.write_at(fd, header(dim, dtype, vectors_per_item), 0)
        disk.sync(fd)
    finally:
        os.close(fd)


class VectorMapping:
    """Memory mapping of the first vectors of a vector file, valid also when the file is closed or removed.

    If the file is truncated, the kernel kills the process at the next access (SIGBUS), so call `check` before each use.
    That does not help if another process truncates the file during the use. Call it after the use too: the rest of the
    last page reads as zeros, which are no vectors.
    """

    def __init__(self, fd: int, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._path = path
        numbers = math.prod(shape)
        self._bytes = HEADER_BYTES + numbers * dtype.itemsize
        try:
            self._memory = mmap.mmap(fd, self._bytes, access=mmap.ACCESS_READ)  # duplicates the descriptor
        except ValueError as error:  # longer than the file
            raise self._truncated(os.fstat(fd).st_size) from error
        values = np.frombuffer(self._memory, dtype, numbers, HEADER_BYTES)
        self.vectors: Vectors = values.reshape(shape)

    def check(self) -> None:
        """Raise `IndexStoreError` if the file has become shorter than the mapping."""
        size = self._memory.size()
        if size < self._bytes:
            raise self._truncated(size)

    def _truncated(self, size: int) -> IndexStoreError:
        return IndexStoreError(
            f"{self._path} was truncated to {size} bytes: {self._bytes} bytes are committed. {RESTORE}"
        )


class VectorFile:
    """One open vector file. Raises `IndexStoreError` for damage, else `OSError`."""

    def __init__(
        self, path: Path, dim: int, dtype: VectorType, vectors_per_item: int = 1, *, writable: bool = False
    ) -> None:
        self._path = path
        self._shape = (dim,) if vectors_per_item == 1 else (vectors_per_item, dim)  # of a row
        self._dtype = dtype.numpy
        self._row_bytes = math.prod(self._shape) * self._dtype.itemsize
        try:
            self._fd = disk.open_file(self._path, writable=writable)
        except FileNotFoundError as error:
            raise LostVectorFileError(
                f"the index {path.parent} has lost its vector file {path.name}. {RESTORE}"
            ) from error
        try:
            if os.pread(self._fd, HEADER_BYTES, 0) != header(dim, dtype, vectors_per_item):
                raise IndexStoreError(
                    f"{self._path} has another header than a file of {dim}-dimensional {dtype} vectors: it is "
                    f"damaged or belongs to another index. {RESTORE}"
                )
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The name of the file."""
        return self._path.name

    def verify(self, start: int, before: int, end: int, after: int) -> None:
        """Check that the file has the rows from `start` to `end`, and that they turn checksum `before` into `after`."""
        first, last = self._offset(start), self._offset(end)
        size = os.fstat(self._fd).st_size
        if size < last:
            raise IndexStoreError(
                f"{self._path} is too short: {end} vectors are committed, which take {last} bytes, and the file has "
                f"{size}. {RESTORE}"
            )
        checksum = before
        # Read, not mapped: a failing disk then raises OSError instead of SIGBUS.
        for offset in range(first, last, _BLOCK_BYTES):
            checksum = checksum_of(self._read(min(_BLOCK_BYTES, last - offset), offset), checksum)
        if checksum != after:
            raise IndexStoreError(
                f"{self._path} is damaged: vectors {start} to {end - 1} give checksum {checksum:08x}, "
                f"the catalogue says {after:08x}. {RESTORE}"
            )

    def mapped(self, count: int) -> VectorMapping:
        """Return a read-only mapping of the first `count` rows, float32 or float16."""
        return VectorMapping(self._fd, self._path, self._dtype, (count, *self._shape))

    def append(self, count: int, data: memoryview) -> None:
        """Write and sync `data`, made by `as_stored`, behind the first `count` vectors."""
        size = os.fstat(self._fd).st_size
        if size < self._offset(count):
            raise IndexStoreError(
                f"{self._path} was truncated to {size} bytes: {self._offset(count)} bytes are committed. {RESTORE}"
            )
        self.write(count, data)
        self.sync()

    def write(self, count: int, data: memoryview) -> None:
        """Write `data`, made by `as_stored`, behind the first `count` vectors, without a sync."""
        disk.write_at(self._fd, data, self._offset(count))

    def sync(self) -> None:
        """Wait until the disk has the written data."""
        disk.sync(self._fd)

    def truncate(self, count: int) -> None:
        """Truncate the file behind the first `count` vectors."""
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
