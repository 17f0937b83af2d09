"""Checks of the inputs and outputs of engines.

Engines do not check them: some runtimes return a normal-looking vector for an id beyond the vocabulary or an image in
the wrong layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import TOKENIZER_NAME, BundleDescription, Tower
from twinspire.contract import FREE, TensorSpec, sequence_problem
from twinspire.errors import BundleError, EngineError, InputError

# int8 and bf16 engines too normalise in float32: a norm that is further off was not normalised at all.
UNIT_TOLERANCE = 1e-3


class Session(Protocol):
    """The part of a session that says what its engine takes and gives."""

    def get_inputs(self) -> Sequence[Any]:
        """Return name, type and shape of each input."""

    def get_outputs(self) -> Sequence[Any]:
        """Return name, type and shape of each output."""


class BundleTowers:
    """The part that every runtime has in common: what a bundle says of its towers, and the checks of their inputs.

    Raises BundleError where the towers have tensors that no runtime of this version supports.
    """

    def __init__(self, bundle: BundleDescription) -> None:
        if (reason := bundle.manifest.unsupported()) is not None:
            raise BundleError(f"{bundle.location} cannot be used: {reason}. Install a newer version of twinspire")
        self._bundle = bundle
        self._vocabulary_size = vocabulary_size(bundle.tokenizer_json()) if Tower.TEXT in bundle.towers else 0

    @property
    def dim(self) -> int:
        """The embedding's length D."""
        return self._bundle.dim

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an image has; 1 for most models."""
        return self._bundle.vectors_per_item

    @property
    def space(self) -> str:
        """The id of the embedding space: vectors are comparable within it only."""
        return self._bundle.space

    @property
    def context_length(self) -> int:
        """The most token ids that one text may have, start and end included."""
        return self._bundle.text.context_length

    def _check_images(self, images: NDArray[np.uint8]) -> None:
        check_images(images, height=self._bundle.image.height, width=self._bundle.image.width)

    def _check_pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> None:
        self._bundle.manifest.reranker()  # raises where there is none
        self._check_images(images)
        self._check_sequences(sequences)
        check_paired(images, sequences, option="sequences")

    def _check_audio(self, spectrograms: NDArray[np.float32]) -> None:
        check_audio(spectrograms, frames=self._bundle.audio.frames, mels=self._bundle.audio.mels)

    def _check_sequences(self, sequences: Sequence[NDArray[np.int32]]) -> None:
        check_sequences(
            sequences,
            context_length=self.context_length,
            vocabulary_size=self._vocabulary_size,
            eos_id=self._bundle.text.eos_id,
        )


def vocabulary_size(tokenizer: Path | bytes) -> int:
    """Return the highest token id of a tokenizer.json plus 1: for ids beyond it some engines return a vector."""
    try:
        document = json.loads(tokenizer if isinstance(tokenizer, bytes) else tokenizer.read_bytes())
        vocabulary = document["model"]["vocab"]  # BPE, WordPiece: token to id; Unigram: pairs in the ids' order
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [token["id"] for token in document.get("added_tokens") or ()]
        return 1 + max(int(token) for token in (*ids, *added))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        name = TOKENIZER_NAME if isinstance(tokenizer, bytes) else tokenizer
        raise BundleError(f"{name} has no vocabulary: {error!r}. Export the bundle again") from error


def check_images(images: NDArray[np.uint8], *, height: int, width: int) -> None:
    """Raise InputError unless `images` is (N, height, width, 3) uint8."""
    expected = f"(N, {height}, {width}, 3) uint8"
    if not isinstance(images, np.ndarray):
        raise InputError(f"images is {type(images).__name__}: expected an array {expected}", option="images")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
        raise InputError(
            f"images is {images.shape} {images.dtype}: expected {expected}, as `Client.preprocess` returns",
            option="images",
        )


def check_audio(spectrograms: NDArray[np.float32], *, frames: int, mels: int) -> None:
    """Raise InputError unless `spectrograms` is finite (N, frames, mels) float32."""
    expected = f"(N, {frames}, {mels}) float32"
    if not isinstance(spectrograms, np.ndarray):
        found = type(spectrograms).__name__
        raise InputError(f"spectrograms is {found}: expected an array {expected}", option="spectrograms")
    if spectrograms.dtype != np.float32 or spectrograms.ndim != 3 or spectrograms.shape[1:] != (frames, mels):
        raise InputError(
            f"spectrograms is {spectrograms.shape} {spectrograms.dtype}: expected {expected}, as "
            "`Client.preprocess_audio` returns",
            option="spectrograms",
        )
    if not np.isfinite(spectrograms).all():
        raise InputError("spectrograms has NaN or infinities: expected decibels", option="spectrograms")


def check_sequences(
    sequences: Sequence[NDArray[np.int32]], *, context_length: int, vocabulary_size: int, eos_id: int
) -> None:
    """Raise InputError, with its position, for the first sequence that violates the contract.

    The contract: 1-D int32, at most `context_length` ids, each in [0, `vocabulary_size`), `eos_id` the last.
    """
    if isinstance(sequences, np.ndarray) or not isinstance(sequences, Sequence):
        raise InputError(
            f"sequences is {type(sequences).__name__}: expected a list of 1-D int32 arrays, one per text, unpadded",
            option="sequences",
        )
    for position, ids in enumerate(sequences):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
            found = f"{ids.ndim}-D {ids.dtype}" if isinstance(ids, np.ndarray) else type(ids).__name__
            message = f"text {position} is {found}: expected a 1-D int32 array of token ids"
            raise InputError(message, position=position)
        problem = sequence_problem(ids, context_length=context_length, vocabulary_size=vocabulary_size, eos_id=eos_id)
        if problem is not None:
            raise InputError(f"text {position} {problem}", position=position)


def check_paired(images: Sized, texts: Sized, *, option: str | None = None) -> None:
    """Raise InputError, which names `option`, unless there is a text for each image."""
    if len(images) != len(texts):
        message = f"{len(images)} images and {len(texts)} texts: expected one text for each image"
        raise InputError(message, option=option)


def contract_violation(session: Session, inputs: Sequence[TensorSpec], output: TensorSpec) -> str | None:
    """Return how an engine's inputs or output differ from the contract, None where they do not."""
    for role, nodes, specs in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), [output])):
        found = {node.name: (node.type, tuple(node.shape)) for node in nodes}
        expected = {spec.name: (spec.onnxruntime_type, (FREE, *spec.shape)) for spec in specs}
        if found.keys() != expected.keys() or not all(
            found[name][0] == kind and _accepts(found[name][1], shape) for name, (kind, shape) in expected.items()
        ):
            return f"its {role} is {_shown(found)}, expected {_shown(expected)}"
    return None


