"""Checks of the inputs and outputs of engines.

Engines do not check them: some runtimes return a normal-looking vector for an id beyond the vocabulary or an image in
the wrong layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, Tower
from twinspire.contract import sequence_problem
from twinspire.errors import BundleError, EngineError, InputError

# int8 and bf16 engines too normalise in float32: a norm that is further off was not normalised at all.
UNIT_TOLERANCE = 1e-3


def check_supported(bundle: Bundle) -> None:
    """Raise BundleError where a bundle's towers take or give what no runtime of this version does."""
    if (reason := bundle.manifest.unsupported()) is not None:
        raise BundleError(f"{bundle.path} cannot be used: {reason}. Install a newer version of twinspire")


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


def check_embeddings(output: object, *, rows: int, dim: int, source: str, tower: Tower) -> NDArray[np.float32]:
    """Return an engine's output. Raises EngineError unless it is (rows, dim) float32 and every row has norm 1."""
    if not isinstance(output, np.ndarray) or output.dtype != np.float32 or output.shape != (rows, dim):
        found = f"{output.shape} {output.dtype}" if isinstance(output, np.ndarray) else type(output).__name__
        raise EngineError(f"{source} returned {found}: expected ({rows}, {dim}) float32", tower=tower)
    with np.errstate(over="ignore", invalid="ignore"):  # such rows are found below
        norms = np.linalg.norm(output, axis=1)  # (rows,), not finite where a value or its square is not
    wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= UNIT_TOLERANCE))
    if wrong.size:
        raise EngineError(
            f"{source} returned a vector of norm {norms[wrong[0]]:.6g} at row {wrong[0]} ({wrong.size} of {rows} "
            "are wrong): expected 1. Export the bundle again or choose another provider",
            tower=tower,
            row=int(wrong[0]),
        )
    return output
