"""Queries to unit vectors, each text encoded once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire._lru_cache import LruCache
from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.search.query import Part, Query
from twinspire.search.templates import Templates

_SHORTEST = 1e-4  # of a sum of unit vectors; rounding alone leaves some 1e-7


class Encoder(Protocol):
    """What a search needs of a client; `twinspire.Client` is one."""

    @property
    def space(self) -> str:
        """What names the embeddings that may be compared with these."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) float32, L2-normalised."""

    def encode_images(self, items: Iterable[ImageItem]) -> NDArray[np.float32]:
        """Encode N images to (N, D) float32, L2-normalised."""


class QueryEncoder:
    """Encodes queries with one client. Texts, and images that are files, are kept in `cache`.

    Entries are told apart by space, engine and templates, so that several encoders may share one cache.
    """

    def __init__(
        self, client: Encoder, *, templates: Templates | None = None, cache: LruCache[NDArray[np.float32]]
    ) -> None:
        self._client = client
        self._templates = templates or Templates()
        self._cache = cache
        self._engine = _engine(client)

    @property
    def space(self) -> str:
        """The client's space."""
        return self._client.space

    def vector(self, query: Query) -> NDArray[np.float32]:
        """Return the query as (D,) float32 of length 1.

        Of a text with quoted phrases the rest counts; the phrases where there is nothing else. Raises `InputError`
        where the parts cancel out, `ImageError` for an image that cannot be used, `EngineError`, `ServerError`.
        """
        vectors = [self._known(part) for part in query.parts]
        for is_text in (True, False):
            missing = [
                place
                for place, part in enumerate(query.parts)
                if vectors[place] is None and (part.text is not None) is is_text
            ]
            if missing:
                encoded = self._encode([query.parts[place] for place in missing], is_text)
                for place, row in zip(missing, encoded, strict=True):
                    vectors[place] = row
                    self._keep(query.parts[place], row)
        total = np.zeros(0)
        for part, vector in zip(query.parts, vectors, strict=True):
            assert vector is not None
            weighted = part.weight * vector.astype(np.float64)
            total = weighted if total.size == 0 else total + weighted
        length = float(np.linalg.norm(total))
        if not length > _SHORTEST * sum(abs(part.weight) for part in query.parts):
            raise InputError(f"the parts of the query {query} cancel out: nothing is left to look for")
        return (total / length).astype(np.float32)

    def _encode(self, parts: Sequence[Part], is_text: bool) -> NDArray[np.float32]:
        if not is_text:
            return self._client.encode_images([part.picture for part in parts if part.picture is not None])
        texts = [_said(part) for part in parts]
        sentences = [sentence for text in texts for sentence in self._templates.filled(text)]
        return self._templates.averaged(self._client.encode_texts(sentences), texts)

    def _key(self, part: Part) -> Hashable | None:
        if part.text is not None:
            return (self._client.space, self._engine, self._templates, _said(part))
        return (self._client.space, self._engine, part.key) if part.key is not None else None

    def _known(self, part: Part) -> NDArray[np.float32] | None:
        key = self._key(part)
        return self._cache.get(key) if key is not None else None

    def _keep(self, part: Part, vector: NDArray[np.float32]) -> None:
        key = self._key(part)
        if key is not None:
            kept = vector.copy()  # not a view of the whole batch
            kept.flags.writeable = False
            self._cache.put(key, kept)


def _said(part: Part) -> str:
    wording = part.wording
    return wording.rest or " ".join(wording.phrases) or part.text or ""


def _engine(client: Any) -> Hashable:  # noqa: ANN401 - any client has an engine of its own kind
    """Return what names the engine: how it runs in this process, or the towers themselves."""
    towers = getattr(client, "towers", client)
    runtime = getattr(towers, "runtime", None)
    return str(runtime) if runtime is not None else id_of(towers)


class id_of:  # noqa: N801 - reads as what it gives
    """Equal for one and the same object alone, which it keeps alive so that no other takes its place."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, id_of) and self._thing is other._thing

    def __hash__(self) -> int:
        return id(self._thing)
