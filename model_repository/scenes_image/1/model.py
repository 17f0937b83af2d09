"""One tower under Triton's Python backend; the same file serves the image and the text tower.

`twinspire build` puts it beside a copy of the bundle. Triton decides which requests form a batch; here they
become one call of `LocalTowers`, with the providers and choices that it has in any other process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # exists inside Triton only
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Tower
from twinspire.contract import without_padding
from twinspire.errors import EngineError, InputError, ServerOverloadedError, SpaceMismatchError, TwinspireError
from twinspire.towers import LocalTowers
from twinspire.towers.batching import bucket_lengths
from twinspire_server.repository.backlog import Backlog, Waiting

Encode: TypeAlias = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]

INPUT = {Tower.IMAGE: "image", Tower.TEXT: "input_ids"}
OUTPUT = "embedding"

# Triton gathers what is queued the moment `execute` returns, and those just answered have not asked again by then: 16
# callers of one image settle at batches of 8. A pause of a small part of the batch's own time, in which their answers
# go out, lets them. ViT-B/32 int8, two cores: 92% of the images/s in process with a pause of 2%, 94% with one of 4%.
# A lone caller is never made to wait, nor is anybody while more is queued than fits one batch.
PAUSE = 0.04
PAUSE_AT_MOST_S = 0.01

QUEUED_BATCHES = 8
"""How many of the largest batches wait at most: 256 images, 39 MB at 224 pixels, a few seconds of computing."""
QUEUE_TIMEOUT_S = 30.0
"""How long a request waits that names no timeout: the deadline of twinspire's clients."""
GATHER_S = 0.005
"""While a batch is computed, how long requests gather in Triton before they are taken: a call of `execute` for each
would cost more than the engine where images are small."""
HUNG_S = 300.0
"""A batch that takes longer never ends. While one is computed Triton counts what waits behind it as executed, so that
from outside only this process can tell."""
FULL, EXPIRED = "Exceeds maximum queue size", "Request timeout expired"
"""What Triton's own queue policy says, which clients know."""


