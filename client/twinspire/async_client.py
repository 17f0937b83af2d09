"""The client for asyncio: texts, images and sounds to unit vectors without blocking the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Literal, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from twinspire._batched import BatchPreprocessor
from twinspire._client_base import (
    MEDIA_BATCH,
    BundleOrPath,
    ClientBase,
    OnError,
    check_on_error,
    closing_on_error,
    opened_bundle,
    opened_fallback,
    served_bundle,
    usable_positions,
)
from twinspire._telemetry import detached_span, span
from twinspire.audio import AudioItem, AudioLimits
from twinspire.bundle import BundleDescription, DecodeMode, Precision, Tower
from twinspire.contract import RERANKER
from twinspire.errors import AudioError, ImageError, ItemError
from twinspire.images import ImageItem, ImageLimits
from twinspire.towers import (
    AsyncTowers,
    AsyncTritonTowers,
    LocalTowers,
    OpenVinoOptions,
    Provider,
    TlsOptions,
    Towers,
)
from twinspire.towers.cut import AsyncCutTowers
from twinspire.towers.validation import check_paired

_Failure = TypeVar("_Failure", bound=ItemError)
_Result = TypeVar("_Result")

# More texts than this are tokenized in a thread: these take about a millisecond, a thread's turn a tenth of it.
_INLINE_TEXTS = 64


class AsyncClient(ClientBase[AsyncTowers]):
    """`Client` for asyncio: the same methods to await, arguments, results and errors.

    `await AsyncClient.connect(url, bundle)` runs the towers on servers, `await AsyncClient.local(bundle)` in threads of
    this process; `async with` closes it. Images and sounds are decoded in threads. An iterable of them is advanced in a
    thread too, so that it may block. Cancelling a task cancels its requests on the server; images that are being
    decoded are decoded to their end. Use a client in the event loop that it was opened in.
    """

    @classmethod
    async def local(
        cls,
        bundle: BundleOrPath,
        *,
        dim: int | None = None,
        precision: Precision | str = "auto",
        provider: Provider | str = "auto",
        threads: int | None = None,
        streams: int | None = None,
        openvino: OpenVinoOptions | None = None,
        decode: DecodeMode | str = DecodeMode.EXACT,
        limits: ImageLimits | None = None,
        audio_limits: AudioLimits | None = None,
    ) -> AsyncClient:
        """Run a bundle's engines in threads of this process; see `Client.local`."""

        def opened() -> AsyncClient:
            open_bundle = opened_bundle(bundle)
            open_bundle.space_of(dim)  # raises before engines are opened
            towers = LocalTowers(
                open_bundle, precision=precision, provider=provider, threads=threads, streams=streams, openvino=openvino
            )
            return cls(
                open_bundle,
                _ThreadTowers(towers),
                dim=dim,
                decode=decode,
                limits=limits,
                audio_limits=audio_limits,
                threads=threads,
            )

        return await asyncio.to_thread(opened)

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        bundle: BundleDescription | BundleOrPath | None = None,
        *,
        dim: int | None = None,
        name: str | None = None,
        deadline_s: float = 30.0,
        in_flight: int | None = None,
        max_retries: int | None = None,
        tls: TlsOptions | None = None,
        send_images_singly: bool = False,
        fallback: BundleOrPath | Towers | None = None,
        threads: int | None = None,
        decode: DecodeMode | str = DecodeMode.EXACT,
        limits: ImageLimits | None = None,
        audio_limits: AudioLimits | None = None,
    ) -> AsyncClient:
        """Run the towers on Triton Inference Servers; see `Client.connect` and `AsyncTritonTowers`."""
        opened = await asyncio.to_thread(
            served_bundle, url, bundle, fallback, name=name, deadline_s=deadline_s, tls=tls
        )
        opened.space_of(dim)  # raises before engines are opened
        local = await asyncio.to_thread(opened_fallback, fallback, threads=threads)
        with closing_on_error(local):
            towers = AsyncTritonTowers(
                url,
                opened,
                name=name,
                deadline_s=deadline_s,
                in_flight=in_flight,
                max_retries=max_retries,
                tls=tls,
                send_images_singly=send_images_singly,
                fallback=local,
            )
            await towers.open()
        try:
            return await asyncio.to_thread(
                cls, opened, towers, dim=dim, decode=decode, limits=limits, audio_limits=audio_limits, threads=threads
            )
        except BaseException:
            await towers.close()
            raise

    async def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) float32, L2-normalised; see `Client.encode_texts`."""
        with span("encode", tower=Tower.TEXT):
            with span("tokenize", tower=Tower.TEXT):
                sequences = await self._tokenized(texts)
            with span("tower", tower=Tower.TEXT, rows=len(sequences)):
                return await self.towers.encode_texts(sequences)

    @overload
    async def preprocess(
        self, items: Iterable[ImageItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.uint8]: ...
    @overload
    async def preprocess(
        self, items: Iterable[ImageItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.uint8], list[ImageError]]: ...
    async def preprocess(
        self, items: Iterable[ImageItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], list[ImageError]]:
        """Decode N images and resize them to (N, H, W, 3) uint8 RGB; see `Client.preprocess`."""
        check_on_error(on_error)
        preprocessor = self._required(self._preprocessor, Tower.IMAGE)
        if on_error == "skip":
            return await asyncio.to_thread(preprocessor.many_or_skip, items)
        return await asyncio.to_thread(preprocessor.many, items)

    @overload
    async def encode_images(
        self, items: Iterable[ImageItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    async def encode_images(
        self, items: Iterable[ImageItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[ImageError]]: ...
    async def encode_images(
        self, items: Iterable[ImageItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[ImageError]]:
        """Encode N images to (N, D) float32, L2-normalised, or (N, Q, D); see `Client.encode_images`."""
        preprocessor = self._required(self._preprocessor, Tower.IMAGE)
        return await self._encoded(Tower.IMAGE, preprocessor, self.towers.encode_images, items, on_error)

    @overload
    async def score_pairs(
        self, items: Iterable[ImageItem], texts: Sequence[str], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    async def score_pairs(
        self, items: Iterable[ImageItem], texts: Sequence[str], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[ImageError]]: ...
    async def score_pairs(
        self, items: Iterable[ImageItem], texts: Sequence[str], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[ImageError]]:
        """Return the reranker's probability that text n is true of image n, (N,); see `Client.score_pairs`."""
        check_on_error(on_error)
        self.bundle.manifest.reranker()
        pictures, sequences = await asyncio.to_thread(list, items), await self._tokenized(texts)
        check_paired(pictures, sequences, option="texts")
        with span("rerank", tower=RERANKER, rows=len(pictures)):
            pixels, skipped = await self.preprocess(pictures, on_error="skip")
            usable = usable_positions(len(pictures), skipped, on_error)
            scores = np.full(len(pictures), np.nan, np.float32)
            scores[usable] = await self.towers.score_pairs(pixels, [sequences[position] for position in usable])
        return (scores, skipped) if on_error == "skip" else scores

    @overload
    async def preprocess_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    async def preprocess_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[AudioError]]: ...
    async def preprocess_audio(
        self, items: Iterable[AudioItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[AudioError]]:
        """Decode N sounds to (N, F, M) float32 log-mel spectrograms; see `Client.preprocess_audio`."""
        check_on_error(on_error)
        preprocessor = self._required(self._audio_preprocessor, Tower.AUDIO)
        if on_error == "skip":
            return await asyncio.to_thread(preprocessor.many_or_skip, items)
        return await asyncio.to_thread(preprocessor.many, items)

    @overload
    async def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    async def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[AudioError]]: ...
    async def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[AudioError]]:
        """Encode N sounds to (N, D) float32, L2-normalised; see `Client.encode_audio`."""
        preprocessor = self._required(self._audio_preprocessor, Tower.AUDIO)
        return await self._encoded(Tower.AUDIO, preprocessor, self.towers.encode_audio, items, on_error)

    async def _tokenized(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        is_short = isinstance(texts, Sequence) and len(texts) <= _INLINE_TEXTS
        return self.tokenize(texts) if is_short else await asyncio.to_thread(self.tokenize, texts)

    async def _encoded(
        self,
        tower: Tower,
        preprocessor: BatchPreprocessor[_Failure],
        encode: Callable[[NDArray[Any]], Awaitable[NDArray[np.float32]]],
        items: Iterable[Any],
        on_error: OnError,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[_Failure]]:
        check_on_error(on_error)
        parts = [np.zeros((0, *self.bundle.output_spec(tower).shape[:-1], self.dim), np.float32)]
        skipped: list[_Failure] = []
        with span("encode", tower=tower):
            async with aclosing(_batches(preprocessor, items, tower)) as batches:
                async for rows, errors in batches:
                    if errors and on_error == "raise":
                        raise errors[0]
                    skipped += errors
                    with span("tower", tower=tower, rows=len(rows)):
                        parts.append(await encode(rows))
        embeddings = np.concatenate(parts)
        return (embeddings, skipped) if on_error == "skip" else embeddings

    def _cut(self, towers: AsyncTowers, dim: int) -> AsyncTowers:
        return AsyncCutTowers(towers, dim)

    async def close(self) -> None:
        """Close the towers. Closing twice does nothing."""
        await self.towers.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _batches(
    preprocessor: BatchPreprocessor[_Failure], items: Iterable[Any], tower: Tower
) -> AsyncGenerator[tuple[NDArray[Any], list[_Failure]], None]:
    """Yield the rows of each batch and the errors of what it left out, the next one prepared while this is used."""
    if isinstance(items, Sequence) and len(items) == 1:  # nothing to look ahead to: one turn of a thread
        yield await _observed(asyncio.to_thread(preprocessor.many_or_skip, items), tower)
        return
    stream = _ThreadSteps(cast("Generator[Any, None, None]", preprocessor.stream(items, batch=MEDIA_BATCH)))
    try:
        # One batch ahead: the decoding threads of a short call end while it is encoded.
        following = stream.start()
        while (step := await _observed(following, tower)) is not None:
            following = stream.start()
            _, rows, errors = step
            yield rows, errors
    finally:
        stream.close()


async def _observed(following: Awaitable[Any], tower: Tower) -> Any:  # noqa: ANN401 - what the thread returns
    """Return what a preprocessing thread returns, None at the end; observed is the time that the call waits for it."""
    observed = detached_span("preprocess", tower=tower)
    try:
        batch = await following
    except BaseException as error:
        observed.end(error)
        raise
    if batch is not None:
        observed.end()
    return batch


class _ThreadSteps:
    """A generator that threads advance, one at a time. It can be closed while one does."""

    def __init__(self, generator: Generator[Any, None, None]) -> None:
        self._generator = generator
        self._lock = threading.Lock()
        self._future: asyncio.Future[Any] | None = None

    def start(self) -> asyncio.Future[Any]:
        """Return the future of the next element, None at the end."""
        self._future = asyncio.get_running_loop().run_in_executor(None, self._next)
        return self._future

    def close(self) -> None:
        """Close the generator, in a thread once the last step has ended. Does nothing where it is at its end."""
        if self._future is None:
            return
        has_outcome = self._future.done() and not self._future.cancelled()
        if has_outcome and (self._future.exception() is not None or self._future.result() is None):
            return
        self._future.cancel()
        asyncio.get_running_loop().run_in_executor(None, self._close)

    def _next(self) -> Any:  # noqa: ANN401 - whatever the generator yields
        with self._lock:
            return next(self._generator, None)

    def _close(self) -> None:
        with self._lock:
            self._generator.close()


class _ThreadTowers:
    """Towers of this process for asyncio: each call runs in a thread, to its end also where its task is cancelled."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
        self.dim, self.space = towers.dim, towers.space

    def __repr__(self) -> str:
        return repr(self._towers)

    async def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return await asyncio.to_thread(self._towers.encode_images, images)

    async def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        return await asyncio.to_thread(self._towers.encode_texts, sequences)

    async def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        return await asyncio.to_thread(self._towers.encode_audio, spectrograms)

    async def score_pairs(
        self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        return await asyncio.to_thread(self._towers.score_pairs, images, sequences)

    async def close(self) -> None:
        self._towers.close()
