"""`RequestContext`: what is known of the request that is being answered."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from twinspire._request_id import set_request_id

_VALID_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(slots=True, eq=False)
class RequestContext:
    """One request: its id, whose it is, and what is counted of it.

    `charge` is called with the number of inputs before they are computed and raises GatewayError where the key has
    used up its rate. `dialect` is that of its body, where several dialects share its path.
    """

    id: str
    method: str
    path: str
    began_s: float = field(default_factory=time.perf_counter)
    task: asyncio.Task[object] | None = None
    key: str | None = None
    charge: Callable[[int], None] | None = None
    inputs: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    refusal: str | None = None
    dialect: str | None = None
    is_stream: bool = False
    is_disconnected: bool = False

    def disconnect(self) -> None:
        """Cancel the work for a request whose client is gone."""
        self.is_disconnected = True
        if self.task is not None:
            self.task.cancel()


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def enter(context: RequestContext) -> None:
    """Make `context` that of this task. Requests to Tritons have ids that begin with its id."""
    _current.set(context)
    set_request_id(context.id)


def charge_inputs(count: int) -> None:
    """Count inputs of the current request. Raises GatewayError where its key has used up its rate."""
    context = _current.get()
    if context is None:
        return
    if context.charge is not None:
        context.charge(count)
    context.inputs += count


def request_id(given: bytes | None) -> str:
    """Return the id that a client gave, where it is one that may stand in logs and headers, else a random one."""
    if given is not None and _VALID_ID.fullmatch(given):
        return given.decode("ascii")
    return secrets.token_hex(8)
