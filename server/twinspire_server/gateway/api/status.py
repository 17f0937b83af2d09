"""`GET /v1/status`: what the gateway and its Triton do at this moment."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from twinspire_server.gateway.api.bodies import ERRORS, json_response
from twinspire_server.gateway.api.service import service_of


def add_routes(router: APIRouter) -> None:
    """Add the route."""

    @router.get("/v1/status", summary="Throughput, latency and the server", responses=ERRORS, tags=["service"])
    async def status(request: Request) -> Response:
        service = service_of(request)
        metrics = getattr(request.app.state, "metrics", None)
        triton = service.triton
        document: dict[str, Any] = {
            "requests": metrics.recent.summary() if metrics is not None else None,
            "pending_inputs": service.embedder.pending,
            "servers": list(service.settings.servers),
            "triton": await service.run(triton.read) if triton is not None else None,
        }
        return json_response(document)
