"""The text tower of a container repository: checks texts and forms batches for its engine, with NumPy alone.

`twinspire build` copies this file to `{bundle}_text/N/model.py` and twinspire/contract.py beside it. The engine is the
model `{bundle}_engine_text` of Triton's onnxruntime backend. That backend cannot refuse one request of a batch: where a
run fails, all of its requests fail (ProcessRequests in onnxruntime.cc), and one that should fail may give a vector. So
this model checks each text, answers a bad one with an error of its own request, in the words of the wheel's server, and
gives the engine good ones only. The engine forms no batches itself, so that clients that call it directly cannot make
the requests of others fail.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # exists inside Triton only
from contract import (  # type: ignore[import-not-found] # a copy of twinspire/contract.py
    EMBEDDING,
    INPUT_IDS,
    group_by_length,
    padded,
    sequence_problem,
    without_padding,
)
from numpy.typing import NDArray


class TritonPythonModel:
    """The interface that Triton calls, one call at a time in each instance.

    Input `input_ids` int32 (n, L) with any padding right of the end token; output `embedding` float32 (n, D),
    L2-normalised. A request that cannot be answered gets an error of its own; the others of its batch are answered.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters that `twinspire build` wrote."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self._engine, self._version = parameters["engine"], int(args["model_version"])
        self._pad_id, self._eos_id = int(parameters["pad_id"]), int(parameters["eos_id"])
        self._context_length = int(parameters["context_length"])
        self._vocabulary_size = int(parameters["vocabulary_size"])
        # The lengths that texts are padded to; without any, each batch to its longest.
        self._lengths = [int(length) for length in parameters["engine_lengths"].split(",") if length]
        self._batch = int(parameters["engine_batch"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request of a batch, in order. Raises nothing: Triton 2.51 would not call again."""
        inputs = [self._read(request) for request in requests]
        texts = [text for item in inputs if isinstance(item, list) for text in item]
        try:
            embeddings = self._encode(texts)
        except Exception as error:  # the engine's, NumPy's MemoryError, Triton's for a lack of shared memory
            failed = pb_utils.TritonError(f"the engine {self._engine} failed: {error}", pb_utils.TritonError.INTERNAL)
            return [_response(failed if isinstance(item, list) else item) for item in inputs]
        answers = []
        start = 0
        for item in inputs:
            if isinstance(item, list):
                answers.append(_response(embeddings[start : start + len(item)]))
                start += len(item)
            else:
                answers.append(_response(item))
        return answers

    def _read(self, request: Any) -> Any:  # noqa: ANN401 - a list of texts, or Triton's error
        """Return a request's texts without padding, or the error to answer it with."""
        try:
            rows = pb_utils.get_input_tensor_by_name(request, INPUT_IDS).as_numpy()
            texts = [without_padding(row, pad_id=self._pad_id, eos_id=self._eos_id) for row in rows]
        except Exception as error:  # a shape that Triton should have refused
            return pb_utils.TritonError(f"{INPUT_IDS} cannot be read: {error}", pb_utils.TritonError.INVALID_ARG)
        for position, text in enumerate(texts):
            problem = sequence_problem(
                text, context_length=self._context_length, vocabulary_size=self._vocabulary_size, eos_id=self._eos_id
            )
            if problem is not None:
                return pb_utils.TritonError(f"text {position} {problem}", pb_utils.TritonError.INVALID_ARG)
        return texts

    def _encode(self, texts: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) in batches of like lengths."""
        if not texts:
            return np.empty((0, 0), np.float32)
        lengths = [self._padded_length(text.size) for text in texts]
        runs = math.ceil(len(texts) / self._batch)
        batches = group_by_length(lengths, batch=math.ceil(len(texts) / runs))
        found = [
            self._run(padded([texts[place] for place in places], self._pad_id, lengths[places[0]]))
            for places in batches
        ]
        embeddings = np.empty((len(texts), found[0].shape[1]), np.float32)
        for places, rows in zip(batches, found):  # noqa: B905 - Triton's images down to Python 3.8
            embeddings[places] = rows
        return embeddings

    def _padded_length(self, length: int) -> int:
        return next((allowed for allowed in self._lengths if allowed >= length), length)

    def _run(self, input_ids: NDArray[np.int32]) -> NDArray[np.float32]:
        request = pb_utils.InferenceRequest(
            model_name=self._engine,
            model_version=self._version,
            requested_output_names=[EMBEDDING],
            inputs=[pb_utils.Tensor(INPUT_IDS, input_ids)],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        embeddings: NDArray[np.float32] = pb_utils.get_output_tensor_by_name(response, EMBEDDING).as_numpy()
        return embeddings


def _response(answer: Any) -> Any:  # noqa: ANN401 - an array or Triton's error; Triton's response
    if isinstance(answer, np.ndarray):
        return pb_utils.InferenceResponse([pb_utils.Tensor(EMBEDDING, answer)])
    return pb_utils.InferenceResponse(error=answer)
