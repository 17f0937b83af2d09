"""Towers whose embeddings are cut to fewer numbers, for models that were trained for it (see `twinspire._dims`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire._dims import cut_space, cut_vectors
from twinspire.towers.protocol import AsyncTowers, Towers
from twinspire.towers.triton import ClientCounters

AnyTowers = TypeVar("AnyTowers", bound=Towers | AsyncTowers)


class _Cut(Generic[AnyTowers]):
    """What cut towers are, whether their calls are awaited or not."""

    def __init__(self, whole: AnyTowers, dim: int) -> None:
        self.whole = whole
        self.dim = dim
        self.space = cut_space(whole.space, dim)

    def __repr__(self) -> str:
        return repr(self.whole)

    @property
    def counters(self) -> ClientCounters | None:
        """The counters of servers and fallback; None where there is no server."""
        counters: ClientCounters | None = getattr(self.whole, "counters", None)
        return counters


class CutTowers(_Cut[Towers]):
    """`Towers` over `whole` ones. Closing either closes both."""

    @property
    def context_length(self) -> int:
        """The most token ids that one text may have, start and end included."""
        return self.whole.context_length

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode as `Towers.encode_images` does, and cut."""
        return cut_vectors(self.whole.encode_images(images), self.dim)

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode as `Towers.encode_texts` does, and cut."""
        return cut_vectors(self.whole.encode_texts(sequences), self.dim)

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode as `Towers.encode_audio` does, and cut."""
        return cut_vectors(self.whole.encode_audio(spectrograms), self.dim)

    def score_pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Score as `Towers.score_pairs` does: probabilities do not depend on the embeddings' length."""
        return self.whole.score_pairs(images, sequences)

    def close(self) -> None:
        """Close the whole towers."""
        self.whole.close()


class AsyncCutTowers(_Cut[AsyncTowers]):
    """`AsyncTowers` over `whole` ones. Closing either closes both."""

    async def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode as `AsyncTowers.encode_images` does, and cut."""
        return cut_vectors(await self.whole.encode_images(images), self.dim)

    async def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode as `AsyncTowers.encode_texts` does, and cut."""
        return cut_vectors(await self.whole.encode_texts(sequences), self.dim)

    async def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode as `AsyncTowers.encode_audio` does, and cut."""
        return cut_vectors(await self.whole.encode_audio(spectrograms), self.dim)

    async def score_pairs(
        self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        """Score as `AsyncTowers.score_pairs` does, whatever the embeddings' length."""
        return await self.whole.score_pairs(images, sequences)

    async def close(self) -> None:
        """Close the whole towers."""
        await self.whole.close()
