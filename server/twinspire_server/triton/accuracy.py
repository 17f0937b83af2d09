"""The accuracy canary: probes through the running server at intervals, to notice that its vectors are wrong.

A damaged or stale engine, exchanged rows, another tokenizer: all of them answer with unit vectors and status OK, and an
index that takes them in is spoilt. The canary of canary.py notices models that hang; this one those that are wrong.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from twinspire_server.triton.prober import Prober, unprobed_models
from twinspire_server.triton.wrong_vectors import AccuracyOptions, Fault, OnWrong, ProbeResult, alarm

if TYPE_CHECKING:
    from twinspire_server.triton.server import TritonServer

_AFTER_FAULT_S = 5.0
"""The longest wait before probes are sent again after a fault."""
_RIGHT_IN_A_ROW = 2
"""How often all probes must pass after a fault: one that comes and goes, as in some batches only, is still there."""
_UNANSWERED_IN_A_ROW = 3
_ACT_AGAIN_S = 600.0


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What the last check showed of a model. `checked_at` is in seconds since 1970, `cosine` NaN where it has none."""

    model: str
    version: int
    cosine: float
    bound: float
    ok: bool
    fault: Fault | None
    checked_at: float


class AccuracyCanary:
    """Sends the probes of a server's models at the start and at intervals, in a thread of its own.

    `report` is called with a message when a model's vectors are wrong, and when they are right again. `start` begins
    with a server, also a restarted one, and `stop` ends. `on_wrong` is called with the reason where vectors are wrong
    and the options ask for more than the alarm: for a restart once in ten minutes, since where one does not help the
    next does not either. Safe to read from several threads.
    """

    def __init__(self, options: AccuracyOptions, *, report: Callable[[str], None] = lambda _: None) -> None:
        self._options, self._report = options, report
        self._lock = threading.Lock()
        self._results: dict[str, CanaryResult] = {}
        self._wrong: dict[str, Fault] = {}
        self._right_in_a_row = self._unanswered = 0
        self._checked = False
        self._ok_at: float | None = None
        self._acted_s = -math.inf
        self._stopped = threading.Event()
        self._prober: Prober | None = None

    @property
    def options(self) -> AccuracyOptions:
        """How it checks."""
        return self._options

    @property
    def results(self) -> Mapping[str, CanaryResult]:
        """The last result of each model; none before the first check."""
        with self._lock:
            return dict(self._results)

    @property
    def cosine(self) -> Mapping[str, float]:
        """The cosine of each model's last result."""
        return {name: result.cosine for name, result in self.results.items()}

    @property
    def ok(self) -> bool:
        """Whether no model was found wrong, or all probes have passed twice since."""
        return not self._wrong

    @property
    def checked(self) -> bool:
        """Whether the running server's probes have been answered since its start."""
        return self._checked

    @property
    def ready(self) -> bool:
        """Whether the running server's probes have been answered since its start, and none was wrong."""
        return self.checked and self.ok

    def start(self, server: TritonServer, *, on_wrong: Callable[[str], None] = lambda _: None) -> None:
        """Begin to check a running server, at once."""
        self.stop()
        self._stopped = threading.Event()
        self._prober = prober = Prober(server)
        for model in unprobed_models(server):
            self._report(f"warning: {model} has no probes, so that wrong vectors are not noticed: build it again")
        arguments = (prober, self._stopped, on_wrong)
        threading.Thread(target=self._run, args=arguments, name="accuracy-canary", daemon=True).start()

    def stop(self) -> None:
        """Stop checking; a check under way ends without a result. The results stay."""
        self._stopped.set()
        self._checked = False
        if self._prober is not None:
            self._prober.close()

    def _run(self, prober: Prober, stopped: threading.Event, on_wrong: Callable[[str], None]) -> None:
        wait_s, told = 0.0, ""
        results: Mapping[str, ProbeResult] | None
        while not stopped.wait(wait_s):
            try:
                results = prober.check(timeout_s=self._options.timeout_s, wait=stopped.wait)
            except Exception as error:  # probes that cannot be read; this thread must not end unnoticed
                if (problem := f"{type(error).__name__}: {error}") != told:
                    told = problem
                    self._report(f"the vectors cannot be checked: {problem}")
                self._checked = False
                results = None
            if stopped.is_set():
                return
            if results is not None and (reason := self._note(results)) and self._acts():
                on_wrong(reason)
            wait_s = self._options.interval_s if self.ok else min(self._options.interval_s, _AFTER_FAULT_S)

    def _acts(self) -> bool:
        """Whether a fault that was just found has consequences beyond the alarm."""
        if self._options.on_wrong is OnWrong.ALARM or time.monotonic() - self._acted_s < _ACT_AGAIN_S:
            return False
        self._acted_s = time.monotonic()
        return True

    def _note(self, results: Mapping[str, ProbeResult]) -> str:
        """Take over the results of a check and report what is new; return what is wrong, empty where nothing is."""
        now = time.time()
        right_at = "the start" if self._ok_at is None else f"{datetime.fromtimestamp(self._ok_at):%Y-%m-%d %H:%M:%S}"
        wrong = {name: result for name, result in results.items() if not result.ok}
        is_complete = all(result.is_answered for result in results.values())
        with self._lock:
            for name, result in results.items():
                if result.cosine is not None:
                    self._results[name] = CanaryResult(
                        model=name,
                        version=result.version,
                        cosine=result.cosine,
                        bound=result.bound,
                        ok=result.ok,
                        fault=result.fault,
                        checked_at=now,
                    )
        for name, result in wrong.items():
            if self._wrong.get(name) is not result.fault:
                self._report(alarm(result, right_at=right_at))
        if wrong:
            self._right_in_a_row = 0
            self._wrong.update({name: result.fault for name, result in wrong.items() if result.fault is not None})
        elif is_complete:
            self._right_in_a_row += 1
            if self._wrong and self._right_in_a_row >= _RIGHT_IN_A_ROW:
                names, self._wrong = ", ".join(sorted(self._wrong)), {}
                self._report(f"the vectors of {names} are right again: {self._right_in_a_row} checks in a row passed")
            if not self._wrong:
                self._ok_at = now
        self._note_unanswered(results, is_complete=is_complete)
        self._checked = self._checked or is_complete or bool(wrong)
        return ", ".join(f"{name} ({result.fault})" for name, result in wrong.items())

    def _note_unanswered(self, results: Mapping[str, ProbeResult], *, is_complete: bool) -> None:
        self._unanswered = 0 if is_complete else self._unanswered + 1
        if self._unanswered == _UNANSWERED_IN_A_ROW:
            names = ", ".join(name for name, result in results.items() if not result.is_answered)
            self._report(f"the probes of {names} got no answer {self._unanswered} times: wrong vectors go unnoticed")
