"""The file layer: whatever the index writes, syncs, renames or removes by itself goes through here.

Only SQLite writes besides, into its own files. So a test can stand in for these functions, forget what was not
synced, and look at what a power cut would leave. They are called through the module (`disk.sync(...)`).

What the order of calls has to make sure of: the bytes of a file count once `sync` returned, a name in a folder
once `sync_folder` returned, a transaction once `commit` returned. All raise `OSError`; `commit` `sqlite3.Error`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from pathlib import Path


def open_file(path: Path, *, writable: bool = False) -> int:
    """Open a file that is there; return its descriptor. Refuses a pipe or device, which could wait for ever."""
    require_regular(path, path.stat())
    fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        require_regular(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def require_regular(path: Path, status: os.stat_result) -> None:
    """Raise `OSError` where `path`, which has this status, is something else than a file."""
    if not stat.S_ISREG(status.st_mode):
        what = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise OSError(errno.EINVAL, f"{path} is a {what}, expected a file: see what put it there, and remove it")


def create(path: Path) -> int:
    """Make an empty file, in the place of one that may be there; return its descriptor, for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def write_at(fd: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def truncate(fd: int, length: int) -> None:
    """Cut a file off behind `length` bytes."""
    os.ftruncate(fd, length)


def sync(fd: int) -> None:
    """Wait until the disk has the bytes and the length of a file."""
    os.fsync(fd)


def sync_file(path: Path) -> None:
    """Do the same for a closed file, one that a library wrote."""
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
    """Give a file or folder another name; an empty folder of that name gives way."""
    old.rename(new)


def remove(path: Path) -> None:
    """Remove a file; one that is gone already is fine."""
    path.unlink(missing_ok=True)


def commit(connection: sqlite3.Connection) -> None:
    """End a transaction: with `synchronous = FULL` it is on the disk when this returns."""
    connection.execute("COMMIT")
