"""Make an index that was open when a process forked harmless in the child.

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
        """Take over the descriptor `fd` and return it."""
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Close all; does nothing the second time."""
        while self._fds:
            os.close(self._fds.pop())


def guard(connection: GuardedConnection) -> None:
    """Leave `connection` alone in every child forked from now on."""
    _register()
    _connections.add(connection)


_connections: WeakSet[GuardedConnection] = WeakSet()
_files: WeakSet[HeldFiles] = WeakSet()


@cache
def _register() -> None:
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for connection in list(_connections):
        # One reference that nobody gives back, so that the connection outlives even the interpreter.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    _connections.clear()
    for files in list(_files):
        files.close()
