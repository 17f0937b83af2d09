"""The connection to an inference server: deadlines, and gRPC's errors in this package's words.

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
from typing import Any

import grpc  # type: ignore[import-untyped, unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from twinspire._printable import printable
from twinspire.errors import (
    EngineError,
    ServerError,
    ServerOverloadedError,
    ServerRefusedError,
    ServerUnavailableError,
)
from twinspire.towers.triton.options import TlsOptions

_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # 4 MB by default: 26 images of 224 pixels
    # Disable gRPC's transparent retries: they may reach a server whose models were not inspected.
    ("grpc.enable_retries", 0),
    # How often a server that went away is looked for, 20% more or less; gRPC's own limit is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A host that vanished without a word is noticed after a minute or so (70 s measured on a halted server), not after
    # TCP's 15 minutes. Triton breaks a connection off at the third ping without data in five minutes; with these a
    # request that took it 110 s was answered.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 2),
    # Two clients of one address are two connections, and closing one leaves the other alone.
    ("grpc.use_local_subchannel_pool", 1),
]
_CLOSED = "these towers are closed: open new ones"
_SHOWN_CHARACTERS = 400
"""How much of a server's text a message shows."""
_CLOCKS_DIFFER_S = 0.1
"""How much earlier than `Deadline` gRPC may end a request at its deadline."""

# Triton 2.51's texts, found by provoking them, of a full queue and of a request that waited there for too long. The
# models of `twinspire serve` say the same of their own queue, others where they have a `default_queue_policy`.
_OVERLOAD = re.compile("exceeds maximum queue size|request timeout expired", re.IGNORECASE)
_TLS_CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": "Nobody trusted here has signed its certificate: name its authority with --tls-ca or "
    "TlsOptions(root_certificates=...)",
    "WRONG_VERSION_NUMBER": "It does not speak TLS: connect without",
    "Hostname Verification": "Its certificate is for other names: connect by one of them",
}
"""What gRPC says of a TLS connection that will never come about, and what to do."""
# The process of a model of the Python backend was killed, or did not answer Triton's question for a second.
_DEAD_PROCESS = re.compile(r"stub process\b.*\bis (not |un)healthy", re.IGNORECASE | re.DOTALL)
# A Triton that is being stopped unloads its models first and says so of each; a model that it never had "is not found".
_UNLOADED = "has no available versions"
# gRPC's own texts about an answer; one about a request that is too large for the server begins with "SERVER".
_TOO_LARGE = re.compile("(CLIENT: Received|Decompressed) message larger than max")
_UNREADABLE = "Exception deserializing response!"


class DeadlinePassedError(Exception):
    """The deadline of the call passed while a request was in flight: `RetryPolicy.deadline_error` says why."""


