"""Preprocessing under Triton's Python backend: encoded images, sounds or plain texts in, a tower's input out.

`twinspire build` copies this file to `{bundle}_decode/N/model.py` and the like; the ensembles `{bundle}_image_bytes`
and `{bundle}_text_raw` put it in front of a tower. Items are prepared by the client's own code, several at a time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # exists inside Triton only
from numpy.typing import NDArray

from twinspire._batched import BatchPreprocessor
from twinspire.bundle import MANIFEST_NAME, TOKENIZER_NAME, DecodeMode, Manifest, Tower
from twinspire.contract import padded
from twinspire.errors import AudioError, ImageError, InputError, ItemError, ServerOverloadedError, TwinspireError
from twinspire.text import Tokenizer
from twinspire_server.repository.backlog import EXPIRED, FULL, Backlog, QueuedRequest
from twinspire_server.repository.telemetry import (
    ACCESS_LOG,
    ModelTelemetry,
    Observation,
    status_of,
    warm_up_requests,
)

Prepare: TypeAlias = Callable[[list[bytes]], Generator[NDArray[Any] | TwinspireError, None, None]]
"""Yields the row or the error of each item, in their order, as soon as it is there."""

QUEUED_BATCHES = 8
"""How many full batches wait at most."""
QUEUED_BYTES = 256 * 2**20
"""How many bytes of several requests wait at most. A single request may be larger: gRPC's limit is 2 GB."""
QUEUE_TIMEOUT_S = 30.0
"""How long a request without a timeout waits: the deadline of twinspire's clients."""
GATHER_S = 0.005
"""How long requests gather in Triton while a batch is prepared."""
HUNG_S = 300.0
"""A batch that takes longer is taken for hung."""
NICENESS = {Tower.IMAGE: 15, Tower.TEXT: 5, Tower.AUDIO: 15}
"""Yield processors to the towers, of which those of images and sounds run at 10: under overload they would starve while
images are decoded that they then refuse."""
MAX_TEXT_BYTES = 2**20
"""The longest text. Far less fills any context; the tokenizer reads 1 MB in about a second."""


class TritonPythonModel:
    """The interface that Triton calls, one call at a time.

    Input BYTES (n, 1), an encoded file or a text in UTF-8 each; output the tower's input (n, ...). A request with an
    item that cannot be used gets an error of its own; the other requests of its batch are answered. No exception leaves
    `execute`: Triton 2.51 does not replace a process that one has ended.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings of the bundle. Raises BundleError where they cannot be read: loading then fails."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        threads, decode = parameters.get("threads"), parameters.get("decode", DecodeMode.EXACT)
        tower = Tower(parameters["prepares"])
        os.nice(NICENESS[tower])  # before any thread is made: on Linux each has a niceness of its own
        self._prepare = _preparation(tower, manifest, folder, None if threads is None else int(threads), decode)
        (self._input,), (self._output,) = ([tensor["name"] for tensor in config[role]] for role in ("input", "output"))
        self._telemetry = ModelTelemetry(
            pb_utils,
            model=args["model_name"],
            version=args["model_version"],
            warm_ups=warm_up_requests(config),
            access_log=os.environ.get(ACCESS_LOG),
        )
        max_batch = int(config["max_batch_size"])
        self._backlog = Backlog(self._answer, max_batch=max_batch, max_rows=QUEUED_BATCHES * max_batch)
        self._waiting_bytes = 0
        self._lock = threading.Lock()

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue the requests of a batch, so that Triton hands over further ones, and refuse those that do not fit."""
        if self._backlog.computing_s > HUNG_S:
            pb_utils.Logger.log_error(f"one batch has been prepared for {HUNG_S:.0f} s: ending the process")
            os._exit(1)  # `twinspire serve` starts the server again
        batch = [queued for queued in map(self._read, requests) if queued is not None]
        for refused in self._backlog.submit(batch, gather_s=GATHER_S):
            self._refuse(refused, FULL)

    def finalize(self) -> None:
        """Answer the queued requests."""
        self._backlog.close()

    def _read(self, request: Any) -> QueuedRequest | None:  # noqa: ANN401 - Triton's own class
        """Read the items of a request. Where that fails, answer it with an error and return None."""
        observation = self._telemetry.arrived(request)
        try:
            items = pb_utils.get_input_tensor_by_name(request, self._input).as_numpy().reshape(-1)  # (n,) bytes
            expires_s = time.monotonic() + (request.timeout() / 1e6 or QUEUE_TIMEOUT_S)
            queued = QueuedRequest(request, items, expires_s, observation=observation)
            size_bytes = _size_bytes(queued)
        except Exception as error:  # numpy's, pybind11's, for contents that Triton did not expect
            self._send(request, InputError(f"the input {self._input} cannot be read: {error}"), observation)
            return None
        if observation is not None:
            observation.rows = len(items)
        with self._lock:
            is_full = self._waiting_bytes > 0 and self._waiting_bytes + size_bytes > QUEUED_BYTES
            self._waiting_bytes += size_bytes
        if is_full:
            self._refuse(queued, FULL)
            return None
        return queued

    def _answer(self, batch: Sequence[QueuedRequest]) -> None:
        """Answer requests, whose items are prepared together. Those that expired or were cancelled are not prepared."""
        due = []
        for queued in batch:
            if queued.request.is_cancelled() or time.monotonic() > queued.expires_s:
                self._refuse(queued, EXPIRED)
            else:
                due.append(queued)
        self._telemetry.began([queued.observation for queued in due])
        # Each answer is sent at once: the tower computes it while the next images are decoded.
        for queued, answer in zip(due, prepare_together(self._prepare, [queued.rows for queued in due]), strict=True):
            self._finish(queued, answer)

    def _refuse(self, queued: QueuedRequest, message: str) -> None:
        self._finish(queued, ServerOverloadedError(message))

    def _finish(self, queued: QueuedRequest, answer: NDArray[Any] | TwinspireError) -> None:
        with self._lock:
            self._waiting_bytes -= _size_bytes(queued)
        observation = queued.observation
        if observation is not None and observation.began_s:
            observation.computed_s = time.perf_counter()
            self._telemetry.preprocessed(observation.computed_s - observation.began_s)
        self._send(queued.request, answer, observation)

    def _send(
        self,
        request: Any,  # noqa: ANN401 - Triton's own class
        answer: NDArray[Any] | TwinspireError,
        observation: Observation | None,
    ) -> None:
        if isinstance(answer, TwinspireError):
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), _status(answer)))
        else:
            response = pb_utils.InferenceResponse([pb_utils.Tensor(self._output, answer)])
        try:
            request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # the other callers of the batch still get their answers
            pb_utils.Logger.log_error(f"cannot send a response: {error}")
        self._telemetry.answered(observation, status_of(answer, expired=EXPIRED))


