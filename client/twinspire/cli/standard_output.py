"""Standard output whose failures are told from those of any other file."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class StandardOutputError(Exception):
    """Standard output cannot be written.

    Raised from the `OSError`, and none itself: typer and rich end the program on their own where they meet a broken
    pipe. `is_broken_pipe` says that whoever read the output has gone.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"the output cannot be written: {cause.strerror or cause}")
        self.is_broken_pipe = isinstance(cause, BrokenPipeError)


class _StandardOutput(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise StandardOutputError(error) from error


@contextmanager
def guarded_standard_output() -> Iterator[None]:
    """Raise `StandardOutputError` from writes to the process's standard output within the block.

    Does nothing where `sys.stdout` is another stream, as in a test that captures it, or is closed.
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
