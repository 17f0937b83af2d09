"""The engines that model.py runs: a tower, or the reranker. Each computes the rows of several requests in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.bundle import Bundle, TextSettings, Tower
from twinspire.contract import EMBEDDING, IMAGE, INPUT_IDS, INPUT_NAMES, PROBABILITY, without_padding
from twinspire.towers import LocalTowers
from twinspire.towers.auto_selection import Runtime
from twinspire.towers.batching import bucket_lengths
from twinspire.towers.local_reranker import LocalReranker
from twinspire.towers.validation import BundleTowers, check_paired


class ServedEngine(ABC):
    """An engine with the tensors of its model. `workers` is how many calls of it are computed in parallel."""

    inputs: tuple[str, ...]
    output: str
    runtime: Runtime
    workers: int

    @abstractmethod
    def rows(self, arrays: Sequence[NDArray[Any]]) -> Sized:
        """Return the rows of a request, from its inputs (n, ...) in order. Raises InputError where they are none."""

    @abstractmethod
    def compute(self, requests: Sequence[Any]) -> NDArray[np.float32]:
        """Return the output of the rows of all requests, one after the other: (N, ...) float32.

        Raises InputError for wrong rows and EngineError where the engine fails.
        """

    @abstractmethod
    def warm_ups(self, max_batch: int) -> Iterator[Sized]:
        """Yield rows of every shape that the engine will be given, the largest as a full batch too.

        The first call of a shape pays for planning its memory, the first full batch for having it.
        """

    @abstractmethod
    def unsplit(self) -> AbstractContextManager[None]:
        """Compute each call in one stream while the context is open, for callers that keep the other streams busy."""

    @abstractmethod
    def close(self) -> None:
        """Release the engine. Computing then raises EngineError."""


class TowerEngine(ServedEngine):
    """The engine of one tower. Rows are images, spectrograms, or token ids with any padding right of the end token."""

    def __init__(
        self, bundle: Bundle, tower: Tower, *, precision: str, provider: str, threads: int | None, streams: int | None
    ) -> None:
        self.towers = LocalTowers(
            bundle, precision=precision, provider=provider, threads=threads, streams=streams, towers=(tower,)
        )
        self.inputs, self.output = (INPUT_NAMES[tower],), EMBEDDING
        self.runtime = self.towers.runtime
        self.workers = self.runtime.streams
        self._bundle, self._tower = bundle, tower

    def rows(self, arrays: Sequence[NDArray[Any]]) -> Sized:
        """Return the only input."""
        (rows,) = arrays
        return rows

    def compute(self, requests: Sequence[Any]) -> NDArray[np.float32]:
        """Return (N, D) or (N, Q, D) float32, L2-normalised."""
        if self._tower is Tower.TEXT:
            return self.towers.encode_texts(bare_texts(self._bundle.text, requests))
        rows = requests[0] if len(requests) == 1 else np.concatenate(requests)
        return self.towers.encode_images(rows) if self._tower is Tower.IMAGE else self.towers.encode_audio(rows)

    def warm_ups(self, max_batch: int) -> Iterator[Sized]:
        """Yield zeros, or texts that end where their row does."""
        return warm_up_inputs(self._bundle, self._tower, max_batch)

    def unsplit(self) -> AbstractContextManager[None]:
        """See `LocalTowers.unsplit`."""
        return self.towers.unsplit()

    def close(self) -> None:
        """Close the towers."""
        self.towers.close()


@dataclass(frozen=True, eq=False)
class Pairs:
    """The rows of a request to the reranker: images (n, H, W, 3) uint8, token ids (n, context) int32."""

    images: NDArray[np.uint8]
    input_ids: NDArray[np.int32]

    def __len__(self) -> int:
        """Return n."""
        return len(self.images)


class RerankerEngine(BundleTowers, ServedEngine):
    """The reranker's engine, with all its threads for each call."""

    workers = 1

    def __init__(self, bundle: Bundle, *, precision: str, provider: str, threads: int | None) -> None:
        super().__init__(bundle)
        self._reranker = LocalReranker.open(bundle, precision=precision, provider=provider, threads=threads)
        self.inputs, self.output = (IMAGE, INPUT_IDS), PROBABILITY
        self.runtime = self._reranker.runtime

    def rows(self, arrays: Sequence[NDArray[Any]]) -> Sized:
        """Return images and texts as pairs."""
        images, input_ids = arrays
        check_paired(images, input_ids)
        return Pairs(images, input_ids)

    def compute(self, requests: Sequence[Any]) -> NDArray[np.float32]:
        """Return (N, 1) float32, 0 to 1."""
        images = requests[0].images if len(requests) == 1 else np.concatenate([pairs.images for pairs in requests])
        texts = bare_texts(self._bundle.text, [pairs.input_ids for pairs in requests])
        self._check_pairs(images, texts)
        return self._reranker.score(images, texts)[:, None]

    def warm_ups(self, max_batch: int) -> Iterator[Sized]:
        """Yield one pair and a full batch: black images, texts that fill the context."""
        texts = text_rows(self._bundle.text, self._bundle.text.context_length, max_batch)
        for count in (1, max_batch):
            spec = self._bundle.input_spec(Tower.IMAGE)
            yield Pairs(np.zeros((count, *spec.shape), np.uint8), texts[:count])

    def unsplit(self) -> AbstractContextManager[None]:
        """Do nothing: there is one stream."""
        return nullcontext()

    def close(self) -> None:
        """Release the engine."""
        self._reranker.close()


def open_engine(
    bundle: Bundle, tower: Tower | None, *, precision: str, provider: str, threads: int | None, streams: int | None
) -> ServedEngine:
    """Open a tower's engine, or with None the reranker's. Raises what `LocalTowers` and `LocalReranker.open` raise."""
    if tower is None:
        return RerankerEngine(bundle, precision=precision, provider=provider, threads=threads)
    return TowerEngine(bundle, tower, precision=precision, provider=provider, threads=threads, streams=streams)


def bare_texts(settings: TextSettings, requests: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Return the texts of several requests, each (n, L) int32, as 1-D arrays without padding."""
    pad_id, eos_id = settings.pad_id, settings.eos_id
    return [without_padding(row, pad_id=pad_id, eos_id=eos_id) for rows in requests for row in rows]


def text_rows(settings: TextSettings, length: int, count: int) -> NDArray[np.int32]:
    """Return `count` equal texts of `length` token ids, the end token the last: (count, length) int32."""
    return np.array([[0] * (length - 1) + [settings.eos_id]] * count, np.int32)


def warm_up_inputs(bundle: Bundle, tower: Tower, max_batch: int) -> Iterator[NDArray[Any]]:
    """Yield an input of every shape that a tower's engine will be given, the largest as a full batch too."""
    if tower is not Tower.TEXT:
        spec = bundle.input_spec(tower)
        for count in (1, max_batch):
            yield np.zeros((count, *spec.shape), spec.dtype)
        return
    for length in bucket_lengths(bundle.text):
        yield text_rows(bundle.text, length, 1)
    yield text_rows(bundle.text, bundle.text.context_length, max_batch)
