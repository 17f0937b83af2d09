"""`create_app`: the gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from twinspire.errors import TwinspireError
from twinspire_server.gateway.api import SearchService, add_api
from twinspire_server.gateway.dialects import DIALECTS, dialect_of
from twinspire_server.gateway.embedder import Embedder
from twinspire_server.gateway.errors import GatewayError, of_status, of_twinspire, of_validation
from twinspire_server.gateway.page_routes import add_page
from twinspire_server.gateway.settings import GatewaySettings


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the gateway's application. Client and index are opened at its start, which raises what they raise."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                embedder = await stack.enter_async_context(await Embedder.open(settings))
                service = await stack.enter_async_context(await SearchService.open(settings, embedder))
            except TwinspireError as error:
                app.state.failure = error  # for whoever runs the application: uvicorn passes none on
                raise
            app.state.embedder, app.state.search_service = embedder, service
            app.state.announce()
            yield

    app = FastAPI(title="twinspire", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.failure, app.state.announce = settings, None, lambda: None
    router = APIRouter()
    for dialect in DIALECTS:
        dialect.add_routes(router)
    add_api(router)
    add_page(router)
    app.include_router(router)
    app.add_exception_handler(GatewayError, _failed)
    app.add_exception_handler(TwinspireError, _failed)
    app.add_exception_handler(RequestValidationError, _failed)
    app.add_exception_handler(HTTPException, _failed)
    return app


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """Answer in the form of the path's dialect."""
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
    return JSONResponse(dialect_of(request.url.path).error(known), known.status, headers=dict(known.headers))