class TritonPythonModel:
    """What Triton calls, one call at a time.

    Input `image` uint8 (n, S, S, 3) or `input_ids` int32 (n, context) with any padding right of the end token;
    output `embedding` float32 (n, D), L2-normalised. A request that cannot be answered gets an error of its
    own; those that came with it are answered, and so is the next one: Triton 2.51 does not replace a process that
    an exception has ended.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine and warm it up. Raises what `Bundle.open` and `LocalTowers` raise: it then does not load."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        bundle = Bundle.open(Path(args["model_repository"]) / args["model_version"] / "bundle")
        if bundle.space != parameters["space"]:
            raise SpaceMismatchError(
                f"{bundle.path} is of the space {bundle.space}, its config.pbtxt of {parameters['space']}: "
                "build the repository again"
            )
        tower = Tower(parameters["tower"])
        threads = parameters.get("threads")
        streams = parameters.get("streams")
        self._towers = LocalTowers(
            bundle,
            precision=parameters["precision"],
            provider=parameters["providers"],
            threads=None if threads is None else int(threads),
            streams=None if streams is None else int(streams),
            towers=(tower,),
        )
        self._max_batch = int(config["max_batch_size"])
        self._input = INPUT[tower]
        self._encode: Encode = self._images if tower is Tower.IMAGE else self._texts
        self._text = bundle.text
        for shape in warm_up_inputs(bundle, tower, self._max_batch):
            self._encode([shape])
        self._backlog = Backlog(self._answer, max_batch=self._max_batch, max_rows=QUEUED_BATCHES * self._max_batch)
        pb_utils.Logger.log_info(f"{args['model_name']}: {self._towers.runtime}")

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer each request of a batch, in order; then give the callers of several a moment to ask again.

        A full batch, and what comes while one is computed, is queued, so that Triton hands over what else it has.
        """
        started_s = time.perf_counter()
        read = [waiting for waiting in map(self._read, requests) if waiting is not None]
        rows = sum(len(waiting.rows) for waiting in read)
        if self._backlog.computing_s > HUNG_S:
            pb_utils.Logger.log_error(f"the engine has computed one batch for {HUNG_S:.0f} s: ending the process")
            os._exit(1)  # `twinspire serve` starts the server again
        if rows >= self._max_batch or not self._backlog.is_idle:
            for waiting in self._backlog.submit(read):
                self._send(waiting.request, ServerOverloadedError(FULL))
            if rows < self._max_batch:
                self._backlog.wait_until_idle(GATHER_S)
            return
        computed_s = self._answer(read)
        if len(requests) > 1:
            pause_s = min(PAUSE * (computed_s - started_s), PAUSE_AT_MOST_S)
            time.sleep(max(0.0, computed_s + pause_s - time.perf_counter()))

    def finalize(self) -> None:
        """Let go of the engine."""
        self._backlog.close()
        self._towers.close()

    def _read(self, request: Any) -> Waiting | None:  # noqa: ANN401 - Triton's own class
        """Read the input of a request; one that cannot be read is answered with an error."""
        try:
            rows: NDArray[Any] = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            timeout_s = request.timeout() / 1e6 or QUEUE_TIMEOUT_S
        except Exception as error:  # numpy's, pybind11's, for shapes that Triton did not expect
            self._send(request, InputError(f"the input {self._input} cannot be read: {error}"))
            return None
        return Waiting(request, rows, time.monotonic() + timeout_s)

    def _answer(self, batch: Sequence[Waiting]) -> float:
        """Answer requests in one call of the engine; return when it ended, on the clock `time.perf_counter`.

        Not computed are those that nobody waits for any more.
        """
        wanted = []
        for waiting in batch:
            if waiting.request.is_cancelled() or time.monotonic() > waiting.expires_s:
                self._send(waiting.request, ServerOverloadedError(EXPIRED))
            else:
                wanted.append(waiting)
        answers = encode_together(self._encode, [waiting.rows for waiting in wanted])
        computed_s = time.perf_counter()
        for waiting, answer in zip(wanted, answers, strict=True):
            self._send(waiting.request, answer)
        return computed_s

    def _send(self, request: Any, answer: NDArray[np.float32] | TwinspireError) -> None:  # noqa: ANN401
        try:
            request.get_response_sender().send(_response(answer), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # one caller that cannot be answered any more is no others' loss
            pb_utils.Logger.log_error(f"a response could not be sent: {error}")

    def _images(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        return self._towers.encode_images(inputs[0] if len(inputs) == 1 else np.concatenate(inputs))

    def _texts(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        pad_id, eos_id = self._text.pad_id, self._text.eos_id
        texts = [without_padding(row, pad_id=pad_id, eos_id=eos_id) for rows in inputs for row in rows]
        return self._towers.encode_texts(texts)


def encode_together(encode: Encode, inputs: Sequence[NDArray[Any]]) -> list[NDArray[np.float32] | TwinspireError]:
    """Encode the inputs of several requests in one call; give (n, D) for each, or its error.

    Where that raises, each half is tried alone: what is at fault is found in a few calls, the rest is still
    encoded in large batches.
    """
    if not inputs:
        return []
    try:
        embeddings = encode(inputs)
    except Exception as error:  # a lack of memory too is the error of what asked for so much
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
    """Yield an input of every shape that the engine will see, the largest as a full batch too.

    The first call of a shape pays for planning its memory, the first full batch for having it.
    """
    if tower is Tower.IMAGE:
        for count in (1, max_batch):
            yield np.zeros((count, bundle.image.size, bundle.image.size, 3), np.uint8)
        return
    context = bundle.text.context_length
    for length in bucket_lengths(bundle.text):
        yield np.array([[0] * (length - 1) + [bundle.text.eos_id]], np.int32)  # (1, length)
    yield np.array([[0] * (context - 1) + [bundle.text.eos_id]] * max_batch, np.int32)  # (max_batch, context)


def _response(answer: NDArray[np.float32] | TwinspireError) -> Any:  # noqa: ANN401 - Triton's own class
    if isinstance(answer, TwinspireError):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), _status(answer)))
    return pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT, answer)])


def _status(error: TwinspireError) -> Any:  # noqa: ANN401 - Triton's own enum
    if isinstance(error, ServerOverloadedError):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INVALID_ARG if isinstance(error, InputError) else pb_utils.TritonError.INTERNAL
