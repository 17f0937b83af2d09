"""The deadline of a call and its retries: exponential backoff until it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from twinspire._telemetry import count
from twinspire.errors import ServerOverloadedError, ServerUnavailableError
from twinspire.towers.triton.steps import Result, Sleep, Steps

CLOCKS_DIFFER_S = 0.1
"""How much earlier than `Deadline` gRPC may end a request at its deadline."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_DOUBLINGS = 5  # 0.1 s times 2 to the fifth is more than the longest wait


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

    def within(self, limit_s: float) -> Deadline:
        """Return the deadline of a part of the call: this one, or `limit_s` from now where that is earlier."""
        return min(self, Deadline.after(limit_s), key=lambda deadline: deadline.at)

    @property
    def left_s(self) -> float:
        """The time left, in seconds; 0 where it has passed."""
        return max(0.0, self.at - time.monotonic())


def backoff_s(failures: int) -> float:
    """Return how long to wait after this many failures in a row, at least 1: doubling to 2 s, with jitter.

    Clients that lost one server, or were refused by it, must not all come back at once.
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    longest_s: float = min(_FIRST_WAIT_S * 2 ** min(failures - 1, _DOUBLINGS), _LONGEST_WAIT_S)
    return random.uniform(0.5, 1.0) * longest_s


class RetryPolicy:
    """The retries of one call: exponential backoff with jitter until the deadline.

    `server` is its address. `max_retries` bounds how many follow one another without an answer in between; None
    does not.
    """

    def __init__(self, server: str, deadline: Deadline, *, max_retries: int | None) -> None:
        self._server, self._deadline, self._max_retries = server, deadline, max_retries
        self._failures = 0
        self._last: TransientServerError | None = None

    def run(self, action: Callable[[], Steps[Result]]) -> Steps[Result]:
        """Repeat an action until it raises no TransientServerError. Raises `deadline_error` where no time is left."""
        while True:
            try:
                return (yield from action())
            except TransientServerError as failure:
                yield from self.wait(failure)
                count("retries")
            except DeadlinePassedError as passed:
                raise self.deadline_error() from passed.__cause__

    def wait(self, failure: TransientServerError) -> Steps[None]:
        """Wait before the next attempt. Raises `deadline_error` where no retry or no time is left."""
        self.note(failure)
        self._failures += 1
        left_s = self._deadline.left_s
        exhausted = self._max_retries is not None and self._failures > self._max_retries
        if exhausted or left_s < _FIRST_WAIT_S:
            raise self.deadline_error() from failure.__cause__
        # At most half of the time left, so that a call does not sleep through its last chances.
        yield Sleep(min(backoff_s(self._failures), left_s / 2))

    def note(self, failure: TransientServerError) -> None:
        """Remember a failure: it is the call's error if no answer follows."""
        self._last = failure

    def progress(self) -> None:
        """Note an answer: earlier failures no longer count."""
        self._failures = 0
        self._last = None

    def deadline_error(self) -> Exception:
        """Return the error of a call that ends without its answer: the last failure where there was one."""
        limit_s = self._deadline.limit_s
        if self._last is None:
            return ServerUnavailableError(
                f"the server at {self._server} did not answer the whole call within {limit_s:g} s: it is overloaded or "
                "cannot be reached. Send less in a call or allow more with deadline_s",
                address=self._server,
                deadline_s=limit_s,
            )
        error = self._last.error
        attempts = f" Attempts: {self._failures}" if self._failures else ""
        final = type(error)(
            f"{error.args[0]}{attempts}",
            address=error.address,
            code=error.code,
            attempts=self._failures or None,
            deadline_s=limit_s,
        )
        final.request_id = error.request_id
        return final


class OneAttempt(RetryPolicy):
    """No retries: failures stay TransientServerErrors, for a caller that goes to another server."""

    def __init__(self, server: str, deadline: Deadline) -> None:
        super().__init__(server, deadline, max_retries=0)

    def deadline_error(self) -> Exception:
        """Return the failure as it came, or that the server did not answer in time."""
        if self._last is not None:
            return self._last
        return TransientServerError(
            ServerUnavailableError(f"the server at {self._server} does not answer.", address=self._server)
        )
