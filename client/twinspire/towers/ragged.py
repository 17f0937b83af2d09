"""Texts as ragged token ids: what is wrong with one, cutting padding off, forming batches that are padded little.

Imports NumPy alone: container repositories carry a copy of this file, as NVIDIA's image has Python but not twinspire.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RUN_TOKENS = 16
"""What one more run of an engine costs beside its texts, in tokens. ViT-B/32's int8 text tower takes 2.8 ms a run and
0.23 ms a token on one thread of an EPYC; limits of 12 and 24 gave the most texts/s."""


def sequence_problem(ids: NDArray[np.int32], *, context_length: int, vocabulary_size: int, eos_id: int) -> str | None:
    """Say what is wrong with the 1-D token ids of one text, as the end of a sentence that names it; None: nothing is.

    Engines do not check this: some fail the whole batch for an id beyond the vocabulary, count negative ones from the
    vocabulary's end, and pool a text without end token at another place.
    """
    if not 1 <= ids.size <= context_length:
        return f"has {ids.size} token ids: expected 1 to {context_length}, as `Client.tokenize` makes it"
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        return f"has token ids from {ids.min()} to {ids.max()}: expected 0 to {vocabulary_size - 1}"
    if ids[-1] != eos_id:
        return f"ends with token id {ids[-1]}: expected the end token {eos_id} and no padding after it"
    return None


def without_padding(row: NDArray[np.int32], *, pad_id: int, eos_id: int) -> NDArray[np.int32]:
    """Cut a row of token ids, 1-D, behind its last id that is no padding.

    Where the end token itself pads, as in OpenAI's CLIP, one is left.
    """
    filled = np.flatnonzero(row != pad_id)
    end = int(filled[-1]) + 1 if filled.size else 0
    return row[: end + (pad_id == eos_id)]


def fitted(lengths: Sequence[int], *, batch: int) -> list[list[int]]:
    """Group the places of texts of these lengths, longest first, into batches of at most `batch`.

    A batch ends early where padding its texts to the longest costs more than another run would (RUN_TOKENS).
    """
    batches: list[list[int]] = []
    waste = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        waste += lengths[batches[-1][0]] - lengths[place] if batches else 0
        if not batches or len(batches[-1]) == batch or waste > RUN_TOKENS:
            batches.append([])
            waste = 0
        batches[-1].append(place)
    return batches


def padded(sequences: Sequence[NDArray[np.int32]], pad_id: int, length: int | None = None) -> NDArray[np.int32]:
    """Stack 1-D int32 `sequences`, at least one, to (N, L) int32, filled up with `pad_id` on the right.

    L is `length`, which none exceeds, or that of the longest.
    """
    input_ids = np.full((len(sequences), length or max(map(len, sequences))), pad_id, np.int32)  # (N, L)
    for row, sequence in zip(input_ids, sequences):  # noqa: B905 - Triton's images down to Python 3.8
        row[: sequence.size] = sequence
    return input_ids
