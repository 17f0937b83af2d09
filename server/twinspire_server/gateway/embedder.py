"""`Embedder`: the one request behind all dialects, from inputs to vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from twinspire import AsyncClient
from twinspire._dims import cut_vectors, shown_dims, split_space
from twinspire.bundle import Bundle, BundleDescription, Tower
from twinspire.cli.bundles import open_bundle
from twinspire.errors import InputError, ItemError, ServerOverloadedError, SpaceMismatchError, TextLengthError
from twinspire.search.encoding import unit_sum
from twinspire.stores import open_index
from twinspire.towers import describe_server
from twinspire_server.gateway.errors import GatewayError, of_twinspire
from twinspire_server.gateway.inputs import (
    EmbedRequest,
    EncodedImage,
    EncodedSound,
    ImageUrl,
    Input,
    Mixed,
    Part,
    Text,
    parts_of,
)
from twinspire_server.gateway.safety.context import charge_inputs
from twinspire_server.gateway.safety.fetching import ImageFetcher
from twinspire_server.gateway.settings import GatewaySettings

# More texts than this are tokenized in a thread: these take about a millisecond.
_INLINE_TEXTS = 64


Result = TypeVar("Result")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a request, and what its usage is counted by.

    `vectors` are (N, D) float32, L2-normalised, in the order of the inputs. `text_tokens` is the number of tokens of
    all texts, as they were cut; `images` are the encoded images, in the order of the request, each of which counts
    `image_tokens`, the patches that the tower cuts it into, or 0 where the bundle does not say. `model` is the bundle's
    name.
    """

    vectors: NDArray[np.float32]
    text_tokens: int
    model: str
    images: Sequence[bytes] = ()
    image_tokens: int = 0

    @property
    def tokens(self) -> int:
        """The number of tokens of all texts and images."""
        return self.text_tokens + len(self.images) * self.image_tokens


