"""`GuardedProtocol`: uvicorn's HTTP/1.1 connection with deadlines and bounds for clients that mean harm or are slow.

uvicorn has none for the headers of a request, for the first byte of a connection, and for a client that does not read;
with httptools it has no bound on headers either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twinspire_server.gateway.joined_writes import JoinedWrites
from twinspire_server.gateway.safety.context import RequestContext

_MAX_HEADER_BYTES = 32 * 1024
_LINGER_S = 5.0
"""How long a client may go on sending a body that was refused: closed at once, it would see a reset and no answer."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 34\r\nconnection: close\r\n\r\nThe headers are larger than 32 KiB"
)


@dataclass(frozen=True)
class ConnectionLimits:
    """The bounds of connections.

    Requests of connections above `max_connections` are refused with 503; above twice as many connections are closed
    without an answer. `closed` is called with the reason of each connection that is closed early.
    """

    max_connections: int
    header_timeout_s: float
    write_timeout_s: float = 60.0
    closed: Callable[[str], None] | None = None


class GuardedProtocol(HttpToolsProtocol):
    """An HTTP/1.1 connection; `requests` are those that the application is answering.

    Their tasks are cancelled when the connection is lost, so that nothing is computed for nobody.
    """

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*args, **options)
        self.requests: set[RequestContext] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._awaits_headers = True
        self._header_bytes = 0
        self._is_refused = False
        self.is_above_bound = False
        """Whether there were as many connections as there may be when this one came."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Begin: the first request's headers have their time from here."""
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))
        self.is_above_bound = len(self.connections) > self.limits.max_connections
        if len(self.connections) > 2 * self.limits.max_connections:
            self._close("too_many")
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what is computed for the client."""
        self._stop_timer()
        self._stop_write_timer()
        for request in list(self.requests):
            request.disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is more than headers may have."""
        if self._is_refused:
            return
        if self._awaits_headers:
            if self._timer is None:
                self._start_timer()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._awaits_headers and self._header_bytes > _MAX_HEADER_BYTES and not self._is_refused:
            self.transport.write(_TOO_LARGE)
            self._is_refused = True
            self._count_closed("large_headers")
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, and count it."""
        self._is_refused = True
        self._stop_timer()
        self._count_closed("bad_http")
        super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """Let the application find the connection of a request."""
        super().on_message_begin()
        self.scope["twinspire.connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Trailers behind a body are dropped: uvicorn would add them to the headers, without bound."""
        if self._awaits_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application, which bounds the time of its body."""
        self._awaits_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        self._stop_timer()
        self._awaits_headers, self._header_bytes = True, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Let a client that is still sending its body do so for a while."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._timer = self.loop.call_later(_LINGER_S, self._close, "refused_body")

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self._close, "slow_reader")

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._stop_write_timer()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_timeout_s, self._headers_late)

    def _headers_late(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # they are the next request's: the one before is still being answered
        else:
            self._close("slow_headers")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _close(self, reason: str) -> None:
        self._is_refused = True
        self._count_closed(reason)
        self.transport.abort()

    def _count_closed(self, reason: str) -> None:
        if self.limits.closed is not None:
            self.limits.closed(reason)


def guarded(limits: ConnectionLimits) -> type[GuardedProtocol]:
    """Return the protocol with limits, for `uvicorn.Config(http=...)`."""

    class Limited(GuardedProtocol):
        """A connection of one gateway."""

    Limited.limits = limits
    return Limited
