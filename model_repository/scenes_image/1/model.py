"""One tower under Triton's Python backend; the same file serves towers of every modality.

`twinspire build` writes it beside a copy of the bundle. Triton decides which requests form a batch; they become one
call of `LocalTowers`, which chooses its provider as in any other process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # exists inside Triton only
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Tower
from twinspire.contract import EMBEDDING, INPUT_NAMES, without_padding
from twinspire.errors import EngineError, InputError, ServerOverloadedError, SpaceMismatchError, TwinspireError
from twinspire.towers import LocalTowers, Provider
from twinspire.towers.batching import bucket_lengths
from twinspire_server.repository.backlog import EXPIRED, FULL, Backlog, QueuedRequest
from twinspire_server.repository.telemetry import (
    ACCESS_LOG,
    ModelTelemetry,
    Observation,
    status_of,
    warm_up_requests,
)

Encode: TypeAlias = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]

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

    Input `image` uint8 (n, H, W, 3), `audio` float32 (n, F, M), or `input_ids` int32 (n, context) with any padding
    right of the end token; output `embedding` float32 (n, D), L2-normalised. A request that cannot be answered gets an
    error of its own; the other requests of its batch are answered. No exception leaves `execute`: Triton 2.51 does not
    replace a process that one has ended.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine and warm it up. Raises what `Bundle.open` and `LocalTowers` raise: loading then fails."""
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
        tower = Tower(parameters["tower"])
        niceness = BULK_NICENESS if tower is not Tower.TEXT and Tower.TEXT in bundle.towers else 0
        threads = parameters.get("threads")
        streams = parameters.get("streams")
        # On Linux each thread has a niceness of its own, which those that it makes inherit. This thread keeps its own:
        # were it slow to refuse requests, Triton would hold them in memory.
        with ThreadPoolExecutor(1, initializer=os.nice, initargs=(niceness,)) as opening:
            self._towers = opening.submit(
                LocalTowers,
                bundle,
                precision=parameters["precision"],
                provider=parameters["provider"],
                threads=None if threads is None else int(threads),
                streams=None if streams is None else int(streams),
                towers=(tower,),
            ).result()
        self._max_batch = int(config["max_batch_size"])
        self._input = INPUT_NAMES[tower]
        encoders: dict[Tower, Encode] = {Tower.IMAGE: self._images, Tower.TEXT: self._texts, Tower.AUDIO: self._audio}
        self._encode = encoders[tower]
        self._bundle = bundle
        for rows in warm_up_inputs(bundle, tower, self._max_batch):
            self._encode([rows])
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
            max_batch=self._max_batch,
            max_rows=queued_batches * self._max_batch,
            workers=self._towers.runtime.streams,
            niceness=niceness,
            pause=pause_after(self._towers.runtime.provider),
            pause_at_most_s=PAUSE_AT_MOST_S,
        )
        pb_utils.Logger.log_info(f"{args['model_name']}: {self._towers.runtime}")

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
        self._towers.close()

    def _read(self, request: Any) -> QueuedRequest | None:  # noqa: ANN401 - Triton's own class
        """Read the input of a request. Where that fails, answer it with an error and return None."""
        observation = self._telemetry.arrived(request)
        try:
            rows: NDArray[Any] = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            timeout_s = request.timeout() / 1e6 or QUEUE_TIMEOUT_S
        except Exception as error:  # numpy's, pybind11's, for shapes that Triton did not expect
            self._send(request, InputError(f"the input {self._input} cannot be read: {error}"), observation)
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
        with self._towers.unsplit() if self._backlog.is_shared(batch) else nullcontext():
            answers = encode_together(self._encode, [queued.rows for queued in due])
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
            request.get_response_sender().send(_response(answer), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # the other callers of the batch still get their answers
            pb_utils.Logger.log_error(f"cannot send a response: {error}")

    def _images(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        return self._towers.encode_images(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))

    def _audio(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        return self._towers.encode_audio(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))

    def _texts(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        pad_id, eos_id = self._bundle.text.pad_id, self._bundle.text.eos_id
        texts = [without_padding(row, pad_id=pad_id, eos_id=eos_id) for rows in inputs for row in rows]
        return self._towers.encode_texts(texts)


def encode_together(encode: Encode, inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32] | TwinspireError]:
    """Encode the inputs of several requests in one call; return (n, D) for each, or its error.

    Where that raises, encode each half alone: this finds the bad request in a few calls and still encodes the others in
    large batches.
    """
    if not inputs:
        return []
    try:
        embeddings = encode(inputs)
    except Exception as error:  # MemoryError too: a smaller part may fit
        if len(inputs) == 1:
            return [error if isinstance(error, TwinspireError) else EngineError(f"{type(error).__name__}: {error}")]
        half = len(inputs) // 2
        return [*encode_together(encode, inputs[:half]), *encode_together(encode, inputs[half:])]
    answers: list[NDArray[np.float32] | TwinspireError] = []
    start = 0
    for rows in inputs:
        answers.append(embeddings[start : start + len(rows)])
        start += len(rows)
    return answers


def warm_up_inputs(bundle: Bundle, tower: Tower, max_batch: int) -> Iterator[NDArray[Any]]:
    """Yield an input of every shape that the engine will be given, the largest as a full batch too.

    The first call of a shape pays for planning its memory, the first full batch for having it.
    """
    if tower is not Tower.TEXT:
        spec = bundle.input_spec(tower)
        for count in (1, max_batch):
            yield np.zeros((count, *spec.shape), spec.dtype)
        return
    context = bundle.text.context_length
    for length in bucket_lengths(bundle.text):
        yield np.array([[0] * (length - 1) + [bundle.text.eos_id]], np.int32)  # (1, length)
    yield np.array([[0] * (context - 1) + [bundle.text.eos_id]] * max_batch, np.int32)  # (max_batch, context)


def pause_after(provider: Provider) -> float:
    """Return the part of a batch's time to pause after it: none on a GPU, where no other thread computes meanwhile."""
    return 0.0 if provider is Provider.CUDA else PAUSE


def _response(answer: NDArray[np.float32] | TwinspireError) -> Any:  # noqa: ANN401 - Triton's own class
    if isinstance(answer, TwinspireError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), _status(answer)))
    return pb_utils.InferenceResponse([pb_utils.Tensor(EMBEDDING, answer)])


def _status(error: TwinspireError) -> Any:  # noqa: ANN401 - Triton's own enum
    if isinstance(error, ServerOverloadedError):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INVALID_ARG if isinstance(error, InputError) else pb_utils.TritonError.INTERNAL
