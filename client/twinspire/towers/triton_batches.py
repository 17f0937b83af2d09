"""How the inputs of one call are cut into requests, and how many of these are under way at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class RequestBatch:
    """The input of one request: `array` (n, ...) and `positions` (n,), the places of its rows in the call."""

    positions: NDArray[np.intp]
    array: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Window:
    """How many requests of a call are under way at a time.

    `in_flight` requests; None is four, or as many as fill two of the server's largest batches where that is
    more: one batch is computed while the next is collected.
    """

    in_flight: int | None
    max_batch: int

    def has_room(self, requests: int, rows: int) -> bool:
        """Whether one more request may be sent beside so many, which have so many rows together."""
        if self.in_flight is not None:
            return requests < self.in_flight
        return requests < 4 or rows < 2 * self.max_batch


def image_requests(images: NDArray[np.uint8], *, batch: int) -> Iterator[RequestBatch]:
    """Cut (N, S, S, 3) uint8 into requests of at most `batch` pictures, in order."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield RequestBatch(np.arange(start, start + len(part)), part)


def text_requests(
    sequences: Sequence[NDArray[np.int32]], *, lengths: Sequence[int] | None, pad_id: int, batch: int
) -> Iterator[RequestBatch]:
    """Group N 1-D int32 arrays into requests of at most `batch` texts of one length, longest first.

    `lengths` are those that the server takes, ascending, the last at least that of the longest text: each text
    is padded on the right to the least that it fits. None is any length: only equally long texts share a
    request and nothing is padded, because the server pads whole batches and does it knowing all of them.
    """

    def request_length(position: int) -> int:
        size = sequences[position].size
        return size if lengths is None else next(length for length in lengths if length >= size)

    order = sorted(range(len(sequences)), key=lambda position: sequences[position].size, reverse=True)
    for length, group in groupby(order, key=request_length):
        places = list(group)
        for start in range(0, len(places), batch):
            positions = places[start : start + batch]
            input_ids = np.full((len(positions), length), pad_id, np.int32)
            for row, position in enumerate(positions):
                ids = sequences[position]
                input_ids[row, : ids.size] = ids
            yield RequestBatch(np.array(positions, np.intp), input_ids)
