"""Writer lock: an exclusive flock on the index folder itself and on a file in it.

The folder's lock holds even if somebody deletes the file as "stale"; the file names the writing process, for the error
message alone. The kernel releases both when the process ends, however it ends, so a crash leaves no stale lock.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from twinspire.errors import IndexLockedError, IndexStoreError
from twinspire.index import disk
from twinspire.index.forks import HeldFiles

LOCK_NAME = "writer.lock"


class WriterLock:
    """The lock of the one writer, held from construction until `release`.

    Raises `IndexLockedError` at once if another process, or another `Index` of this one, holds it, and `OSError` if the
    folder or the lock file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pid = os.getpid()
        self._held = HeldFiles()
        self._paths: dict[Path, int] = {}
        try:
            self._lock(folder, os.O_RDONLY | os.O_DIRECTORY)
            fd = self._lock(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
            os.truncate(fd, 0)
            os.pwrite(fd, str(self._pid).encode(), 0)
        except BlockingIOError as error:
            self.release()
            raise IndexLockedError(
                f"the index {folder} is being written to by process {_holder(folder)}. An index has one writer at a "
                "time: wait until it is done, or open the index for reading"
            ) from error
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Raise `IndexStoreError` if the lock is lost: after a fork, or when a file was replaced."""
        if os.getpid() != self._pid:
            raise IndexStoreError(
                f"the index {self._folder} was opened for writing by process {self._pid}, from which this one was "
                "forked: only that one can change it. Open it in the process that writes"
            )
        for path, fd in self._paths.items():
            held, now = os.fstat(fd), None
            with suppress(FileNotFoundError, NotADirectoryError):
                now = path.stat()
            if now is None or (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino):
                raise IndexStoreError(
                    f"{path} was {'removed' if now is None else 'replaced'} while the index was open for writing: "
                    "the lock that keeps other writers out is lost, and nothing more is written. Close the index "
                    "and open it again"
                )

    def release(self) -> None:
        """Release the lock; does nothing the second time."""
        if os.getpid() == self._pid:
            for fd in self._paths.values():
                fcntl.flock(fd, fcntl.LOCK_UN)  # closing alone leaves it to a copy in a forked child
        self._paths = {}
        self._held.close()

    def _lock(self, path: Path, flags: int) -> int:
        fd = self._held.add(os.open(path, flags | os.O_CLOEXEC, 0o666))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._paths[path] = fd
        return fd


def _holder(folder: Path) -> str:
    with suppress(OSError), os.fdopen(disk.open_file(folder / LOCK_NAME), "rb") as file:
        return file.read(32).decode(errors="replace") or "unknown"
    return "unknown"
