"""`Query`: a weighted sum of texts and images, and the syntax of sums."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from twinspire._arguments import as_weight, checked_array, checked_object, is_finite, naming, require_text, shown
from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.search.text_query import ParsedText, parse_phrases

ImageResolver: TypeAlias = Callable[[str], ImageItem]
"""Turns the name of an image in a query into the image; raises `InputError` for a name that the caller may not use or
that does not exist. A command passes one that opens any file, a server one that refuses or restricts them."""

_IMAGE_NAME = re.compile(r".*\.(jpe?g|jfif|png|webp|gif|tiff?|bmp|p[gp]m|avif|jp2)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*\*\s*(.+)", re.DOTALL)
_SHOWN = 60
_QUOTES = {'"': '"', "'": "'", "“": "”", "「": "」", "『": "』"}
_EDGES = frozenset([*_QUOTES, *_QUOTES.values()])


@dataclass(frozen=True, slots=True, eq=False)
class QueryPart:
    """A text or an image and its weight; a weight below 0 subtracts it.

    Parts are equal where weight, text and image are: images by path or by encoded bytes, other images (a PIL image, an
    array, a file object) only where they are the same object.
    """

    weight: float
    text: str | None = None
    image: ImageItem | None = None

    def __post_init__(self) -> None:
        with naming("weight"):
            object.__setattr__(self, "weight", as_weight(self.weight, "the weight of a query's part"))
        if self.text is not None:
            if self.image is not None:
                raise InputError("a part of a query is a text or an image: expected one of them, got both")
            with naming("text"):
                if not require_text(self.text, "the text of a query").strip():
                    raise InputError(f"the query is empty: expected a text to search for, got {shown(self.text)}")
        elif self.image is None:
            raise InputError("a part of a query is a text or an image: expected one of them, got neither")

    def __eq__(self, other: object) -> bool:
        return self._identity() == other._identity() if isinstance(other, QueryPart) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> Hashable:
        by_value = self.image is None or isinstance(self.image, str | bytes | Path)
        return self.weight, self.text, self.image if by_value else (type(self.image), id(self.image))

    def to_dict(self) -> dict[str, Any]:
        """Return the part as JSON. Raises `InputError` for an image that is not given by its path."""
        if self.text is not None:
            return {"text": self.text, "weight": self.weight}
        if not isinstance(self.image, str | os.PathLike):
            raise InputError(
                f"an image in memory ({type(self.image).__name__}) cannot be written as JSON: give it by its path"
            )
        return {"image": os.fsdecode(self.image), "weight": self.weight}

    @classmethod
    def from_dict(cls, document: object, *, images: ImageResolver | None = None) -> QueryPart:
        """Read what `to_dict` writes; the weight may be left out. `images` is as of `Query.parse`."""

        def image(name: str) -> ImageItem:
            return _resolved(require_text(name, "the name of an image"), images)

        checks: dict[str, Callable[[Any], Any]] = {
            "weight": lambda weight: as_weight(weight, "a weight"),
            "text": lambda text: require_text(text, "the text of a query"),
            "image": image,
        }
        return cls(**{"weight": 1.0} | checked_object(document, "a part of a query", checks, optional=checks))

    @property
    def parsed(self) -> ParsedText:
        """The text with its quoted phrases set apart."""
        return parse_phrases(self.text or "")

    @property
    def key(self) -> Hashable | None:
        """A cache key: equal for equal content; None where that is unknown, as for pixels in memory."""
        if self.text is not None:
            return ("text", self.text)
        if isinstance(self.image, str | os.PathLike):
            try:
                status = Path(self.image).stat()
            except (OSError, ValueError):
                return None
            return ("file", str(Path(self.image).absolute()), status.st_mtime_ns, status.st_size, status.st_ino)
        return ("bytes", self.image) if isinstance(self.image, bytes) else None

    def __str__(self) -> str:
        if self.text is not None:
            return f"'{self.text}'" if '"' in self.text else f'"{self.text}"'
        if isinstance(self.image, str | os.PathLike):
            return os.fsdecode(self.image).encode(errors="backslashreplace").decode()
        return f"<{type(self.image).__name__}>"


@dataclass(frozen=True, slots=True, repr=False)
class Query:
    """A weighted sum of texts and images: `Query.text("a beach") + 0.5 * Query.image("a.jpg") - Query.text("people")`.

    The query's vector is the weighted sum of its parts' unit vectors, normalised. A phrase in double quotes inside a
    text, as in `Query.text('red car "Sunny Bay"')`, must occur word for word in the caption or file name of a hit.
    Immutable. Raises `InputError` for empty texts and for weights that are 0 or not finite.
    """

    parts: tuple[QueryPart, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("the query is empty: expected texts or images")

    @classmethod
    def text(cls, text: str, weight: float = 1.0) -> Query:
        """Make a query of one text, which is never parsed as a sum."""
        return cls((QueryPart(weight, text=text),))

    @classmethod
    def image(cls, image: ImageItem, weight: float = 1.0) -> Query:
        """Make a query of one image: a path, encoded bytes, a PIL image or an array, as `Client` takes them."""
        return cls((QueryPart(weight, image=image),))

    @classmethod
    def parse(cls, text: str, *, images: ImageResolver | None = None) -> Query:
        """Parse a sum such as `"a beach" + photo.jpg - 0.5 * "people"`.

        A sum has quoted texts and names of image files, with + and - between spaces. Any other text is a query of one
        text: `salt + pepper` and `red car "Sunny Bay"` too.

        `images` turns the name of an image into the image, such as a path below a folder that the caller may read.
        Without it no file is looked up or opened, and a sum that names an image raises `InputError`. Raises
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
    return QueryPart(sign * weight, image=_resolved(bare, images))


def _resolved(name: str, images: ImageResolver | None) -> ImageItem:
    if images is None:
        raise InputError(
            f"the query names the image {_shortened(name)}, but image files are not allowed here: use texts only. A "
            "program allows images by the argument images=, which turns names into images"
        )
    return images(name)


def _is_operand(term: str) -> bool:
    bare = _factored(term)[1]
    return _is_quoted(bare) or _is_image_name(bare)


def _factored(term: str) -> tuple[float, str]:
    factor = _NUMBER.fullmatch(term)
    return (float(factor[1]), factor[2]) if factor else (1.0, term)


def _is_quoted(bare: str) -> bool:
    closing = _QUOTES.get(bare[:1])
    return closing is not None and len(bare) > 1 and bare.find(closing, 1) == len(bare) - 1


def _is_image_name(bare: str) -> bool:
    return _IMAGE_NAME.fullmatch(bare) is not None and '"' not in bare


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
