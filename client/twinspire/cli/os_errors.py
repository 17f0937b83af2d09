"""What an `OSError` that no command expected says to the user: the operation, the file and the cause."""

from __future__ import annotations

import ast
import errno
import linecache
import os
import traceback
from pathlib import Path

from twinspire.cli.shared import printable

_VERBS = {
    "open": "open",
    "read": "read",
    "readinto": "read",
    "readline": "read",
    "write": "write",
    "writelines": "write",
    "flush": "write",
    "close": "write",
    "fsync": "write to disk",
    "ftruncate": "resize",
    "truncate": "resize",
    "posix_fallocate": "resize",
    "stat": "look up",
    "lstat": "look up",
    "fstat": "look up",
    "scandir": "list",
    "listdir": "list",
    "mkdir": "make the folder",
    "rmdir": "remove the folder",
    "unlink": "delete",
    "remove": "delete",
    "rename": "rename",
    "replace": "rename",
    "link": "link",
    "symlink": "link",
    "mmap": "map",
}
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def described(error: OSError) -> str:
    """Return which operation failed on which file and why; without a file name, where in the program it failed."""
    called, place = _failed_call(error)
    names = [printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if _is_path(name)]
    if not names:
        if called == "open" or error.errno in _OF_WRITES:  # opening names its file: this is its end, which writes
            called = "write"
        names = [f"a file ({place})"]
    verb = _VERBS.get(called, f"use (by {called})" if called else "use")
    return f"cannot {verb} {' as '.join(names)}: {error.strerror or str(error) or type(error).__name__}"


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _failed_call(error: OSError) -> tuple[str, str]:
    """Return the name of the function that raised, "" where it is not known, and the place that called it."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "", "at an unknown place"
    frame = frames[-1]
    return _name_of_call(_source_of(frame)), f"in {frame.name}, {Path(frame.filename).name}, line {frame.lineno}"


def _source_of(frame: traceback.FrameSummary) -> str:
    """Return the text of the expression that a frame was at."""
    first, last, start, end = frame.lineno, frame.end_lineno, frame.colno, frame.end_colno
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(frame.filename, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode(errors="replace")


def _name_of_call(source: str) -> str:
    try:
        expression = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        return ""
    function = expression.func if isinstance(expression, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
