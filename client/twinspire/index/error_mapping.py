"""Errors of SQLite and the operating system, mapped to `IndexStoreError`."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinspire.errors import IndexStoreError, IndexUncertainError

RESTORE = "Nothing was changed. Restore the folder from a copy, or build the index again with `twinspire index add`."
_MAKE_ROOM = "Make room and try again: earlier changes are safe."
_UNCERTAIN = (
    "The change could not be undone either, so it may be committed all the same: check that the disk is neither full "
    "nor failing, open the index again and look. Earlier changes are safe."
)
_PERMISSIONS = "Check the owner and the permissions of the folder and its files, and that it is not mounted read-only."

_ADVICE_BY_ERRNO = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: _PERMISSIONS,
}
_ADVICE_BY_SQLITE = {
    sqlite3.SQLITE_FULL: _MAKE_ROOM,
    sqlite3.SQLITE_IOERR: "Check that the disk is neither full nor failing; earlier changes are safe.",
    sqlite3.SQLITE_CANTOPEN: _PERMISSIONS,
    sqlite3.SQLITE_PERM: _PERMISSIONS,
    sqlite3.SQLITE_READONLY: _PERMISSIONS,
    sqlite3.SQLITE_BUSY: "Another process has locked the catalogue; try again.",
    sqlite3.SQLITE_LOCKED: "Another process has locked the catalogue; try again.",
    sqlite3.SQLITE_CONSTRAINT: "An index made before items of kind audio takes images and texts only: make a new one.",
    sqlite3.SQLITE_NOTADB: RESTORE,
    sqlite3.SQLITE_CORRUPT: RESTORE,
}


class UncertainCommit(Exception):  # noqa: N818 - never leaves the index
    """A commit failed and could not be undone; its cause is the error of SQLite or the operating system."""


@contextmanager
def store_errors(path: Path, doing: str) -> Iterator[None]:
    """Raise `IndexStoreError`, "cannot `doing` the index", for a `sqlite3.Error` or `OSError` inside.

    An `UncertainCommit` becomes `IndexUncertainError`.
    """
    try:
        yield
    except UncertainCommit as error:
        raise IndexUncertainError(
            f"cannot {doing} the index {path}: {error.__cause__}. {_UNCERTAIN}"
        ) from error.__cause__
    except sqlite3.Error as error:
        # Extended result codes carry the primary one in their lowest byte: https://sqlite.org/rescode.html
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF
        raise _failure(
            path, doing, f"SQLite reports for its catalogue: {error}", _ADVICE_BY_SQLITE.get(code)
        ) from error
    except UnicodeDecodeError as error:  # from the sqlite3 module: SQLite's messages quote damaged names
        raise _failure(path, doing, f"its catalogue holds text that is not UTF-8: {error}", RESTORE) from error
    except OSError as error:
        advice = _ADVICE_BY_ERRNO.get(error.errno or -1)
        raise _failure(path, doing, error.strerror or str(error), advice) from error


def _failure(path: Path, doing: str, cause: str, advice: str | None) -> IndexStoreError:
    return IndexStoreError(f"cannot {doing} the index {path}: {cause}" + (f". {advice}" if advice else ""))
