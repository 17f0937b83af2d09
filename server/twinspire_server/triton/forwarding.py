"""Fixed ports in front of a server that is replaced: each connection is passed on to the server of the moment.

Servers can share a gRPC port and no metrics port. So `twinspire serve` listens for HTTP and metrics itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from twinspire_server.triton.ports import listening_socket

_MAX_CONNECTIONS = 128
"""More at a time are closed at once."""
_CHUNK_BYTES = 1 << 16


class Forwarder:
    """A TCP port that passes connections on, in a thread of its own; a context manager.

    `name` is the service's name in errors, `target` returns the address to connect to. A connection is closed where
    nothing listens there. Raises ServerError where the port is taken, InputError for an address of another machine.
    """

    def __init__(self, name: str, host: str, port: int, target: Callable[[], tuple[str, int]]) -> None:
        self._socket = listening_socket(name, host, port)
        self._target = target
        self._connections = 0
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"forward-{name}", daemon=True)
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # its end cancels the connections
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, sock=self._socket)
        await self._stopped.wait()
        server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        writers = [writer]
        try:
            if self._connections <= _MAX_CONNECTIONS:
                to_reader, to_writer = await asyncio.open_connection(*self._target())
                writers.append(to_writer)
                await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))
        except OSError:  # nothing listens there, or one of the two has gone
            pass
        except asyncio.CancelledError:  # the forwarder ends: unsent data is dropped
            for each in writers:
                each.transport.abort()
            raise
        finally:
            self._connections -= 1
            for each in writers:
                each.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    with suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
