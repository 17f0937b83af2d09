"""Snapshot files: written through the index's file layer with a running checksum, and checked before they are read."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from twinspire.errors import IndexStoreError
from twinspire.index import disk
from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.family import IndexSpec

_BLOCK_BYTES = 8 << 20
_PREFIX, _SUFFIX = "ann-", ".faiss"


def snapshot_name(number: int) -> str:
    """Return the name of the snapshot file of this number."""
    return f"{_PREFIX}{number}{_SUFFIX}"


def snapshot_number(name: str) -> int | None:
    """Return the number of the snapshot file of this name, None for the name of another file."""
    number = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return int(number) if number.isdecimal() and name == snapshot_name(int(number)) else None


def write_snapshot(ann: AnnIndex, path: Path) -> int:
    """Write `ann` to a new file, sync the file and its folder, and return the file's CRC-32.

    Raises `OSError`, and leaves no file then.
    """
    fd = disk.create(path)
    try:
        sink = _ChecksummedFile(fd)
        ann.save(sink)
        sink.flush()
        disk.sync(fd)
        disk.sync_folder(path.parent)
    except BaseException:
        disk.remove(path)
        raise
    finally:
        os.close(fd)
    return sink.checksum


def read_snapshot(path: Path, spec: IndexSpec, rows: int, checksum: int, vectors_per_item: int = 1) -> AnnIndex:
    """Check a snapshot file of `rows` rows, then read it.

    Raises `IndexStoreError` where it is missing or damaged, and what `IndexFamily.require` raises.
    """
    problem = snapshot_problem(path, checksum)
    if problem is not None:
        raise IndexStoreError(problem)
    ann = AnnIndex.read(path, spec, vectors_per_item=vectors_per_item)
    if len(ann) != rows:
        raise IndexStoreError(f"{path} covers {len(ann)} rows: expected {rows}, as the catalogue says")
    return ann


def snapshot_problem(path: Path, checksum: int) -> str | None:
    """Return what is wrong with a snapshot file, None where it is whole."""
    found = 0
    try:
        with os.fdopen(disk.open_file(path), "rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                found = zlib.crc32(block, found)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    if found != checksum:
        return f"{path} is damaged: its checksum is {found:08x}, expected {checksum:08x}"
    return None


class _ChecksummedFile:
    """File that is written in blocks, with the CRC-32 of its content."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0
        self._pieces: list[bytes] = []
        self._pending_bytes = 0
        self.checksum = 0

    def write(self, piece: bytes, /) -> int:
        """Take a piece, and write what has come together where it is a block or more."""
        self._pieces.append(bytes(piece))
        self._pending_bytes += len(piece)
        if self._pending_bytes >= _BLOCK_BYTES:
            self.flush()
        return len(piece)

    def flush(self) -> None:
        """Write the rest."""
        data = b"".join(self._pieces)
        disk.write_at(self._fd, data, self._offset)
        self.checksum = zlib.crc32(data, self.checksum)
        self._offset += len(data)
        self._pieces, self._pending_bytes = [], 0
