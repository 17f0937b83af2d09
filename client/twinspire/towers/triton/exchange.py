"""The requests of one call, several in flight at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from twinspire.towers.triton.batches import Window
from twinspire.towers.triton.channel import Channel, Deadline, DeadlinePassedError, TransientServerError
from twinspire.towers.triton.retries import RetryPolicy

Sent = TypeVar("Sent")


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
    """Send every batch, several at a time, and yield each with its response as they come.

    `send` returns the request's future. A request that an overloaded server refused is sent again once one in
    flight was answered; `window` then allows fewer. When none is in flight, or after any other transient failure and
    once all in flight have ended, `recover` waits, or raises, and what failed is sent again: what was answered never
    is. Any other error ends the whole exchange. What is in flight when it ends, for whatever reason, is cancelled.

    Raises ServerError, or EngineError where the channel is closed meanwhile or an answer is none.
    """
    done: SimpleQueue[Any] = SimpleQueue()
    pending: dict[Any, Sent] = {}
    again: list[Sent] = []
    failure: TransientServerError | None = None
    rows_pending = 0
    try:
        while True:
            while failure is None and window.has_room(len(pending), rows_pending):
                batch = again.pop() if again else next(batches, None)
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
                again.append(batch)
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
