"""`create_app`: the gateway as an ASGI application.

The way of a request, from the socket to the answer:

    GuardedProtocol     the connection: bounds and deadlines (safety/protocol.py)
    Observed            its id, access log, metrics
    SecurityHeaders     on every answer
    CORSMiddleware      only with --cors-origin
    Failures            every exception becomes an answer in the form of the path's dialect
    Gate                too many connections, foreign hosts and origins
    Keys                401, and 429 for a key beyond its rate
    Bodies              408, 413, 415: the body is read within its limits
    routes              health, the dialects
    Embedder            inputs to vectors; 429 where too many wait
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from twinspire.errors import ServerUnavailableError, TwinspireError
from twinspire_server.gateway.api import SearchService, add_api
from twinspire_server.gateway.dialects import DIALECTS, Dialect, dialect_of, dialect_of_error, dialects_router
from twinspire_server.gateway.embedder import Embedder
from twinspire_server.gateway.errors import GatewayError, of_status, of_twinspire
from twinspire_server.gateway.page_routes import add_page
from twinspire_server.gateway.safety.bodies import Bodies
from twinspire_server.gateway.safety.failures import Failures
from twinspire_server.gateway.safety.gate import Gate
from twinspire_server.gateway.safety.headers import SecurityHeaders
from twinspire_server.gateway.safety.health import PATHS, Readiness, check_client
from twinspire_server.gateway.safety.keys import Keys, KeyStore, key_store
from twinspire_server.gateway.safety.metrics import GatewayMetrics
from twinspire_server.gateway.safety.observed import AccessLog, Observed
from twinspire_server.gateway.settings import GatewaySettings
from twinspire_server.gateway.validation import of_validation

_HEALTH_PATHS = frozenset(
    (*PATHS, "/health", "/v1/health/live", "/v1/health/ready", "/ping", "/.well-known/live", "/.well-known/ready")
)
"""Routes that say whether the gateway runs, its own and the dialects': no key, no log, answered under overload."""
_PAGE_PATHS, _PAGE_FOLDER = ("/", "/favicon.ico"), "/page/"
"""The page's static files: they hold no data, so that a browser without a key can show where to enter it."""
_CORS_HEADERS = ["Authorization", "Content-Type", "X-Request-ID"]
_PAUSE_S = 1.0


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the gateway's application. Client and index are opened at its start, which raises what they raise.

    Raises InputError for keys or an access log that cannot be used.
    """
    safety = settings.safety
    keys, metrics, readiness = key_store(safety.keys), GatewayMetrics(), Readiness()
    access_log = None if safety.access_log is None else AccessLog(safety.access_log)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        metrics.enable()
        try:
            async with await _opened(settings) as embedder, await SearchService.open(settings, embedder) as service:
                app.state.embedder, app.state.search_service = embedder, service
                metrics.watch("pending_inputs", "Inputs that are computed or wait", lambda: embedder.pending)
                if settings.servers:
                    readiness.add("servers", lambda: check_client(embedder.client))
                if service.has_index:
                    readiness.add("index", lambda: service.search(lambda searcher: len(searcher.index)))
                yield
        except TwinspireError as error:
            app.state.failure = error  # for whoever runs the application: uvicorn passes none on
            raise
        finally:
            metrics.disable()
            if access_log is not None:
                access_log.close()

    app = FastAPI(
        title="twinspire",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=_layers(settings, keys, metrics, access_log),
    )
    app.state.settings, app.state.failure = settings, None
    app.state.keys, app.state.metrics, app.state.readiness = keys, metrics, readiness
    app.include_router(readiness.routes())
    app.include_router(dialects_router())
    router = APIRouter()
    add_api(router)
    add_page(router)
    app.include_router(router)
    for kind in (GatewayError, TwinspireError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _failed)
    return app


def _layers(
    settings: GatewaySettings, keys: KeyStore | None, metrics: GatewayMetrics, access_log: AccessLog | None
) -> list[Middleware]:
    """Return what a request passes through, in its order."""
    safety = settings.safety
    origins = safety.cors_origin or []
    host_names = settings.host_names if keys is None else None  # other pages do not know a key
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=_CORS_HEADERS,
        expose_headers=["X-Request-ID", "Retry-After"],
    )
    return [
        Middleware(
            Observed,
            metrics=metrics,
            access_log=access_log,
            dialect_of=_dialect_name,
            is_health=_HEALTH_PATHS.__contains__,
        ),
        Middleware(SecurityHeaders),
        *([cors] if origins else []),
        Middleware(Failures, respond=_response),
        Middleware(Gate, host_names=host_names, origins=origins, is_health=_HEALTH_PATHS.__contains__),
        Middleware(Keys, keys=keys, is_public=_is_public, rate=safety.rate, input_rate=safety.input_rate),
        Middleware(
            Bodies,
            max_bytes=safety.max_body_bytes,
            max_held_bytes=safety.max_held_bytes,
            timeout_s=safety.read_timeout,
        ),
    ]


async def _opened(settings: GatewaySettings) -> Embedder:
    """Open the embedder; servers that are away are waited for as long as `--wait` says."""
    deadline_s = time.monotonic() + settings.safety.wait
    while True:
        try:
            return await Embedder.open(settings)
        except ServerUnavailableError:
            if time.monotonic() + _PAUSE_S > deadline_s:
                raise
        await asyncio.sleep(_PAUSE_S)


def _is_public(method: str, path: str) -> bool:
    """Whether a path needs no key."""
    is_page = path in _PAGE_PATHS or path.startswith(_PAGE_FOLDER)
    return path in _HEALTH_PATHS or (is_page and method in ("GET", "HEAD"))


def _dialect_name(path: str) -> str:
    return next((dialect.name for dialect in DIALECTS if path in dialect.paths), "other")


async def _failed(request: Request, error: Exception) -> Response:
    """Answer an exception of a route."""
    match error:
        case GatewayError():
            known = error
        case TwinspireError():
            known = of_twinspire(error)
        case RequestValidationError():
            known = of_validation(error.errors())
        case HTTPException():
            known = of_status(error.status_code, str(error.detail))
        case _:
            raise error
    request.state.context.refusal = known.code
    return _written(dialect_of_error(request, error), known)


def _response(path: str, error: GatewayError) -> Response:
    """Return an error in the form of the path's dialect."""
    return _written(dialect_of(path), error)


def _written(dialect: Dialect, error: GatewayError) -> Response:
    # ASCII alone: a message may repeat lone surrogates of a request, which UTF-8 cannot hold.
    content = json.dumps(dialect.error(error))
    return Response(content, error.status, dict(error.headers), "application/json")
