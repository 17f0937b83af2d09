"""gRPC's statuses as this package's errors, and which of them a retry may repair."""

from __future__ import annotations

import re
from typing import Protocol, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]

from twinspire._arguments import printable
from twinspire.errors import EngineError, ServerError, ServerOverloadedError, ServerRefusedError, ServerUnavailableError
from twinspire.towers.triton.retries import CLOCKS_DIFFER_S, Deadline, DeadlinePassedError, TransientServerError

Failed = TypeVar("Failed", bound=ServerError)

_SHOWN_CHARACTERS = 400
"""How much of a server's text an error message shows."""
# Triton 2.51's messages, found by experiment, for a full queue and for a request that timed out in it. The models of
# `twinspire serve` send the same for their own queue, other models where they have a `default_queue_policy`.
_OVERLOAD = re.compile("exceeds maximum queue size|request timeout expired", re.IGNORECASE)
_TLS_CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": "No trusted authority signed its certificate: pass the authority's with --tls-ca or "
    "TlsOptions(root_certificates=...)",
    "WRONG_VERSION_NUMBER": "It does not speak TLS: connect without",
    "Hostname Verification": "Its certificate is for other names: connect by one of them",
}
"""gRPC's messages for TLS connections that retrying cannot repair, and what to do."""
# The process of a model of the Python backend was killed, or did not answer Triton's health check within a second.
_DEAD_PROCESS = re.compile(r"stub process\b.*\bis (not |un)healthy", re.IGNORECASE | re.DOTALL)
# A Triton that is stopping unloads its models first and sends this for each; a model that it never had "is not found".
_UNLOADED = "has no available versions"
# gRPC's own messages about a response; one about a request that is too large for the server begins with "SERVER".
_TOO_LARGE = re.compile("(CLIENT: Received|Decompressed) message larger than max")
_UNREADABLE = "Exception deserializing response!"


class Connection(Protocol):
    """What an error says about a connection: see `Channel`."""

    address: str
    max_response_bytes: int
    models_seen: bool
    is_encrypted: bool


def is_unknown_model(code: grpc.StatusCode, details: str) -> bool:
    """Whether a request failed because the server has no such model; one that it has unloaded is not unknown."""
    return code is grpc.StatusCode.NOT_FOUND and _UNLOADED not in details


def error_of(code: grpc.StatusCode, details: str, channel: Connection, deadline: Deadline) -> Exception:
    """Return the error for a request that ended with a status other than OK.

    TransientServerError where it may be sent again, DeadlinePassedError where no time is left, EngineError for a
    response that is too large or not a message of the protocol, ServerError for any other.
    """
    server = f"the server at {channel.address}"
    message = f"{code.name}: {printable(details, limit=_SHOWN_CHARACTERS)}"

    def failed(kind: type[Failed], text: str) -> Failed:
        return kind(f"{server} {text}", address=channel.address, code=code.name)

    def unavailable(text: str) -> TransientServerError:
        return TransientServerError(failed(ServerUnavailableError, text))

    overloaded = (
        f"has more requests than it can answer ({message}). Send less at a time, allow more time with deadline_s, "
        "or add servers."
    )

    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED if deadline.left_s < CLOCKS_DIFFER_S:
            return DeadlinePassedError()
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _TOO_LARGE.search(details):
            return EngineError(
                f"{server} sent a response that is too large ({message}): expected at most "
                f"{channel.max_response_bytes:,} bytes, enough for any batch of this bundle's embeddings"
            )
        case grpc.StatusCode.INTERNAL if details == _UNREADABLE:
            return EngineError(f"{server} sent what cannot be read: expected a message of Triton's protocol")
        case grpc.StatusCode.INTERNAL if _DEAD_PROCESS.search(details):
            return unavailable(
                f"has a model whose process is dead or hung ({message}). `twinspire serve` restarts it; "
                "restart any other server."
            )
        case grpc.StatusCode.UNAVAILABLE if _OVERLOAD.search(details):
            return TransientServerError(failed(ServerOverloadedError, overloaded))
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" not in details:  # how proxies refuse
            return TransientServerError(failed(ServerOverloadedError, overloaded))
        case grpc.StatusCode.UNAVAILABLE:
            for text, cause in _TLS_CAUSES.items():
                if text in details:
                    return failed(ServerUnavailableError, f"is not available ({message}). {cause}")
            required = "a certificate of its clients" if channel.is_encrypted else "TLS"
            hint = f" Does it require {required}?" if "Socket closed" in details else ""
            return unavailable(f"is not available ({message}). Is it running and ready?{hint}")
        case grpc.StatusCode.NOT_FOUND if channel.models_seen or _UNLOADED in details:
            return unavailable(f"has lost its models ({message}). Is it being stopped?")
        case grpc.StatusCode.CANCELLED:  # by a server that stops: what the client cancels never comes here
            return unavailable(f"cancelled the request ({message}). Is it being stopped?")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return failed(ServerUnavailableError, f"gave the request up ({message})")
    return failed(ServerRefusedError, f"refused the request ({message})")
