"""The connection to an inference server, for threads and for asyncio.

The generated stubs of tritonclient are used rather than its `InferenceServerClient`: they give a status as an
enum member and a request as a future.
"""

# ruff: noqa: ANN401 - protobuf's messages and the futures of grpc and asyncio have no types

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import grpc  # type: ignore[import-untyped, unused-ignore]
import grpc.aio  # type: ignore[import-untyped, unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from twinspire._telemetry import count
from twinspire.errors import (
    EngineError,
    ServerError,
    ServerOverloadedError,
    ServerRefusedError,
    ServerUnavailableError,
)
from twinspire.towers.triton.options import TlsOptions
from twinspire.towers.triton.retries import Deadline, DeadlinePassedError, TransientServerError
from twinspire.towers.triton.status import error_of, is_unknown_model

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
Metadata: TypeAlias = tuple[tuple[str, str], ...]
CLOSED = "the towers are closed: open the client or the towers again"


class Channel(ABC):
    """One gRPC channel to one address.

    `max_response_bytes` is the largest response that is accepted, `closed` an event that the owner sets before it
    closes the channel. `models_seen` is whether the server had the models before: their absence is then transient.
    Raises InputError for unusable TLS files.
    """

    grpc: ClassVar[Any]
    """The module that makes the channel: `grpc` or `grpc.aio`."""

    def __init__(
        self,
        address: str,
        tls: TlsOptions | None,
        *,
        max_response_bytes: int,
        closed: threading.Event | asyncio.Event,
    ) -> None:
        self.address = address
        self.max_response_bytes = max_response_bytes
        self.models_seen = False
        self.is_encrypted = tls is not None
        self._closed = closed
        options = [*_OPTIONS, ("grpc.max_receive_message_length", max_response_bytes)]
        if tls is None:
            self.channel = self.grpc.insecure_channel(address, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(*tls.read())
            self.channel = self.grpc.secure_channel(address, credentials, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    @property
    def is_closed(self) -> bool:
        """Whether the owner is closing it or has done so."""
        return self._closed.is_set()

    @abstractmethod
    def send(self, method: str, request: Any, deadline: Deadline, metadata: Metadata = ()) -> Any:
        """Send a request, with gRPC metadata, and return its future, which fails at the deadline."""

    def response(self, future: Any, deadline: Deadline, *, optional: bool = False) -> Any:
        """Return the response of a request that has ended; None where its model may be absent (`optional`) and is.

        Raises TransientServerError where the request may be sent again, DeadlinePassedError where no time is left,
        ServerError where the server refuses, EngineError where the channel was closed and for a response that is too
        large or not a message of the protocol.
        """
        try:
            response = future.result()
        except (grpc.FutureCancelledError, asyncio.CancelledError) as error:
            if self.is_closed:
                raise EngineError(CLOSED) from error
            message = f"the request to the server at {self.address} was cancelled"
            raise ServerUnavailableError(message, address=self.address) from error
        except grpc.RpcError as error:
            if self.is_closed:
                raise EngineError(CLOSED) from error
            code, details = error.code(), error.details() or ""  # type: ignore[attr-defined, unused-ignore]
            if optional and is_unknown_model(code, details):
                return None
            translated = error_of(code, details, self, deadline)
            count("failures", reason=_failure_reason(translated))
            raise translated from error
        if response is None:  # status OK without a message, or in asyncio one that cannot be read
            raise EngineError(
                f"the server at {self.address} sent an empty response: expected a message of Triton's protocol"
            )
        return response

    def _unsent(self, error: Exception) -> Exception:
        """Return the error of a request that gRPC did not take."""
        if self.is_closed:
            return EngineError(CLOSED)
        message = f"a request to the server at {self.address} could not be sent: {error}"
        return ServerError(message, address=self.address)


class ThreadChannel(Channel):
    """A channel for several threads at once."""

    grpc = grpc

    def send(self, method: str, request: Any, deadline: Deadline, metadata: Metadata = ()) -> Any:
        """Send a request and return its `grpc.Future`."""
        try:
            return getattr(self._stub, method).future(request, timeout=deadline.left_s, metadata=metadata or None)
        except ValueError as error:  # what gRPC raises for a closed channel
            raise self._unsent(error) from error


class AsyncChannel(Channel):
    """A channel for the event loop that it is made in."""

    grpc = grpc.aio

    def send(self, method: str, request: Any, deadline: Deadline, metadata: Metadata = ()) -> Any:
        """Send a request and return its task. Cancelling that cancels the request."""

        async def call() -> Any:
            try:
                return await getattr(self._stub, method)(request, timeout=deadline.left_s, metadata=metadata or None)
            except grpc.aio.UsageError as error:  # a closed channel
                raise self._unsent(error) from error

        return asyncio.ensure_future(call())


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
