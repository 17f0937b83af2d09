"""`SearchService`: the index of a gateway, and the threads in which it is searched."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from fastapi import Request

from twinspire import AsyncClient, Client
from twinspire._dims import split_space
from twinspire.cli.bundles import open_bundle
from twinspire.cli.index.shared import exists
from twinspire.errors import IndexStoreError, TwinspireError
from twinspire.search import LiveSearcher, Searcher
from twinspire.stores import VectorStore
from twinspire.towers import describe_server
from twinspire_server.gateway.api.encoding import IndexEncoder, ThreadsClient
from twinspire_server.gateway.api.index_events import IndexEvents
from twinspire_server.gateway.api.thumbnails import Thumbnails
from twinspire_server.gateway.api.triton_status import TritonStatus
from twinspire_server.gateway.embedder import Embedder
from twinspire_server.gateway.errors import RETRY_AFTER_S, GatewayError
from twinspire_server.gateway.settings import GatewaySettings

_THREADS = 16
"""Searches that run at a time. With a server most of their time is waiting for it."""
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


class SearchService:
    """Searches the index of a gateway in threads, with the embedder's engines or connection.

    Goes on when the index is migrated to another model or replaced: that model is then taken from the servers, or in
    this process from the bundle that the index names. An async context manager, for the event loop that it was opened
    in. Without `--index` it has threads and a client alone.
    """

    def __init__(self, settings: GatewaySettings, embedder: Embedder) -> None:
        self.settings, self.embedder = settings, embedder
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="search")
        self.client: Client = ThreadsClient(embedder.client, self._loop)
        self.thumbnails = Thumbnails(embedder.client.limits)
        self.events = IndexEvents(self.search)
        self.triton = TritonStatus(settings.status_url) if settings.status_url is not None else None
        self._searcher: LiveSearcher | None = None

    @classmethod
    async def open(cls, settings: GatewaySettings, embedder: Embedder) -> Self:
        """Open the index. Raises what `open_index` raises, and SpaceMismatchError where its model is not served."""
        service = cls(settings, embedder)
        if settings.index is not None:
            try:
                service._searcher = await service.run(LiveSearcher, settings.index, service._encoder)
            except BaseException:
                await service.close()
                raise
        return service

    async def run(self, function: Callable[..., _Result], *args: object) -> _Result:
        """Return `function(*args)`, called in a thread."""
        context = contextvars.copy_context()  # of traces
        return await self._loop.run_in_executor(self._threads, context.run, function, *args)

    async def search(self, function: Callable[[Searcher], _Result]) -> _Result:
        """Return `function(searcher)`, called in a thread; again where the index was replaced meanwhile.

        Raises GatewayError where the gateway has no index, and where its folder is gone.
        """
        if self._searcher is None:
            raise GatewayError(404, "this gateway has no index: start it with --index INDEX", code="no_index")
        try:
            return await self.run(self._searcher.call, function)
        except IndexStoreError as error:
            if exists(str(self.settings.index)):
                raise
            raise GatewayError(
                503,
                f"the index {self.settings.index} is gone: put it back, or start the gateway with another",
                code="index_gone",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            ) from error

    @property
    def has_index(self) -> bool:
        """Whether the gateway has an index."""
        return self._searcher is not None

    async def close(self) -> None:
        """Close the index, once the searches have ended."""
        await self.events.close()
        if self._searcher is not None:
            await self.run(self._searcher.close)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self.thumbnails.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _encoder(self, store: VectorStore) -> IndexEncoder:
        """Return what encodes for an open store. Called in a thread, at the start and after each switch."""
        model, dim = split_space(store.space)
        try:
            if model == self.client.space:
                return IndexEncoder(self.client.cut_to(dim), store)
            client = self._wait(self._other_client, store)
        except TwinspireError as error:
            raise GatewayError(
                409,
                f"the index {store.uri} is of another space than the model {self.embedder.model}, and its own model "
                f"cannot be used: {error}. Serve that model, or start the gateway again with the bundle of the index",
                code="space_mismatch",
            ) from error
        _logger.warning(
            "the index %s is of the model %s now: searches use it, embeddings are of %s still",
            store.uri,
            client.bundle.name,
            self.embedder.model,
        )
        return IndexEncoder(ThreadsClient(client, self._loop), store, lambda: self._wait(AsyncClient.close, client))

    async def _other_client(self, store: VectorStore) -> AsyncClient:
        """Open the client of a store of another space than the embedder's."""
        model, dim = split_space(store.space)
        servers, tls, limits = self.settings.servers, self.settings.server_tls, self.embedder.client.limits
        decode = self.settings.decode
        if not servers:
            bundle = await asyncio.to_thread(open_bundle, None, store)
            return await AsyncClient.local(bundle, dim=dim, decode=decode, limits=limits)
        described = await asyncio.to_thread(describe_server, servers, space=model, tls=tls)
        return await AsyncClient.connect(
            servers,
            described,
            dim=dim,
            tls=tls,
            decode=decode,
            limits=limits,
            deadline_s=self.settings.safety.deadline,
        )

    def _wait(self, function: Callable[..., Coroutine[Any, Any, _Result]], *args: object) -> _Result:
        return asyncio.run_coroutine_threadsafe(function(*args), self._loop).result()


def service_of(request: Request) -> SearchService:
    """Return the gateway's search service."""
    service: SearchService = request.app.state.search_service
    return service
