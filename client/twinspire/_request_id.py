"""The id of the request that a program is answering, as the beginning of the ids of its requests to servers."""

from __future__ import annotations

import uuid
from contextvars import ContextVar

from twinspire.errors import InputError

_LONGEST = 128
_current: ContextVar[str | None] = ContextVar("twinspire_request_id", default=None)


def set_request_id(value: str | None) -> None:
    """Let the requests to servers that this task or thread sends have ids that begin with `value`; None: random ones.

    They stand in a server's access log and traces, and in `ServerError.request_id`. Raises InputError unless it is
    printable ASCII of at most 128 characters.
    """
    if value is not None and not (0 < len(value) <= _LONGEST and value.isascii() and value.isprintable()):
        raise InputError(
            f"the request id {value!r}: expected 1 to {_LONGEST} printable ASCII characters", option="value"
        )
    _current.set(value)


def new_call_id() -> str:
    """Return an id for a call: random, behind the current request's where there is one."""
    current = _current.get()
    return uuid.uuid4().hex[:16] if current is None else f"{current}.{uuid.uuid4().hex[:8]}"
