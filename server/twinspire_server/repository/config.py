"""config.pbtxt: a model's configuration for Triton, written from its spec and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinspire._arguments import file_errors
from twinspire.contract import CANARY_REQUEST_ID, TensorSpec
from twinspire.errors import InputError
from twinspire_server.repository.spec import EnsembleStep, InstanceGroup, ModelSpec, WarmUp

CONFIG = "config.pbtxt"
WARM_UP_FOLDER = "warmup"
"""Where Triton looks for the data of warm-ups, in the model's folder."""

_BATCHING = "# What waits is gathered into a batch; nothing waits for others to come.\ndynamic_batching { }"
_STRING = "STRING"
"""Triton's name in configurations of what requests call BYTES."""
_SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8, "BF16": 2,
}  # fmt: skip


def config_pbtxt(spec: ModelSpec) -> str:
    """Return the text of a model's config.pbtxt."""
    source = "" if spec.bundle is None else f" from the bundle {spec.bundle}"
    named = {"tower": spec.tower, "space": spec.space, "precision": spec.precision}
    parts = [
        f"# Written by `twinspire build`{source}; the next build writes it again.",
        f'name: "{spec.name}"',
        spec.note,
        'platform: "ensemble"' if spec.steps else f'platform: "{spec.platform}"' if spec.platform else None,
        f'backend: "{spec.backend}"' if spec.backend else None,
        f"max_batch_size: {spec.max_batch}",
        _tensors("input", spec.inputs),
        _tensors("output", spec.outputs),
        *(
            [_ensemble(spec.steps)]
            if spec.steps
            else [_BATCHING if spec.dynamic_batching else None, _instances(spec.instances)]
        ),
        *(_parameter(name, str(value)) for name, value in named.items() if value is not None),
        *(_parameter(name, value) for name, value in spec.parameters.items()),
        spec.further_config,
        *map(_warm_up, spec.warm_ups),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _tensors(role: str, tensors: Iterable[TensorSpec]) -> str:
    listed = ", ".join(f'{{ name: "{tensor.name}" {_type_and_dims(tensor)} }}' for tensor in tensors)
    return f"{role} [ {listed} ]"


def _type_and_dims(tensor: TensorSpec) -> str:
    name = _STRING if tensor.triton_type == "BYTES" else tensor.triton_type
    return f"data_type: TYPE_{name} dims: [ {', '.join(map(str, tensor.shape))} ]"


def _instances(group: InstanceGroup) -> str:
    names = ", ".join(f'"{index}"' for index in range(group.profiles))
    # An instance takes the profile nearest to a batch's shape; where none is named, the first one alone:
    # `GetMostOptimizedProfile` in
    # https://github.com/triton-inference-server/tensorrt_backend/blob/main/src/instance_state.cc
    profiles = f" profile: [ {names} ]" if names else ""
    return f"instance_group [ {{ kind: {group.kind} count: {group.count}{profiles} }} ]"


def _ensemble(steps: Iterable[EnsembleStep]) -> str:
    """Return the steps; each calls the newest version of its model."""
    lines = []
    for step in steps:
        maps = [("input_map", step.inputs), ("output_map", step.outputs)]
        mapped = [f'{role} {{ key: "{own}" value: "{name}" }}' for role, names in maps for own, name in names.items()]
        lines.append(f'  step {{ model_name: "{step.model}" model_version: -1 {" ".join(mapped)} }}')
    return "\n".join(["ensemble_scheduling {", *lines, "}"])


def _parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'


def _warm_up(warm_up: WarmUp) -> str:
    files = {name: file for name, file, _ in warm_up.files()}
    inputs = " ".join(
        f'inputs {{ key: "{tensor.name}" value {{ {_type_and_dims(tensor)} '
        + (f'input_data_file: "{files[tensor.name]}"' if tensor.name in files else "zero_data: true")
        + " } }"
        for tensor in warm_up.inputs
    )
    return f'model_warmup [ {{ name: "{warm_up.name}" batch_size: {warm_up.batch} {inputs} }} ]'


def read_config(model: Path) -> Any:  # noqa: ANN401 - the generated messages have no types
    """Read the `ModelConfig` message of a model's folder. Raises InputError where it cannot be read."""
    from google.protobuf import text_format  # type: ignore[import-untyped] # ships no type information
    from tritonclient.grpc import model_config_pb2

    file = model / CONFIG
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{file} cannot be read ({reason}): expected one that `twinspire build` wrote. Remove the folder or "
            "build into another with -o",
            path=file,
        ) from error


@dataclass(frozen=True)
class HttpRequest:
    """Body and headers of an inference by Triton's HTTP protocol, with tensors as bytes.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
    """

    body: bytes
    headers: Mapping[str, str]


def ready_check(model: Path) -> HttpRequest | None:
    """Return the ready check of a model's folder: its first warm-up, as an inference of one row.

    None where it has no warm-up, or a config that only Triton can read. Raises InputError where the warm-up's data
    cannot be read.
    """
    from tritonclient.grpc import model_config_pb2

    try:
        config = read_config(model)
    except InputError:
        return None
    if not config.model_warmup:
        return None
    inputs, content = [], []
    for name, tensor in config.model_warmup[0].inputs.items():
        datatype = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
        size = math.prod(tensor.dims) * _SIZES[datatype] if datatype in _SIZES else None
        if tensor.input_data_file:
            row = _row(model / WARM_UP_FOLDER / tensor.input_data_file, size)
        elif size is not None:
            row = bytes(size)
        else:  # random or empty strings
            return None
        content.append(row)
        inputs.append(
            {
                "name": name,
                "datatype": "BYTES" if datatype == _STRING else datatype,
                "shape": [*([1] if config.max_batch_size else []), *tensor.dims],
                "parameters": {"binary_data_size": len(row)},
            }
        )
    request = {"id": CANARY_REQUEST_ID, "inputs": inputs, "parameters": {"binary_data_output": True}}
    header = json.dumps(request).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return HttpRequest(b"".join([header, *content]), headers)


def _row(file: Path, size: int | None) -> bytes:
    """Return the first `size` bytes of a warm-up's data, which holds a row after the other; None: all of it."""
    with file_errors(f"the warm-up {file} cannot be read", file, ". Build the repository again"):
        data = file.read_bytes()
    return data[:size]
