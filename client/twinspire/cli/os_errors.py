"""Failures of the operating system: messages for an unexpected `OSError`, and failures of standard output."""

from __future__ import annotations

import ast
import errno
import io
import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.cli.shared import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CALLS = {
    "open": "open",
    "read": "read readinto readline",
    "write": "write writelines flush close",
    "write to disk": "fsync",
    "resize": "ftruncate truncate posix_fallocate",
    "look up": "stat lstat fstat",
    "list": "scandir listdir",
    "make the folder": "mkdir",
    "remove the folder": "rmdir",
    "delete": "unlink remove",
    "rename": "rename replace",
    "link": "link symlink",
    "map": "mmap",
}
_VERBS = {call: verb for verb, calls in _CALLS.items() for call in calls.split()}
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def describe(error: OSError) -> str:
    """Return which operation failed on which file and why; if the file is unknown, where in the program."""
    called, source = _failed_call(error)
    names = [printable(os.fsdecode(name)) for name in (error.filename, error.filename2) if _is_path(name)]
    if not names:
        # An error of opening names its file: this one is of the end of `with open(...)`, which writes.
        if called == "open" or error.errno in _WRITE_ERRORS:
            called = "write"
        names = [f"a file ({source})"]
    verb = _VERBS.get(called, f"use (by {called})" if called else "use")
    return f"cannot {verb} {' as '.join(names)}: {error.strerror or str(error) or type(error).__name__}"


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes | os.PathLike)


def _failed_call(error: OSError) -> tuple[str, str]:
    """Return the name of the function that raised, "" if unknown, and the line of code that called it."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "", "unknown line"
    frame = frames[-1]
    return _name_of_call(_source_of(frame)), f"in {frame.name}, {Path(frame.filename).name}, line {frame.lineno}"


def _source_of(frame: traceback.FrameSummary) -> str:
    """Return the source of the expression that a frame was evaluating."""
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


class StandardOutputError(Exception):
    """Standard output cannot be written. `is_broken_pipe` says that its reader has closed it.

    Not an `OSError` itself: typer and rich would end the program at a broken pipe.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"cannot write to standard output: {cause.strerror or cause}")
        self.is_broken_pipe = isinstance(cause, BrokenPipeError)


class _StandardOutput(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise StandardOutputError(error) from error


@contextmanager
def guarded_standard_output() -> Iterator[None]:
    """Raise `StandardOutputError` where a write to the process's standard output fails inside the block.

    Does nothing where `sys.stdout` was replaced, as in a test that captures it, or is closed.
    """
    plain = sys.stdout
    if plain is not sys.__stdout__ or plain is None or plain.closed:
        yield
        return
    plain.flush()
    raw = _StandardOutput(plain.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=plain.encoding,
        errors=plain.errors,
        line_buffering=plain.line_buffering,
        write_through=True,
    )
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout = plain
