"""The model `twinspire` of a fake server: answers as the real one does, or as a test wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from twinspire.bundle import Bundle
from twinspire.contract import DESCRIPTION_MODEL


def describing(*bundles: Bundle, **changes: list[bytes]) -> Callable[[Any, Any, Any], Any]:
    """Return a hook of `FakeTriton` that describes bundles; `changes` are outputs to send instead."""

    def hook(server: Any, request: Any, context: Any) -> Any:
        if request.model_name != DESCRIPTION_MODEL:
            return None
        (name,) = request.inputs[0].contents.bytes_contents
        outputs = {
            "names": [bundle.name.encode() for bundle in bundles],
            "spaces": [bundle.space.encode() for bundle in bundles],
        }
        for bundle in bundles:
            if bundle.name.encode() == name:
                outputs["manifest"] = [bundle.manifest.to_json().encode()]
                outputs["tokenizer"] = [bundle.tokenizer_path.read_bytes()]
        outputs.update(changes)
        return strings_response({output.name: outputs[output.name] for output in request.outputs})

    return hook


def strings_response(outputs: Mapping[str, list[bytes]]) -> Any:
    """Return a response with tensors of strings."""
    response = service_pb2.ModelInferResponse()
    for name, strings in outputs.items():
        response.outputs.add(name=name, datatype="BYTES", shape=[len(strings)])
        content = b"".join(len(string).to_bytes(4, "little") + string for string in strings)
        response.raw_output_contents.append(content)
    return response