class Embedder:
    """Embeds the inputs of requests with one client. Refuses them while too many wait.

    An async context manager; for the event loop that it was opened in.
    """

    def __init__(self, client: AsyncClient, settings: GatewaySettings) -> None:
        self.client = client
        self._settings = settings
        self.pending = 0
        """Inputs that are computed or wait."""
        hosts = settings.safety.allow_image_host
        limits = settings.safety.image_limits
        self._fetcher = ImageFetcher(hosts, max_bytes=limits.max_bytes) if hosts else None

    @classmethod
    async def open(cls, settings: GatewaySettings) -> Self:
        """Connect to the servers, or open the bundle in this process.

        Raises what `AsyncClient` and `open_index` raise, and SpaceMismatchError where the index is of another model.
        """
        bundle = await asyncio.to_thread(_bundle_of, settings)
        limits = settings.safety.image_limits
        if settings.servers:
            client = await AsyncClient.connect(
                settings.servers,
                bundle,
                tls=settings.server_tls,
                decode=settings.decode,
                limits=limits,
                deadline_s=settings.safety.deadline,
            )
        else:
            assert isinstance(bundle, Bundle | Path)
            client = await AsyncClient.local(bundle, decode=settings.decode, limits=limits)
        return cls(client, settings)

    @property
    def model(self) -> str:
        """The model's name in requests: that of the bundle."""
        return self.client.bundle.name

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model in requests: that of the bundle and its aliases."""
        return (self.model, *self._settings.aliases)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return the vectors of a request's inputs.

        Raises GatewayError for another model's name, too many or no inputs, dimensions or a kind of input that the
        model does not have, an input that is no image or too long, and where too many inputs wait; TwinspireError
        where the server fails.
        """
        parts = request.parts()
        self._check(request, len(parts))
        towers = [_tower(part) for part in parts]
        self._check_towers(request, parts, towers)
        with self.admitted(len(parts)):
            positions = {tower: [at for at, of in enumerate(towers) if of is tower] for tower in dict.fromkeys(towers)}
            sequences = await self._tokenized(request, parts, positions.get(Tower.TEXT, []))
            files: list[bytes] = []  # of the images
            encoders: dict[Tower, Callable[[], Coroutine[Any, Any, NDArray[np.float32]]]] = {
                Tower.TEXT: lambda: self.client.towers.encode_texts(sequences),
                Tower.IMAGE: lambda: self._images(request, parts, positions[Tower.IMAGE], files),
                Tower.AUDIO: lambda: self._sounds(request, parts, positions[Tower.AUDIO]),
            }
            rows = await _together([encoders[tower]() for tower in positions])
        vectors = rows[0]
        if len(rows) > 1:
            vectors = np.empty((len(parts), self.client.dim), np.float32)
            for places, found in zip(positions.values(), rows, strict=True):
                vectors[places] = found
        vectors = self._sums(vectors, request)
        if request.dimensions is not None:
            vectors = cut_vectors(vectors, request.dimensions)
        image = self.client.bundle.manifest.towers.image
        patches = None if image is None else image.patches
        return Embeddings(vectors, sum(map(len, sequences)), self.model, files, patches or 0)

    def check_model(self, name: str) -> None:
        """Raise GatewayError unless the model is called so."""
        if name not in self.names:
            raise GatewayError(
                404,
                f"the model {name!r} is not served here: expected {' or '.join(map(repr, self.names))}",
                "model",
                "model_not_found",
            )

    async def close(self) -> None:
        """Close the client."""
        if self._fetcher is not None:
            await self._fetcher.close()
        await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check(self, request: EmbedRequest, count: int) -> None:
        if request.model is not None:
            self.check_model(request.model)
        if not request.inputs:
            raise GatewayError(
                400, f"{request.name}: nothing to embed, expected at least one", request.name, "empty_input"
            )
        if count > self._settings.max_inputs:
            raise GatewayError(
                400,
                f"{request.name}: {count} texts and images, expected at most {self._settings.max_inputs}. Send the "
                "rest in further requests",
                request.name,
                "too_many_inputs",
            )
        dims = self.client.bundle.dims
        if request.dimensions is not None and request.dimensions not in dims:
            raise GatewayError(
                400,
                f"{request.dimensions_name} {request.dimensions}: expected {shown_dims(dims)}, what the model "
                f"{self.model} has",
                request.dimensions_name,
                "dimensions_not_allowed",
            )

    def _check_towers(self, request: EmbedRequest, parts: Sequence[Part], towers: Sequence[Tower]) -> None:
        nouns = {Tower.TEXT: "texts", Tower.IMAGE: "images", Tower.AUDIO: "sounds"}
        present = self.client.bundle.towers
        for tower in {*towers} - {*present}:
            place = _place(request, parts, towers.index(tower))
            known = " and ".join(nouns[each] for each in present)
            raise GatewayError(
                400, f"{place}: the model {self.model} embeds {known}, no {nouns[tower]}", place, "kind_not_supported"
            )
        if self.client.vectors_per_item > 1 and Tower.IMAGE in towers:
            place = _place(request, parts, towers.index(Tower.IMAGE))
            raise GatewayError(
                400,
                f"{place}: the model {self.model} gives {self.client.vectors_per_item} vectors an image, a response "
                "has room for one. Texts can be embedded here; index and search its images with twinspire",
                place,
                "several_vectors",
            )

    @contextmanager
    def admitted(self, inputs: int) -> Iterator[None]:
        """Count inputs as waiting during a block. Raises GatewayError where too many wait."""
        if self.pending + inputs > self._settings.max_pending:
            raise of_twinspire(ServerOverloadedError(f"{self.pending} inputs wait already: try again later"))
        charge_inputs(inputs)
        self.pending += inputs
        try:
            yield
        finally:
            self.pending -= inputs

    async def _tokenized(
        self, request: EmbedRequest, parts: Sequence[Part], positions: Sequence[int]
    ) -> list[NDArray[np.int32]]:
        texts = [part.text for part in (parts[at] for at in positions) if isinstance(part, Text)]
        if not texts:
            return []
        try:
            if len(texts) <= _INLINE_TEXTS:
                return self.client.tokenize(texts, truncation=request.truncation)
            return await asyncio.to_thread(self.client.tokenize, texts, truncation=request.truncation)
        except TextLengthError as error:
            place = _place(request, parts, positions[error.position])
            raise GatewayError(
                400,
                f"{place} has {error.tokens} tokens: expected at most {error.limit}, the context of the model "
                f"{self.model}. Shorten it, or ask for texts to be truncated",
                place,
                "text_too_long",
            ) from error

    async def _images(
        self, request: EmbedRequest, parts: Sequence[Part], positions: Sequence[int], files: list[bytes]
    ) -> NDArray[np.float32]:
        """Encode the images at `positions`, and add their files to `files`."""
        urls = [at for at in positions if isinstance(parts[at], ImageUrl)]
        fetched = await _together([self._fetched(parts[at], _place(request, parts, at)) for at in urls]) if urls else []
        following = iter(fetched)
        files.extend(part.data if isinstance(part := parts[at], EncodedImage) else next(following) for at in positions)
        try:
            return await self.client.encode_images(files)
        except ItemError as error:
            raise _of_item(error, _place(request, parts, positions[error.position]), "invalid_image") from error

    async def _sounds(
        self, request: EmbedRequest, parts: Sequence[Part], positions: Sequence[int]
    ) -> NDArray[np.float32]:
        files = [part.data for part in (parts[at] for at in positions) if isinstance(part, EncodedSound)]
        try:
            return await self.client.encode_audio(files)
        except ItemError as error:
            raise _of_item(error, _place(request, parts, positions[error.position]), "invalid_audio") from error

    async def _fetched(self, image: Part, place: str) -> bytes:
        assert isinstance(image, ImageUrl)
        if self._fetcher is not None:
            try:
                return await self._fetcher.fetch(image.url)
            except GatewayError as error:
                raise replace(error, message=f"{place}: {error.message}", param=place) from error
        raise GatewayError(
            400, f"{place}: images are not fetched from URLs here: send a data URI", place, "url_not_allowed"
        )

    def _sums(self, vectors: NDArray[np.float32], request: EmbedRequest) -> NDArray[np.float32]:
        """Return a vector for each input: that of its one part, or the normalised sum of its parts'."""
        if not any(isinstance(input_, Mixed) for input_ in request.inputs):
            return vectors
        sums = np.empty((len(request.inputs), vectors.shape[1]), np.float32)
        end = 0
        for row, input_ in enumerate(request.inputs):
            start, end = end, end + len(parts_of(input_))
            total = _sum(vectors[start:end], input_)
            if total is None:
                place = f"{request.name}[{row}]"
                raise GatewayError(
                    400, f"{place}: its parts cancel out: their vectors add up to zero", place, "parts_cancel_out"
                )
            sums[row] = total
        return sums


