"""The client: texts, images and sounds to unit vectors, with any runtime of the towers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any, Literal, Self, TypeAlias, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from twinspire._batched import BatchPreprocessor
from twinspire._telemetry import detached_span, span
from twinspire.audio import AudioItem, AudioLimits, AudioPreprocessor
from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import AudioError, ImageError, InputError, ItemError, SpaceMismatchError
from twinspire.images import ImageItem, ImageLimits, Preprocessor
from twinspire.text import Tokenizer
from twinspire.towers import LocalTowers, OpenVinoOptions, Provider, TlsOptions, Towers, TritonTowers

OnError: TypeAlias = Literal["raise", "skip"]
_Part = TypeVar("_Part", Tokenizer, Preprocessor, AudioPreprocessor)
_Failure = TypeVar("_Failure", bound=ItemError)

# The towers' batch: the next items are decoded while these are encoded.
MEDIA_BATCH = 32


class Client:
    """The tokenizer, image preprocessing and towers of one model.

    `Client.local(bundle)` runs the engines in this process, `Client.connect(url, bundle)` on a server. The
    constructor accepts any `Towers` of the same space and closes them with `close` or at the end of a `with`
    block. `limits` bounds the images that are decoded and `audio_limits` the sounds, `threads` is the number of them
    decoded at a time, by default one for each usable core.

    An image is a path, encoded bytes, a binary file object, a PIL image or a uint8 array (H, W), (H, W, 1),
    (H, W, 3) or (H, W, 4). A sound is a path, encoded bytes, a binary file object or a pair of samples and their rate
    in Hz. Texts, images and sounds are always passed as a list, also a single one. A model without the tower of a
    modality raises BundleError for its inputs.

    Raises SpaceMismatchError where the towers are not of the bundle's space.
    """

    def __init__(
        self,
        bundle: Bundle,
        towers: Towers,
        *,
        limits: ImageLimits | None = None,
        audio_limits: AudioLimits | None = None,
        threads: int | None = None,
    ) -> None:
        if towers.space != bundle.space:
            raise SpaceMismatchError(
                f"the towers are of another space than the bundle {bundle.name!r} at {bundle.path}: open both from the "
                "same bundle",
                expected=bundle.space,
                found=towers.space,
            )
        self.bundle = bundle
        self.towers = towers
        self._limits, self._audio_limits = limits or ImageLimits(), audio_limits or AudioLimits()
        self._tokenizer = Tokenizer(bundle.tokenizer_path, bundle.text) if Tower.TEXT in bundle.towers else None
        self._preprocessor = self._audio_preprocessor = None
        if Tower.IMAGE in bundle.towers:
            self._preprocessor = Preprocessor(bundle.image, limits=self._limits, threads=threads)
        if Tower.AUDIO in bundle.towers:
            self._audio_preprocessor = AudioPreprocessor(bundle.audio, limits=self._audio_limits, threads=threads)

    @classmethod
    def local(
        cls,
        bundle: Bundle | str | os.PathLike[str],
        *,
        precision: Precision | str = "auto",
        provider: Provider | str = "auto",
        threads: int | None = None,
        streams: int | None = None,
        openvino: OpenVinoOptions | None = None,
        limits: ImageLimits | None = None,
        audio_limits: AudioLimits | None = None,
    ) -> Client:
        """Run a bundle's engines in this process; see `LocalTowers` for the arguments and their errors.

        `bundle` is a `Bundle` or the path of one. Raises BundleError where it is not intact, InputError for
        anything else. To compute an fp32 engine in bf16: `provider="openvino"` and
        `openvino=OpenVinoOptions(inference_precision=InferencePrecision.BF16)`.
        """
        opened = _opened(bundle)
        towers = LocalTowers(
            opened, precision=precision, provider=provider, threads=threads, streams=streams, openvino=openvino
        )
        return cls(opened, towers, limits=limits, audio_limits=audio_limits, threads=threads)

    @classmethod
    def connect(
        cls,
        url: str,
        bundle: Bundle | str | os.PathLike[str],
        *,
        name: str | None = None,
        deadline_s: float = 30.0,
        in_flight: int | None = None,
        max_retries: int | None = None,
        tls: TlsOptions | None = None,
        send_images_singly: bool = False,
        threads: int | None = None,
        limits: ImageLimits | None = None,
        audio_limits: AudioLimits | None = None,
    ) -> Client:
        """Run the towers on a Triton Inference Server at `url`, host:port of its gRPC service.

        `bundle`, or its path, must be the served bundle: texts, images and sounds are prepared here. See `TritonTowers`
        for the other arguments, the retries and the errors. Raises BundleError where the bundle is not intact,
        SpaceMismatchError where the server's models are of another space.
        """
        opened = _opened(bundle)
        towers = TritonTowers(
            url,
            opened,
            name=name,
            deadline_s=deadline_s,
            in_flight=in_flight,
            max_retries=max_retries,
            tls=tls,
            send_images_singly=send_images_singly,
        )
        try:
            return cls(opened, towers, limits=limits, audio_limits=audio_limits, threads=threads)
        except BaseException:
            towers.close()
            raise

    @property
    def limits(self) -> ImageLimits:
        """The largest image that is decoded."""
        return self._limits

    @property
    def audio_limits(self) -> AudioLimits:
        """The largest sound that is read."""
        return self._audio_limits

    @property
    def dim(self) -> int:
        """The embedding's length D."""
        return self.towers.dim

    @property
    def vectors_per_item(self) -> int:
        """Q, how many vectors an image has; 1 for most models. Texts have one."""
        return self.bundle.vectors_per_item

    @property
    def space(self) -> str:
        """The id of the embedding space: vectors are comparable within it only."""
        return self.towers.space

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Return N texts as N 1-D int32 arrays of token ids, start and end included, without padding.

        A text longer than the context is cut and the end token kept; the first one logs a warning. Raises InputError
        for anything but a list of str.
        """
        return self._required(self._tokenizer, Tower.TEXT).encode(texts)

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
        _check_on_error(on_error)
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
        _check_on_error(on_error)
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
        _check_on_error(on_error)
        parts = [np.zeros((0, *self.bundle.output_spec(tower).shape), np.float32)]
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

    def _required(self, part: _Part | None, tower: Tower) -> _Part:
        """Return what prepares a tower's inputs. Raises BundleError where the model does not have the tower."""
        self.bundle.manifest.tower(tower)
        assert part is not None
        return part

    def __repr__(self) -> str:
        return f"<Client of {self.bundle.name!r}, dim {self.dim}, space {self.space[:12]}: {self.towers!r}>"

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


def _opened(bundle: Bundle | str | os.PathLike[str]) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    if not isinstance(bundle, str | os.PathLike):
        message = f"bundle: expected a Bundle or the path of one, got {bundle!r}. The sample's path: sample_bundle()"
        raise InputError(message, option="bundle")
    return Bundle.open(bundle)


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error {on_error!r}: expected 'raise' or 'skip'", option="on_error")
