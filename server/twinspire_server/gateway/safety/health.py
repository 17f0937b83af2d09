"""`/livez` and `/readyz`, for load balancers and service managers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from twinspire import AsyncClient
from twinspire.bundle import Tower
from twinspire.errors import ServerOverloadedError, TwinspireError

PATHS = ("/livez", "/readyz")
_CACHED_S = 1.0
_TIMEOUT_S = 2.0
_log = logging.getLogger("twinspire")


class Readiness:
    """Whether requests should come here. Checks run at most once a second, however many ask."""

    def __init__(self) -> None:
        self.is_stopping = False
        self.stopping = asyncio.Event()
        """Set when the gateway begins to stop: streams that have no end should end."""
        self._checks: dict[str, Callable[[], Awaitable[object]]] = {}
        self._lock = asyncio.Lock()
        self._checked_s: float | None = None
        self._reasons: list[str] = []

    def add(self, name: str, check: Callable[[], Awaitable[object]]) -> None:
        """Let the gateway be ready only where awaiting `check()` raises nothing within two seconds."""
        self._checks[name] = check

    def stop(self) -> None:
        """Be ready no more."""
        self.is_stopping = True
        self.stopping.set()

    async def not_ready(self) -> list[str]:
        """Return why requests should go elsewhere, a sentence each; empty where the gateway is ready."""
        if self.is_stopping:
            return ["the gateway is being stopped"]
        async with self._lock:
            if self._checked_s is None or time.monotonic() - self._checked_s > _CACHED_S:
                found = await asyncio.gather(*(_run(name, check) for name, check in self._checks.items()))
                self._reasons = [reason for reason in found if reason is not None]
                self._checked_s = time.monotonic()
        return self._reasons

    def routes(self) -> APIRouter:
        """Return the routes /livez and /readyz."""
        router = APIRouter(tags=["health"])

        @router.get("/livez", summary="Whether the process answers", response_class=PlainTextResponse)
        async def live() -> PlainTextResponse:
            return PlainTextResponse("ok")

        @router.get(
            "/readyz",
            summary="Whether requests should come here",
            responses={503: {"description": "Not ready; `reasons` says why"}},
        )
        async def ready() -> JSONResponse:
            reasons = await self.not_ready()
            return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

        return router


async def check_client(client: AsyncClient) -> None:
    """Compute one small input. Raises TwinspireError where the towers do not; being overloaded is an answer too."""
    towers = client.bundle.manifest.towers.present
    try:
        if Tower.TEXT in towers:
            await client.encode_texts(["ready"])
        elif Tower.IMAGE in towers:
            shape = client.bundle.input_spec(Tower.IMAGE).shape
            await client.towers.encode_images(np.zeros((1, *shape), np.uint8))
    except ServerOverloadedError:
        pass


async def _run(name: str, check: Callable[[], Awaitable[object]]) -> str | None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await check()
    except TimeoutError:
        return f"{name}: no answer within {_TIMEOUT_S:g} s"
    except TwinspireError as error:
        _log.warning("not ready: %s: %s", name, error)
        return f"{name}: {type(error).__name__}"  # the message has addresses: health routes need no key
    return None
