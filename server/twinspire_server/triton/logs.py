"""Temporary logs of servers without `log_file`, of which the newest few are kept."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

_PREFIX, _SUFFIX = "twinspire-triton-", ".log"
_KEPT = 5
"""How many logs of servers that failed are kept."""


def new_log() -> Path:
    """Make a log and remove all but the newest five of those that no server writes to any more."""
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX)
    os.close(handle)
    _prune(Path(name))
    return Path(name)


def claim(log: IO[bytes]) -> None:
    """Mark a log as written to, until every process that inherits the open file has ended."""
    with suppress(OSError):  # some network file systems know no locks
        fcntl.flock(log, fcntl.LOCK_SH)


def _prune(new: Path) -> None:
    times = {}
    for log in new.parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            if log != new and log.stat().st_uid == os.geteuid():
                times[log] = log.stat().st_mtime_ns
    for log in sorted(times, key=lambda log: times[log])[:-_KEPT]:
        with suppress(OSError), log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: a server writes to it
            log.unlink()
