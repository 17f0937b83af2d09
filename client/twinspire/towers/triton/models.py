"""The protocol's messages: requests, and responses checked against the contract.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md and Triton's
extensions of it.
"""

# ruff: noqa: ANN401 - the generated messages have no types

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from twinspire._arguments import printable
from twinspire.bundle import BundleDescription, Tower
from twinspire.contract import EMBEDDING, FREE, TensorSpec, text_input
from twinspire.errors import EngineError, ServerError, SpaceMismatchError
from twinspire.towers.triton.statistics import ModelStatistics

LARGEST_BATCH = 1024
"""The most rows of a request, whatever the server accepts: it bounds the size of a response."""

_SHOWN_CHARACTERS = 200

_BUILD = "Build its repository from this bundle with `twinspire build` and restart it"


@dataclass(frozen=True, slots=True)
class InspectedModel:
    """One tower on a server: its model's name, the most rows of a request, its precision.

    `text_lengths` are the lengths that texts are padded to, ascending, the context the last; the image tower has none.
    Models that differ in precision alone are equal: a server may take another one during a call.
    """

    name: str
    max_batch: int
    text_lengths: tuple[int, ...]
    precision: str = field(compare=False)


def largest_response_bytes(numbers: int) -> int:
    """Return the size of a server's largest response: a batch of embeddings of `numbers` each, or a configuration."""
    return LARGEST_BATCH * numbers * 4 + 2**20


def read_model(config: Any, name: str, tower: Tower, bundle: BundleDescription, *, address: str) -> InspectedModel:
    """Read the `ModelConfig` message of the model `name`.

    Raises SpaceMismatchError where the model is of another space than the bundle, ServerError where its tensors,
    batches or parameters violate the contract.
    """
    where = f"the model {name!r} on {address}"

    def failed(text: str) -> ServerError:
        return ServerError(f"{where} {text}", address=address, model=name)

    parameters = {key: value.string_value for key, value in config.parameters.items()}
    space = parameters.get("space")
    if not space:
        raise failed(f"has no parameter 'space', which names its embeddings' space. {_BUILD}")
    if space != bundle.space:
        raise SpaceMismatchError(
            f"{where} is of another space than the bundle {bundle.name!r} at {bundle.location}: it serves another "
            f"bundle. {_BUILD}, or open the bundle that it serves",
            expected=bundle.space,
            found=printable(space, limit=_SHOWN_CHARACTERS),
        )
    problem = _contract_violation(config, tower, bundle)
    if problem:
        raise failed(f"is not the {tower} tower of the bundle {bundle.name!r}: {problem}. {_BUILD}")
    lengths: tuple[int, ...] = ()
    if tower is Tower.TEXT:
        value, context_length = parameters.get("text_lengths", ""), bundle.text.context_length
        lengths = _text_lengths(value)
        if not lengths or lengths[0] < 1 or lengths[-1] != context_length:
            raise failed(
                f"has the parameter text_lengths '{_shown(value)}': expected lengths that end with the bundle's "
                f"context, such as '32,{context_length}'. {_BUILD}"
            )
    precision = _shown(parameters.get("precision", "unknown"))
    return InspectedModel(name, min(config.max_batch_size, LARGEST_BATCH), lengths, precision)


def _contract_violation(config: Any, tower: Tower, bundle: BundleDescription) -> str | None:
    """Return how a model's batching, inputs or outputs differ from the contract, None where they do not."""
    if config.max_batch_size < 1:
        return f"its max_batch_size is {config.max_batch_size}, expected at least 1"
    inputs = [bundle.input_spec(tower)]
    if tower is Tower.TEXT:  # a server that pads itself takes one length only
        inputs = [text_input(FREE), text_input(bundle.text.context_length)]
    outputs = [bundle.output_spec(tower)]
    for role, tensors, specs in (("input", config.input, inputs), ("output", config.output, outputs)):
        found = [(tensor.name, _type_name(tensor.data_type), tuple(tensor.dims)) for tensor in tensors]
        if found not in [[(spec.name, spec.triton_type, spec.shape)] for spec in specs]:
            expected = " or ".join(f"{spec.name!r} {spec.triton_type} of {list(spec.shape)}" for spec in specs)
            got = ", ".join(f"{name!r} {type_name} of {list(shape)}" for name, type_name, shape in found)
            return f"its {role} is {_shown(got)}, expected one {expected}"
    return None


def _type_name(data_type: int) -> str:
    types = model_config_pb2.DataType
    name: str = types.Name(data_type) if data_type in types.values() else f"unknown ({data_type})"
    return name.removeprefix("TYPE_")


def _text_lengths(value: str) -> tuple[int, ...]:
    """Parse the parameter `text_lengths`: ascending, empty where it holds no numbers."""
    try:
        return tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        return ()


def _shown(text: str) -> str:
    """Return a server's text on one line, shortened."""
    return printable(text, limit=_SHOWN_CHARACTERS)


def read_version(response: Any) -> str:
    """Read Triton's version of a `ServerMetadata` message."""
    return printable(response.version, limit=32)


def infer_request(name: str, spec: TensorSpec, array: NDArray[Any], *, timeout_s: float, request_id: str = "") -> Any:
    """Return a request for the embeddings of an array (n, ...) of the tower's input `spec`: `ModelInfer`.

    `request_id` stands in the server's access log and traces.
    `timeout_s` is the time left in the call: a server with a bounded queue drops the request after it.
    """
    request = service_pb2.ModelInferRequest(model_name=name, id=request_id)
    request.inputs.add(name=spec.name, datatype=spec.triton_type, shape=array.shape)
    request.outputs.add(name=EMBEDDING)
    request.raw_input_contents.append(array.tobytes())
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    return request


def read_embeddings(response: Any, *, shape: tuple[int, ...], source: str) -> NDArray[np.float32]:
    """Return the only output. Raises EngineError unless it is float32 of `shape`."""
    outputs = [(output.name, output.datatype, list(output.shape)) for output in response.outputs]
    sizes = [len(raw) for raw in response.raw_output_contents]
    if outputs != [(EMBEDDING, "FP32", list(shape))] or sizes != [4 * math.prod(shape)]:
        found = _shown(f"{outputs} in {sizes} bytes")
        raise EngineError(f"{source} returned {found}: expected one {EMBEDDING!r} FP32 of {list(shape)}")
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)


def read_statistics(response: Any) -> ModelStatistics:
    """Add up successful requests, inferences and executions over a model's versions."""
    models = response.model_stats
    return ModelStatistics(
        sum(model.inference_stats.success.count for model in models),
        sum(model.inference_count for model in models),
        sum(model.execution_count for model in models),
    )