def _shown(tensors: Mapping[str, tuple[str, tuple[Any, ...]]]) -> str:
    return " and ".join(
        f"{name!r} {kind} of shape ({', '.join('any' if axis == FREE else str(axis) for axis in shape)})"
        for name, (kind, shape) in tensors.items()
    )


def _accepts(shape: Sequence[int | str | None], expected: Sequence[int]) -> bool:
    """Whether a graph's shape accepts every array of the expected one; a free axis must be free in the graph."""
    return len(shape) == len(expected) and all(
        not isinstance(axis, int) or axis == needed for axis, needed in zip(shape, expected, strict=True)
    )


def check_probabilities(output: object, *, count: int, source: str) -> NDArray[np.float32]:
    """Return a reranker's output, (N, 1), as (N,). Raises EngineError unless it is float32 from 0 to 1."""
    if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != (count, 1):
        found = f"{output.shape} {output.dtype}" if isinstance(output, np.ndarray) else type(output).__name__
        raise EngineError(f"{source} returned {found}: expected ({count}, 1) float32")
    if not ((output >= 0) & (output <= 1)).all():  # NaN is neither
        raise EngineError(f"{source} returned values outside 0 to 1: expected probabilities. Export the bundle again")
    return output[:, 0]


def check_embeddings(output: object, *, shape: tuple[int, ...], source: str, tower: Tower) -> NDArray[np.float32]:
    """Return an engine's output. Raises EngineError unless it is float32 of `shape` and every vector has norm 1.

    `shape` is (N, D), or (N, Q, D) of Q vectors an item.
    """
    if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != shape:
        found = f"{output.shape} {output.dtype}" if isinstance(output, np.ndarray) else type(output).__name__
        raise EngineError(f"{source} returned {found}: expected {shape} float32", tower=tower)
    with np.errstate(over="ignore", invalid="ignore"):  # such rows are found below
        norms = np.linalg.norm(output, axis=-1)  # (N,) or (N, Q), not finite where a value or its square is not
    wrong = np.argwhere(~(np.abs(norms - 1.0) <= UNIT_TOLERANCE))
    if wrong.size:
        row = int(wrong[0][0])
        raise EngineError(
            f"{source} returned a vector of norm {norms[tuple(wrong[0])]:.6g} at row {row} ({len(wrong)} of "
            f"{norms.size} are wrong): expected 1. Export the bundle again or choose another provider",
            tower=tower,
            row=row,
        )
    return output
