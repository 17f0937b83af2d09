"""The gateway's own API under /v1: search, classification, and the items of the index with their images.

A route is one module here that has `add_routes`, and a line in `add_api`.
"""

from __future__ import annotations

from fastapi import APIRouter

from twinspire_server.gateway.api import classify, events, images, info, items, search, status, uploads
from twinspire_server.gateway.api.service import SearchService, service_of


def add_api(router: APIRouter) -> None:
    """Add the routes of the API."""
    # Events stand before items: `events` is no id.
    for module in (search, classify, events, items, images, uploads, info, status):
        module.add_routes(router)


__all__ = ["SearchService", "add_api", "service_of"]
