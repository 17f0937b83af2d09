"""The connection to an inference server: deadlines, repeats, and gRPC's errors in this package's words.

The generated stubs of tritonclient are used rather than its `InferenceServerClient`: they give a status as an
enum member and a request as a future.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]
from tritonclient.grpc import service_pb2_grpc

from twinspire.errors import EngineError, ServerError, ServerRefusedError, ServerUnavailableError
from twinspire.towers.triton_options import TlsOptions

Sent = TypeVar("Sent")
Result = TypeVar("Result")

_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # 4 MB by default: 26 pictures of 224 pixels
    ("grpc.max_receive_message_length", -1),
    # gRPC would repeat by itself what it had not sent yet, on another connection: to a server not looked at.
    ("grpc.enable_retries", 0),
    # How often a server that went away is looked for, 20% more or less: in less time than a call's default retries
    # wait together, so that a call succeeds once the server is back. gRPC's own limit is two minutes.
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
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0

# The server was not there, or threw the request away: the status after which a request is sent again. It may have
# been computed nevertheless, which changes nothing on the server.
_LOST = grpc.StatusCode.UNAVAILABLE
# A Triton that is being stopped lets go of its models first and says so of each. Only once they were there.
_GONE = grpc.StatusCode.NOT_FOUND


class LostError(ServerUnavailableError):
    """The server was not reachable, or gave an answer up: sending the request again is safe."""


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

    `models_seen` is whether the server was found to have the models that it will be asked for. Raises InputError
    for unusable TLS files.
    """

    def __init__(self, address: str, tls: TlsOptions | None) -> None:
        self.address = address
        self.closed = threading.Event()
        self.models_seen = False
        self.encrypted = tls is not None
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(*tls.read())
            self._channel = grpc.secure_channel(address, credentials, options=_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def ask(self, requests: Sequence[tuple[str, Any]], deadline: Deadline) -> list[Any]:
        """Send small requests, each a method and its message, and wait for all answers. Raises as `mapped` has it."""
        futures: list[Any] = []
        try:
            for method, request in requests:
                futures.append(self.send(method, request, deadline))
            return [future.result() for future in futures]
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self.mapped(error, deadline) from error
        finally:
            for future in futures:  # where waiting was interrupted, or another one failed
                future.cancel()

    def send(self, method: str, request: Any, deadline: Deadline) -> Any:  # noqa: ANN401 - protobuf and grpc.Future
        """Send a request and return its future, which fails at the deadline."""
        try:
            return getattr(self._stub, method).future(request, timeout=deadline.left_s)
        except ValueError as error:  # gRPC's word for a channel that was closed
            self.check_open()
            raise ServerError(f"a request to the server at {self.address} could not be sent: {error}") from error

    def mapped(self, error: Exception, deadline: Deadline) -> Exception:
        """Say in this package's words what a failed future raised; `error` becomes its cause."""
        own = self._mapped(error, deadline)
        own.__cause__ = error
        return own

    def _mapped(self, error: Exception, deadline: Deadline) -> Exception:
        if self.closed.is_set():
            return EngineError(_CLOSED)
        if isinstance(error, grpc.FutureCancelledError):
            return ServerUnavailableError(f"the request to the server at {self.address} was cancelled")
        code, details = error.code(), error.details()  # type: ignore[attr-defined]
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.late(deadline)
        said = f"{code.name}: {details}"
        if code is _LOST or (code is _GONE and self.models_seen):
            hint = " Does it ask for TLS?" if not self.encrypted and "Socket closed" in (details or "") else ""
            return LostError(
                f"the server at {self.address} is not available ({said}). Is it running and ready there?{hint}"
            )
        if code is grpc.StatusCode.CANCELLED:
            return ServerUnavailableError(f"the server at {self.address} gave the request up ({said})")
        return ServerRefusedError(f"the server at {self.address} refused the request ({said})")

    def late(self, deadline: Deadline) -> ServerUnavailableError:
        """Make the error of a call whose deadline has passed."""
        return ServerUnavailableError(
            f"the server at {self.address} did not answer the whole call within {deadline.limit_s:g} s: it is "
            "overloaded or cannot be reached. Send less in a call or allow more with deadline_s"
        )

    def check_open(self) -> None:
        """Raise EngineError where the channel was closed."""
        if self.closed.is_set():
            raise EngineError(_CLOSED)

    def close(self) -> None:
        """Close the channel: what is under way fails. Closing twice does nothing."""
        self.closed.set()
        self._channel.close()


class Patience:
    """How often a call goes on after a LostError: exponential backoff with jitter, within the deadline."""

    def __init__(self, channel: Channel, max_retries: int, deadline: Deadline) -> None:
        self._channel, self._max_retries, self._deadline = channel, max_retries, deadline
        self._failures = 0

    def insist(self, action: Callable[[], Result]) -> Result:
        """Do something until it raises no LostError. Raises ServerUnavailableError as `wait` does."""
        while True:
            try:
                return action()
            except LostError as lost:
                self.wait(lost)

    def wait(self, lost: LostError) -> None:
        """Wait before the next attempt. Raises ServerUnavailableError where there is none, or not in time."""
        # Jitter: many clients that lost one server do not come back all at once.
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        wait_s = random.uniform(0.5, 1.0) * min(_FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
        self._failures += 1
        if self._failures > self._max_retries or wait_s >= self._deadline.left_s:
            raise ServerUnavailableError(f"{lost} Attempts: {self._failures}") from lost
        self._channel.closed.wait(wait_s)
        self._channel.check_open()

    def progress(self) -> None:
        """Begin anew: an answer came."""
        self._failures = 0


def exchange(
    channel: Channel,
    batches: Iterator[Sent],
    *,
    send: Callable[[Sent], Any],
    has_room: Callable[[int, int], bool],
    rows: Callable[[Sent], int],
    recover: Callable[[LostError], None],
    deadline: Deadline,
) -> Generator[tuple[Sent, Any], None, None]:
    """Send every batch, several at a time, and yield each with its response as they come.

    `send` returns the request's future; `has_room` says whether one more may be sent beside so many requests
    of so many rows. After a LostError nothing is sent until what is under way has ended; then `recover` waits
    and looks at the server again, or raises, and what was lost is sent again. Any other error ends the whole
    exchange. What is under way when it ends, for whatever reason, is cancelled.

    Raises ServerError, or EngineError where the channel is closed meanwhile.
    """
    done: SimpleQueue[Any] = SimpleQueue()
    pending: dict[Any, Sent] = {}
    again: list[Sent] = []
    lost: LostError | None = None
    rows_pending = 0
    try:
        while True:
            while lost is None and has_room(len(pending), rows_pending):
                batch = again.pop() if again else next(batches, None)
                if batch is None:
                    break
                future = send(batch)
                pending[future] = batch
                rows_pending += rows(batch)
                future.add_done_callback(done.put)
            if not pending:
                if lost is None:
                    return
                recover(lost)
                lost = None
                continue
            try:
                future = done.get(timeout=deadline.left_s)
            except Empty:
                raise channel.late(deadline) from None
            batch = pending.pop(future)
            rows_pending -= rows(batch)
            try:
                response = future.result()
            except (grpc.RpcError, grpc.FutureCancelledError) as error:
                own = channel.mapped(error, deadline)
                if not isinstance(own, LostError):
                    raise own from error
                lost = own
                again.append(batch)
            else:
                yield batch, response
    finally:
        for future in pending:
            future.cancel()
