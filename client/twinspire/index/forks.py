"""Protection of an open index against `os.fork`: a child leaves its parent's connections and locks alone.

A child shares its parent's files. SQLite's connections may be neither used nor closed there (section 2.6 of
https://sqlite.org/howtocorrupt.html), and a descriptor left open would keep the flock of a parent that has died.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from functools import cache
from weakref import WeakSet


class GuardedConnection(sqlite3.Connection):
    """A connection that a forked child never closes, not even when it is garbage collected or the child ends."""


class HeldFiles:
    """Open descriptors that are closed in a forked child."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        _register()
        _files.add(self)

    def add(self, fd: int) -> int:
        """Take ownership of the descriptor `fd` and return it."""
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Close all descriptors; does nothing the second time."""
        while self._fds:
            os.close(self._fds.pop())


def guard(connection: GuardedConnection) -> None:
    """Keep `connection` from being closed in every child forked from now on."""
    _register()
    _connections.add(connection)


_connections: WeakSet[GuardedConnection] = WeakSet()
_files: WeakSet[HeldFiles] = WeakSet()


@cache
def _register() -> None:
    os.register_at_fork(after_in_child=_release_in_child)


def _release_in_child() -> None:
    for connection in list(_connections):
        # A reference that is never released, so that the connection outlives even the interpreter.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    _connections.clear()
    for files in list(_files):
        files.close()
