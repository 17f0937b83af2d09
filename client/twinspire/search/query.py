"""`Query`: a weighted sum of texts, images and sounds, and the syntax of sums."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias, cast

from twinspire._arguments import as_weight, checked_array, checked_object, is_finite, naming, require_text, shown
from twinspire.audio import AudioItem
from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.search.text_query import ParsedText, parse_phrases

ImageResolver: TypeAlias = Callable[[str], ImageItem]
"""Turns the name of an image or sound file in a query into it; raises `InputError` for a name that the caller may not
use or that does not exist. A command passes one that opens any file, a server one that refuses or restricts them."""

_IMAGE_NAME = re.compile(r".*\.(jpe?g|jfif|png|webp|gif|tiff?|bmp|p[gp]m|avif|jp2)", re.DOTALL | re.IGNORECASE)
_AUDIO_NAME = re.compile(r".*\.(wave?|flac|og[ga]|opus|mp3|aif[fc]?|aiff|caf)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*\*\s*(.+)", re.DOTALL)
_SHOWN = 60
_QUOTES = {'"': '"', "'": "'", "“": "”", "「": "」", "『": "』"}
_EDGES = frozenset([*_QUOTES, *_QUOTES.values()])


@dataclass(frozen=True, slots=True, eq=False)
class QueryPart:
    """A text, an image or a sound and its weight; a weight below 0 subtracts it.

    Parts are equal where weight, text, image and audio are: images and sounds by path or by encoded bytes, others (a
    PIL image, an array, a file object) only where they are the same object.
    """

    weight: float
    text: str | None = None
    image: ImageItem | None = None
    audio: AudioItem | None = None

    def __post_init__(self) -> None:
        with naming("weight"):
            object.__setattr__(self, "weight", as_weight(self.weight, "the weight of a query's part"))
        given = sum(value is not None for value in (self.text, self.image, self.audio))
        if given != 1:
            raise InputError(f"a part of a query is a text, an image or a sound: expected one of them, got {given}")
        if self.text is not None:
            with naming("text"):
                if not require_text(self.text, "the text of a query").strip():
                    raise InputError(f"the query is empty: expected a text to search for, got {shown(self.text)}")

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, QueryPart) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> Hashable:
        media = [
            item if item is None or isinstance(item, str | bytes | Path) else (type(item), id(item))
            for item in (self.image, self.audio)
        ]
        return self.weight, self.text, *media

    @property
    def media(self) -> ImageItem | AudioItem | None:
        """The image or the sound; None for a text."""
        return self.audio if self.image is None else self.image

    def to_dict(self) -> dict[str, Any]:
        """Return the part as JSON. Raises `InputError` for an image or sound that is not given by its path."""
        if self.text is not None:
            return {"text": self.text, "weight": self.weight}
        if not isinstance(self.media, str | os.PathLike):
            noun = "an image" if self.audio is None else "a sound"
            raise InputError(
                f"{noun} in memory ({type(self.media).__name__}) cannot be written as JSON: give it by its path"
            )
        return {"image" if self.audio is None else "audio": os.fsdecode(self.media), "weight": self.weight}

    @classmethod
    def from_dict(cls, document: object, *, images: ImageResolver | None = None) -> QueryPart:
        """Read what `to_dict` writes; the weight may be left out. `images` is as of `Query.parse`."""

        def media(name: str) -> Any:  # noqa: ANN401 - an image or sound, as the resolver gives it
            return _resolved(require_text(name, "the name of a file"), images)

        checks: dict[str, Callable[[Any], Any]] = {
            "weight": lambda weight: as_weight(weight, "a weight"),
            "text": lambda text: require_text(text, "the text of a query"),
            "image": media,
            "audio": media,
        }
        return cls(**{"weight": 1.0} | checked_object(document, "a part of a query", checks, optional=checks))

    @property
    def parsed(self) -> ParsedText:
        """The text with its quoted phrases set apart."""
        return parse_phrases(self.text or "")

    @property
    def encoded_text(self) -> str:
        """The words of a text that a model reads: without its quoted phrases, unless there is nothing else."""
        return self.parsed.rest or " ".join(self.parsed.phrases) or self.text or ""

    @property
    def key(self) -> Hashable | None:
        """A cache key: equal for equal content; None where that is unknown, as for pixels in memory."""
        if self.text is not None:
            return ("text", self.text)
        kind = "image" if self.audio is None else "audio"
        if isinstance(self.media, str | os.PathLike):
            try:
                status = Path(self.media).stat()
            except (OSError, ValueError):
                return None
            return (kind, str(Path(self.media).absolute()), status.st_mtime_ns, status.st_size, status.st_ino)
        return (kind, self.media) if isinstance(self.media, bytes) else None

    def __str__(self) -> str:
        if self.text is not None:
            return f"'{self.text}'" if '"' in self.text else f'"{self.text}"'
        if isinstance(self.media, str | os.PathLike):
            return os.fsdecode(self.media).encode(errors="backslashreplace").decode()
        return f"<{type(self.media).__name__}>"


@dataclass(frozen=True, slots=True, repr=False)
class Query:
    """A weighted sum of texts, images and sounds, such as `Query.text("a beach") + 0.5 * Query.image("a.jpg")`.

    The query's vector is the weighted sum of its parts' unit vectors, normalised. A phrase in double quotes inside a
    text, as in `Query.text('red car "Sunny Bay"')`, must occur word for word in the caption or file name of a hit.
    Immutable. Raises `InputError` for empty texts and for weights that are 0 or not finite.
    """

    parts: tuple[QueryPart, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("the query is empty: expected texts, images or sounds")

    @classmethod
    def text(cls, text: str, weight: float = 1.0) -> Query:
        """Make a query of one text, which is never parsed as a sum."""
        return cls((QueryPart(weight, text=text),))

    @classmethod
    def image(cls, image: ImageItem, weight: float = 1.0) -> Query:
        """Make a query of one image: a path, encoded bytes, a PIL image or an array, as `Client` takes them."""
        return cls((QueryPart(weight, image=image),))

    @classmethod
    def audio(cls, audio: AudioItem, weight: float = 1.0) -> Query:
        """Make a query of one sound: a path, encoded bytes or a pair of samples and rate, as `Client` takes them."""
        return cls((QueryPart(weight, audio=audio),))

    @classmethod
    def parse(cls, text: str, *, images: ImageResolver | None = None) -> Query:
        """Parse a sum such as `"a beach" + photo.jpg - 0.5 * "people"`.

        A sum has quoted texts and names of image and sound files, with + and - between spaces. Any other text is a
        query of one text: `salt + pepper` and `red car "Sunny Bay"` too.

        `images` turns the name of an image or sound file into it, such as a path below a folder that the caller may
        read. Without it no file is looked up or opened, and a sum that names an image raises `InputError`. Raises
        `InputError` for a sum with a part that is neither a quoted text nor the name of an image, and what `images`
        raises.
        """
        terms = list(_terms(require_text(text, "a query")))
        is_one = len(terms) == 1 and not text.lstrip().startswith("-") and not _NUMBER.match(text)
        if is_one or not any(_is_operand(term) for _, term in terms):
            return cls.text(text)
        for _, term in terms:
            if not _is_operand(term):
                problem = "ends with + or -" if not term else f"has the part {_shortened(term)}"
                raise InputError(
                    f"the query {problem}: expected quoted texts and names of images between + and -, as in "
                    '"a beach" + photo.jpg - "people"'
                )
        return cls(tuple(_operand(sign, term, images) for sign, term in terms))

    @classmethod
    def term(cls, text: str, *, images: ImageResolver | None = None) -> Query:
        """Parse one part of a sum, a text (quotes are optional) or the name of an image: `snow`, `0.5 * a.jpg`.

        `images` and what is raised are as of `parse`.
        """
        weight, bare = _factored(require_text(text, "a query").strip())
        return cls((_operand(1, text.strip(), images),)) if _is_operand(text.strip()) else cls.text(bare, weight)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the parts as JSON. Raises `InputError` for an image that is not given by its path."""
        return [part.to_dict() for part in self.parts]

    @classmethod
    def from_list(cls, document: object, *, images: ImageResolver | None = None) -> Query:
        """Read what `to_list` writes, or a str as plain text.

        `images` is as of `parse`. Raises `InputError` for anything else; its `option` names the part and the key.
        """
        if isinstance(document, str):
            return cls.text(document)
        return cls(checked_array(document, "a query", lambda part: QueryPart.from_dict(part, images=images)))

    @property
    def parsed(self) -> ParsedText:
        """The words and phrases for keyword search: those of texts with a weight above 0."""
        texts = [part.parsed for part in self.parts if part.text is not None and part.weight > 0]
        return ParsedText(
            " ".join(text.rest for text in texts), tuple(phrase for text in texts for phrase in text.phrases)
        )

    def as_one_text(self) -> str:
        """Return the words of the query as they are encoded. Raises InputError where it is not one text alone."""
        (first, *more) = self.parts
        if first.text is None or first.weight < 0 or more:
            raise InputError(
                f"rerank compares one text with each image: the query is {self}. Search for one text, or without rerank"
            )
        return first.encoded_text

    @property
    def key(self) -> Hashable | None:
        """A cache key: equal for equal content; None where a part has none."""
        keys = tuple((part.weight, part.key) for part in self.parts)
        return None if any(key is None for _, key in keys) else keys

    def __add__(self, other: Query) -> Query:
        return Query(self.parts + other.parts) if isinstance(other, Query) else NotImplemented

    def __sub__(self, other: Query) -> Query:
        return self + -other if isinstance(other, Query) else NotImplemented

    def __mul__(self, factor: float) -> Query:
        if not isinstance(factor, Real):
            return NotImplemented
        if not is_finite(factor):
            raise InputError(f"the factor of a query: expected a finite number, got {shown(factor)}")
        return Query(tuple(replace(part, weight=part.weight * factor) for part in self.parts))

    __rmul__ = __mul__

    def __neg__(self) -> Query:
        return self * -1

    def __repr__(self) -> str:
        return f"<Query {shown(str(self))}>"

    def __str__(self) -> str:
        if len(self.parts) == 1 and self.parts[0].weight == 1:
            return self.parts[0].text or str(self.parts[0])
        text = ""
        for part in self.parts:
            sign = "-" if part.weight < 0 else "+"
            factor = "" if abs(part.weight) == 1 else f"{abs(part.weight):g} * "
            text += f" {sign} {factor}{part}" if text else f"{'-' if sign == '-' else ''}{factor}{part}"
        return text


