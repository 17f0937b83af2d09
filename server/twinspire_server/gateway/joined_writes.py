"""`JoinedWrites`: the transport of a connection, which sends the head of a response together with its body."""

from __future__ import annotations

import asyncio
from typing import Any

_MOST_BYTES = 64 * 1024


class JoinedWrites:
    """A transport that joins what is written in one turn of the event loop, up to 64 KiB, into one write.

    uvicorn writes head and body one after the other. A gateway that is killed between the two leaves a proxy with half
    a response, whose beginning has gone to the client already: it cannot send the request to another gateway any more.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []
        self._bytes = 0
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write at the end of this turn of the loop, or now where it is much."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > _MOST_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what there is, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts, self._bytes = [], 0
            if not self.is_closing():  # the client has left: uvloop would raise
                self._transport.write(data)
