"""`Embedder`: the one request behind all dialects, from inputs to vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from twinspire import AsyncClient
from twinspire.errors import ItemError, ServerOverloadedError
from twinspire_server.gateway.errors import GatewayError, of_twinspire
from twinspire_server.gateway.inputs import EmbedRequest, EncodedImage, ImageUrl, Input, Mixed, Part, Text
from twinspire_server.gateway.safety.context import charge_inputs
from twinspire_server.gateway.safety.fetching import ImageFetcher
from twinspire_server.gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Embeddings:
    """Vectors (N, D) float32, L2-normalised, in the order of the inputs, and the tokens of all texts."""

    vectors: NDArray[np.float32]
    tokens: int


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
        """Connect to the servers, or open the bundle in this process. Raises what `AsyncClient` raises."""
        bundle: Path | None = settings.bundle
        limits = settings.safety.image_limits
        if settings.servers:
            client = await AsyncClient.connect(settings.servers, bundle, tls=settings.server_tls, limits=limits)
        else:
            assert bundle is not None
            client = await AsyncClient.local(bundle, limits=limits)
        return cls(client, settings)

    @property
    def model(self) -> str:
        """The model's name in requests: that of the bundle."""
        return self.client.bundle.name

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return the vectors of a request's inputs.

        Raises GatewayError for another model's name, too many or no inputs, dimensions that the model does not allow,
        an input that is no image or too long, and where too many inputs wait; TwinspireError where the server fails.
        """
        self._check(request)
        parts = [part for input_ in request.inputs for part in _parts(input_)]
        if self.pending + len(parts) > self._settings.max_pending:
            raise of_twinspire(ServerOverloadedError(f"{self.pending} inputs wait already: try again later"))
        charge_inputs(len(parts))
        self.pending += len(parts)
        try:
            texts = [part.text for part in parts if isinstance(part, Text)]
            images = [part for part in parts if not isinstance(part, Text)]
            sequences = self.client.tokenize(texts) if texts else []
            rows = await asyncio.gather(self._images(images, request), self._texts(sequences))
        finally:
            self.pending -= len(parts)
        image_rows, text_rows = map(iter, rows)
        vectors = np.stack([next(text_rows if isinstance(part, Text) else image_rows) for part in parts])
        return Embeddings(_sums(vectors, request.inputs), sum(map(len, sequences)))

    async def close(self) -> None:
        """Close the client."""
        if self._fetcher is not None:
            await self._fetcher.close()
        await self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check(self, request: EmbedRequest) -> None:
        if request.model not in (None, self.model):
            raise GatewayError(
                404,
                f"the model {request.model!r} is not served here: expected {self.model!r}",
                "model",
                "model_not_found",
            )
        if not request.inputs:
            raise GatewayError(400, f"{request.name} is empty: expected at least one", request.name, "empty_input")
        if len(request.inputs) > self._settings.max_inputs:
            raise GatewayError(
                400,
                f"{request.name} has {len(request.inputs)} elements: expected at most {self._settings.max_inputs}",
                request.name,
                "too_many_inputs",
            )
        if request.dimensions not in (None, self.client.dim):
            raise GatewayError(
                400,
                f"dimensions {request.dimensions}: the model {self.model} has vectors of {self.client.dim} only",
                "dimensions",
                "dimensions_not_allowed",
            )

    async def _texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        return await self.client.towers.encode_texts(sequences)

    async def _images(self, images: Sequence[Part], request: EmbedRequest) -> NDArray[np.float32]:
        if not images:
            return np.zeros((0, self.client.dim), np.float32)
        files = [await self._file(image) for image in images]
        try:
            return await self.client.encode_images(files)
        except ItemError as error:
            raise GatewayError(400, str(error), request.name, "invalid_image") from error

    async def _file(self, image: Part) -> bytes:
        if isinstance(image, EncodedImage):
            return image.data
        assert isinstance(image, ImageUrl)
        if self._fetcher is not None:
            return await self._fetcher.fetch(image.url)
        raise GatewayError(400, "images are not fetched from URLs here: send a data URI", code="url_not_allowed")


def _parts(input_: Input) -> tuple[Part, ...]:
    return input_.parts if isinstance(input_, Mixed) else (input_,)


def _sums(vectors: NDArray[np.float32], inputs: Sequence[Input]) -> NDArray[np.float32]:
    """Return a vector for each input: that of its one part, or the normalised sum of its parts'."""
    if not any(isinstance(input_, Mixed) for input_ in inputs):
        return vectors
    counts = np.array([len(_parts(input_)) for input_ in inputs])
    sums = np.add.reduceat(vectors, np.concatenate([[0], np.cumsum(counts)[:-1]]))
    sums[counts > 1] /= np.linalg.norm(sums[counts > 1], axis=1, keepdims=True)
    return np.asarray(sums, np.float32)
