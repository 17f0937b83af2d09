"""The messages of the protocol: what is asked, and what a server answers, held against the contract.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md and Triton's
extensions of it.
"""

# ruff: noqa: ANN401 - the generated messages have no types

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from twinspire.bundle import Bundle, Tower
from twinspire.errors import EngineError, ServerError, SpaceMismatchError

INPUT = {Tower.IMAGE: "image", Tower.TEXT: "input_ids"}
INPUT_TYPE = {Tower.IMAGE: "UINT8", Tower.TEXT: "INT32"}
OUTPUT = "embedding"
OUTPUT_TYPE = "FP32"
RAGGED = "ragged"

_BUILD = "Build its repository from this bundle with `twinspire build` and start it again"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One tower on a server: its model's name, the most rows a request may have, the lengths it takes.

    `text_lengths` are ascending, None where a text may have any; the image tower's is None.
    """

    name: str
    max_batch: int
    text_lengths: tuple[int, ...] | None
    precision: str


def read_model(config: Any, tower: Tower, bundle: Bundle, *, address: str) -> ServedModel:
    """Read a `ModelConfig` message.

    Raises SpaceMismatchError where the model's embeddings may not be compared with the bundle's, ServerError
    where its tensors, batches or parameters are not of the contract.
    """
    where = f"the model {config.name!r} on {address}"
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    space = parameters.get("space")
    if not space:
        raise ServerError(f"{where} does not say of which space it is: its parameter 'space' is missing. {_BUILD}")
    if space != bundle.space:
        raise SpaceMismatchError(
            f"{where} is of another space than the bundle {bundle.name!r} at {bundle.path}: it serves another bundle. "
            f"{_BUILD}, or open the bundle that it serves"
        )
    problem = _broken_contract(config, tower, bundle)
    if problem:
        raise ServerError(f"{where} is not the {tower} tower of the bundle {bundle.name!r}: {problem}. {_BUILD}")
    lengths = None
    if tower is Tower.TEXT:
        lengths = _text_lengths(parameters.get("text_lengths", ""), bundle.text.context_length, where)
    return ServedModel(config.name, config.max_batch_size, lengths, parameters.get("precision", "unknown"))


def _broken_contract(config: Any, tower: Tower, bundle: Bundle) -> str | None:
    """Say what of a model's batching, inputs and outputs is not as the contract has it, None where all is."""
    if config.max_batch_size < 1:
        return f"its max_batch_size is {config.max_batch_size}, expected at least 1"
    size = bundle.image.size
    shapes = [[size, size, 3]] if tower is Tower.IMAGE else [[-1], [bundle.text.context_length]]
    contract = [
        ("input", config.input, INPUT[tower], INPUT_TYPE[tower], shapes),
        ("output", config.output, OUTPUT, OUTPUT_TYPE, [[bundle.dim]]),
    ]
    for role, tensors, name, kind, allowed in contract:
        found = [(tensor.name, _type_name(tensor.data_type), list(tensor.dims)) for tensor in tensors]
        if found not in [[(name, kind, shape)] for shape in allowed]:
            wanted = " or ".join(map(str, allowed))
            return f"its {role} is {found}, expected one {name!r} {kind} of {wanted}"
    return None


def _type_name(data_type: int) -> str:
    name: str = model_config_pb2.DataType.Name(data_type)
    return name.removeprefix("TYPE_")


def _text_lengths(value: str, context_length: int, where: str) -> tuple[int, ...] | None:
    """Parse the parameter `text_lengths`: None for `ragged`, else ascending lengths up to the context."""
    if value == RAGGED:
        return None
    try:
        lengths = tuple(sorted(int(part) for part in value.split(",")))
    except ValueError:
        lengths = ()
    if not lengths or lengths[0] < 1 or lengths[-1] != context_length:
        raise ServerError(
            f"{where} has the parameter text_lengths {value!r}: expected {RAGGED!r} or lengths such as "
            f"'32,{context_length}', the longest the bundle's context of {context_length}. {_BUILD}"
        )
    return lengths


def server_request() -> Any:
    """Ask for the server's version: `ServerMetadata`."""
    return service_pb2.ServerMetadataRequest()


def config_request(name: str) -> Any:
    """Ask for a model's configuration: `ModelConfig`."""
    return service_pb2.ModelConfigRequest(name=name)


def statistics_request(name: str) -> Any:
    """Ask for a model's counters: `ModelStatistics`."""
    return service_pb2.ModelStatisticsRequest(name=name)


def infer_request(name: str, tower: Tower, array: NDArray[Any]) -> Any:
    """Ask for the embeddings of an array (n, ...) of the tower's dtype: `ModelInfer`."""
    request = service_pb2.ModelInferRequest(model_name=name)
    request.inputs.add(name=INPUT[tower], datatype=INPUT_TYPE[tower], shape=array.shape)
    request.outputs.add(name=OUTPUT)
    request.raw_input_contents.append(array.tobytes())
    return request


def read_embeddings(response: Any, *, source: str) -> NDArray[np.float32]:
    """Read the one output, of whatever shape. Raises EngineError where it is no whole float32 array."""
    outputs = [(output.name, output.datatype, tuple(output.shape)) for output in response.outputs]
    sizes = [len(raw) for raw in response.raw_output_contents]
    if len(outputs) == 1 and outputs[0][:2] == (OUTPUT, OUTPUT_TYPE):
        shape = outputs[0][2]
        if sizes == [4 * math.prod(shape)] and all(length >= 0 for length in shape):
            return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)
    raise EngineError(
        f"{source} gave {outputs} in {sizes} bytes: expected one {OUTPUT!r} {OUTPUT_TYPE} and 4 bytes a number"
    )


def read_statistics(response: Any) -> tuple[int, int, int]:
    """Add up successful requests, inferences and executions over a model's versions."""
    models = response.model_stats
    return (
        sum(model.inference_stats.success.count for model in models),
        sum(model.inference_count for model in models),
        sum(model.execution_count for model in models),
    )
