"""The search page: its files, read once, under a Content-Security-Policy of their own."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from fastapi import APIRouter, Request, Response

from twinspire_server.gateway.errors import GatewayError

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""What the page may load and do: nothing from other hosts, no inline scripts or styles, no HTML made from text."""
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # asked for each time, and answered by 304 while it is the same
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is and compressed; `tag` is its entity tag."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """Return the files of the page by their names."""
    found = {}
    for entry in (files("twinspire_server.gateway") / "page").iterdir():
        media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = PageFile(content, gzip.compress(content, mtime=0), media_type, tag)
    return MappingProxyType(found)


def add_page(router: APIRouter) -> None:
    """Add `/`, the page, and `/page/NAME`, its files."""

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return _response(request, "index.html")

    @router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        return _response(request, name)


def _response(request: Request, name: str) -> Response:
    file = page_files().get(name)  # a name among those known, never a path
    if file is None:
        raise GatewayError(404, f"the page has no file {name!r}", code="not_found")
    headers = {**_HEADERS, "ETag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)
