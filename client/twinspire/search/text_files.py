"""Text files with one entry a line and comments: templates, synonyms and labels."""

from __future__ import annotations

from pathlib import Path

from twinspire._arguments import shown
from twinspire.errors import InputError

_MAX_BYTES = 16 << 20


def read_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """Return the lines with their numbers from 1, without comments (# at the start or after a space) and empty lines.

    `what` names the content, such as "the labels". Raises `InputError`, which names the file.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{what} {path}: expected a text file below {_MAX_BYTES >> 20} MiB", path=file)
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} cannot be read from {path}: {error.strerror or error}", path=file) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {path}: byte {error.start} is not UTF-8; save the file as UTF-8", path=file
        ) from error
    except ValueError as error:  # a NUL or lone surrogates in the name
        raise InputError(f"{what} cannot be read from {shown(str(path))}: {error}") from error
    lines = [
        (number, entry) for number, line in enumerate(text.splitlines(), start=1) if (entry := _without_comment(line))
    ]
    if not lines:
        raise InputError(f"{what} {path}: the file is empty, expected one entry on each line", path=file)
    return lines


def _without_comment(line: str) -> str:
    for position, character in enumerate(line):
        if character == "#" and (position == 0 or line[position - 1].isspace()):
            return line[:position].strip()
    return line.strip()
