"""Requests to a Triton over HTTP by the process that supervises it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPMessage
from urllib.parse import urlsplit


@dataclass(frozen=True)
class HttpAnswer:
    """An answer of any status."""

    status: int
    content: bytes
    headers: HTTPMessage

    @property
    def ok(self) -> bool:
        """Whether the status is 200."""
        return self.status == HTTPStatus.OK


def http_answer(
    url: str, method: str = "GET", *, body: bytes | None = None, headers: Mapping[str, str], timeout_s: float
) -> HttpAnswer | None:
    """Send a request; return the answer, None where there is none in time."""
    address = urlsplit(url)
    try:
        with closing(HTTPConnection(str(address.hostname), address.port, timeout=timeout_s)) as connection:
            connection.request(method, address.path, body, dict(headers))
            answer = connection.getresponse()
            return HttpAnswer(answer.status, answer.read(), answer.headers)
    except (OSError, HTTPException):
        return None


def http_page(url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float) -> bytes | None:
    """Return the content of a page, None where its status is not 200 or nothing comes in time."""
    answer = http_answer(url, headers=headers or {}, timeout_s=timeout_s)
    return answer.content if answer is not None and answer.ok else None
