"""`IndexEvents`: what happens to the index, for everybody who listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import orjson

from twinspire.errors import ServerOverloadedError, TwinspireError
from twinspire.search import Searcher
from twinspire_server.gateway.errors import GatewayError, of_twinspire

POLL_S = 0.5
"""How often the index is asked for its size while somebody listens: another process may be adding to it."""
HEARTBEAT_S = 15.0
"""Silence after which a comment is sent: proxies close connections that say nothing."""
_MOST_LISTENERS = 64
_MOST_WAITING = 256  # events of a listener that reads slowly; older ones are dropped


class IndexEvents:
    """Events of the index as server-sent events: `index` with its size, `upload` with the progress of added images.

    The index is polled by one task while anybody listens. For one event loop; `publish` may be called from threads.
    """

    def __init__(self, read: Callable[[Callable[[Searcher], Any]], Any]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self._polling: asyncio.Task[None] | None = None
        self._latest: bytes | None = None

    def publish(self, event: str, document: object) -> None:
        """Send an event to all listeners."""
        encoded = b"event: %b\ndata: %b\n\n" % (event.encode(), orjson.dumps(document))
        self._loop.call_soon_threadsafe(self._put, encoded)

    async def listen(self) -> AsyncIterator[bytes]:
        """Yield the state of the index, then its events, without end. Raises GatewayError where too many listen."""
        if len(self._listeners) >= _MOST_LISTENERS:
            raise of_twinspire(ServerOverloadedError(f"{_MOST_LISTENERS} clients listen already: try again later"))
        state = await self._read(_state)
        return self._events(state)

    async def close(self) -> None:
        """End the polling."""
        if self._polling is not None:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling

    async def _events(self, state: dict[str, Any]) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue(_MOST_WAITING)
        self._listeners.add(queue)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(state))
        try:
            yield b"retry: 2000\nevent: index\ndata: %b\n\n" % orjson.dumps(state)
            while True:
                try:
                    yield await asyncio.wait_for(queue.get(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": nothing new\n\n"
        finally:
            self._listeners.discard(queue)

    async def _poll(self, last: dict[str, Any]) -> None:
        while self._listeners:
            await asyncio.sleep(POLL_S)
            try:
                state = await self._read(_state)
            except (TwinspireError, GatewayError) as error:
                state = {"error": str(error)}
            if state != last:
                self.publish("index", state)
                last = state

    def _put(self, event: bytes) -> None:
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)


def _state(searcher: Searcher) -> dict[str, Any]:
    index = searcher.index
    return {"items": len(index), "generation": index.generation, "space": index.space}
