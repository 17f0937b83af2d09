"""One engine under Triton's Python backend; the same file serves towers of every modality and the reranker.

`twinspire build` writes it beside a copy of the bundle. Triton decides which requests form a batch; they become one
call of `LocalTowers` or `LocalReranker`, which choose their provider as in any other process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # exists inside Triton only
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Tower
from twinspire.errors import EngineError, InputError, ServerOverloadedError, SpaceMismatchError, TwinspireError
from twinspire.towers import Provider
from twinspire_server.repository.backlog import EXPIRED, FULL, Backlog, QueuedRequest
from twinspire_server.repository.served_engine import open_engine
from twinspire_server.repository.telemetry import (
    ACCESS_LOG,
    ModelTelemetry,
    Observation,
    status_of,
    warm_up_requests,
)

Compute: TypeAlias = Callable[[Sequence[Any]], NDArray[np.float32]]

# The callers that a thread of the engine has just answered have not sent their next request yet: one that took what
# waits at once would compute batches of half the size and less. It waits for them, for this part of the batch's own
# time at most; the other threads compute meanwhile. No lone caller ever waits.
PAUSE = 0.1
PAUSE_AT_MOST_S = 0.02

QUEUED_BATCHES = 8
"""How many full batches wait at most: 256 images, 39 MB at 224 pixels, a few seconds of computing."""
QUEUE_TIMEOUT_S = 30.0
"""How long a request without a timeout waits: the deadline of twinspire's clients."""
GATHER_S = 0.005
"""How long requests gather in Triton while a batch is computed, before they are taken: a call of `execute` for each
would cost more than the engine where images are small."""
HUNG_S = 300.0
"""A batch that takes longer is taken for hung. Triton counts requests that wait behind it as executed, so that only
this process can notice."""
BULK_NICENESS = 10
"""Niceness of the threads that compute images or sounds beside a text tower: queries are texts, what is indexed can
wait.

ViT-B/32 int8 on two cores, ten single texts a second while full batches of images are encoded: their p99 is 1.5 times
that without images, and 3.0 times with equal priorities.
"""


