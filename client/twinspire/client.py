"""The client: texts, images and sounds to unit vectors, with any runtime of the towers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
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
from twinspire.towers import LocalTowers, OpenVinoOptions, Provider, TlsOptions, Towers, TritonTowers
from twinspire.towers.cut import CutTowers
from twinspire.towers.validation import check_paired

_Failure = TypeVar("_Failure", bound=ItemError)


class Client(ClientBase[Towers]):
    """The tokenizer, image preprocessing and towers of one model.

    `Client.local(bundle)` runs the engines in this process, `Client.connect(url)` on a server. The
    constructor accepts any `Towers` of the same space and closes them with `close` or at the end of a `with`
    block. `decode` says how images are decoded: "exact", as in training; "scaled", JPEG files at a fraction of their
    size, which is several times as fast for photographs (`DecodeMode`); "auto", as `twinspire precision` found, else
    exactly. Vectors of both are of one space. `dim` cuts embeddings to their first numbers, where the bundle allows
    that length (`bundle.dims`); they are of a space of their own. `limits` bounds the images that are decoded and
    `audio_limits` the sounds, `threads` is the number of them decoded at a time, by default one for each usable core.

    An image is a path, encoded bytes, a binary file object, a PIL image or a uint8 array (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4). A sound is a path, encoded bytes, a binary file object or a pair of samples and their rate
    in Hz. Texts, images and sounds are always passed as a list, also a single one. A model without the tower of a
    modality raises BundleError for its inputs.

    Raises SpaceMismatchError where the towers are not of the bundle's space, InputError for an unknown `decode` and for
    a `dim` that the bundle does not allow.
    """

    @classmethod
    def local(
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
    ) -> Client:
        """Run a bundle's engines in this process; see `LocalTowers` for the arguments and their errors.

        `bundle` is a `Bundle` or the path of one. Raises BundleError where it is not intact, InputError for
        anything else. To compute an fp32 engine in bf16: `provider="openvino"` and
        `openvino=OpenVinoOptions(inference_precision=InferencePrecision.BF16)`.
        """
        opened = opened_bundle(bundle)
        opened.space_of(dim)  # raises before engines are opened
        towers = LocalTowers(
            opened, precision=precision, provider=provider, threads=threads, streams=streams, openvino=openvino
        )
        return cls(opened, towers, dim=dim, decode=decode, limits=limits, audio_limits=audio_limits, threads=threads)

    @classmethod
    def connect(
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
    ) -> Client:
        """Run the towers on Triton Inference Servers: `url` is host:port of the gRPC service, or a list of several.

        Texts, images and sounds are prepared here, by the settings and the tokenizer of `bundle`, which must be the
        served one, or its path. Without it they come from `fallback` where that is a bundle, else from the server:
        `name` then chooses among several bundles, and `describe_server` says what it raises. `fallback`, a
        bundle of the same space, its path or open towers, computes in this process while no server is available;
        its engines are opened at once, so that one that cannot be used is an error here and not during an outage.
        See `TritonTowers` for the other arguments, the retries and the errors. Raises BundleError where a bundle is not
        intact, SpaceMismatchError where the servers' models or the fallback are of another space, and what
        `LocalTowers` raises for the fallback.
        """
        opened = served_bundle(url, bundle, fallback, name=name, deadline_s=deadline_s, tls=tls)
        opened.space_of(dim)  # raises before engines are opened
        local = opened_fallback(fallback, threads=threads)
        with closing_on_error(local):
            towers = TritonTowers(
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
        with closing_on_error(towers):
            return cls(
                opened, towers, dim=dim, decode=decode, limits=limits, audio_limits=audio_limits, threads=threads
            )

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) float32, L2-normalised, in the order given; N may be 0, a text empty.

        Raises InputError for anything but a list of str, EngineError and ServerError where the towers fail.
        """
        with span("encode", tower=Tower.TEXT):
            with span("tokenize", tower=Tower.TEXT):
                sequences = self.tokenize(texts)
            with span("tower", tower=Tower.TEXT, rows=len(sequences)):
                return self.towers.encode_texts(sequences)

    @overload
    def preprocess(self, items: Iterable[ImageItem], *, on_error: Literal["raise"] = "raise") -> NDArray[np.uint8]: ...
    @overload
    def preprocess(
        self, items: Iterable[ImageItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.uint8], list[ImageError]]: ...
    def preprocess(
        self, items: Iterable[ImageItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], list[ImageError]]:
        """Decode N images and resize them to the image tower's input, (N, H, W, 3) uint8 RGB, in the order given.

        The first image that cannot be used raises ImageError with its position and cause. With
        `on_error="skip"` the others are returned, and a list with an ImageError for each skipped one.
        """
        check_on_error(on_error)
        if on_error == "skip":
            return self._required(self._preprocessor, Tower.IMAGE).many_or_skip(items)
        return self._required(self._preprocessor, Tower.IMAGE).many(items)

    @overload
    def encode_images(
        self, items: Iterable[ImageItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_images(
        self, items: Iterable[ImageItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[ImageError]]: ...
    def encode_images(
        self, items: Iterable[ImageItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[ImageError]]:
        """Encode N images to (N, D) float32, L2-normalised, in the order given; N may be 0.

        Of a model with several vectors an image (`vectors_per_item` is Q above 1) they are (N, Q, D), each of length 1;
        `twinspire.similarity` scores them by their best. The next images are decoded while the last are encoded; only a
        few batches are in memory at a time, also when `items` is a generator. Raises ImageError as `preprocess` does,
        EngineError and ServerError where the towers fail.
        """
        preprocessor = self._required(self._preprocessor, Tower.IMAGE)
        return self._encoded(Tower.IMAGE, preprocessor, self.towers.encode_images, items, on_error)

    @overload
    def score_pairs(
        self, items: Iterable[ImageItem], texts: Sequence[str], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    def score_pairs(
        self, items: Iterable[ImageItem], texts: Sequence[str], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[ImageError]]: ...
    def score_pairs(
        self, items: Iterable[ImageItem], texts: Sequence[str], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[ImageError]]:
        """Return the reranker's probability that text n is true of image n, (N,) float32, 0 to 1; N may be 0.

        It reads image and text together, unlike the towers, and so sees which object has which colour, at the price of
        a run for every pair. The first image that cannot be used raises ImageError. With `on_error="skip"` such an
        image's probability is NaN, and a list with an ImageError for each is returned beside them. Raises BundleError
        where the bundle has no reranker, InputError for other than one text for each image, EngineError and ServerError
        where the reranker fails.
        """
        check_on_error(on_error)
        self.bundle.manifest.reranker()
        pictures, sequences = list(items), self.tokenize(texts)
        check_paired(pictures, sequences, option="texts")
        with span("rerank", tower=RERANKER, rows=len(pictures)):
            pixels, skipped = self.preprocess(pictures, on_error="skip")
            usable = usable_positions(len(pictures), skipped, on_error)
            scores = np.full(len(pictures), np.nan, np.float32)
            scores[usable] = self.towers.score_pairs(pixels, [sequences[position] for position in usable])
        return (scores, skipped) if on_error == "skip" else scores

    @overload
    def preprocess_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    def preprocess_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[AudioError]]: ...
    def preprocess_audio(
        self, items: Iterable[AudioItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[AudioError]]:
        """Decode N sounds to the audio tower's input, (N, F, M) float32 log-mel spectrograms, in the order given.

        The first sound that cannot be used raises AudioError with its position and cause. With `on_error="skip"` the
        others are returned, and a list with an AudioError for each skipped one. Sound files raise
        MissingDependencyError without the package soundfile (extra `audio`).
        """
        check_on_error(on_error)
        preprocessor = self._required(self._audio_preprocessor, Tower.AUDIO)
        return preprocessor.many_or_skip(items) if on_error == "skip" else preprocessor.many(items)

    @overload
    def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["raise"] = "raise"
    ) -> NDArray[np.float32]: ...
    @overload
    def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[AudioError]]: ...
    def encode_audio(
        self, items: Iterable[AudioItem], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[AudioError]]:
        """Encode N sounds to (N, D) float32, L2-normalised, in the order given; N may be 0.

        Of a sound longer than the model's input, its beginning is encoded (`AudioSettings.max_length_s`). The next
        sounds are decoded while the last are encoded. Raises what `preprocess_audio` raises, EngineError and
        ServerError where the towers fail.
        """
        preprocessor = self._required(self._audio_preprocessor, Tower.AUDIO)
        return self._encoded(Tower.AUDIO, preprocessor, self.towers.encode_audio, items, on_error)

    def _encoded(
        self,
        tower: Tower,
        preprocessor: BatchPreprocessor[_Failure],
        encode: Callable[[NDArray[Any]], NDArray[np.float32]],
        items: Iterable[Any],
        on_error: OnError,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], list[_Failure]]:
        check_on_error(on_error)
        parts = [np.zeros((0, *self.bundle.output_spec(tower).shape[:-1], self.dim), np.float32)]
        skipped: list[_Failure] = []
        # Closed explicitly: an error's traceback would keep the decoding threads alive.
        stream = cast("Generator[Any, None, None]", preprocessor.stream(items, batch=MEDIA_BATCH))
        with span("encode", tower=tower), closing(stream):
            while (batch := _next(stream, tower)) is not None:
                _, rows, errors = batch
                if errors and on_error == "raise":
                    raise errors[0]
                skipped += errors
                with span("tower", tower=tower, rows=len(rows)):
                    parts.append(encode(rows))
        embeddings = np.concatenate(parts)
        return (embeddings, skipped) if on_error == "skip" else embeddings

    def _cut(self, towers: Towers, dim: int) -> Towers:
        return CutTowers(towers, dim)

    def close(self) -> None:
        """Close the towers. Closing twice does nothing."""
        self.towers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _next(stream: Generator[Any, None, None], tower: Tower) -> Any:  # noqa: ANN401 - positions, rows and errors
    """Return the next preprocessed batch, None at the end; observed is the time that the call waits for it."""
    observed = detached_span("preprocess", tower=tower)
    try:
        batch = next(stream, None)
    except BaseException as error:
        observed.end(error)
        raise
    if batch is not None:
        observed.end()
    return batch
