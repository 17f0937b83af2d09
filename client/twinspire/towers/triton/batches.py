"""How the inputs of one call are cut into requests, and how many of these are in flight at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import TextSettings
from twinspire.towers.batching import text_batches


@dataclass(frozen=True, slots=True, eq=False)
class RequestBatch:
    """The input of one request: `array` (n, ...) and `positions` (n,), the places of its rows in the call."""

    positions: NDArray[np.intp]
    array: NDArray[Any]


class Window:
    """How many requests of a call are in flight at a time.

    `in_flight` requests; None is four, or as many as fill two of the server's largest batches where that is
    more: one batch is computed while the next is collected. A server that refuses gets half as many as it kept, and one
    more for each round of answers: additive increase, multiplicative decrease.
    https://datatracker.ietf.org/doc/html/rfc5681#section-3.1
    """

    def __init__(self, in_flight: int | None, max_batch: int) -> None:
        self._in_flight, self._max_batch = in_flight, max_batch
        self._limit = math.inf

    def has_room(self, requests: int, rows: int) -> bool:
        """Return whether one more request may be sent beside so many, which have so many rows together."""
        if requests + 1 > self._limit:
            return False
        if self._in_flight is not None:
            return requests < self._in_flight
        return requests < 4 or rows < 2 * self._max_batch

    def refused(self, in_flight: int) -> None:
        """Note that the server refused a request while it kept so many others."""
        self._limit = max(1.0, in_flight / 2)

    def answered(self) -> None:
        """Note that the server answered a request."""
        self._limit += 1 / self._limit


def image_requests(images: NDArray[np.uint8], *, batch: int) -> Iterator[RequestBatch]:
    """Cut (N, S, S, 3) uint8 into requests of at most `batch` images, in order."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield RequestBatch(np.arange(start, start + len(part)), part)


def text_requests(
    sequences: Sequence[NDArray[np.int32]], *, lengths: Sequence[int], settings: TextSettings, batch: int
) -> Iterator[RequestBatch]:
    """Group N 1-D int32 arrays into requests of at most `batch` texts of one length, longest first.

    `lengths` are those that the server takes, ascending, the context among them: each text is padded on the right
    to the shortest that it fits.
    """
    for group in text_batches(sequences, settings, batch=batch, lengths=lengths):
        yield RequestBatch(group.positions, group.input_ids)
