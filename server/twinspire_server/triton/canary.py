"""The canary: a small inference for each model at intervals, to notice models that hang.

Triton 2.51 reports a Python model as ready whose process hangs. So the canary repeats each model's ready check, its
first warm-up, which the model has answered before it counted as ready. Overload is not mistaken for a hang: a model
that refuses the request is alive, so is one whose count of executions grows, and one that does not answer in time but
computes gets more time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.errors import InputError
from twinspire_server.triton.http import HttpAnswer, http_answer
from twinspire_server.triton.reaper import model_processes

if TYPE_CHECKING:
    from twinspire_server.repository.config import HttpRequest
    from twinspire_server.triton.server import TritonServer

_COMPUTES = 0.1
"""The share of a processor above which a model's processes count as computing; one that hangs uses none."""
_ERRORS_IN_A_ROW = 2
_AFTER_ERROR_S = 1.0
"""The longest wait before a model that gave an error is checked again."""
ERROR_CHARACTERS = 500
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class CanaryOptions:
    """How often models are checked, and how long they may take.

    Every `interval_s` a model gets one inference. It counts as hung where it has neither answered nor executed anything
    for `timeout_s` while its processes are idle, or for `busy_timeout_s` while they compute, and where it fails twice
    in a row. Raises InputError for numbers that are not positive.
    """

    interval_s: float = 5.0
    timeout_s: float = 10.0
    busy_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"{name} {value!r}: expected a positive number of seconds", option=name)


class Canary:
    """Checks one model of a running server until it hangs or `stop` is called, in a thread of its own.

    `request` is the model's ready check. `on_failure` is called once, with the reason why the model counts as hung.
    """

    def __init__(
        self,
        model: str,
        request: HttpRequest,
        server: TritonServer,
        options: CanaryOptions,
        *,
        on_failure: Callable[[str], None],
    ) -> None:
        self._model, self._request, self._options = model, request, options
        self._url, self._headers, self._pid = server.http_url, server.admin_headers, server.pid
        self._on_failure = on_failure
        self._stopped = threading.Event()
        self._executed: int | None = None
        self._errors = 0
        self._alive_s = self._computed_s = 0.0
        threading.Thread(target=self._run, name=f"canary-{model}", daemon=True).start()

    def stop(self) -> None:
        """Stop checking. Does not wait for the current inference."""
        self._stopped.set()

    def _run(self) -> None:
        self._executed = self._executions()
        self._note_life()
        reason: str | None = None
        while reason is None:
            wait_s = min(self._options.interval_s, _AFTER_ERROR_S) if self._errors else self._options.interval_s
            if self._stopped.wait(wait_s):
                return
            reason = self._hang_reason()
        if not self._stopped.is_set():
            self._on_failure(reason)

    def _hang_reason(self) -> str | None:
        """Send one inference. Return why the model counts as hung, None where it is alive or may be busy."""
        path = f"/v2/models/{self._model}/infer"
        answer = self._http("POST", path)
        before, executed = self._executed, self._executions()
        if executed is not None:
            self._executed = executed
        if answer is not None and answer.status in (HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):  # or too busy
            self._note_life()
            return None
        if answer is not None:
            self._errors += 1
            if self._errors < _ERRORS_IN_A_ROW:
                return None
            return f"the model {self._model} fails on its own warm-up sample: {error_text(answer.content)}"
        if executed not in (None, before):
            self._note_life()
            return None
        silent_s = time.monotonic() - self._alive_s
        computes = self._processor_s() - self._computed_s > _COMPUTES * silent_s
        if silent_s < (self._options.busy_timeout_s if computes else self._options.timeout_s):
            return None
        state = "compute without end" if computes else "do not compute"
        return f"the model {self._model} has answered nothing for {silent_s:.0f} s, and its processes {state}"

    def _note_life(self) -> None:
        self._alive_s, self._computed_s, self._errors = time.monotonic(), self._processor_s(), 0

    def _executions(self) -> int | None:
        """Return how many batches the model has executed, None where the server does not answer."""
        answer = self._http("GET", f"/v2/models/{self._model}/stats")
        if answer is None or not answer.ok:
            return None
        with suppress(ValueError, LookupError, TypeError):
            return sum(int(version["execution_count"]) for version in json.loads(answer.content)["model_stats"])
        return None

    def _http(self, method: str, path: str) -> HttpAnswer | None:
        """Send the ready check with POST, ask with GET; return the answer, None where there is none in time."""
        is_check = method == "POST"
        return http_answer(
            f"{self._url}{path}",
            method,
            body=self._request.body if is_check else None,
            headers={**self._headers, **(self._request.headers if is_check else {})},
            timeout_s=self._options.timeout_s,
        )

    def _processor_s(self) -> float:
        """Return the processor time of the model's processes in seconds; that of Triton where it has none."""
        # An instance is named after its model, its group and its number: scenes_image_0_0.
        pids = [
            process.pid for process in model_processes(self._pid) if process.instance.rsplit("_", 2)[0] == self._model
        ]
        ticks = 0
        for pid in pids or [self._pid]:
            with suppress(OSError, ValueError):
                fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
                ticks += sum(map(int, fields.rpartition(")")[2].split()[11:13]))  # utime and stime, proc(5)
        return ticks / _TICKS_PER_S


def error_text(content: bytes) -> str:
    """Return the message in an error of Triton's HTTP protocol."""
    text = content.decode(errors="replace")
    with suppress(ValueError, LookupError, TypeError):
        text = json.loads(content)["error"]
    return text[:ERROR_CHARACTERS]
