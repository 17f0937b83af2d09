"""The model `twinspire` under Triton's Python backend: describes the bundles that the server serves, with NumPy alone.

`twinspire build` copies this file to `twinspire/1/model.py`, and beside it the folder `bundles` with the manifest, the
tokenizer and the contract (the models with their tensors) of each bundle. Runs on Python 3.8: NVIDIA's images have no
package of twinspire.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence  # noqa: UP035 - Python 3.8

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found] # exists inside Triton only

FILES = {"manifest": "bundle.json", "tokenizer": "tokenizer.json", "contract": "contract.json"}
"""The outputs that hold a file of the bundle; a model without a text tower has no tokenizer: an empty string."""


class TritonPythonModel:
    """The interface that Triton calls.

    Input `bundle` BYTES (1,): the name of a bundle, or nothing where only one is served. Outputs, each only where it is
    requested: `names` and `spaces` BYTES (n,) of all bundles; `manifest`, `tokenizer` and `contract` BYTES (1,) of the
    one that was named.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the descriptions. Raises OSError or ValueError where one cannot be read: loading then fails."""
        folder = Path(args["model_repository"]) / args["model_version"] / "bundles"
        self._bundles = {}
        for entry in sorted(folder.iterdir()):
            paths = {output: entry / file for output, file in FILES.items()}
            files = {output: path.read_bytes() if path.is_file() else b"" for output, path in paths.items()}
            self._bundles[entry.name] = (json.loads(files["manifest"])["space"], files)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request. Raises nothing: Triton 2.51 would not call again."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - Triton's own classes
        try:
            (item,) = pb_utils.get_input_tensor_by_name(request, "bundle").as_numpy().reshape(-1)
            name = bytes(item).decode()
        except Exception as error:  # Triton's, for contents that it did not expect
            return _failed(f"the input bundle cannot be read: {error}: expected the name of a bundle")
        strings = {
            "names": [known.encode() for known in self._bundles],
            "spaces": [space.encode() for space, _ in self._bundles.values()],
        }
        if not name and len(self._bundles) == 1:
            (name,) = self._bundles
        wanted = list(request.requested_output_names())
        if name in self._bundles:
            strings.update({output: [content] for output, content in self._bundles[name][1].items()})
        elif name or set(wanted) & set(FILES):
            return _failed(f"no bundle {name[:100]!r}: expected one of {', '.join(self._bundles)}")
        tensors = [pb_utils.Tensor(output, np.array(strings[output], np.object_)) for output in wanted]
        return pb_utils.InferenceResponse(tensors)


def _failed(message: str) -> Any:  # noqa: ANN401 - Triton's own class
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