class TritonPythonModel:
    """The interface that Triton calls, one call at a time.

    Of a tower: input `image` uint8 (n, H, W, 3), `audio` float32 (n, F, M), or `input_ids` int32 (n, context) with any
    padding right of the end token; output `embedding` float32 (n, D), L2-normalised. Of the reranker: inputs `image`
    and `input_ids`, output `probability` float32 (n, 1). A request that cannot be answered gets an error of its own;
    the other requests of its batch are answered. No exception leaves `execute`: Triton 2.51 does not replace a process
    that one has ended.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine and warm it up. Raises what `Bundle.open` and `open_engine` raise: loading then fails."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        bundle = Bundle.open(Path(args["model_repository"]) / args["model_version"] / "bundle")
        if bundle.space != parameters["space"]:
            raise SpaceMismatchError(
                f"{bundle.path} has the space {bundle.space}, its config.pbtxt {parameters['space']}: build the "
                "repository again",
                expected=parameters["space"],
                found=bundle.space,
            )
        tower = Tower(parameters["tower"]) if "tower" in parameters else None  # the reranker
        is_bulk = tower is not None and tower is not Tower.TEXT and Tower.TEXT in bundle.towers
        niceness = BULK_NICENESS if is_bulk else 0
        threads = parameters.get("threads")
        streams = parameters.get("streams")
        # On Linux each thread has a niceness of its own, which those that it makes inherit. This thread keeps its own:
        # were it slow to refuse requests, Triton would hold them in memory.
        with ThreadPoolExecutor(1, initializer=os.nice, initargs=(niceness,)) as opening:
            self._engine = opening.submit(
                open_engine,
                bundle,
                tower,
                precision=parameters["precision"],
                provider=parameters["provider"],
                threads=None if threads is None else int(threads),
                streams=None if streams is None else int(streams),
            ).result()
        max_batch = int(config["max_batch_size"])
        for rows in self._engine.warm_ups(max_batch):
            self._engine.compute([rows])
        self._telemetry = ModelTelemetry(
            pb_utils,
            model=args["model_name"],
            version=args["model_version"],
            warm_ups=warm_up_requests(config),
            access_log=os.environ.get(ACCESS_LOG),
        )
        queued_batches = int(parameters.get("queue_batches", QUEUED_BATCHES))
        self._backlog = Backlog(
            self._answer,
            max_batch=max_batch,
            max_rows=queued_batches * max_batch,
            workers=self._engine.workers,
            niceness=niceness,
            pause=pause_after(self._engine.runtime.provider),
            pause_at_most_s=PAUSE_AT_MOST_S,
        )
        pb_utils.Logger.log_info(f"{args['model_name']}: {self._engine.runtime}")

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer a lone request; queue several, and those that come while others are computed.

        Triton hands over further ones as soon as this returns.
        """
        if self._backlog.computing_s > HUNG_S:
            pb_utils.Logger.log_error(f"the engine has been computing one batch for {HUNG_S:.0f} s: ending the process")
            os._exit(1)  # `twinspire serve` starts the server again
        batch = [queued for queued in map(self._read, requests) if queued is not None]
        if len(batch) == 1 and len(batch[0].rows) == 1 and self._backlog.is_idle:
            self._answer(batch)  # here, so that no other thread has to wake up for it
            return
        for refused in self._backlog.submit(batch, gather_s=GATHER_S):
            self._send(refused.request, ServerOverloadedError(FULL), refused.observation)

    def finalize(self) -> None:
        """Close the engine, after the queued requests are answered."""
        self._backlog.close()
        self._engine.close()

    def _read(self, request: Any) -> QueuedRequest | None:  # noqa: ANN401 - Triton's own class
        """Read the inputs of a request. Where that fails, answer it with an error and return None."""
        observation = self._telemetry.arrived(request)
        names = self._engine.inputs
        try:
            arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names]
            rows = self._engine.rows(arrays)
            timeout_s = request.timeout() / 1e6 or QUEUE_TIMEOUT_S
        except Exception as error:  # numpy's, pybind11's, for shapes that Triton did not expect
            self._send(request, InputError(f"the input {' and '.join(names)} cannot be read: {error}"), observation)
            return None
        if observation is not None:
            observation.rows = len(rows)
        return QueuedRequest(request, rows, time.monotonic() + timeout_s, observation)

    def _answer(self, batch: Sequence[QueuedRequest]) -> None:
        """Answer requests in one call of the engine: in one of its streams where others will compute beside it.

        Requests that have expired or whose caller has gone are not computed.
        """
        due = []
        for queued in batch:
            if queued.request.is_cancelled() or time.monotonic() > queued.expires_s:
                self._send(queued.request, ServerOverloadedError(EXPIRED), queued.observation)
            else:
                due.append(queued)
        self._telemetry.began([queued.observation for queued in due])
        with self._engine.unsplit() if self._backlog.is_shared(batch) else nullcontext():
            answers = compute_together(self._engine.compute, [queued.rows for queued in due])
        computed_s = time.perf_counter()
        for queued, answer in zip(due, answers, strict=True):
            self._respond(queued.request, answer)
        # After all responses: each metric is a message to Triton's process, for which this thread waits.
        self._telemetry.computed([queued.observation for queued in due], computed_s)
        for queued, answer in zip(due, answers, strict=True):
            self._telemetry.answered(queued.observation, status_of(answer, expired=EXPIRED))

    def _send(
        self,
        request: Any,  # noqa: ANN401 - Triton's own class
        answer: NDArray[np.float32] | TwinspireError,
        observation: Observation | None,
    ) -> None:
        self._respond(request, answer)
        self._telemetry.answered(observation, status_of(answer, expired=EXPIRED))

    def _respond(self, request: Any, answer: NDArray[np.float32] | TwinspireError) -> None:  # noqa: ANN401
        try:
            response = _response(answer, self._engine.output)
            request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # the other callers of the batch still get their answers
            pb_utils.Logger.log_error(f"cannot send a response: {error}")


def compute_together(compute: Compute, requests: Sequence[Any]) -> list[NDArray[np.float32] | TwinspireError]:
    """Compute the rows of several requests in one call; return the output (n, ...) of each, or its error.

    Where that raises, compute each half alone: this finds the bad request in a few calls and still computes the others
    in large batches.
    """
    if not requests:
        return []
    try:
        outputs = compute(requests)
    except Exception as error:  # MemoryError too: a smaller part may fit
        if len(requests) == 1:
            return [error if isinstance(error, TwinspireError) else EngineError(f"{type(error).__name__}: {error}")]
        half = len(requests) // 2
        return [*compute_together(compute, requests[:half]), *compute_together(compute, requests[half:])]
    answers: list[NDArray[np.float32] | TwinspireError] = []
    start = 0
    for rows in requests:
        answers.append(outputs[start : start + len(rows)])
        start += len(rows)
    return answers


def pause_after(provider: Provider) -> float:
    """Return the part of a batch's time to pause after it: none on a GPU, where no other thread computes meanwhile."""
    return 0.0 if provider is Provider.CUDA else PAUSE


def _response(answer: NDArray[np.float32] | TwinspireError, output: str) -> Any:  # noqa: ANN401 - Triton's own class
    if isinstance(answer, TwinspireError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), _status(answer)))
    return pb_utils.InferenceResponse([pb_utils.Tensor(output, answer)])


def _status(error: TwinspireError) -> Any:  # noqa: ANN401 - Triton's own enum
    if isinstance(error, ServerOverloadedError):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INVALID_ARG if isinstance(error, InputError) else pb_utils.TritonError.INTERNAL
