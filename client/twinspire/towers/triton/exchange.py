"""The requests of one call: several in flight at a time, and sent again until the deadline."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from twinspire._telemetry import count
from twinspire.errors import ServerUnavailableError
from twinspire.towers.triton.channel import Channel, Deadline, DeadlinePassedError, TransientServerError

Result = TypeVar("Result")
Sent = TypeVar("Sent")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_DOUBLINGS = 5  # 0.1 s times 2 to the fifth is more than the longest wait


class Window:
    """How many requests of a call are in flight at a time.

    `in_flight` requests; None is four, or as many as fill two of the server's largest batches where that is more: one
    batch is computed while the next is collected. When the server refuses a request, the limit is halved, and then
    raised by one for each round of answers: additive increase, multiplicative decrease.
    https://datatracker.ietf.org/doc/html/rfc5681#section-3.1
    """

    def __init__(self, in_flight: int | None, max_batch: int) -> None:
        self._in_flight, self._max_batch = in_flight, max_batch
        self._limit = math.inf

    def has_room(self, requests: int, rows: int) -> bool:
        """Return whether another request may be sent while `requests`, with `rows` in all, are in flight."""
        if requests + 1 > self._limit:
            return False
        if self._in_flight is not None:
            return requests < self._in_flight
        return requests < 4 or rows < 2 * self._max_batch

    def refused(self, in_flight: int) -> None:
        """Note that the server refused a request while `in_flight` others were in flight."""
        self._limit = max(1.0, in_flight / 2)

    def answered(self) -> None:
        """Note that the server answered a request."""
        self._limit += 1 / self._limit


class RetryPolicy:
    """The retries of one call: exponential backoff with jitter until the deadline.

    `max_retries` bounds how many follow one another without an answer in between; None does not.
    """

    def __init__(self, channel: Channel, deadline: Deadline, *, max_retries: int | None) -> None:
        self._channel, self._deadline, self._max_retries = channel, deadline, max_retries
        self._failures = 0
        self._last: TransientServerError | None = None

    def run(self, action: Callable[[], Result]) -> Result:
        """Repeat an action until it raises no TransientServerError. Raises `deadline_error` where no time is left."""
        while True:
            try:
                return action()
            except TransientServerError as failure:
                self.wait(failure)
                count("retries")
            except DeadlinePassedError as passed:
                raise self.deadline_error() from passed.__cause__

    def wait(self, failure: TransientServerError) -> None:
        """Wait before the next attempt. Raises `deadline_error` where no retry or no time is left."""
        self.note(failure)
        self._failures += 1
        left_s = self._deadline.left_s
        exhausted = self._max_retries is not None and self._failures > self._max_retries
        if exhausted or left_s < _FIRST_WAIT_S:
            raise self.deadline_error() from failure.__cause__
        # Jitter: clients that lost one server, or were refused by it, must not all come back at once.
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        longest_s = min(_FIRST_WAIT_S * 2 ** min(self._failures - 1, _DOUBLINGS), _LONGEST_WAIT_S)
        # At most half of the time left, so that a call does not sleep through its last chances.
        self._channel.closed.wait(min(random.uniform(0.5, 1.0) * longest_s, left_s / 2))
        self._channel.check_open()

    def note(self, failure: TransientServerError) -> None:
        """Remember a failure: it is the call's error if no answer follows."""
        self._last = failure

    def progress(self) -> None:
        """Note an answer: earlier failures no longer count."""
        self._failures = 0
        self._last = None

    def deadline_error(self) -> ServerUnavailableError:
        """Return the error of a call that ends without its answer: the last failure where there was one."""
        address, limit_s = self._channel.address, self._deadline.limit_s
        if self._last is None:
            return ServerUnavailableError(
                f"the server at {address} did not answer the whole call within {limit_s:g} s: it is overloaded or "
                "cannot be reached. Send less in a call or allow more with deadline_s",
                address=address,
                deadline_s=limit_s,
            )
        error = self._last.error
        attempts = f" Attempts: {self._failures}" if self._failures else ""
        return type(error)(
            f"{error}{attempts}", address=address, code=error.code, attempts=self._failures or None, deadline_s=limit_s
        )


def exchange(
    channel: Channel,
    batches: Iterator[Sent],
    *,
    send: Callable[[Sent], Any],
    rows: Callable[[Sent], int],
    window: Window,
    recover: Callable[[TransientServerError], None],
    policy: RetryPolicy,
    deadline: Deadline,
) -> Generator[tuple[Sent, Any], None, None]:
    """Send every batch, several at a time, and yield each with its response in the order of the responses.

    `send` returns the request's future. A request that an overloaded server refused is sent again after the next
    answer; `window` then allows fewer. When none is in flight, or after any other transient failure once
    all in flight have ended, `recover` waits, or raises, and the failed requests are sent again; answered ones never
    are. Any other error ends the exchange. Requests in flight when it ends, for whatever reason, are cancelled.

    Raises ServerError, and EngineError where the channel is closed meanwhile or a response cannot be read.
    """
    done: SimpleQueue[Any] = SimpleQueue()
    pending: dict[Any, Sent] = {}
    failed: list[Sent] = []
    failure: TransientServerError | None = None
    rows_pending = 0
    try:
        while True:
            while failure is None and window.has_room(len(pending), rows_pending):
                if failed:
                    batch: Sent | None = failed.pop()
                    count("retries")
                else:
                    batch = next(batches, None)
                if batch is None:
                    break
                future = send(batch)
                pending[future] = batch
                rows_pending += rows(batch)
                future.add_done_callback(done.put)
            if not pending:
                if failure is None:
                    return
                recover(failure)
                failure = None
                continue
            try:
                future = done.get(timeout=deadline.left_s)
            except Empty as error:
                raise policy.deadline_error() from error
            batch = pending.pop(future)
            rows_pending -= rows(batch)
            try:
                response = channel.result(future, deadline)
            except DeadlinePassedError as passed:
                raise policy.deadline_error() from passed.__cause__
            except TransientServerError as error:
                failed.append(batch)
                policy.note(error)
                if error.is_overload:
                    window.refused(len(pending))
                if not error.is_overload or not (pending or failure):
                    failure = error
            else:
                policy.progress()
                window.answered()
                yield batch, response
    finally:
        for future in pending:
            future.cancel()
