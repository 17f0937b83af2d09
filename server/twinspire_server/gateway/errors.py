"""One error of the gateway, which each dialect puts in its own form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from twinspire.error_status import error_status
from twinspire.errors import ServerOverloadedError, ServerUnavailableError, TwinspireError

RETRY_AFTER_S = 1
"""Seconds after which a client should try again where the queue is full or no server is reached."""


@dataclass
class GatewayError(Exception):
    """A request that failed: the HTTP status, a message for people, and what programs look at.

    `param` is the part of the request that is wrong, such as `input[3]`; `code` is a word such as `model_not_found`.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


def of_twinspire(error: TwinspireError) -> GatewayError:
    """Return the error of the HTTP status that its class has; a full or unreachable server says when to try again."""
    status = error_status(error).http
    is_temporary = isinstance(error, ServerOverloadedError | ServerUnavailableError) or status in (429, 503)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if is_temporary else {}
    return GatewayError(status, str(error), param=getattr(error, "option", None), code=_code(status), headers=headers)


def of_status(status: int, detail: str) -> GatewayError:
    """Return the error of a status that the framework decided on, such as 404."""
    return GatewayError(status, detail, code=_code(status))


def _code(status: int) -> str:
    return HTTPStatus(status).name.lower()
