"""One writer: an exclusive flock on a file of the index folder.

The kernel lets go of it when the process ends, however it ends, so a crash leaves no stale lock. The process
id inside the file is for the message alone.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from twinspire.errors import IndexLockedError

LOCK_NAME = "writer.lock"


class WriterLock:
    """Holds the right to write from construction until `release`.

    Raises `IndexLockedError` at once where another process, or another `Index` of this one, holds it;
    `OSError` where the lock file cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace") or "unknown"
            self.release()
            raise IndexLockedError(
                f"the index {folder} is being written to by process {holder}. An index has one writer at a "
                "time: wait until it is done, or open the index for reading"
            ) from error
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let go of the lock; does nothing the second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
