"""Foreign text on one line of a message."""

from __future__ import annotations

import os
import unicodedata

# Control and format characters, surrogates, unassigned ones, and the separators that end a line or paragraph.
_ESCAPED = ("C", "Zl", "Zp")


def printable(text: str | os.PathLike[str], *, limit: int | None = None) -> str:
    """Return a path or text on one line: control characters and bytes that are no UTF-8 come escaped.

    Longer text is cut after `limit` characters and its length is appended.
    """
    path = os.fspath(text)
    shown = path if limit is None else path[:limit]
    decoded = os.fsencode(shown).decode(errors="backslashreplace")
    escaped = "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character).startswith(_ESCAPED)
        else character
        for character in decoded
    )
    if limit is None or len(path) <= limit >= len(escaped):
        return escaped
    return f"{escaped[:limit]}... ({len(path):,} characters)"
