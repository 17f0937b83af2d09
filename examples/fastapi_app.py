"""A search service over HTTP in 30 lines of FastAPI.

pip install fastapi uvicorn
INDEX=photos.index uvicorn --app-dir examples fastapi_app:app
curl "http://127.0.0.1:8000/search?q=a+red+bus&k=3"

INDEX is an index, as `twinspire index add` makes it, or the URI of another store. With SERVER=HOST:PORT, queries are
encoded by `twinspire serve`. A POST to /search takes the JSON of a `SearchRequest`. Nobody is asked who they are: put
a proxy with authentication in front of it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from twinspire import Client, Searcher, open_index, sample_bundle
from twinspire.error_status import error_status
from twinspire.errors import TwinspireError
from twinspire.search import SearchRequest


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client and the index once, for all requests."""
    bundle, server = os.environ.get("BUNDLE", sample_bundle()), os.environ.get("SERVER")
    with (
        Client.connect(server, bundle) if server else Client.local(bundle) as client,
        open_index(os.environ.get("INDEX", "photos.index")) as index,
    ):
        app.state.searcher = Searcher(client, index)
        yield


app = FastAPI(title="Image search", lifespan=lifespan)


@app.get("/search")
def search(q: str, k: int = 10, where: str | None = None) -> dict[str, Any]:
    """Search by text; FastAPI runs this in a thread, and a searcher may be used from several."""
    return app.state.searcher.search(q, k, where=where).to_dict()


@app.post("/search")
def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run a search request; without a resolver it opens no files."""
    return app.state.searcher.run(SearchRequest.from_dict(request)).to_dict()


@app.exception_handler(TwinspireError)
async def failed(_: Request, error: TwinspireError) -> JSONResponse:
    """Answer with the HTTP status of the error's class."""
    return JSONResponse({"error": str(error)}, status_code=error_status(error).http)
