"""What the results of a peer are worth: cosines of its vectors to the fp32 engines', and the recall of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError
from twinspire_eval.statistics import row_cosines

# Scores of equal images differ by rounding: whichever of them a store returns is right.
_SAME_SCORE = 1e-5


def cosines(file: Path, reference: NDArray[np.float32]) -> dict[str, Any]:
    """Compare the vectors of a .npy file with the reference (N, D): mean and minimum of their cosines.

    Where they cannot be compared both are None, and `reason` says why. Raises EngineError where the file is no array.
    """
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"its vectors cannot be read: {error}") from error
    if vectors.shape != reference.shape:
        return _incomparable(f"vectors of shape {vectors.shape}, expected {reference.shape}")
    found = row_cosines(vectors.astype(np.float32), reference)
    if not np.isfinite(found).all():
        return _incomparable("vectors that are zero or not finite")
    return {"mean": float(found.mean()), "min": float(found.min()), "reason": None}


def _incomparable(reason: str) -> dict[str, Any]:
    return {"mean": None, "min": None, "reason": reason}


def recall(found: Sequence[Sequence[int]], scores: NDArray[np.float32], k: int) -> float | None:
    """Return the mean recall@k of the ids that M queries found, by the exact `scores` (M, N), -inf for no item.

    An id counts if its score is among the k best or equal to the last of them. None without items.
    """
    at_most = min(k, int(np.isfinite(scores[0]).sum()))
    if at_most == 0:
        return None
    shares = []
    for ids, row in zip(found, scores, strict=True):
        worst = np.partition(row, -at_most)[-at_most] - _SAME_SCORE
        valid = {number for number in ids[:k] if 0 <= number < len(row) and row[number] >= worst}
        shares.append(min(len(valid), at_most) / at_most)
    return float(np.mean(shares))
