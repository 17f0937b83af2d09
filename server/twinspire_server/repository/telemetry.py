"""What a Python model counts and logs of its requests: metrics on Triton's own page, and an access log.

Triton's counters include the warm-up and the canary's requests, count a model's refusals as successes and know sums of
times only. These leave both out, count each answer by its status, and are histograms.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from logging.handlers import WatchedFileHandler
from typing import Any

from twinspire.contract import CANARY_REQUEST_ID
from twinspire.errors import InputError, ServerOverloadedError, TwinspireError

ACCESS_LOG = "TWINSPIRE_ACCESS_LOG"
"""The environment variable with the file that models append their access log to."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histograms of times."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram of batches."""


class Status(StrEnum):
    """How a request ended: answered, refused for its input, refused or dropped by the queue, or failed."""

    OK = "ok"
    INVALID = "invalid"
    OVERLOADED = "overloaded"
    EXPIRED = "expired"
    ERROR = "error"


class Phase(StrEnum):
    """A part of the time of a request in a model."""

    QUEUE = "queue"
    """From Triton's handing over until its batch begins; Triton's own queue before it is `nv_inference_queue_*`."""
    PREPROCESS = "preprocess"
    """Decoding and resizing images, or tokenizing texts, where the model does that."""
    COMPUTE = "compute"
    """The engine, on the whole batch."""


@dataclass(slots=True)
class Observation:
    """One request that is observed; times on the clock `time.perf_counter`, 0 where it did not come so far."""

    id: str
    arrived_s: float
    rows: int = 0
    began_s: float = 0.0
    computed_s: float = 0.0


class ModelTelemetry:
    """Metrics of one model, and its access log where `access_log` names a file. Safe to use from several threads.

    `backend` is `triton_python_backend_utils`. The first `warm_ups` requests are not observed, nor those with the
    canary's id. A failure of a metric or the log is written to Triton's log once and changes no answer.
    """

    def __init__(self, backend: Any, *, model: str, version: str, warm_ups: int, access_log: str | None) -> None:  # noqa: ANN401 - a module of Triton
        self._backend = backend
        self._labels = {"model": model, "version": version}
        self._warm_ups = warm_ups
        self._failed = False
        # A metric of Triton 2.51 keeps the message that it sends in a member and frees the one before: two threads that
        # use it at once crash the server (`Metric::SaveToSharedMemory` in metric.cc of its Python backend).
        self._using_metrics = threading.Lock()
        self._refused = 0  # not yet counted by the metric
        self._counting = threading.Lock()
        self._log = _access_logger(model, access_log) if access_log else None
        kinds = backend.MetricFamily
        # Kept: a family must outlive its metrics.
        self._families = [
            kinds("twinspire_server_requests_total", "Requests answered by the model, by status", kinds.COUNTER),
            kinds("twinspire_server_phase_seconds", "Time of a request in the model, by phase", kinds.HISTOGRAM),
            kinds("twinspire_server_batch_rows", "Rows computed together", kinds.HISTOGRAM),
        ]
        requests, phases, batches = self._families
        self._requests = {status: requests.Metric(labels=self._labels | {"status": status.value}) for status in Status}
        self._phases = phases
        self._phase_metrics: dict[Phase, Any] = {}
        for phase in (Phase.QUEUE, Phase.COMPUTE):
            self._phase(phase)
        self._rows = batches.Metric(labels=self._labels, buckets=list(map(float, ROWS)))

    def arrived(self, request: Any) -> Observation | None:  # noqa: ANN401 - Triton's own class
        """Begin to observe a request that Triton has handed over; None where it is a warm-up's or the canary's."""
        if self._warm_ups > 0:
            self._warm_ups -= 1
            return None
        request_id = request.request_id()
        return None if request_id == CANARY_REQUEST_ID else Observation(request_id, time.perf_counter())

    def began(self, batch: Sequence[Observation | None]) -> None:
        """Note that the batch of these requests begins to be computed."""
        now_s = time.perf_counter()
        for observation in batch:
            if observation is not None:
                observation.began_s = now_s

    def computed(self, batch: Sequence[Observation | None], now_s: float) -> None:
        """Note that the batch of these requests was computed at `now_s`, on the clock `time.perf_counter`."""
        with self._counting:
            refused, self._refused = self._refused, 0
        if refused:
            self._quietly(lambda: self._requests[Status.OVERLOADED].increment(refused))
        observed = [observation for observation in batch if observation is not None]
        for observation in observed:
            observation.computed_s = now_s
        if observed:
            began_s = observed[0].began_s
            self._quietly(lambda: self._phase(Phase.COMPUTE).observe(now_s - began_s))
            self._quietly(lambda: self._rows.observe(float(sum(observation.rows for observation in observed))))

    def preprocessed(self, seconds: float) -> None:
        """Observe the preprocessing of one request."""
        self._quietly(lambda: self._phase(Phase.PREPROCESS).observe(seconds))

    def answered(self, observation: Observation | None, status: Status) -> None:
        """Count a request whose response was sent, and log it.

        Those that a full queue refuses are counted together, once the next batch is computed: a metric is a message to
        Triton's process, and while the thread that refuses waits for one, Triton keeps what comes in memory.
        """
        if observation is None:
            return
        if status is Status.OVERLOADED:
            with self._counting:
                self._refused += 1
        else:
            self._quietly(lambda: self._requests[status].increment(1))
        if observation.began_s:
            self._quietly(lambda: self._phase(Phase.QUEUE).observe(observation.began_s - observation.arrived_s))
        if self._log is not None:
            line = json.dumps(_line(observation, status, self._labels), ensure_ascii=False)
            self._log.info(line)

    def _phase(self, phase: Phase) -> Any:  # noqa: ANN401 - Triton's own class
        if phase not in self._phase_metrics:
            self._phase_metrics[phase] = self._phases.Metric(
                labels=self._labels | {"phase": phase.value}, buckets=list(SECONDS)
            )
        return self._phase_metrics[phase]

    def _quietly(self, action: Any) -> None:  # noqa: ANN401 - a lambda
        try:
            with self._using_metrics:
                action()
        except Exception as error:  # whatever Triton's shared memory raises; answers go on
            if not self._failed:
                self._failed = True
                self._backend.Logger.log_error(f"metrics of {self._labels['model']} are incomplete: {error}")


def warm_up_requests(config: Mapping[str, Any]) -> int:
    """Return how many requests Triton sends to each instance of a model before it is ready, by its configuration."""
    return sum(
        int(sample.get("count") or 1) * int(sample.get("batch_size") or 1) for sample in config.get("model_warmup", ())
    )


def status_of(answer: object, *, expired: str) -> Status:
    """Return the status of an answer: an array, or the error with its message; `expired` is that of an expired one."""
    if not isinstance(answer, TwinspireError):
        return Status.OK
    if isinstance(answer, ServerOverloadedError):
        return Status.EXPIRED if str(answer) == expired else Status.OVERLOADED
    return Status.INVALID if isinstance(answer, InputError) else Status.ERROR


def _line(observation: Observation, status: Status, labels: Mapping[str, str]) -> dict[str, Any]:
    total_s = time.perf_counter() - observation.arrived_s
    was_computed = observation.began_s > 0
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **labels,
        "request_id": observation.id,
        "rows": observation.rows,
        "status": status.value,
        "queue_ms": _ms(observation.began_s - observation.arrived_s) if was_computed else None,
        "compute_ms": _ms(observation.computed_s - observation.began_s) if was_computed else None,
        "total_ms": _ms(total_s),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _access_logger(model: str, file: str) -> logging.Logger:
    """Return a logger that appends lines to `file`, made anew where it was renamed or removed.

    Each model is a process: a line is one write to a file opened for appending, so that lines do not mix.
    """
    logger = logging.getLogger(f"twinspire.access.{model}")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(WatchedFileHandler(file, encoding="utf-8"))
    return logger
