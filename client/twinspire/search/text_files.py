"""Small text files that people write: a line an entry, # for remarks."""

from __future__ import annotations

from pathlib import Path

from twinspire._arguments import shown
from twinspire.errors import InputError

_MOST_BYTES = 16 << 20


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """Return the lines that say something, with their numbers from 1. Raises `InputError`, naming the file."""
    file = Path(path)
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{what} {path}: expected a text file below {_MOST_BYTES >> 20} MiB")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} cannot be read from {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except ValueError as error:  # a NUL or lone surrogates in the name
        raise InputError(f"{what} cannot be read from {shown(str(path))}: {error}") from error
    lines = enumerate(text.splitlines(), start=1)
    found = [(number, said) for number, line in lines if (said := _without_remark(line))]
    if not found:
        raise InputError(f"{what} {path}: the file is empty, expected a line an entry")
    return found


def _without_remark(line: str) -> str:
    """Drop what follows a # at the start or behind a space."""
    for place, character in enumerate(line):
        if character == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].strip()
    return line.strip()
