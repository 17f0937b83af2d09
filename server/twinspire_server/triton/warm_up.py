"""The warm-up samples of a model's config.pbtxt, as requests of Triton's HTTP protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import InputError
from twinspire_server.repository.model_config import read_config

_SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "FP32": 4, "FP64": 8, "BF16": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input of a request: its datatype in Triton's words, its shape, its bytes."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Sample:
    """One request to a model: its inputs by name."""

    inputs: Mapping[str, Tensor]

    def http_request(self) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of an inference whose outputs come as bytes.

        https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
        """
        inputs = [
            {
                "name": name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for name, tensor in self.inputs.items()
        ]
        header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        body = b"".join([header, *(tensor.data for tensor in self.inputs.values())])
        return body, {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}


def first_sample(model: Path) -> Sample | None:
    """Read the first warm-up sample of a model's folder as a request of one row.

    None where it has none, or a config that only Triton can read. Raises InputError where the sample's data cannot be
    read.
    """
    from tritonclient.grpc import model_config_pb2

    try:
        config = read_config(model)
    except InputError:
        return None
    if not config.model_warmup:
        return None
    inputs = {}
    for name, given in config.model_warmup[0].inputs.items():
        datatype = model_config_pb2.DataType.Name(given.data_type).removeprefix("TYPE_")
        if datatype not in _SIZES:  # strings: nothing that twinspire builds takes them
            return None
        size = math.prod(given.dims) * _SIZES[datatype]
        data = _row(model / "warmup" / given.input_data_file, size) if given.input_data_file else bytes(size)
        shape = (1, *given.dims) if config.max_batch_size else tuple(given.dims)
        inputs[name] = Tensor(datatype, shape, data)
    return Sample(inputs)


def _row(file: Path, size: int) -> bytes:
    """Return the first `size` bytes of a sample's data, which holds a row after the other."""
    try:
        return file.read_bytes()[:size]
    except OSError as error:
        raise InputError(f"the warm-up sample {file} cannot be read: {error}. Build the repository again") from error
