"""Sources of changes in folders: inotify, or polling."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from twinspire.errors import InputError
from twinspire.ingest.reports import FailedImage

Signature = tuple[int, int, int] | None


@dataclass(slots=True)
class Changes:
    """Paths at which something happened; `lost` says that events were lost."""

    paths: dict[Path, None] = field(default_factory=dict)
    lost: bool = False


class ChangeSource(ABC):
    """Reports changes in folders and below from the moment it is created. A context manager.

    `complete` says whether no event can be lost. `failed` lists folders that cannot be watched; the reader empties it.
    """

    complete: bool

    def __init__(self) -> None:
        self.failed: list[FailedImage] = []

    @abstractmethod
    def wait(self, timeout_s: float) -> Changes:
        """Return the changes once there are any, or after `timeout_s`."""

    def close(self) -> None:  # noqa: B027 - optional
        """Stop watching."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def signature_of(path: Path) -> Signature:
    """Return a value that changes when a file is written to or replaced; None where nothing exists.

    That of a folder changes only when it is replaced.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode):
        return status.st_ino, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


# From <sys/inotify.h>, see inotify(7).
_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_MOVE_SELF = 0x800
_UNMOUNT, _Q_OVERFLOW, _IGNORED, _ONLYDIR, _DONT_FOLLOW, _ISDIR = 0x2000, 0x4000, 0x8000, 1 << 24, 1 << 25, 1 << 30
_MASK = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _MOVE_SELF | _ONLYDIR
_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 1 << 18
_READS = 64  # at most in a row
_GATHER_S = 0.05  # changes within this time are reported together
_COMPARE_EVERY_S = 0.5  # when polling


class Inotify(ChangeSource):
    """Changes reported by Linux's inotify. Links to folders are not followed, except for the roots.

    A folder that cannot be watched is listed in `failed`. Raises `InputError` where inotify is missing, and where its
    limits are reached at the start.
    """

    complete = False

    def __init__(self, roots: Sequence[Path]) -> None:
        super().__init__()
        self._roots = roots
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = -1
        if hasattr(self._libc, "inotify_init1"):
            self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise InputError(
                f"inotify is missing: {os.strerror(ctypes.get_errno())}. Poll instead: --poll, in Python poll=True"
            )
        self._poll = select.poll()  # select.select takes descriptors below 1,024 alone
        self._poll.register(self._descriptor, select.POLLIN)
        self._started = False
        self._folders: dict[int, Path] = {}
        self._watches: dict[Path, int] = {}
        try:
            for root in roots:
                self._watch_below(root)
        except BaseException:
            self.close()
            raise
        self._started = True

    def wait(self, timeout_s: float) -> Changes:
        """Return the events that the system reports."""
        changes = Changes()
        if self._poll.poll(1000 * timeout_s):
            time.sleep(min(_GATHER_S, timeout_s))
            with suppress(BlockingIOError):  # all is read
                for _ in range(_READS):
                    self._take(os.read(self._descriptor, _BUFFER_BYTES), changes)
        if changes.lost:
            for root in self._roots:  # folders may have been created and removed
                self._watch_below(root)
        return changes

    def _take(self, data: bytes, changes: Changes) -> None:
        start = 0
        while start < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, start)
            name = data[start + _EVENT.size : start + _EVENT.size + length].rstrip(b"\0")
            start += _EVENT.size + length
            if mask & _Q_OVERFLOW:
                changes.lost = True
                continue
            folder = self._folders.get(watch)
            if folder is None:
                continue  # of a watch that is removed
            if mask & (_IGNORED | _UNMOUNT):
                self._forget(watch)
                changes.lost |= bool(mask & _UNMOUNT) or folder in self._roots
            elif mask & _MOVE_SELF and folder in self._roots:
                self._unwatch_below(folder)
                changes.lost = True
            elif name:
                path = folder / os.fsdecode(name)
                if mask & _ISDIR and mask & _ATTRIB:
                    if path in self._watches:
                        continue
                    mask |= _CREATE  # it may be readable now
                if mask & _ISDIR and mask & _MOVED_FROM:
                    self._unwatch_below(path)
                elif mask & _ISDIR and mask & (_CREATE | _MOVED_TO):
                    self._watch_below(path)
                changes.paths[path] = None

    def _watch_below(self, folder: Path) -> None:
        """Watch a folder and those below. Each is watched before it is listed, so that no entry is missed."""
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            if self._watch(here):
                try:
                    with os.scandir(here) as entries:
                        waiting += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
                except OSError as error:
                    self._fail(here, error)

    def _watch(self, folder: Path) -> bool:
        mask = _MASK if folder in self._roots else _MASK | _DONT_FOLLOW
        watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask)
        if watch >= 0:
            self._forget(watch)  # a moved folder keeps its watch: drop its old name
            self._folders[watch] = folder
            self._watches[folder] = watch
            return True
        number = ctypes.get_errno()
        if number == errno.ENOSPC and not self._started:
            raise InputError(
                "the system's limit of watched folders is reached: raise it (sysctl fs.inotify.max_user_watches), or "
                "poll instead: --poll, in Python poll=True"
            )
        if number not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # removed or replaced since
            limit = (
                "the limit fs.inotify.max_user_watches is reached" if number == errno.ENOSPC else os.strerror(number)
            )
            self._fail(folder, OSError(number, limit))
        return False

    def _fail(self, folder: Path, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            failed = FailedImage(folder, f"cannot be watched: {error.strerror or error}")
            if failed not in self.failed:
                self.failed.append(failed)

    def _unwatch_below(self, folder: Path) -> None:
        for watch in [watch for watch, known in self._folders.items() if known == folder or folder in known.parents]:
            self._libc.inotify_rm_watch(self._descriptor, watch)
            self._forget(watch)

    def _forget(self, watch: int) -> None:
        folder = self._folders.pop(watch, None)
        if folder is not None and self._watches.get(folder) == watch:
            del self._watches[folder]

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Polling(ChangeSource):
    """Changes found by comparing the files' inodes, sizes and times twice a second, for network drives."""

    complete = True

    def __init__(self, roots: Sequence[Path]) -> None:
        super().__init__()
        self._roots = roots
        self._before = self._seen()
        self._due_s = time.monotonic() + _COMPARE_EVERY_S

    def wait(self, timeout_s: float) -> Changes:
        """Return what differs from the last comparison, once the next one is due, or nothing after `timeout_s`."""
        now_s = time.monotonic()
        if now_s + timeout_s < self._due_s:
            time.sleep(timeout_s)
            return Changes()
        time.sleep(max(self._due_s - now_s, 0))
        start_s = time.monotonic()
        seen = self._seen()
        differing = {path for path, _ in self._before.items() ^ seen.items()}
        self._before = seen
        now_s = time.monotonic()
        # At most a fifth of the time is spent on comparing.
        self._due_s = now_s + max(_COMPARE_EVERY_S, 4 * (now_s - start_s))
        return Changes(dict.fromkeys(sorted(differing)))

    def _seen(self) -> dict[Path, Signature]:
        return {
            path: signature_of(path)
            for root in self._roots
            for parent, _, names in os.walk(root)
            for path in (Path(parent, name) for name in names)
        }


def change_source(roots: Sequence[Path], *, poll: bool | None) -> ChangeSource:
    """Return a source of the changes below `roots`: by default inotify, or polling where it is missing."""
    if poll or (poll is None and not hasattr(ctypes.CDLL(None), "inotify_init1")):
        return Polling(roots)
    return Inotify(roots)
