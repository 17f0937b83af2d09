"""Encoding of queries to unit vectors: prompt templates, weighted sums, and a cache of embeddings."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import as_list, require_text, shown
from twinspire._lru_cache import LruCache
from twinspire.audio import AudioItem
from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.search.query import Query, QueryPart
from twinspire.search.text_files import read_lines

# Of a sum of unit vectors, relative to its weights: rounding alone leaves some 1e-7.
_MIN_NORM = 1e-4


class Encoder(Protocol):
    """What a search needs of a client; `twinspire.Client` is one."""

    @property
    def space(self) -> str:
        """The space of the embeddings."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode N texts to (N, D) float32, L2-normalised."""

    def encode_images(self, items: Iterable[ImageItem]) -> NDArray[np.float32]:
        """Encode N images to (N, D) float32, or (N, Q, D) of Q vectors each, L2-normalised."""

    def encode_audio(self, items: Iterable[AudioItem]) -> NDArray[np.float32]:
        """Encode N sounds to (N, D) float32, L2-normalised."""


@dataclass(frozen=True, slots=True)
class Templates:
    """Prompt templates, such as `a photo of {}`: a text is put into each, and the vectors are averaged.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 3.1.4. Raises
    `InputError` for a template that does not have {} exactly once.
    """

    sentences: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentences", tuple(as_list(self.sentences, "templates")))
        if not self.sentences:
            raise InputError("no templates: expected at least one, such as: a photo of {}")
        for sentence in self.sentences:
            if require_text(sentence, "a template").count("{}") != 1:
                raise InputError(
                    f"the template {shown(sentence)}: expected {{}} exactly once, in place of the text, as in: "
                    "a photo of {}"
                )

    @classmethod
    def read(cls, path: str | Path) -> Templates:
        """Read a file with one template a line. Raises `InputError` with the line."""
        sentences: list[str] = []
        for number, line in read_lines(path, "the templates"):
            try:
                sentences += cls((line,)).sentences
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}", path=path, line=number) from None
        return cls(tuple(sentences))

    def filled(self, text: str) -> list[str]:
        """Return the sentences with `text` in them."""
        return [sentence.replace("{}", text) for sentence in self.sentences]

    def averaged(self, embeddings: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the mean of each text's vectors, (N, D) float32, L2-normalised, of (N * sentences, D).

        Raises `InputError` where the vectors of a text cancel out.
        """
        mean = embeddings.reshape(len(texts), len(self.sentences), -1).mean(axis=1)  # (N, D)
        norms = np.linalg.norm(mean, axis=1, keepdims=True)
        if (norms < 1e-6).any():
            raise InputError("the templates cancel out: the vectors of their sentences add up to zero")
        return np.asarray(mean / norms, np.float32)


def unit_sum(vectors: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Return the weighted sum of P vectors, (P, D) or (P, Q, D), L2-normalised; None where they cancel out."""
    total = np.tensordot(weights, vectors.astype(np.float64), axes=1)  # (D,) or (Q, D)
    norm = np.linalg.norm(total, axis=-1, keepdims=True)
    if not (norm > _MIN_NORM * np.abs(weights).sum()).all():
        return None
    unit: NDArray[np.float32] = (total / norm).astype(np.float32)
    return unit


class QueryEncoder:
    """Encodes queries with one client. Embeddings of texts, and of images and sounds in files, are kept in `cache`.

    Cache keys have the space, the engine and the templates, so that several encoders may share one cache.
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
        """Return the vector of a query, (D,) float32, L2-normalised.

        In a space of Q vectors an image, a query with an image has Q vectors, (Q, D): texts are added to each of them,
        images vector by vector, as the vectors of one place come from one learned query. Quoted phrases in a text are
        left out, unless there is nothing else. Raises `InputError` where the parts cancel out, `ImageError` for an
        image that cannot be used, `EngineError`, `ServerError`.
        """
        vectors = np.stack(np.broadcast_arrays(*self._embeddings(query.parts)))  # (P, D) or (P, Q, D)
        unit = unit_sum(vectors, np.array([part.weight for part in query.parts]))
        if unit is None:
            raise InputError(f"the parts of the query {query} cancel out: their vectors add up to zero")
        return unit

    def _embeddings(self, parts: Sequence[QueryPart]) -> list[NDArray[np.float32]]:
        """Return the vector of each part, (D,), or (Q, D) of an image with several."""
        keys = [self._key(part) for part in parts]
        vectors = [self._cache.get(key) if key is not None else None for key in keys]
        encoders = {"text": self._texts, "image": self._images, "audio": self._audio}
        for name, encode in encoders.items():  # one call of the client for all texts, one for all images, ...
            missing = [
                position
                for position, part in enumerate(parts)
                if vectors[position] is None and getattr(part, name) is not None
            ]
            if not missing:
                continue
            encoded = encode([parts[position] for position in missing])
            for position, row in zip(missing, encoded, strict=True):
                vectors[position] = row
                if (key := keys[position]) is not None:
                    kept = row.copy()  # not a view of the whole batch
                    kept.flags.writeable = False
                    self._cache.put(key, kept)
        return [vector for vector in vectors if vector is not None]

    def _texts(self, parts: Sequence[QueryPart]) -> NDArray[np.float32]:
        texts = [part.encoded_text for part in parts]
        sentences = [sentence for text in texts for sentence in self._templates.filled(text)]
        return self._templates.averaged(self._client.encode_texts(sentences), texts)

    def _images(self, parts: Sequence[QueryPart]) -> NDArray[np.float32]:
        return self._client.encode_images([part.image for part in parts if part.image is not None])

    def _audio(self, parts: Sequence[QueryPart]) -> NDArray[np.float32]:
        return self._client.encode_audio([part.audio for part in parts if part.audio is not None])

    def _key(self, part: QueryPart) -> Hashable | None:
        if part.text is not None:
            return (self._client.space, self._engine, self._templates, part.encoded_text)
        return (self._client.space, self._engine, part.key) if part.key is not None else None


def _engine(client: Any) -> Hashable:  # noqa: ANN401 - any client has an engine of its own kind
    """Return a key for the engine: how it runs in this process, or the towers object itself."""
    towers = getattr(client, "towers", client)
    runtime = getattr(towers, "runtime", None)
    return str(runtime) if runtime is not None else _Identity(towers)


class _Identity:
    """Key that is equal for the same object only, and keeps it alive so that its id is not used again."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._thing is other._thing

    def __hash__(self) -> int:
        return id(self._thing)