def prepare_together(
    prepare: Prepare, requests: Sequence[NDArray[Any]]
) -> Generator[NDArray[Any] | TwinspireError, None, None]:
    """Prepare the items of several requests in one call; yield each one's rows, or the error of its first bad item.

    Where the call raises, each request that is left is prepared alone.
    """
    done = 0
    try:
        with closing(prepare([item for items in requests for item in items])) as results:
            for items in requests:
                prepared = [next(results) for _ in items]
                errors = [_at(each, place) for place, each in enumerate(prepared) if isinstance(each, TwinspireError)]
                rows = [each for each in prepared if not isinstance(each, TwinspireError)]
                yield errors[0] if errors else np.stack(rows)
                done += 1
    except Exception as error:  # MemoryError too: fewer items may fit
        if len(requests) == 1:
            yield error if isinstance(error, TwinspireError) else TwinspireError(f"{type(error).__name__}: {error}")
            return
        for items in requests[done:]:
            yield from prepare_together(prepare, [items])


def _preparation(tower: Tower, manifest: Manifest, folder: Path, threads: int | None, decode: str) -> Prepare:
    """Return the function that prepares a tower's inputs."""
    if tower is Tower.TEXT:
        tokenizer = Tokenizer(folder / TOKENIZER_NAME, manifest.text)
        return lambda items: prepare_texts(items, tokenizer)
    preprocessor: BatchPreprocessor[Any]
    if tower is Tower.IMAGE:
        from twinspire.images import Preprocessor

        preprocessor = Preprocessor(manifest.image, decode=decode, threads=threads)
    else:
        from twinspire.audio import AudioPreprocessor

        preprocessor = AudioPreprocessor(manifest.audio, threads=threads)

    def media(items: list[bytes]) -> Generator[NDArray[Any] | TwinspireError, None, None]:
        for _, rows, errors in preprocessor.stream(items, batch=1):
            yield errors[0] if errors else rows[0]

    return media


def prepare_texts(items: Sequence[bytes], tokenizer: Tokenizer) -> Generator[NDArray[Any] | TwinspireError, None, None]:
    """Tokenize texts in UTF-8 to (context,) int32 each, padded."""
    texts, errors = list[str](), dict[int, TwinspireError]()
    for position, item in enumerate(items):
        if len(item) > MAX_TEXT_BYTES:
            errors[position] = TextError(position, f"{len(item):,} bytes: expected at most {MAX_TEXT_BYTES:,}")
            continue
        try:
            texts.append(str(item, "utf-8"))
        except UnicodeDecodeError as error:
            errors[position] = TextError(position, f"not UTF-8 at byte {error.start}: {error.reason}")
    settings = tokenizer.settings
    rows = iter(padded(ids, settings.pad_id, settings.context_length) if (ids := tokenizer.encode(texts)) else ())
    for position in range(len(items)):
        yield errors[position] if position in errors else next(rows)


class TextError(ItemError):
    """One text cannot be used."""

    noun = "text"

    def __init__(self, position: int, cause: str) -> None:
        super().__init__(position, "bytes", cause)


def _at(error: TwinspireError, position: int) -> TwinspireError:
    """Return an item's error with another position: that within its own request."""
    if isinstance(error, TextError):
        return TextError(position, error.cause)
    if isinstance(error, ImageError | AudioError):
        return type(error)(position, error.name, error.cause)
    return error


def _size_bytes(queued: QueuedRequest) -> int:
    return sum(map(len, queued.rows))


def _status(error: TwinspireError) -> Any:  # noqa: ANN401 - Triton's own enum
    if isinstance(error, ServerOverloadedError):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INVALID_ARG if isinstance(error, InputError) else pb_utils.TritonError.INTERNAL
