"""`GET /v1/info`: the model, the index and what its metadata can be filtered by."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import Any

from fastapi import APIRouter, Request, Response

from twinspire.search import Searcher
from twinspire.stores import ItemKind, VectorStore
from twinspire_server.gateway.api.bodies import ERRORS, json_response
from twinspire_server.gateway.api.facets import facets
from twinspire_server.gateway.api.service import service_of

_SCANNED = 100_000
"""How many items, the first ones, are read for their metadata."""
_REFRESH_S = 10.0
"""While the index changes, its metadata is read at most this often."""


def add_routes(router: APIRouter) -> None:
    """Add the route."""
    summary = _Summary()

    @router.get("/v1/info", summary="The model and the index", responses=ERRORS, tags=["search"])
    async def info(request: Request) -> Response:
        service = service_of(request)
        client = service.embedder.client
        document: dict[str, Any] = {
            "model": service.embedder.model,
            "space": client.space,
            "dim": client.dim,
            "towers": sorted(tower.value for tower in client.bundle.towers),
            "index": await service.search(summary.of) if service.has_index else None,
            "page": {"uploads": service.settings.uploads is not None},
        }
        return json_response(document)


class _Summary:
    """What the items of an index are, kept until it changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metadata: list[dict[str, Any]] = []
        self._state: tuple[VectorStore, int] | None = None
        self._read_s = 0.0

    def of(self, searcher: Searcher) -> dict[str, Any]:
        """Return the numbers of items and the facets of their metadata."""
        index = searcher.index
        with self._lock:
            state = index, index.generation
            same = self._state is not None and self._state[0] is index
            if not same or (self._state != state and time.monotonic() - self._read_s > _REFRESH_S):
                self._metadata = facets(islice(index.items(), _SCANNED))
                self._state, self._read_s = state, time.monotonic()
        kinds = {kind.value: index.count(kind=kind) for kind in ItemKind}
        return {
            "items": sum(kinds.values()),
            "kinds": {kind: count for kind, count in kinds.items() if count},
            "space": index.space,
            "metadata": self._metadata,
        }
