"""A record beside the catalogue of the last change that was acknowledged.

SQLite drops a damaged commit of its log, and all behind it, without a word: after a crash the catalogue is then at an
earlier generation than this file says. It is written after each commit and not synced, so that it costs microseconds: a
process that is killed leaves it exact, a power cut may leave an older one.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from twinspire.index import disk

RECORD_NAME = "acknowledged"
_RECORD = struct.Struct("<8sQQI")  # magic, generation, rows of the vector file, CRC-32 of the rest
_MAGIC = b"TWINSPAK"


class CommitRecord:
    """The record, open for writing. Raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / RECORD_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)

    def write(self, generation: int, rows: int) -> None:
        """Say that this is acknowledged."""
        disk.write_at(self._fd, packed(generation, rows), 0)

    def close(self) -> None:
        """Close the file; does nothing the second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def packed(generation: int, rows: int) -> bytes:
    """Return the bytes of a record."""
    body = _RECORD.pack(_MAGIC, generation, rows, 0)[:-4]
    return body + struct.pack("<I", zlib.crc32(body))


def read_record(folder: Path) -> tuple[int, int] | None:
    """Return generation and rows of the last change known to be acknowledged; None where no intact record is there."""
    try:
        fd = os.open(folder / RECORD_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        data = os.pread(fd, _RECORD.size, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(data) != _RECORD.size:
        return None
    _, generation, rows, _ = _RECORD.unpack(data)
    return (generation, rows) if data == packed(generation, rows) else None
