"""Tensor contract of the towers: inputs and outputs, and the token ids of texts before they are padded.

The tensors are the same in ONNX files, on Triton and in this process:

    image tower: image uint8 (N, H, W, 3), RGB, resized and cropped  ->  embedding float32 (N, D), L2-normalised
    text tower:  input_ids int32 (N, L), padded on the right          ->  embedding float32 (N, D), L2-normalised
    audio tower: audio float32 (N, F, M), log-mel frames              ->  embedding float32 (N, D), L2-normalised
    reranker:    image and input_ids (N, C), padded to the context C  ->  probability float32 (N, 1), 0 to 1

An image tower may give Q vectors for an image, as BLIP-2's does: (N, Q, D), each vector of length 1. The score of an
image and a text is then the largest of the Q inner products.

Texts are sequences of token ids of their own lengths, start and end included and without padding, until a runtime
pads a batch of them.

Imports NumPy alone and runs on Python 3.8: the text model of a container repository carries a copy of this file, as
NVIDIA's images have Python but not twinspire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Sequence, Tuple  # noqa: UP035 - Python 3.8

import numpy as np
from numpy.typing import NDArray

IMAGE, INPUT_IDS, AUDIO, EMBEDDING = "image", "input_ids", "audio", "embedding"
PROBABILITY = "probability"
RERANKER: Final = "reranker"
"""What the model that scores pairs is called beside the towers, as in metrics."""

INPUT_NAMES = {"image": IMAGE, "text": INPUT_IDS, "audio": AUDIO}
"""The name of each tower's only input."""

DESCRIPTION_MODEL = "twinspire"
"""The model of a server that describes the bundles that it serves: their manifests, tokenizers and models."""

BUNDLE, NAMES, SPACES, MANIFEST, TOKENIZER, CONTRACT = "bundle", "names", "spaces", "manifest", "tokenizer", "contract"
"""Its tensors, all BYTES: the input, a bundle's name, and the outputs. NAMES and SPACES are of all bundles (n,)."""


CANARY_REQUEST_ID = "twinspire-canary"
"""The id of requests that check a server: its metrics and access log leave them out."""

FREE = -1
"""An axis of any length."""

RUN_TOKENS = 16
"""What one more run of an engine costs beside its texts, in tokens. ViT-B/32's int8 text tower takes 2.8 ms a run and
0.23 ms a token on one thread of an EPYC; limits of 12 and 24 gave fewer texts/s."""

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


def audio_input(frames: int, mels: int) -> TensorSpec:
    """Return the audio tower's input: a log-mel spectrogram in decibels, as `Client.preprocess_audio` makes it."""
    return TensorSpec(AUDIO, "float32", (frames, mels))


def embedding_output(dim: int, vectors_per_item: int = 1) -> TensorSpec:
    """Return either tower's output: L2-normalised vectors, (D,) for an item or, where it has several, (Q, D)."""
    return TensorSpec(EMBEDDING, "float32", (dim,) if vectors_per_item == 1 else (vectors_per_item, dim))


def probability_output() -> TensorSpec:
    """Return a reranker's output: the probability that a text is true of an image."""
    return TensorSpec(PROBABILITY, "float32", (1,))


def sequence_problem(ids: NDArray[np.int32], *, context_length: int, vocabulary_size: int, eos_id: int) -> str | None:
    """Return what is wrong with the 1-D token ids of one text, as the end of "text 3 ..."; None where nothing is.

    Engines do not check this: some fail the whole batch for an id beyond the vocabulary, count negative ids from the
    vocabulary's end, or pool a text without end token at another position.
    """
    if not 1 <= ids.size <= context_length:
        return f"has {ids.size} token ids: expected 1 to {context_length}, as `Client.tokenize` makes it"
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        return f"has token ids from {ids.min()} to {ids.max()}: expected 0 to {vocabulary_size - 1}"
    if ids[-1] != eos_id:
        return f"ends with token id {ids[-1]}: expected the end token {eos_id} and no padding after it"
    return None


def without_padding(row: NDArray[np.int32], *, pad_id: int, eos_id: int) -> NDArray[np.int32]:
    """Cut the padding off the end of a 1-D row of token ids.

    Where the end token itself pads, as in OpenAI's CLIP, one is left.
    """
    filled = np.flatnonzero(row != pad_id)
    end = int(filled[-1]) + 1 if filled.size else 0
    return row[: end + (pad_id == eos_id)]


def padded(sequences: Sequence[NDArray[np.int32]], pad_id: int, length: int | None = None) -> NDArray[np.int32]:
    """Stack 1-D int32 `sequences`, at least one, to (N, L) int32, padded with `pad_id` on the right.

    L is `length`, which none exceeds, or that of the longest.
    """
    input_ids = np.full((len(sequences), length or max(map(len, sequences))), pad_id, np.int32)  # (N, L)
    for row, sequence in zip(input_ids, sequences):  # noqa: B905 - Python 3.8
        row[: sequence.size] = sequence
    return input_ids


def group_by_length(lengths: Sequence[int], *, batch: int) -> list[list[int]]:
    """Group the positions of texts of these lengths, longest first, into batches of at most `batch`.

    A batch ends early where padding its texts to the longest costs more than another run would (RUN_TOKENS).
    """
    batches: list[list[int]] = []
    waste = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        waste += lengths[batches[-1][0]] - lengths[position] if batches else 0
        if not batches or len(batches[-1]) == batch or waste > RUN_TOKENS:
            batches.append([])
            waste = 0
        batches[-1].append(position)
    return batches
