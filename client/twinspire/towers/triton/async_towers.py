"""The towers on Triton Inference Servers, for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_whole
from twinspire.bundle import BundleDescription, Tower
from twinspire.errors import EngineError
from twinspire.towers.protocol import Towers
from twinspire.towers.triton.options import TlsOptions
from twinspire.towers.triton.statistics import ModelStatistics
from twinspire.towers.triton.towers import RemoteTowers

_IN_FLIGHT = 128
"""Two of the largest batches that `twinspire build` sets up, when all requests are single texts."""


class AsyncTritonTowers(RemoteTowers):
    """A bundle's models on Triton Inference Servers, for the event loop that they are opened in.

    `async with AsyncTritonTowers(url, bundle)` or `open` connects them. They do what `TritonTowers` does, with the same
    arguments, deadlines, retries and errors, and methods to await. `in_flight` is the number of inferences in flight at
    a time over all calls, further ones wait for their turn; None is 128, and in a call as many as in `TritonTowers`.
    Cancelling a task cancels its requests: the server drops those that it has not begun to compute. The
    fallback computes in threads; its calls run to their end when their task is cancelled.

    gRPC supports one event loop a process: run one at a time.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        bundle: BundleDescription,
        *,
        name: str | None = None,
        deadline_s: float = 30.0,
        in_flight: int | None = None,
        max_retries: int | None = None,
        tls: TlsOptions | None = None,
        send_images_singly: bool = False,
        fallback: Towers | None = None,
    ) -> None:
        from twinspire.towers.triton.channel import AsyncChannel
        from twinspire.towers.triton.runners import AsyncRunner

        self._loop = asyncio.get_running_loop()
        self._runner = AsyncRunner(_IN_FLIGHT if in_flight is None else as_whole(in_flight, "in_flight", minimum=1))
        super().__init__(
            url,
            bundle,
            open_channel=functools.partial(AsyncChannel, closed=self._runner.closed),
            name=name,
            deadline_s=deadline_s,
            in_flight=in_flight,
            max_retries=max_retries,
            tls=tls,
            send_images_singly=send_images_singly,
            fallback=fallback,
        )

    async def open(self) -> Self:
        """Connect and inspect the servers. Raises what `TritonTowers` raises, and closes the towers then."""
        try:
            await self._runner.run(self._open())
        except BaseException:
            await self.close()
            raise
        return self

    async def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode (N, H, W, 3) uint8 RGB to (N, D) float32, L2-normalised, or (N, Q, D) of Q vectors; N may be 0.

        Raises what `TritonTowers.encode_images` raises.
        """
        return await self._runner.run(self._images(images))

    async def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Encode N 1-D int32 arrays of token ids to (N, D) float32, L2-normalised; N may be 0.

        Raises what `TritonTowers.encode_texts` raises.
        """
        return await self._runner.run(self._texts(sequences))

    async def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode (N, F, M) float32 log-mel spectrograms to (N, D) float32, L2-normalised; N may be 0.

        Raises what `TritonTowers.encode_audio` raises.
        """
        return await self._runner.run(self._audio(spectrograms))

    async def score_pairs(
        self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        """Return the reranker's probability that text n is true of image n, (N,) float32, 0 to 1; N may be 0.

        Raises what `TritonTowers.score_pairs` raises.
        """
        return await self._runner.run(self._pairs(images, sequences))

    async def statistics(self, tower: Tower | str) -> ModelStatistics:
        """Return the servers' counters of a tower, added up. Raises what `TritonTowers.statistics` raises."""
        return await self._runner.run(self._statistics(tower))

    async def close(self) -> None:
        """Close the connections and the fallback. Encoding after it, or meanwhile, raises EngineError.

        Closing twice does nothing.
        """
        self._runner.closed.set()
        for channel in self._channels:
            await channel.channel.close()
        await self._runner.join()
        if self._fallback is not None:
            self._fallback.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        self._runner.check_open()
        if asyncio.get_running_loop() is not self._loop:
            raise EngineError(
                "these towers were opened in another event loop, which connections belong to: open them in the loop "
                "that uses them"
            )
