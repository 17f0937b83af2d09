"""Steps of the check, their outcomes, and the first step: the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from twinspire import _cuda
from twinspire._cuda import CudaDevice
from twinspire.bundle import Bundle
from twinspire.errors import TwinspireError
from twinspire.towers import Provider

StepResults: TypeAlias = Mapping[str, Any]
_ROUND_TRIP_BYTES = 1 << 26


class Status(StrEnum):
    """Outcome of a step."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class SkippedError(Exception):
    """A step that cannot run on this machine; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Inputs of all steps. A `rehearsal` uses the processor in place of a GPU.

    `bundle` has fp32 and fp16 engines, `checkpoint` is the folder that it was exported from, None where it is missing.
    `vectors` is the size of an index, `seconds` the duration of a speed measurement, `work` a folder to write in.
    """

    bundle: Bundle
    checkpoint: Path | None
    work: Path
    rehearsal: bool
    vectors: int
    seconds: float

    @property
    def provider(self) -> Provider:
        """Provider that runs the engines."""
        return Provider.CPU if self.rehearsal else Provider.CUDA


@dataclass(frozen=True)
class CheckStep:
    """Part of the check. `run` returns its results, with a list `failures` of what is wrong.

    `estimate_s` is its longest duration: it is skipped where less time is left.
    """

    name: str
    run: Callable[[Scope], StepResults]
    estimate_s: float


@dataclass
class Outcome:
    """Status of a step, with its duration, its results and the reason of a failure or a skip."""

    status: Status
    seconds: float = 0.0
    reason: str | None = None
    results: StepResults = field(default_factory=dict)


def run_steps(
    steps: Sequence[CheckStep],
    scope: Scope,
    *,
    limit_s: float,
    after_each: Callable[[Mapping[str, Outcome]], None],
    say: Callable[[str], None],
) -> dict[str, Outcome]:
    """Run the steps in order, also after a failure.

    `after_each` receives all outcomes so far, `say` a line at the start and at the end of each step.
    """
    outcomes: dict[str, Outcome] = {}
    end_s = time.monotonic() + limit_s
    for step in steps:
        left_s = end_s - time.monotonic()
        if left_s < step.estimate_s:
            reason = f"only {left_s:.0f} s are left: it may take {step.estimate_s:.0f} s"
            outcomes[step.name] = Outcome(Status.SKIPPED, reason=reason)
        else:
            say(f"{step.name} ...")
            outcomes[step.name] = _outcome(step, scope)
        outcome = outcomes[step.name]
        say(f"{step.name}: {outcome.status}" + (f": {outcome.reason}" if outcome.reason else ""))
        after_each(outcomes)
    return outcomes


def _outcome(step: CheckStep, scope: Scope) -> Outcome:
    start_s = time.monotonic()
    outcome = Outcome(Status.PASSED)
    try:
        outcome.results = step.run(scope)
        failures = outcome.results.get("failures")
        if failures:
            outcome.status, outcome.reason = Status.FAILED, "; ".join(failures)
    except SkippedError as skipped:
        outcome = Outcome(Status.SKIPPED, reason=str(skipped))
    except TwinspireError as error:
        outcome = Outcome(Status.FAILED, reason=str(error))
    except Exception as error:  # of a library: run the other steps all the same
        outcome = Outcome(Status.FAILED, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
    outcome.seconds = round(time.monotonic() - start_s, 3)
    return outcome


def driver_round_trip(scope: Scope) -> StepResults:
    """Copy 64 MiB to the GPU and back; the bytes must be equal."""
    reason = _cuda.unavailable_reason()
    if reason is not None and scope.rehearsal:
        raise SkippedError(f"no GPU here: {reason}")
    sent = np.random.default_rng(0).integers(0, 256, _ROUND_TRIP_BYTES, np.uint8)
    back = np.zeros_like(sent)
    with CudaDevice() as device:
        start_s = time.perf_counter()
        address = device.upload(sent)
        there_s = time.perf_counter() - start_s
        start_s = time.perf_counter()
        device.download(address, back)
        back_s = time.perf_counter() - start_s
        found: dict[str, Any] = {
            "gpu": device.name,
            "gpus": _cuda.device_count(),
            "to_gpu_gb_per_s": _ROUND_TRIP_BYTES / there_s / 1e9,
            "from_gpu_gb_per_s": _ROUND_TRIP_BYTES / back_s / 1e9,
        }
    wrong = int(np.count_nonzero(sent != back))
    return {**found, "failures": [f"{wrong} of {_ROUND_TRIP_BYTES} bytes came back changed"] if wrong else []}
