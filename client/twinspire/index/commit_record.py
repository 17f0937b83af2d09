"""File beside the catalogue that records the last acknowledged change.

SQLite silently drops a damaged commit of its log and all commits after it: after a crash the catalogue is then at an
earlier generation than this file says. It is written after each commit and not synced, so that it costs microseconds: a
process that is killed leaves it exact, a power cut may leave an older one. The kernel's boot id tells the two apart.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twinspire.index import disk

RECORD_NAME = "acknowledged"
_RECORD = struct.Struct("<8sQQ16sI")  # magic, generation, rows of the vector file, boot id, CRC-32 of the rest
_MAGIC = b"TWINSPAK"
_UNKNOWN_BOOT = bytes(16)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The last change known to be acknowledged; `exact` if there cannot have been another since."""

    generation: int
    rows: int
    exact: bool


class CommitRecord:
    """The record, open for writing. Raises `OSError`."""

    def __init__(self, folder: Path) -> None:
        self._boot = boot_id()
        self._fd = os.open(folder / RECORD_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)

    def write(self, generation: int, rows: int) -> None:
        """Record that the change to this generation and this number of rows is acknowledged."""
        disk.write_at(self._fd, packed(generation, rows, self._boot), 0)

    def close(self) -> None:
        """Close the file; does nothing the second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def packed(generation: int, rows: int, boot: bytes = _UNKNOWN_BOOT) -> bytes:
    """Return the bytes of a record."""
    body = _RECORD.pack(_MAGIC, generation, rows, boot, 0)[:-4]
    return body + struct.pack("<I", zlib.crc32(body))


def boot_id() -> bytes:
    """Return the 16 random bytes by which the kernel identifies a boot, zeros if it has none."""
    with suppress(OSError, ValueError):
        boot = bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
        if len(boot) == len(_UNKNOWN_BOOT):
            return boot
    return _UNKNOWN_BOOT


def read_record(folder: Path) -> Acknowledged | None:
    """Return the record of an index, None if it has no intact one."""
    try:
        with os.fdopen(disk.open_file(folder / RECORD_NAME), "rb") as file:
            data = file.read(_RECORD.size)
    except OSError:
        return None
    if len(data) != _RECORD.size:
        return None
    _, generation, rows, boot, _ = _RECORD.unpack(data)
    if data != packed(generation, rows, boot):
        return None
    return Acknowledged(generation, rows, exact=boot == boot_id() != _UNKNOWN_BOOT)
