"""What goes into an engine and what comes out of it, checked on this side of it.

Engines do not do this: some runtimes answer an id beyond the vocabulary or an image in the wrong layout with
a vector that looks like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire.contract import sequence_problem
from twinspire.errors import EngineError, InputError

# An int8 or bf16 engine normalises in float32; what is further off than this did not normalise at all.
UNIT_TOLERANCE = 1e-3


def check_images(images: NDArray[np.uint8], *, size: int) -> None:
    """Raise InputError unless `images` is (N, size, size, 3) uint8."""
    expected = f"(N, {size}, {size}, 3) uint8"
    if not isinstance(images, np.ndarray):
        raise InputError(f"images is {type(images).__name__}: expected an array {expected}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise InputError(
            f"images is {images.shape} {images.dtype}: expected {expected}, as `Client.preprocess` makes it"
        )


def check_sequences(
    sequences: Sequence[NDArray[np.int32]], *, context_length: int, vocabulary_size: int, eos_id: int
) -> None:
    """Raise InputError, with its position, for the first sequence that is not of the contract.

    The contract: 1-D int32, at most `context_length` ids, each in [0, `vocabulary_size`), `eos_id` the last.
    """
    if isinstance(sequences, np.ndarray) or not isinstance(sequences, Sequence):
        raise InputError(
            f"sequences is {type(sequences).__name__}: expected a list of 1-D int32 arrays, one a text, without padding"
        )
    for position, ids in enumerate(sequences):
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
            what = f"{ids.ndim}-D {ids.dtype}" if isinstance(ids, np.ndarray) else type(ids).__name__
            raise InputError(f"text {position} is {what}: expected a 1-D int32 array of token ids")
        problem = sequence_problem(ids, context_length=context_length, vocabulary_size=vocabulary_size, eos_id=eos_id)
        if problem is not None:
            raise InputError(f"text {position} {problem}")


def check_embeddings(output: object, *, rows: int, dim: int, source: str) -> NDArray[np.float32]:
    """Return an engine's output. Raises EngineError unless it is (rows, dim) float32, each row of norm 1."""
    if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != (rows, dim):
        what = f"{output.shape} {output.dtype}" if isinstance(output, np.ndarray) else type(output).__name__
        raise EngineError(f"{source} gave {what}: expected ({rows}, {dim}) float32")
    with np.errstate(over="ignore", invalid="ignore"):  # such rows are told below
        norms = np.linalg.norm(output, axis=1)  # (rows,), not finite where a value or its square is not
    wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_TOLERANCE))
    if wrong.size:
        raise EngineError(
            f"{source} gave a vector of norm {norms[wrong[0]]:.6g} at row {wrong[0]} ({wrong.size} of {rows} "
            "are wrong): expected 1. Export the bundle again or choose another provider"
        )
    return output
