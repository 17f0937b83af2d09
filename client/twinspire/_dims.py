"""Shortened embeddings: their first numbers, normalised again, and the space that they are of.

A model trained for several lengths has embeddings that may be cut so: Kusupati et al., Matryoshka Representation
Learning, NeurIPS 2022. Embeddings of two lengths cannot be compared, so each length has a space of its own:
`SPACE:DIM`, the model's space and the length. Whole embeddings are of the model's space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinspire.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CUT_SPACE = re.compile(r"([0-9a-f]{64}):([1-9][0-9]{0,5})")
_MINIMUM_NORM = 1e-6


def cut_space(space: str, dim: int) -> str:
    """Return the space of the embeddings of the model's `space` that were cut to `dim` numbers."""
    return f"{space}:{dim}"


def split_space(space: str) -> tuple[str, int | None]:
    """Return the model's space, and the number of numbers that its embeddings were cut to; None: whole ones."""
    found = _CUT_SPACE.fullmatch(space)
    return (found[1], int(found[2])) if found else (space, None)


def cut_vectors(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return the first `dim` numbers of embeddings, (N, D) or (N, Q, D), L2-normalised again: float32.

    Raises EngineError for an embedding that starts with `dim` zeros, which has no direction then.
    """
    import numpy as np  # the commands import this module, and not NumPy before it is needed

    if dim == vectors.shape[-1]:
        return vectors
    cut = vectors[..., :dim]
    norms = np.linalg.norm(cut, axis=-1, keepdims=True)
    if bool((norms < _MINIMUM_NORM).any()):
        row = int(np.argwhere(norms < _MINIMUM_NORM)[0][0])
        raise EngineError(
            f"the embedding at row {row} cannot be cut to {dim} numbers: they are all 0. Use a model that was trained "
            "for shorter embeddings, or whole ones",
            row=row,
        )
    return np.asarray(cut / norms, np.float32)


def shown_dims(dims: Sequence[int], joining: str = "or") -> str:
    """Format lengths: `32, 64 or 128`."""
    *others, last = map(str, dims)
    return f"{', '.join(others)} {joining} {last}" if others else last
