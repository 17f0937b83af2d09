"""The file layer: all that the index itself writes, syncs, renames or removes goes through these functions.

Only SQLite writes besides, into its own files. So tests can replace these functions to inject faults, and to drop
unsynced data as a power cut does. They are called through the module (`disk.sync(...)`).

The bytes of a file are durable once `sync` returned, a name in a folder once `sync_folder` returned, a transaction once
`commit` returned. All raise `OSError`; `commit` `sqlite3.Error`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
from pathlib import Path


def open_file(path: Path, *, writable: bool = False) -> int:
    """Open an existing file and return its descriptor. Refuse pipes and devices, which could block for ever."""
    require_regular(path, path.stat())
    fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        require_regular(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def require_regular(path: Path, status: os.stat_result) -> None:
    """Raise `OSError` if `path`, which has this status, is not a regular file."""
    if not stat.S_ISREG(status.st_mode):
        what = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise OSError(errno.EINVAL, f"{path} is a {what}, expected a file: remove it, and find out what made it")


def create(path: Path) -> int:
    """Create or empty a file and return its descriptor, for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def write_at(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def truncate(fd: int, length: int) -> None:
    """Truncate a file to `length` bytes."""
    os.ftruncate(fd, length)


def sync(fd: int) -> None:
    """Wait until the disk has the bytes and the length of a file."""
    os.fsync(fd)


def sync_file(path: Path) -> None:
    """Sync a closed file, one that a library wrote."""
    fd = open_file(path)
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder; replaces an empty folder of the new name."""
    old.rename(new)


def link(old: Path, new: Path) -> None:
    """Give a file that is not written to any more a second name; copy it where the file system has no hard links."""
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(old, new)
        sync_file(new)


def remove(path: Path) -> None:
    """Remove a file if it exists."""
    path.unlink(missing_ok=True)


def commit(connection: sqlite3.Connection) -> None:
    """Commit a transaction: with `synchronous = FULL` it is on the disk when this returns."""
    connection.execute("COMMIT")
