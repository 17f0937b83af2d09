"""Grouping texts of many lengths into batches that are padded little.

COCO captions in batches of 32 are padded to 25.7 tokens on average as they come and to 16.9 once sorted. A
few fixed lengths rather than the exact ones keep the number of shapes small, for which runtimes plan memory
and choose kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Padding, TextSettings

BUCKETS = (8, 16, 24, 32, 48, 64, 77, 128, 256, 512)


@dataclass(frozen=True, slots=True, eq=False)
class TextBatch:
    """Texts of one bucket: `input_ids` (n, L) int32, padded; `positions` (n,), their places in the input."""

    positions: NDArray[np.intp]
    input_ids: NDArray[np.int32]


def padded_length(length: int, settings: TextSettings) -> int:
    """Return what a text of `length` ids is padded to: the next bucket, at most the context.

    With `max_length` it is always the context.
    """
    if settings.padding is Padding.MAX_LENGTH:
        return settings.context_length
    return min(
        (bucket for bucket in BUCKETS if length <= bucket < settings.context_length),
        default=settings.context_length,
    )


def text_batches(
    sequences: Sequence[NDArray[np.int32]], settings: TextSettings, *, batch: int, lengths: Sequence[int] | None = None
) -> Iterator[TextBatch]:
    """Sort by length, cut into batches of at most `batch` texts of one bucket and pad them on the right.

    `sequences` are 1-D int32, none longer than the context. `lengths` stand in the buckets' place, ascending and
    the context among them. Every place comes exactly once; the longest texts come first, so that a lack of memory
    shows at once.
    """

    def bucket(position: int) -> int:
        size = sequences[position].size
        if lengths is None:
            return padded_length(size, settings)
        return next(length for length in lengths if length >= size)

    order = sorted(range(len(sequences)), key=lambda position: sequences[position].size, reverse=True)
    for length, group in groupby(order, key=bucket):
        places = list(group)
        for start in range(0, len(places), batch):
            positions = places[start : start + batch]
            input_ids = np.full((len(positions), length), settings.pad_id, np.int32)
            for row, position in enumerate(positions):
                ids = sequences[position]
                input_ids[row, : ids.size] = ids
            yield TextBatch(np.array(positions, np.intp), input_ids)
