"""The HTTP dialects. A dialect is one module here, and a line in `DIALECTS`."""

from __future__ import annotations

from twinspire_server.gateway.dialects.dialect import Dialect
from twinspire_server.gateway.dialects.openai import OpenAi

DIALECTS: tuple[Dialect, ...] = (OpenAi(),)


def dialect_of(path: str) -> Dialect:
    """Return the dialect of a path, which says how its errors look; OpenAI's for a path that has none."""
    return next((dialect for dialect in DIALECTS if path in dialect.paths), DIALECTS[0])


__all__ = ["DIALECTS", "Dialect", "dialect_of"]
