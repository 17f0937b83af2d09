"""The connection to an inference server: deadlines, and gRPC's errors as this package's.

The generated stubs of tritonclient are used rather than its `InferenceServerClient`: they give a status as an
enum member and a request as a future.
"""

# ruff: noqa: ANN401 - protobuf's messages and grpc.Future have no types

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from twinspire._arguments import printable
from twinspire._telemetry import count
from twinspire.errors import EngineError, ServerError, ServerOverloadedError, ServerRefusedError, ServerUnavailableError
from twinspire.towers.triton.options import TlsOptions

Failed = TypeVar("Failed", bound=ServerError)

_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # 4 MB by default: 26 images of 224 pixels
    # Disable gRPC's transparent retries: they may reach a server whose models were not inspected.
    ("grpc.enable_retries", 0),
    # How long to wait before connecting again to a server that is gone, give or take 20%; gRPC's default is up to two
    # minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Notice a host that vanished after about a minute (70 s measured on a halted server), not after TCP's 15 minutes.
    # Triton closes a connection at the third ping without data in five minutes; with these settings a request that took
    # 110 s was answered.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 2),
    # Give each client of an address its own connection, so that closing one leaves the other open.
    ("grpc.use_local_subchannel_pool", 1),
]
_CLOSED = "the towers are closed: open the client or the towers again"
_SHOWN_CHARACTERS = 400
"""How much of a server's text an error message shows."""
_CLOCKS_DIFFER_S = 0.1
"""How much earlier than `Deadline` gRPC may end a request at its deadline."""

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


class DeadlinePassedError(Exception):
    """The deadline of the call passed while a request was in flight: `RetryPolicy.deadline_error` says why."""


class TransientServerError(Exception):
    """A request failed and may be sent again, which is safe: encoding changes nothing on the server.

    `error` is what to raise where no time or no retry is left.
    """

    def __init__(self, error: ServerUnavailableError) -> None:
        super().__init__(str(error))
        self.error = error

    @property
    def is_overload(self) -> bool:
        """Whether the server refused the request because its queue is full."""
        return isinstance(self.error, ServerOverloadedError)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a call: `limit_s` after it began, `at` on the clock `time.monotonic`."""

    limit_s: float
    at: float

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        """Return the deadline of a call that begins now."""
        return cls(limit_s, time.monotonic() + limit_s)

    @property
    def left_s(self) -> float:
        """The time left, in seconds; 0 where it has passed."""
        return max(0.0, self.at - time.monotonic())


class Channel:
    """One gRPC channel to one address, for several threads at once.

    `max_response_bytes` is the largest response that is accepted. `models_seen` is whether the server had the models
    before: their absence is then transient. Raises InputError for unusable TLS files.
    """

    def __init__(self, address: str, tls: TlsOptions | None, *, max_response_bytes: int) -> None:
        self.address = address
        self.closed = threading.Event()
        self.models_seen = False
        self._encrypted = tls is not None
        self._max_response_bytes = max_response_bytes
        options = [*_OPTIONS, ("grpc.max_receive_message_length", max_response_bytes)]
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(*tls.read())
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ask(self, requests: Sequence[tuple[str, Any]], deadline: Deadline) -> list[Any]:
        """Send small requests, each a method and its message, and wait for all answers. Raises as `result` does."""
        futures: list[Any] = []
        try:
            for method, request in requests:
                futures.append(self.send(method, request, deadline))
            return [self.result(future, deadline) for future in futures]
        finally:
            for future in futures:  # where waiting was interrupted, or another one failed
                future.cancel()

    def send(self, method: str, request: Any, deadline: Deadline, *, metadata: Sequence[tuple[str, str]] = ()) -> Any:
        """Send a request, with gRPC metadata, and return its future, which fails at the deadline."""
        try:
            return getattr(self._stub, method).future(
                request, timeout=deadline.left_s, metadata=tuple(metadata) or None
            )
        except ValueError as error:  # what gRPC raises for a closed channel
            self.check_open()
            message = f"a request to the server at {self.address} could not be sent: {error}"
            raise ServerError(message, address=self.address) from error

    def result(self, future: Any, deadline: Deadline) -> Any:
        """Wait for a response.

        Raises TransientServerError where the request may be sent again, DeadlinePassedError where no time is left,
        ServerError where the server refuses, EngineError where the channel was closed and for a response that is too
        large or not a message of the protocol.
        """
        try:
            response = future.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            translated = self._translated(error, deadline)
            count("failures", reason=_failure_reason(translated))
            raise translated from error
        if response is None:  # status OK without a message
            raise EngineError(
                f"the server at {self.address} sent an empty response: expected a message of Triton's protocol"
            )
        return response

    def _translated(self, error: Exception, deadline: Deadline) -> Exception:
        """Return this package's error for what a failed future raised."""
        server = f"the server at {self.address}"
        if self.closed.is_set():
            return EngineError(_CLOSED)
        if isinstance(error, grpc.FutureCancelledError):
            return ServerUnavailableError(f"the request to {server} was cancelled", address=self.address)
        code, details = error.code(), error.details() or ""  # type: ignore[attr-defined]
        message = f"{code.name}: {printable(details, limit=_SHOWN_CHARACTERS)}"

        def failed(kind: type[Failed], text: str) -> Failed:
            return kind(f"{server} {text}", address=self.address, code=code.name)

        def unavailable(text: str) -> TransientServerError:
            return TransientServerError(failed(ServerUnavailableError, text))

        overloaded = (
            f"has more requests than it can answer ({message}). Send less at a time, allow more time with deadline_s, "
            "or add servers."
        )

        match code:
            case grpc.StatusCode.DEADLINE_EXCEEDED if deadline.left_s < _CLOCKS_DIFFER_S:
                return DeadlinePassedError()
            case grpc.StatusCode.RESOURCE_EXHAUSTED if _TOO_LARGE.search(details):
                return EngineError(
                    f"{server} sent a response that is too large ({message}): expected at most "
                    f"{self._max_response_bytes:,} bytes, enough for any batch of this bundle's embeddings"
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
                required = "a certificate of its clients" if self._encrypted else "TLS"
                hint = f" Does it require {required}?" if "Socket closed" in details else ""
                return unavailable(f"is not available ({message}). Is it running and ready?{hint}")
            case grpc.StatusCode.NOT_FOUND if self.models_seen or _UNLOADED in details:
                return unavailable(f"has lost its models ({message}). Is it being stopped?")
            case grpc.StatusCode.CANCELLED | grpc.StatusCode.DEADLINE_EXCEEDED:
                return failed(ServerUnavailableError, f"gave the request up ({message})")
        return failed(ServerRefusedError, f"refused the request ({message})")

    def check_open(self) -> None:
        """Raise EngineError where the channel was closed."""
        if self.closed.is_set():
            raise EngineError(_CLOSED)

    def close(self) -> None:
        """Close the channel: what is in flight fails. Closing twice does nothing."""
        self.closed.set()
        self._channel.close()


def _failure_reason(error: Exception) -> str:
    """Return the reason of a failed request for metrics."""
    if isinstance(error, DeadlinePassedError):
        return "deadline"
    cause = error.error if isinstance(error, TransientServerError) else error
    for kind, reason in (
        (ServerOverloadedError, "overloaded"),
        (ServerUnavailableError, "unavailable"),
        (ServerRefusedError, "refused"),
    ):
        if isinstance(cause, kind):
            return reason
    return "error"
