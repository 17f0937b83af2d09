"""Steps of a check: what each is given, how each ends, and the record after each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

from twinspire.bundle import Bundle
from twinspire.errors import TwinspireError
from twinspire.towers import Provider

Findings: TypeAlias = Mapping[str, Any]


class Status(StrEnum):
    """How a step ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class SkippedError(Exception):
    """A step cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a check runs on. `rehearsal` stands for a GPU by this machine's processor.

    `bundle` holds fp32 and fp16 engines, `checkpoint` is the folder of the model that it was made of, None where only
    the bundle is there. `vectors` is how many an index is made of; `work` a folder to write in.
    """

    bundle: Bundle
    checkpoint: Path | None
    work: Path
    rehearsal: bool
    vectors: int
    seconds: float

    @property
    def provider(self) -> Provider:
        """What computes engines."""
        return Provider.CPU if self.rehearsal else Provider.CUDA

    def require_gpu(self, what: str) -> None:
        """Raise SkippedError in a rehearsal."""
        if self.rehearsal:
            raise SkippedError(f"{what} needs a GPU, and this is a rehearsal on the processor")


@dataclass(frozen=True)
class Step:
    """A part of the check. `run` returns what it found, with `failures`, a list, where something is not as it must be.

    `estimate_s` is how long it takes at most: it is not begun where less time is left.
    """

    name: str
    run: Callable[[Scope], Findings]
    estimate_s: float


@dataclass
class Outcome:
    """How a step ended, what it found, what is wrong, and how long it took."""

    status: Status
    seconds: float = 0.0
    reason: str | None = None
    found: Findings = field(default_factory=dict)


def run_steps(
    steps: Sequence[Step],
    scope: Scope,
    *,
    limit_s: float,
    after_each: Callable[[Mapping[str, Outcome]], None],
    say: Callable[[str], None],
) -> dict[str, Outcome]:
    """Run the steps in order; one that fails does not keep the next from running.

    `after_each` is given all outcomes so far, `say` is told in a line what begins and how it ended.
    """
    outcomes: dict[str, Outcome] = {}
    end_s = time.monotonic() + limit_s
    for step in steps:
        left_s = end_s - time.monotonic()
        if left_s < step.estimate_s:
            reason = f"{left_s:.0f} s are left, it may take {step.estimate_s:.0f} s"
            outcomes[step.name] = Outcome(Status.SKIPPED, reason=reason)
        else:
            say(f"{step.name} ...")
            outcomes[step.name] = _outcome(step, scope)
        outcome = outcomes[step.name]
        say(f"{step.name}: {outcome.status}" + (f": {outcome.reason}" if outcome.reason else ""))
        after_each(outcomes)
    return outcomes


def _outcome(step: Step, scope: Scope) -> Outcome:
    start_s = time.monotonic()
    outcome = Outcome(Status.PASSED)
    try:
        outcome.found = step.run(scope)
        failures = outcome.found.get("failures")
        if failures:
            outcome.status, outcome.reason = Status.FAILED, "; ".join(failures)
    except SkippedError as skipped:
        outcome = Outcome(Status.SKIPPED, reason=str(skipped))
    except TwinspireError as error:
        outcome = Outcome(Status.FAILED, reason=str(error))
    except Exception as error:  # a library's: the other steps are still worth running
        outcome = Outcome(Status.FAILED, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    outcome.seconds = round(time.monotonic() - start_s, 3)
    return outcome
