"""Batches of inputs: images, sounds and pairs in order, texts by length so that little of a batch is padding.

COCO captions in batches of 32 are padded to 25.7 tokens on average as they come, to 16.7 once sorted and padded to
buckets, and to 13.5, their own length, once sorted alone. Runtimes that plan memory and choose kernels for each shape
want few shapes: `text_batches` keeps to buckets. onnxruntime on processors does not care: `fitted_batches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Padding, TextSettings
from twinspire.contract import group_by_length, padded

BUCKETS = (8, 16, 24, 32, 48, 64, 77, 128, 256, 512)


@dataclass(frozen=True, slots=True, eq=False)
class InputBatch:
    """A model's inputs for some items of a call: `arrays`, each (n, ...), and `positions` (n,), places in the call.

    A tower has one array, the reranker images and texts.
    """

    positions: NDArray[np.intp]
    arrays: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        """Return n, the number of items."""
        return len(self.positions)


def bucket_lengths(settings: TextSettings) -> tuple[int, ...]:
    """List every length that texts are padded to in buckets, ascending: the context alone with `max_length`."""
    context = settings.context_length
    if settings.padding is Padding.MAX_LENGTH:
        return (context,)
    return (*(bucket for bucket in BUCKETS if bucket < context), context)


def padded_length(length: int, settings: TextSettings) -> int:
    """Return the length that a text of `length` ids is padded to: the shortest bucket that holds it."""
    return next((bucket for bucket in bucket_lengths(settings) if bucket >= length), settings.context_length)


def one_batch(sequences: Sequence[NDArray[np.int32]], settings: TextSettings) -> NDArray[np.int32]:
    """Stack 1-D `sequences`, at least one, padded to the longest, or with `max_length` to the context: (N, L) int32."""
    return padded(
        sequences, settings.pad_id, settings.context_length if settings.padding is Padding.MAX_LENGTH else None
    )


def row_batches(rows: NDArray[Any], *, batch: int) -> Iterator[InputBatch]:
    """Split images or spectrograms, (N, ...), into batches of at most `batch`, in order."""
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        yield InputBatch(np.arange(start, start + len(part)), (part,))


def pair_batches(
    images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]], settings: TextSettings, *, batch: int
) -> Iterator[InputBatch]:
    """Split pairs, (N, H, W, 3) and N 1-D texts, into batches of at most `batch`, in order.

    Texts are padded to the context, so that a server can join the pairs of several requests.
    """
    for images_batch in row_batches(images, batch=batch):
        (rows,), positions = images_batch.arrays, images_batch.positions
        texts = padded([sequences[position] for position in positions], settings.pad_id, settings.context_length)
        yield InputBatch(positions, (rows, texts))


def text_batches(
    sequences: Sequence[NDArray[np.int32]], settings: TextSettings, *, batch: int, lengths: Sequence[int] | None = None
) -> Iterator[InputBatch]:
    """Group texts by length into batches of at most `batch`, padded on the right to the shortest length that fits.

    `sequences` are 1-D int32, none longer than the context. `lengths` are those to pad to, ascending, the context the
    last; None is the buckets. Every text is in one batch; the longest come first, so that a lack of memory shows at
    once.
    """
    allowed = bucket_lengths(settings) if lengths is None else lengths

    def target(position: int) -> int:
        return next(length for length in allowed if length >= sequences[position].size)

    longest_first = sorted(range(len(sequences)), key=lambda position: sequences[position].size, reverse=True)
    for length, group in groupby(longest_first, key=target):
        positions = list(group)
        for start in range(0, len(positions), batch):
            yield _text_batch(sequences, positions[start : start + batch], length, settings)


def fitted_batches(
    sequences: Sequence[NDArray[np.int32]], settings: TextSettings, *, batch: int
) -> Iterator[InputBatch]:
    """Group texts by length into batches of at most `batch`, each padded to its longest.

    A batch ends early where padding costs more than another run would. With `max_length` every text is padded to the
    context. Otherwise as `text_batches`.
    """
    minimum = settings.context_length if settings.padding is Padding.MAX_LENGTH else 0
    lengths = [max(minimum, sequence.size) for sequence in sequences]
    for positions in group_by_length(lengths, batch=batch):
        yield _text_batch(sequences, positions, lengths[positions[0]], settings)


def _text_batch(
    sequences: Sequence[NDArray[np.int32]], positions: Sequence[int], length: int, settings: TextSettings
) -> InputBatch:
    array = padded([sequences[position] for position in positions], settings.pad_id, length)
    return InputBatch(np.array(positions, np.intp), (array,))
