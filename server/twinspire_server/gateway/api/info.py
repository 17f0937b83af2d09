"""`GET /v1/info`: the model, the index and what its metadata can be filtered by."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fastapi import APIRouter, Request, Response

from twinspire.search import Searcher
from twinspire.stores import ItemKind, VectorStore
from twinspire_server.gateway.api.bodies import ERRORS, json_response
from twinspire_server.gateway.api.facets import facets
from twinspire_server.gateway.api.service import SearchService, service_of
from twinspire_server.gateway.page_examples import page_examples

_SCANNED = 100_000
"""How many items, the first ones, are read for their metadata."""
_REFRESH_S = 10.0
"""While the index changes, its metadata is read at most this often."""


def add_routes(router: APIRouter) -> None:
    """Add the route."""
    summaries = _Summaries()

    @router.get("/v1/info", summary="The model and the index", responses=ERRORS, tags=["search"])
    async def info(request: Request) -> Response:
        service = service_of(request)
        client = service.embedder.client
        summary = await summaries.of(service) if service.has_index else None
        document: dict[str, Any] = {
            "model": service.embedder.model,
            "space": client.space,
            "dim": client.dim,
            "towers": sorted(tower.value for tower in client.bundle.towers),
            "index": summary.index if summary is not None else None,
            "page": {
                "uploads": service.settings.uploads is not None,
                "rerank": bool(client.bundle.manifest.rerankers),
                **(summary.page if summary is not None else {"items": [], "examples": []}),
            },
        }
        return json_response(document)


@dataclass(frozen=True)
class _Summary:
    """What the items of an index are, and what the page shows of them before a search."""

    store: VectorStore
    generation: int
    read_s: float
    index: dict[str, Any]
    page: dict[str, Any]


class _Summaries:
    """The summary of the index, kept until it changes. For one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # a scan takes one thread, however many ask for it
        self._summary: _Summary | None = None

    async def of(self, service: SearchService) -> _Summary:
        """Return the summary of a service's index. Raises what `SearchService.search` raises."""
        async with self._lock:
            self._summary = await service.search(self._read)
            return self._summary

    def _read(self, searcher: Searcher) -> _Summary:
        store, generation, known = searcher.index, searcher.index.generation, self._summary
        is_same = known is not None and known.store is store
        if known is not None and is_same and known.generation == generation:
            return known
        kinds = {kind.value: store.count(kind=kind) for kind in ItemKind}
        counts = {"items": sum(kinds.values()), "kinds": {kind: count for kind, count in kinds.items() if count}}
        if known is not None and is_same and time.monotonic() - known.read_s < _REFRESH_S:
            return _Summary(store, -1, known.read_s, {**known.index, **counts}, known.page)
        found = facets(islice(store.items(), _SCANNED))
        index = {**counts, "space": store.space, "metadata": found}
        return _Summary(store, generation, time.monotonic(), index, page_examples(store))
