"""The towers' tensors: names, element types and shapes, the same in ONNX files, on Triton and in this process.

    image tower: image uint8 (N, H, W, 3), RGB, resized and cropped  ->  embedding float32 (N, D), L2-normalised
    text tower:  input_ids int32 (N, L), padded on the right          ->  embedding float32 (N, D), L2-normalised

Imports the standard library alone and runs on Python 3.8, so that models in Triton's containers, where twinspire is
not installed, can carry a copy of this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple  # noqa: UP035 - Python 3.8

IMAGE, INPUT_IDS, EMBEDDING = "image", "input_ids", "embedding"

INPUT_NAMES = {"image": IMAGE, "text": INPUT_IDS}
"""The name of each tower's only input."""

FREE = -1
"""An axis of any length."""

_ONNX = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT"}
_ONNXRUNTIME = {"uint8": "tensor(uint8)", "int32": "tensor(int32)", "float32": "tensor(float)"}
_TRITON = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32", "object": "BYTES"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a tower, or of another model on Triton.

    `dtype` is NumPy's name of the element type, `shape` that of one row, without the batch axis; FREE is an axis of
    any length.
    """

    name: str
    dtype: str
    shape: Tuple[int, ...]  # noqa: UP006 - read at run time on Python 3.8

    @property
    def onnx_type(self) -> str:
        """The element type as `onnx.TensorProto.DataType` names it: UINT8, INT32, FLOAT."""
        return _ONNX[self.dtype]

    @property
    def onnxruntime_type(self) -> str:
        """The element type as onnxruntime's sessions name it: tensor(uint8)."""
        return _ONNXRUNTIME[self.dtype]

    @property
    def triton_type(self) -> str:
        """The element type in Triton's requests: UINT8, INT32, FP32; BYTES, of strings, is NumPy's object."""
        return _TRITON[self.dtype]


def image_input(height: int, width: int) -> TensorSpec:
    """Return the image tower's input: RGB pixels, as `Client.preprocess` makes them."""
    return TensorSpec(IMAGE, "uint8", (height, width, 3))


def text_input(length: int = FREE) -> TensorSpec:
    """Return the text tower's input: token ids of one length, or of any up to the context."""
    return TensorSpec(INPUT_IDS, "int32", (length,))


def embedding_output(dim: int) -> TensorSpec:
    """Return either tower's output: L2-normalised vectors."""
    return TensorSpec(EMBEDDING, "float32", (dim,))
