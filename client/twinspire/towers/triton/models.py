"""The protocol's messages: requests, and responses checked against the contract.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_grpc.md and Triton's
extensions of it.
"""

# ruff: noqa: ANN401 - the generated messages have no types

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2

from twinspire._arguments import printable
from twinspire.bundle import BundleDescription, Tower
from twinspire.contract import FREE, RERANKER, TensorSpec, text_input
from twinspire.errors import BundleError, EngineError, ServerError, ServerRefusedError, SpaceMismatchError
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.validation import check_embeddings, check_probabilities

LARGEST_BATCH = 1024
"""The most rows of a request, whatever the server accepts: it bounds the size of a response."""

_SHOWN_CHARACTERS = 200

_BUILD = "Build its repository from this bundle with `twinspire build` and restart it"


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpectedModel:
    """A bundle's model as its server must have it: a tower, or the reranker.

    `name` is the model's on the server. `inputs` and `output` are without the batch axis; a free axis may be the
    context instead. `check` raises EngineError for an output (n, ...) with wrong values, named by its second argument.
    """

    name: str
    role: Tower | Literal["reranker"]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    check: Callable[[NDArray[np.float32], str], object]

    @property
    def title(self) -> str:
        """What error messages call it."""
        return f"{self.role} tower" if isinstance(self.role, Tower) else self.role

    @property
    def is_required(self) -> bool:
        """Whether every server of the bundle has it: a repository that an older version built has no reranker."""
        return isinstance(self.role, Tower)


def expected_tower(bundle: BundleDescription, tower: Tower, name: str) -> ExpectedModel:
    """Return what a server must have of a tower; `name` is that of the bundle's models there."""

    def check(output: NDArray[np.float32], source: str) -> object:
        return check_embeddings(output, shape=output.shape, source=source, tower=tower)

    return ExpectedModel(
        name=f"{name}_{tower}",
        role=tower,
        inputs=(bundle.input_spec(tower),),
        output=bundle.output_spec(tower),
        check=check,
    )


def expected_reranker(bundle: BundleDescription, name: str) -> ExpectedModel | None:
    """Return what a server should have of the reranker; None where the bundle has none that this version can use."""
    try:
        reranker, spec = bundle.manifest.reranker()
    except BundleError:  # raised again where pairs are to be scored
        return None

    def check(output: NDArray[np.float32], source: str) -> object:
        return check_probabilities(output, count=len(output), source=source)

    return ExpectedModel(name=f"{name}_{reranker}", role=RERANKER, inputs=spec.inputs, output=spec.output, check=check)


@dataclass(frozen=True, slots=True)
class InspectedModel:
    """A bundle's model on a server: its name, the most rows of a request, its precision.

    `text_lengths` are the lengths that texts are padded to, ascending, the context the last; only the text tower has
    any. Models that differ in precision alone are equal: a server may take another one during a call.
    """

    name: str
    max_batch: int
    text_lengths: tuple[int, ...]
    precision: str = field(compare=False)


def largest_response_bytes(numbers: int) -> int:
    """Return the size of a server's largest response: a batch of embeddings of `numbers` each, or a configuration."""
    return LARGEST_BATCH * numbers * 4 + 2**20


def read_model(config: Any, expected: ExpectedModel, bundle: BundleDescription, *, address: str) -> InspectedModel:
    """Read the `ModelConfig` message of a model.

    Raises SpaceMismatchError where the model is of another space than the bundle, ServerError where its tensors,
    batches or parameters violate the contract.
    """
    name, where = expected.name, f"the model {expected.name!r} on {address}"

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
    problem = _contract_violation(config, expected, bundle)
    if problem:
        raise failed(f"is not the {expected.title} of the bundle {bundle.name!r}: {problem}. {_BUILD}")
    lengths: tuple[int, ...] = ()
    if expected.role is Tower.TEXT:
        value, context_length = parameters.get("text_lengths", ""), bundle.text.context_length
        lengths = _text_lengths(value)
        if not lengths or lengths[0] < 1 or lengths[-1] != context_length:
            raise failed(
                f"has the parameter text_lengths '{_shown(value)}': expected lengths that end with the bundle's "
                f"context, such as '32,{context_length}'. {_BUILD}"
            )
    precision = _shown(parameters.get("precision", "unknown"))
    return InspectedModel(name, min(config.max_batch_size, LARGEST_BATCH), lengths, precision)


def missing_model(expected: ExpectedModel, bundle: BundleDescription, *, address: str) -> ServerRefusedError:
    """Return the error for a model that a server does not have."""
    return ServerRefusedError(
        f"the server at {address} has no model {expected.name!r}, the {expected.title} of the bundle {bundle.name!r}. "
        f"{_BUILD}",
        address=address,
        model=expected.name,
        code="NOT_FOUND",
    )


def _contract_violation(config: Any, expected: ExpectedModel, bundle: BundleDescription) -> str | None:
    """Return how a model's batching, inputs or outputs differ from the contract, None where they do not."""
    if config.max_batch_size < 1:
        return f"its max_batch_size is {config.max_batch_size}, expected at least 1"
    inputs = [expected.inputs]
    if any(FREE in spec.shape for spec in expected.inputs):  # a server that pads texts itself takes one length only
        inputs.append((text_input(bundle.text.context_length),))
    for role, tensors, choices in (("input", config.input, inputs), ("output", config.output, [(expected.output,)])):
        found = [(tensor.name, _type_name(tensor.data_type), tuple(tensor.dims)) for tensor in tensors]
        wanted = [[(spec.name, spec.triton_type, spec.shape) for spec in specs] for specs in choices]
        if sorted(found) not in map(sorted, wanted):
            return f"its {role} is {_shown(_listed(found))}, expected {' or '.join(map(_listed, wanted))}"
    return None


def _listed(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name!r} {type_name} of {list(shape)}" for name, type_name, shape in tensors)


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


def infer_request(
    model: ExpectedModel, arrays: Sequence[NDArray[Any]], *, timeout_s: float, request_id: str = ""
) -> Any:
    """Return a request for the output of a model's inputs, arrays (n, ...) in their order: `ModelInfer`.

    `request_id` stands in the server's access log and traces.
    `timeout_s` is the time left in the call: a server with a bounded queue drops the request after it.
    """
    request = service_pb2.ModelInferRequest(model_name=model.name, id=request_id)
    for spec, array in zip(model.inputs, arrays, strict=True):
        request.inputs.add(name=spec.name, datatype=spec.triton_type, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    request.outputs.add(name=model.output.name)
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    return request


def read_output(response: Any, model: ExpectedModel, *, count: int, source: str) -> NDArray[np.float32]:
    """Return a model's output for `count` rows. Raises EngineError unless it is the only one, and as it must be."""
    shape = (count, *model.output.shape)
    outputs = [(output.name, output.datatype, list(output.shape)) for output in response.outputs]
    sizes = [len(raw) for raw in response.raw_output_contents]
    expected = model.output.name, model.output.triton_type, list(shape)
    if outputs != [expected] or sizes != [4 * math.prod(shape)]:
        found = _shown(f"{outputs} in {sizes} bytes")
        raise EngineError(f"{source} returned {found}: expected one {_listed([(*expected[:2], shape)])}")
    rows = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)
    model.check(rows, source)
    return rows


def read_statistics(response: Any) -> ModelStatistics:
    """Add up successful requests, inferences and executions over a model's versions."""
    models = response.model_stats
    return ModelStatistics(
        sum(model.inference_stats.success.count for model in models),
        sum(model.inference_count for model in models),
        sum(model.execution_count for model in models),
    )
