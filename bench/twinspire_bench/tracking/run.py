"""`twinspire bench run`: the steps of a plan, each in a process of its own, into the history."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinspire._arguments import file_errors
from twinspire.bundle import Bundle
from twinspire.errors import InputError, TwinspireError
from twinspire_bench.scripts import stop
from twinspire_bench.tracking.history import machine_name
from twinspire_bench.tracking.plan import STEPS, Step, Suite, Target
from twinspire_eval.machine import this_machine
from twinspire_eval.records import Record, git_commit

_DIRTY = "-dirty"
_LOG_LINES = 6
_FRAMES = re.compile("[\u2500-\u257f]+")


@dataclass(frozen=True)
class Outcome:
    """What became of a step in a visit: `measured`, `known` from before, `skipped` or `failed`, and why."""

    step: str
    visit: int
    state: str
    file: Path | None = None
    reason: str = ""


def run_suite(
    suite: Suite,
    target: Target,
    history: Path,
    *,
    visits: int = 1,
    only: Sequence[str] = (),
    again: bool = False,
    limit_s: float | None = None,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Run each step `visits` times, all steps once before any of them twice, so that visits are apart in time.

    A record that the history has of the same commit, command and bundle is not measured again, unless `again` or the
    work tree is dirty. A step that fails, crashes or outlasts its limit (`limit_s`, else the step's own) is an outcome,
    and the rest goes on. Raises InputError for an unknown step and a history that cannot be written.
    """
    unknown = sorted(set(only) - {step.name for step in STEPS})
    if unknown:
        raise InputError(
            f"unknown step {unknown[0]!r}: expected one of {', '.join(step.name for step in STEPS)}", option="only"
        )
    steps = [step for step in STEPS if not only or step.name in only]
    commit = git_commit() or "no-commit"
    folder = history / machine_name(this_machine()) / commit
    with file_errors(f"the history cannot be written to {history}", history):
        folder.mkdir(parents=True, exist_ok=True)
        target.work.mkdir(parents=True, exist_ok=True)
    manifest = Bundle.open(target.bundle).manifest
    engines = sorted(engine.sha256 for engines in manifest.engines.values() for engine in engines.values())
    outcomes = []
    for visit in range(1, visits + 1):
        for step in steps:
            missing = step.missing()
            if missing is not None:
                outcomes.append(Outcome(step.name, visit, "skipped", reason=missing))
                continue
            arguments = step.arguments(suite, target)
            what = _digest(step, suite, target, engines)
            file = folder / f"{step.name}-{suite}-{what}-{visit}.json"
            if not again and not commit.endswith(_DIRTY) and _is_record(file):
                outcomes.append(Outcome(step.name, visit, "known", file))
                continue
            say(f"visit {visit} of {visits}: {step.name}")
            reason = _run(arguments, file, limit_s or step.limit_s[suite])
            state = "measured" if reason is None else "failed"
            outcomes.append(Outcome(step.name, visit, state, file if reason is None else None, reason or ""))
            if reason is not None:
                say(f"{step.name} failed: {reason}")
    return outcomes


def _digest(step: Step, suite: Suite, target: Target, engines: Sequence[str]) -> str:
    """Return eight digits for what a step measures: folders do not count, what is in the bundle does."""
    words = [*step.command[1:], *step.options[suite], *(target.data for name in step.uses if name == "data")]
    words += engines if "bundle" in step.uses else []
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]


def _is_record(file: Path) -> bool:
    try:
        Record.load(file)
    except TwinspireError:
        return False
    return True


def _run(arguments: Sequence[str], file: Path, limit_s: float) -> str | None:
    """Run a benchmark that writes its record to `file`; return why it failed, None where it did not."""
    command = [*arguments, "--json", str(file)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - our own commands
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop(process)
        log.seek(0)
        last = _last_lines(log.read()) or "it printed nothing"
    if status is None:
        return f"it did not end within {limit_s:g} s and was stopped: {last}"
    if status != 0:
        return f"it ended with status {status}: {last}"
    return None if _is_record(file) else f"it wrote no record to {file}: {last}"


def _last_lines(text: str) -> str:
    """Return the last lines of a program's output, without the frames that error messages are drawn in."""
    lines = [" ".join(_FRAMES.sub(" ", line).split()) for line in text.splitlines()]
    return " | ".join([line for line in lines if line][-_LOG_LINES:])
