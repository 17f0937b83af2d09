"""The operations of a call that wait, as values: calls are generators of steps, run by threads or by asyncio.

Splitting, retrying, balancing and checking are written once, without input and output ("sans-IO",
https://sans-io.readthedocs.io). `TritonTowers` and `AsyncTritonTowers` differ in who performs the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request with a function that returns its future. That is the result."""

    send: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class NextDone:
    """Wait until a request of this call has ended. The result is its future; DeadlinePassedError after `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait `seconds`, or until the towers are closed, which raises EngineError."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a function that blocks. The result is its own."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Background:
    """Run other steps beside this call. They may outlive it, and end when the towers are closed."""

    steps: Steps[None]


Step: TypeAlias = Send | NextDone | Sleep | Compute | Background
Steps: TypeAlias = Generator[Step, Any, Result]
