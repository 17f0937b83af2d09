"""Images with captions, whatever file they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.images import ImageItem


@dataclass(frozen=True)
class Caption:
    """What somebody says about an image; `language` is None where the data set does not tell."""

    text: str
    language: str | None = None


@dataclass(frozen=True)
class Said:
    """The captions in one language, one after the other, and the position of the image that each belongs to.

    `owners` is (T,) int64, never falling: an image's captions stand together.
    """

    texts: list[str]
    owners: NDArray[np.int64]


class LazyImages(Sequence[ImageItem]):
    """A list of images of which each is made when it is asked for, and again when it is asked for again."""

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

    `name` says for people what this is. `images` holds what `twinspire.Client` takes as an image: paths, which are
    read when they are encoded, arrays, or drawings that are made when they are asked for. Nothing here decodes.

    Raises InputError for none at all, for lists of different lengths, an id that comes twice, an image without a
    caption and a caption without a word.
    """

    name: str
    ids: tuple[str, ...]
    pictures: Sequence[ImageItem]
    captions: tuple[tuple[Caption, ...], ...]

    def __post_init__(self) -> None:
        lengths = len(self.ids), len(self.pictures), len(self.captions)
        if len(set(lengths)) != 1 or not self.ids:
            raise InputError(
                f"{self.name}: {lengths[0]} ids, {lengths[1]} pictures and captions of {lengths[2]}: "
                "expected as many of each, at least one"
            )
        if len(set(self.ids)) != len(self.ids):
            twice = first_repeated(self.ids)
            raise InputError(f"{self.name}: the id {twice!r} comes more than once: give every picture its own")
        for name, said in zip(self.ids, self.captions, strict=True):
            if not said:
                raise InputError(f"{self.name}: picture {name!r} has no caption: add one or leave the picture out")
            if not all(caption.text.strip() for caption in said):
                raise InputError(f"{self.name}: picture {name!r} has an empty caption: expected words")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def languages(self) -> tuple[str | None, ...]:
        """The captions' languages in order; None, for those of an unknown one, is the last."""
        found = {caption.language for said in self.captions for caption in said}
        return tuple(sorted(found, key=lambda language: (language is None, language or "")))

    @property
    def sha256(self) -> str:
        """Names the ids and captions in their order: equal for equal questions, wherever the files lie.

        The images themselves are not in it, they would have to be read.
        """
        content = [
            [name, [[caption.text, caption.language] for caption in said]]
            for name, said in zip(self.ids, self.captions, strict=True)
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def said(self, language: str | None) -> Said:
        """Return all captions in one language; an image may have none in it, but not all.

        Raises InputError where there is no caption in that language.
        """
        texts: list[str] = []
        owners: list[int] = []
        for position, captions in enumerate(self.captions):
            own = [caption.text for caption in captions if caption.language == language]
            texts += own
            owners += [position] * len(own)
        if not texts:
            there = ", ".join(found or "captions of no named language" for found in self.languages)
            asked = "of no named language" if language is None else f"in the language {language!r}"
            raise InputError(f"{self.name}: there are no captions {asked}: it has {there}")
        return Said(texts, np.array(owners, np.int64))

    def sample(self, limit: int, *, seed: int = 0) -> CaptionedImages:
        """Draw `limit` images, with all their captions and in the order they have here; all if there are fewer."""
        positions = drawn_positions(len(self), limit, seed=seed)
        if len(positions) == len(self):
            return self
        return CaptionedImages(
            sampled_name(self.name, len(positions), len(self), seed=seed),
            tuple(self.ids[position] for position in positions),
            LazyImages(len(positions), lambda index: self.pictures[positions[index]]),
            tuple(self.captions[position] for position in positions),
        )

    def chunks(self, size: int) -> Iterator[Sequence[ImageItem]]:
        """Yield the images in their order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.pictures[start : start + size]


def drawn_positions(count: int, limit: int | None, *, seed: int) -> list[int]:
    """Draw `limit` of `count` positions, in rising order; all of them where there is no limit or it is not reached."""
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: expected at least 1 picture")
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    if limit is None or limit >= count:
        return list(range(count))
    chosen = np.random.default_rng(seed).choice(count, limit, replace=False)
    return sorted(int(position) for position in chosen)


def sampled_name(name: str, drawn: int, count: int, *, seed: int) -> str:
    """Say that only some images of a data set were taken."""
    return name if drawn == count else f"{name}, {drawn:,} of {count:,} drawn with seed {seed}"


def first_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that was there before, None where all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