def _bundle_of(settings: GatewaySettings) -> BundleDescription | Path | None:
    """Return the bundle that was given, else the one that the index is of; None where the servers say it."""
    if settings.index is None:
        return settings.bundle
    with open_index(settings.index) as store:
        if not settings.servers or settings.bundle is not None:
            return open_bundle(settings.bundle, store)
        try:
            return describe_server(settings.servers, space=split_space(store.space)[0], tls=settings.server_tls)
        except InputError as error:
            if error.option != "name":  # that of the server's models is the one of the space
                raise
            raise SpaceMismatchError(
                f"the index {store.uri} was made with {store.bundle or 'a bundle that it does not record'}: {error}. "
                "Serve that model too, or name another index",
                expected=store.space,
            ) from error


def _place(request: EmbedRequest, parts: Sequence[Part], at: int) -> str:
    return request.place(at, parts[at])


def _tower(part: Part) -> Tower:
    match part:
        case Text():
            return Tower.TEXT
        case EncodedSound():
            return Tower.AUDIO
        case _:
            return Tower.IMAGE


def _sum(vectors: NDArray[np.float32], input_: Input) -> NDArray[np.float32] | None:
    return unit_sum(vectors, np.ones(len(vectors))) if isinstance(input_, Mixed) else vectors[0]


def _of_item(error: ItemError, place: str, code: str) -> GatewayError:
    return GatewayError(400, f"{place}: {error.cause}", place, code)


async def _together(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run coroutines side by side; return their results in order. Where one fails, the others are cancelled."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
