"""The interface between the client and a runtime of the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Towers(Protocol):
    """The towers of one model. Embeddings are in the order of the inputs, and comparable within `space`."""

    @property
    def dim(self) -> int:
        """The embedding's length D."""

    @property
    def space(self) -> str:
        """The id of the embedding space: vectors are comparable within it only."""

    @property
    def context_length(self) -> int:
        """The most token ids that one text may have, start and end included."""

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, H, W, 3) uint8 RGB to (N, D) float32, L2-normalised; N may be 0.

        Of a model with Q vectors an image it is (N, Q, D), each of length 1.

        Raises InputError for another dtype or shape, EngineError where the runtime fails, ServerError where a server
        does.
        """

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Each holds start and end token and no padding: the runtime pads. Raises InputError
        for anything else, EngineError where the runtime fails, ServerError where a server does.
        """

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode (N, F, M) float32 log-mel spectrograms to (N, D) float32, L2-normalised; N may be 0.

        Raises what `encode_images` raises.
        """

    def score_pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the reranker's probability that text n is true of image n, (N,) float32, 0 to 1; N may be 0.

        Images and token ids are those of `encode_images` and `encode_texts`, equally many. Raises what these raise, and
        BundleError where the bundle has no reranker.
        """

    def close(self) -> None:
        """Release engines and connections. Encoding then raises EngineError; closing twice does nothing."""


class AsyncTowers(Protocol):
    """`Towers` for asyncio: the same methods, to await."""

    @property
    def dim(self) -> int:
        """The embedding's length D."""

    @property
    def space(self) -> str:
        """The id of the embedding space: vectors are comparable within it only."""

    async def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Do what `Towers.encode_images` does."""

    async def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Do what `Towers.encode_texts` does."""

    async def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Do what `Towers.encode_audio` does."""

    async def score_pairs(
        self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        """Do what `Towers.score_pairs` does."""

    async def close(self) -> None:
        """Release engines and connections. Encoding then raises EngineError; closing twice does nothing."""
