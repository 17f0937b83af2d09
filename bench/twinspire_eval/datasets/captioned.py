"""Images with captions, whatever file or generator they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.images import ImageItem


@dataclass(frozen=True)
class Caption:
    """A caption of an image; `language` is None where the data set names none.

    `key` identifies a caption that belongs to several images: those with equal keys are one query, and each of its
    images is a right answer.
    """

    text: str
    language: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class CaptionTexts:
    """The captions in one language, and the position of the image that each belongs to.

    `owners` is (T,) int64 in ascending order: an image's captions are adjacent. Where captions belong to several
    images, it holds the first of each, and `pairs`, (P, 2) int64, all pairs of a caption's and an image's position.
    """

    texts: list[str]
    owners: NDArray[np.int64]
    pairs: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class LabelledQuery:
    """A query and the positions of all images that are right answers to it: one or more, in ascending order."""

    text: str
    language: str | None
    relevant: tuple[int, ...]


class LazyImages(Sequence[ImageItem]):
    """A sequence of images, each of which is made anew whenever it is accessed."""

    def __init__(self, count: int, make: Callable[[int], ImageItem]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageItem]: ...
    def __getitem__(self, index: int | slice) -> ImageItem | Sequence[ImageItem]:
        if isinstance(index, slice):
            positions = range(self._count)[index]
            return LazyImages(len(positions), lambda position: self._make(positions[position]))
        return self._make(range(self._count)[index])


@dataclass(frozen=True)
class CaptionedImages:
    """N images, each with an id of its own and one or more captions, in a fixed order.

    `name` describes the data set for people. `images` holds what `twinspire.Client` takes as an image: paths, arrays,
    or the bytes of files that are generated when they are accessed. Nothing here decodes them. It is empty where the
    data set is of captions alone, which find other captions of their image. `test_set` is the name of the published
    test set that it is, whole, or None; `note` says what users should know about it. With `may_lack_captions` an image
    without a caption is one that no caption should find. `queries` are searched for beside the captions: short ones,
    each with all images that are right.

    Raises InputError for no images, lists of different lengths, a repeated id, an image without a caption, an empty
    caption or query, and a query whose right images are none, not in ascending order or not in the data set.
    """

    name: str
    ids: tuple[str, ...]
    images: Sequence[ImageItem]
    captions: tuple[tuple[Caption, ...], ...]
    test_set: str | None = None
    note: str | None = None
    may_lack_captions: bool = False
    queries: tuple[LabelledQuery, ...] = ()

    def __post_init__(self) -> None:
        lengths = len(self.ids), len(self.images), len(self.captions)
        if lengths[0] != lengths[2] or lengths[1] not in (0, lengths[0]) or not self.ids:
            raise InputError(
                f"{self.name}: {lengths[0]} ids, {lengths[1]} images and captions of {lengths[2]}: expected as many of "
                "each, at least one"
            )
        if (repeated := first_repeated(self.ids)) is not None:
            raise InputError(f"{self.name}: the id {repeated!r} comes more than once: give every image its own")
        for name, captions in zip(self.ids, self.captions, strict=True):
            if not captions and not self.may_lack_captions:
                raise InputError(f"{self.name}: image {name!r} has no caption: add one or leave the image out")
            if not all(caption.text.strip() for caption in captions):
                raise InputError(f"{self.name}: image {name!r} has an empty caption: expected words")
        for query in self.queries:
            self._check_query(query)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_images(self) -> bool:
        """Whether there are images, and not captions alone."""
        return len(self.images) > 0

    @property
    def languages(self) -> tuple[str | None, ...]:
        """The captions' languages in order; None, for those of an unknown one, is the last."""
        found = {caption.language for captions in self.captions for caption in captions}
        return tuple(sorted(found, key=lambda language: (language is None, language or "")))

    @property
    def sha256(self) -> str:
        """The hash of the ids and captions in their order: equal for equal queries, wherever the files are.

        The content of the images is not part of it, it would have to be read. Nor are `queries`: a data set that gets
        some keeps the hash by which certificates and records know its captions; theirs is `queries_sha256`.
        """
        content = [
            [name, [[caption.text, caption.language, *filter(None, [caption.key])] for caption in captions]]
            for name, captions in zip(self.ids, self.captions, strict=True)
        ]
        return _sha256(content)

    @property
    def queries_sha256(self) -> str | None:
        """The hash of the queries and the ids of the images that are right, None without queries."""
        if not self.queries:
            return None
        return _sha256(
            [[query.text, query.language, [self.ids[place] for place in query.relevant]] for query in self.queries]
        )

    def queries_in(self, language: str | None) -> tuple[LabelledQuery, ...]:
        """Return the queries in one language; it may have none."""
        return tuple(query for query in self.queries if query.language == language)

    def captions_in(self, language: str | None) -> CaptionTexts:
        """Return all captions in one language, those of several images once; an image may have none in it.

        Raises InputError where no image has a caption in that language.
        """
        texts: list[str] = []
        owners: list[int] = []
        pairs: list[tuple[int, int]] = []
        places: dict[str, int] = {}  # of captions with a key
        for position, captions in enumerate(self.captions):
            for caption in captions:
                if caption.language != language:
                    continue
                place = len(texts) if caption.key is None else places.setdefault(caption.key, len(texts))
                if place == len(texts):
                    texts.append(caption.text)
                    owners.append(position)
                pairs.append((place, position))
        if not texts:
            available = ", ".join(found or "captions without a language" for found in self.languages)
            asked = "without a language" if language is None else f"in the language {language!r}"
            raise InputError(f"{self.name}: no caption is {asked}: expected one of: {available}")
        shared = len(pairs) > len(texts)
        return CaptionTexts(texts, np.array(owners, np.int64), np.array(pairs, np.int64) if shared else None)

    def sample(self, limit: int, *, seed: int = 0) -> CaptionedImages:
        """Sample `limit` images with all their captions, in their order here; take all if there are fewer.

        Of the queries those stay of which a sampled image is right.
        """
        positions = sample_positions(len(self), limit, seed=seed)
        if len(positions) == len(self):
            return self
        return CaptionedImages(
            sampled_name(self.name, len(positions), len(self), seed=seed),
            tuple(self.ids[position] for position in positions),
            LazyImages(len(positions), lambda index: self.images[positions[index]]) if self.has_images else (),
            tuple(self.captions[position] for position in positions),
            may_lack_captions=self.may_lack_captions,
            queries=tuple(_sampled_queries(self.queries, positions)),
        )

    def chunks(self, size: int) -> Iterator[Sequence[ImageItem]]:
        """Yield the images in their order, `size` at a time."""
        for start in range(0, len(self.images), size):
            yield self.images[start : start + size]

    def _check_query(self, query: LabelledQuery) -> None:
        named = f"{self.name}: the query {query.text!r}"
        if not query.text.strip():
            raise InputError(f"{named} is empty: expected words")
        if not self.has_images:
            raise InputError(f"{named} has no images to find: leave queries out of a data set of captions alone")
        places = query.relevant
        if not places or list(places) != sorted(set(places)):
            raise InputError(f"{named} has the right images {list(places)}: expected one or more in ascending order")
        if places[0] < 0 or places[-1] >= len(self):
            raise InputError(f"{named} has the right images {list(places)}: expected 0 to {len(self) - 1}")


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Which part of a data set to open, and where its images are; see `open_dataset`."""

    images: Path | None = None
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    published_split: bool = False


def sample_positions(count: int, limit: int | None, *, seed: int) -> list[int]:
    """Return `limit` of `count` positions chosen at random, in ascending order; all where `limit` is None or larger."""
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: expected at least 1 image")
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    if limit is None or limit >= count:
        return list(range(count))
    chosen = np.random.default_rng(seed).choice(count, limit, replace=False)
    return sorted(int(position) for position in chosen)


def _sampled_queries(queries: Sequence[LabelledQuery], positions: Sequence[int]) -> Iterator[LabelledQuery]:
    places = {position: place for place, position in enumerate(positions)}
    for query in queries:
        relevant = tuple(places[position] for position in query.relevant if position in places)
        if relevant:
            yield replace(query, relevant=relevant)


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def sampled_name(name: str, sampled: int, count: int, *, seed: int) -> str:
    """Return the name of a data set of which only some images are taken."""
    return name if sampled == count else f"{name}, {sampled:,} of {count:,} sampled with seed {seed}"


def first_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that came before, None where all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
