"""The requests of one call: several in flight at a time, and sent again until the deadline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from twinspire._telemetry import count
from twinspire.towers.triton.channel import Channel
from twinspire.towers.triton.retries import Deadline, DeadlinePassedError, RetryPolicy, TransientServerError
from twinspire.towers.triton.steps import NextDone, Send, Steps

Sent = TypeVar("Sent")


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


class Question(NamedTuple):
    """A small request: a method and its message. With `optional` its model may be absent: the answer then is None."""

    method: str
    message: Any
    optional: bool = False


def ask(channel: Channel, questions: Sequence[Question], deadline: Deadline) -> Steps[list[Any]]:
    """Send small requests and return all answers. Raises as `Channel.response` does."""
    futures: list[Any] = []
    try:
        for question in questions:
            send = partial(channel.send, question.method, question.message, deadline)
            futures.append((yield Send(send)))
        waiting = set(futures)
        while waiting:
            waiting.discard((yield NextDone(deadline.left_s)))
        return [
            channel.response(future, deadline, optional=question.optional)
            for future, question in zip(futures, questions, strict=True)
        ]
    finally:
        for future in futures:  # where waiting was interrupted, or another one failed
            future.cancel()


def exchange(
    channel: Channel,
    batches: Iterator[Sent],
    *,
    send: Callable[[Sent], Any],
    rows: Callable[[Sent], int],
    receive: Callable[[Sent, Any], None],
    window: Window,
    recover: Callable[[TransientServerError], Steps[None]],
    policy: RetryPolicy,
    deadline: Deadline,
    patience_s: float = math.inf,
) -> Steps[None]:
    """Send every batch, several at a time, and `receive` each with its response in the order of the responses.

    `send` returns the future of a batch. A request that an overloaded server refused is sent again after the next
    answer; `window` then allows fewer. When none is in flight, or after any other transient failure once
    all in flight have ended, `recover` waits, or raises, and the failed requests are sent again; answered ones never
    are. Any other error ends the exchange. Requests in flight when it ends, for whatever reason, are cancelled.

    Raises ServerError, also where no answer comes for `patience_s`, and EngineError where the channel is closed
    meanwhile or a response cannot be read.
    """
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
                try:
                    future = yield Send(partial(send, batch), deadline.left_s)
                except DeadlinePassedError as passed:
                    raise policy.deadline_error() from passed.__cause__
                pending[future] = batch
                rows_pending += rows(batch)
            if not pending:
                if failure is None:
                    return
                yield from recover(failure)
                failure = None
                continue
            try:
                future = yield NextDone(min(deadline.left_s, patience_s))
            except DeadlinePassedError as passed:
                raise policy.deadline_error() from passed.__cause__
            if future not in pending:  # of an exchange before this one, in the same call
                continue
            batch = pending.pop(future)
            rows_pending -= rows(batch)
            try:
                response = channel.response(future, deadline)
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
                receive(batch, response)
    finally:
        for future in pending:
            future.cancel()
