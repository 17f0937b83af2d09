"""Encoding of queries in threads, with the engines or the connection that the gateway's event loop has already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire import AsyncClient, Client
from twinspire.bundle import BundleDescription
from twinspire.errors import BundleError, InputError, ItemError, MissingDependencyError
from twinspire.stores import StoredItem, VectorStore
from twinspire.towers import AsyncTowers
from twinspire_server.gateway.errors import GatewayError


@dataclass(frozen=True)
class EncodedFile:
    """The content of an image or sound file that a request brought.

    A query part that is one has no cache key, unlike one of bytes: a cache of embeddings would keep the files.
    """

    data: bytes


@dataclass(frozen=True)
class ItemReference:
    """An item of the index, in place of an image or sound: its stored vector is used."""

    id: int


Media: TypeAlias = EncodedFile | ItemReference


class ThreadsClient(Client):
    """A `Client` for threads: it has an `AsyncClient`'s tokenizer, preprocessing and towers, and none of its own.

    Its calls wait for `loop`, in which the towers were opened, and so must not be made in it. `close` closes nothing.
    """

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self.__dict__.update(vars(client))  # a tokenizer may take a second and 100 MB
        self.towers = _LoopTowers(client.towers, loop, client.bundle)


class _LoopTowers:
    """Towers whose calls run in an event loop."""

    def __init__(self, towers: AsyncTowers, loop: asyncio.AbstractEventLoop, bundle: BundleDescription) -> None:
        self._towers, self._loop, self._bundle = towers, loop, bundle
        self.dim, self.space = towers.dim, towers.space

    def __repr__(self) -> str:
        return repr(self._towers)

    @property
    def context_length(self) -> int:
        return self._bundle.text.context_length

    def encode_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._run(self._towers.encode_images(images))

    def encode_texts(self, sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        return self._run(self._towers.encode_texts(sequences))

    def encode_audio(self, spectrograms: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._run(self._towers.encode_audio(spectrograms))

    def score_pairs(self, images: NDArray[np.uint8], sequences: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        return self._run(self._towers.score_pairs(images, sequences))

    def close(self) -> None:
        """Close nothing: who opened the towers closes them."""

    def _run(self, call: Coroutine[Any, Any, NDArray[np.float32]]) -> NDArray[np.float32]:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


class MediaEncoder:
    """Encodes texts, and the files that requests brought, with a client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.space, self.bundle = client.space, client.bundle

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) float32, L2-normalised. Raises GatewayError where the model has no text tower."""
        return self._encoded(self.client.encode_texts, list(texts))

    def encode_images(self, items: Iterable[Any]) -> NDArray[np.float32]:
        """Encode N `Media` to (N, D) float32, or (N, Q, D) of Q vectors each, L2-normalised.

        Raises GatewayError for a file that is no image and where the model has no image tower.
        """
        return self._encoded(self.client.encode_images, list(items))

    def encode_audio(self, items: Iterable[Any]) -> NDArray[np.float32]:
        """Encode N `Media` to (N, D) float32, L2-normalised; raises as `encode_images` does."""
        return self._encoded(self.client.encode_audio, list(items))

    def _encoded(self, encode: Callable[[list[Any]], NDArray[np.float32]], items: list[Any]) -> NDArray[np.float32]:
        try:
            return encode([item.data if isinstance(item, EncodedFile) else item for item in items])
        except ItemError as error:
            raise GatewayError(
                400, f"{error.noun} {error.position} of the request: {error.cause}", code="invalid_image"
            ) from error
        except (BundleError, MissingDependencyError) as error:  # no tower of this kind, nothing that reads sounds
            raise GatewayError(400, str(error), code="unsupported_input") from error


class IndexEncoder(MediaEncoder):
    """A `MediaEncoder` for one open store, of which items are encoded by their vectors.

    `closing` is called by `close`.
    """

    def __init__(self, client: Client, store: VectorStore, closing: Callable[[], None] = lambda: None) -> None:
        super().__init__(client)
        self._store, self._closing = store, closing

    def close(self) -> None:
        """Close the client, where it is this index's alone."""
        self._closing()

    def _encoded(self, encode: Callable[[list[Any]], NDArray[np.float32]], items: list[Any]) -> NDArray[np.float32]:
        is_stored = [isinstance(item, ItemReference) for item in items]
        if not any(is_stored):
            return super()._encoded(encode, items)
        stored = iter(self._vectors([item.id for item in items if isinstance(item, ItemReference)]))
        files = [item for item in items if not isinstance(item, ItemReference)]
        encoded = iter(super()._encoded(encode, files) if files else ())
        return np.stack([next(stored if known else encoded) for known in is_stored])

    def _vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        try:
            return self._store.vectors(ids)
        except InputError:
            for id_ in ids:
                stored_item(self._store, id_)
            raise


def stored_item(store: VectorStore, id_: int) -> StoredItem:
    """Return an item. Raises GatewayError where the store does not have it."""
    try:
        (item,) = store.get([id_])
    except InputError as error:
        raise GatewayError(404, f"the index has no item {id_}: it may have been removed", code="no_item") from error
    return item