def _terms(text: str) -> Iterator[tuple[int, str]]:
    """Split at the + and - that stand outside of quotes, between spaces, quotes or ends; yield signs and terms."""
    sign, start, quote = 1, 0, ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
            continue
        # An apostrophe opens nothing inside a word.
        if character in _QUOTES and (character != "'" or not _bare(text[start:place])):
            quote = _QUOTES[character] if _QUOTES[character] in text[place + 1 :] else ""
            continue
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        if character in "+-" and _is_edge(before) and (_is_edge(after) or not text[:place].strip()):
            if text[:place].strip():
                yield sign, text[start:place].strip()
            elif after and not _is_edge(after):  # a dash at the start of plain words
                continue
            sign, start = (1 if character == "+" else -1), place + 1
    yield sign, text[start:].strip()


def _bare(before: str) -> str:
    """Return what precedes a quote in its term, without the factor."""
    return re.sub(r"^\s*[0-9.]+\s*\*", "", before).strip()


def _is_edge(character: str) -> bool:
    return not character or character.isspace() or character in _EDGES


def _operand(sign: int, term: str, images: ImageResolver | None) -> QueryPart:
    """Return the part for a term that is a quoted text or the name of an image."""
    weight, bare = _factored(term)
    if _is_quoted(bare):
        return QueryPart(sign * weight, text=bare[1:-1])
    if _is_audio_name(bare):
        return QueryPart(sign * weight, audio=cast("AudioItem", _resolved(bare, images)))
    return QueryPart(sign * weight, image=_resolved(bare, images))


def _resolved(name: str, images: ImageResolver | None) -> ImageItem:
    if images is None:
        raise InputError(
            f"the query names the file {_shortened(name)}, but files of images and sounds are not allowed here: use "
            "texts only. A program allows them by the argument images=, which turns names into images and sounds"
        )
    return images(name)


def _is_operand(term: str) -> bool:
    bare = _factored(term)[1]
    return _is_quoted(bare) or _is_image_name(bare) or _is_audio_name(bare)


def _factored(term: str) -> tuple[float, str]:
    factor = _NUMBER.fullmatch(term)
    return (float(factor[1]), factor[2]) if factor else (1.0, term)


def _is_quoted(bare: str) -> bool:
    closing = _QUOTES.get(bare[:1])
    return closing is not None and len(bare) > 1 and bare.find(closing, 1) == len(bare) - 1


def _is_image_name(bare: str) -> bool:
    return _IMAGE_NAME.fullmatch(bare) is not None and '"' not in bare


def _is_audio_name(bare: str) -> bool:
    return _AUDIO_NAME.fullmatch(bare) is not None and '"' not in bare


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