class TransientServerError(Exception):
    """A request failed and may be sent again, which is safe: encoding changes nothing on the server.

    `error` is what to raise where that is in vain.
    """

    def __init__(self, error: ServerUnavailableError) -> None:
        super().__init__(str(error))
        self.error = error

    @property
    def is_overload(self) -> bool:
        """Whether the server is there and refused the request because it has too many."""
        return isinstance(self.error, ServerOverloadedError)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call must have ended: `limit_s` after it began, on the clock `time.monotonic`."""

    limit_s: float
    at: float

    @classmethod
    def after(cls, limit_s: float) -> Deadline:
        """Begin now."""
        return cls(limit_s, time.monotonic() + limit_s)

    @property
    def left_s(self) -> float:
        """What is left, in seconds; 0 where it has passed."""
        return max(0.0, self.at - time.monotonic())


class Channel:
    """One gRPC channel to one address, for several threads at once.

    `max_answer_bytes` is how large an answer may be. `models_seen` is whether the server was found to have the models
    that it will be asked for. Raises InputError for unusable TLS files.
    """

    def __init__(self, address: str, tls: TlsOptions | None, *, max_answer_bytes: int) -> None:
        self.address = address
        self.closed = threading.Event()
        self.models_seen = False
        self._encrypted = tls is not None
        self._max_answer_bytes = max_answer_bytes
        options = [*_OPTIONS, ("grpc.max_receive_message_length", max_answer_bytes)]
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

    def send(self, method: str, request: Any, deadline: Deadline) -> Any:
        """Send a request and return its future, which fails at the deadline."""
        try:
            return getattr(self._stub, method).future(request, timeout=deadline.left_s)
        except ValueError as error:  # gRPC's word for a channel that was closed
            self.check_open()
            raise ServerError(f"a request to the server at {self.address} could not be sent: {error}") from error

    def result(self, future: Any, deadline: Deadline) -> Any:
        """Wait for a response.

        Raises TransientServerError where the request may be sent again, DeadlinePassedError where there is no time
        left, ServerError for what the server will not do, EngineError where the channel was closed and for an answer
        that is no message of the protocol or too large.
        """
        try:
            response = future.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self._translated(error, deadline) from error
        if response is None:  # status OK without a message
            raise EngineError(f"the server at {self.address} sent no answer: expected one message of Triton's protocol")
        return response

    def _translated(self, error: Exception, deadline: Deadline) -> Exception:
        """Return this package's error for what a failed future raised."""
        server = f"the server at {self.address}"
        if self.closed.is_set():
            return EngineError(_CLOSED)
        if isinstance(error, grpc.FutureCancelledError):
            return ServerUnavailableError(f"the request to {server} was cancelled")
        code, details = error.code(), error.details() or ""  # type: ignore[attr-defined]
        message = f"{code.name}: {printable(details, limit=_SHOWN_CHARACTERS)}"
        match code:
            case grpc.StatusCode.DEADLINE_EXCEEDED if deadline.left_s < _CLOCKS_DIFFER_S:
                return DeadlinePassedError()
            case grpc.StatusCode.RESOURCE_EXHAUSTED if _TOO_LARGE.search(details):
                return EngineError(
                    f"{server} sent an answer that is too large ({message}): expected at most "
                    f"{self._max_answer_bytes:,} bytes, which any batch of this bundle's embeddings fits"
                )
            case grpc.StatusCode.INTERNAL if details == _UNREADABLE:
                return EngineError(f"{server} sent what cannot be read: expected a message of Triton's protocol")
            case grpc.StatusCode.INTERNAL if _DEAD_PROCESS.search(details):
                return TransientServerError(
                    ServerUnavailableError(
                        f"the model's process on {server} is dead or hung ({message}). `twinspire serve` restarts it; "
                        "restart any other server."
                    )
                )
            case grpc.StatusCode.UNAVAILABLE if _OVERLOAD.search(details):
                return self._overloaded(message)
            case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" not in details:  # how proxies refuse
                return self._overloaded(message)
            case grpc.StatusCode.UNAVAILABLE:
                for text, cause in _TLS_CAUSES.items():
                    if text in details:
                        return ServerUnavailableError(f"{server} is not available ({message}). {cause}")
                asks = "a certificate of its clients" if self._encrypted else "TLS"
                hint = f" Does it ask for {asks}?" if "Socket closed" in details else ""
                return TransientServerError(
                    ServerUnavailableError(f"{server} is not available ({message}). Is it running and ready?{hint}")
                )
            case grpc.StatusCode.NOT_FOUND if self.models_seen or _UNLOADED in details:
                return TransientServerError(
                    ServerUnavailableError(f"{server} has lost its models ({message}). Is it being stopped?")
                )
            case grpc.StatusCode.CANCELLED | grpc.StatusCode.DEADLINE_EXCEEDED:
                return ServerUnavailableError(f"{server} gave the request up ({message})")
        return ServerRefusedError(f"{server} refused the request ({message})")

    def _overloaded(self, message: str) -> TransientServerError:
        return TransientServerError(
            ServerOverloadedError(
                f"the server at {self.address} has more requests than it can answer ({message}). Send less at a time, "
                "allow more time with deadline_s, or add servers."
            )
        )

    def check_open(self) -> None:
        """Raise EngineError where the channel was closed."""
        if self.closed.is_set():
            raise EngineError(_CLOSED)

    def close(self) -> None:
        """Close the channel: what is in flight fails. Closing twice does nothing."""
        self.closed.set()
        self._channel.close()
