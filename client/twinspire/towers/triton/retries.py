"""Retries within one call: which failures are worth one, and how long to wait before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from twinspire.errors import ServerUnavailableError
from twinspire.towers.triton.channel import Channel, Deadline, DeadlinePassedError, TransientServerError

Result = TypeVar("Result")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
_DOUBLINGS = 5  # 0.1 s times 2 to the fifth is more than the longest wait


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
            except DeadlinePassedError as passed:
                raise self.deadline_error() from passed.__cause__

    def wait(self, failure: TransientServerError) -> None:
        """Wait before the next attempt. Raises the failure's own error where there is none."""
        self.note(failure)
        self._failures += 1
        left_s = self._deadline.left_s
        exhausted = self._max_retries is not None and self._failures > self._max_retries
        if exhausted or left_s < _FIRST_WAIT_S:
            raise self.deadline_error() from failure.__cause__
        # Jitter: clients that lost one server, or were refused by it, must not all come back at once.
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        longest_s = min(_FIRST_WAIT_S * 2 ** min(self._failures - 1, _DOUBLINGS), _LONGEST_WAIT_S)
        # Half of what is left at most, so that a call does not sleep through its last chances.
        self._channel.closed.wait(min(random.uniform(0.5, 1.0) * longest_s, left_s / 2))
        self._channel.check_open()

    def note(self, failure: TransientServerError) -> None:
        """Remember a failure: it is the call's error if no answer comes after it."""
        self._last = failure

    def progress(self) -> None:
        """Begin anew: an answer came."""
        self._failures = 0
        self._last = None

    def deadline_error(self) -> ServerUnavailableError:
        """Make the error of a call that ends without its answer: the last failure where it had one."""
        if self._last is None:
            return ServerUnavailableError(
                f"the server at {self._channel.address} did not answer the whole call within "
                f"{self._deadline.limit_s:g} s: it is overloaded or cannot be reached. Send less in a call or allow "
                "more with deadline_s"
            )
        error = self._last.error
        attempts = f" Attempts: {self._failures}" if self._failures else ""
        return type(error)(f"{error}{attempts}")
