"""What is looked for: texts and images with weights, added up and taken away."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TypeAlias

from twinspire._arguments import is_finite, require_text, shown
from twinspire.errors import InputError
from twinspire.images import ImageItem
from twinspire.search.text_query import Wording, wording_of

FileResolver: TypeAlias = Callable[[str], ImageItem]
"""Turns the name of an image in a query into the image, for `Query.parse`; raises `InputError` for one that the
asker may not use or that is not there."""

_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".bmp",
    ".ppm",
    ".pgm",
    ".avif",
    ".jp2",
)
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*\*\s*(.+)", re.DOTALL)
_SHOWN = 60
_QUOTES = {'"': '"', "'": "'", "“": "”", "「": "」", "『": "』"}
_EDGES = frozenset([*_QUOTES, *_QUOTES.values()])


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A text or an image and its weight, below 0 where it is taken away."""

    weight: float
    text: str | None = None
    picture: ImageItem | None = None

    def __post_init__(self) -> None:
        if not is_finite(self.weight) or self.weight == 0:
            raise InputError(f"the weight of a query's part is a number other than 0, got {shown(self.weight)}")
        if self.text is not None:
            if not require_text(self.text, "the text of a query").strip():
                raise InputError(f"the query is empty: expected words to look for, got {shown(self.text)}")
        elif self.picture is None:
            raise InputError("a query's part is a text or a picture, got neither")

    @property
    def wording(self) -> Wording:
        """The words of a text, quoted phrases apart."""
        return wording_of(self.text or "")

    @property
    def key(self) -> Hashable | None:
        """What tells this part from others: equal for equal content. None: unknown, as for pixels in memory."""
        if self.text is not None:
            return ("text", self.text)
        if isinstance(self.picture, str | os.PathLike):
            try:
                status = Path(self.picture).stat()
            except (OSError, ValueError):
                return None
            return ("file", str(Path(self.picture).absolute()), status.st_mtime_ns, status.st_size, status.st_ino)
        return ("bytes", self.picture) if isinstance(self.picture, bytes) else None

    def __str__(self) -> str:
        if self.text is not None:
            return f"'{self.text}'" if '"' in self.text else f'"{self.text}"'
        if isinstance(self.picture, str | os.PathLike):
            return os.fsdecode(self.picture).encode(errors="backslashreplace").decode()
        return f"<{type(self.picture).__name__}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Query:
    """A sum of texts and images: `Query.text("a beach") + 0.5 * Query.image("photo.jpg") - Query.text("people")`.

    Each part's unit vector counts by its weight, and the sum is brought to length 1. Phrases in double quotes inside a
    text, as in `Query.text('red car "Sunny Bay"')`, are for captions and file names: they must be there word for word.
    A query does not change. Raises `InputError` for empty texts and for weights that are 0 or not finite.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("the query is empty: expected texts or pictures")

    @classmethod
    def text(cls, text: str, weight: float = 1.0) -> Query:
        """Look for what a text says."""
        return cls((Part(weight, text=text),))

    @classmethod
    def image(cls, picture: ImageItem, weight: float = 1.0) -> Query:
        """Look for what is like an image: a path, encoded bytes, a PIL image or an array, as a client takes them."""
        return cls((Part(weight, picture=picture),))

    @classmethod
    def parse(cls, text: str, *, files: FileResolver | None = None) -> Query:
        """Read a query in the syntax of sums.

        `"a beach" + photo.jpg - 0.5 * "people"` is a sum: texts in quotes and names of images, with + and - between
        them, spaces around. Everything else is one text, `salt + pepper` and `red car "Sunny Bay"` too.

        `files` turns the name of an image into the image, such as a path below a folder that the asker may see.
        Without it no file is opened or looked for, and a sum that names one is an error. Raises `InputError` for a sum
        of which some parts are neither a text in quotes nor the name of an image, and what `files` raises.
        """
        terms = list(_terms(require_text(text, "a query")))
        is_one = len(terms) == 1 and not text.lstrip().startswith("-") and not _NUMBER.match(text)
        if is_one or not any(_is_operand(term) for _, term in terms):
            return cls.text(text)
        for _, term in terms:
            if not _is_operand(term):
                found = "ends with + or -" if not term else f"has the part {_shortened(term)}"
                raise InputError(
                    f"the query {found}: expected a text in quotes or the name of a picture between + and -, as in "
                    '"a beach" + photo.jpg - "people"'
                )
        return cls(tuple(_operand(sign, term, files) for sign, term in terms))

    @classmethod
    def term(cls, text: str, *, files: FileResolver | None = None) -> Query:
        """Read one part: a text, in quotes or not, or the name of an image, with a factor or not: `0.5 * a.jpg`.

        `files` and what is raised are as of `parse`.
        """
        weight, bare = _factored(require_text(text, "a query").strip())
        return cls((_operand(1, text.strip(), files),)) if _is_operand(text.strip()) else cls.text(bare, weight)

    @property
    def wording(self) -> Wording:
        """The words and phrases that captions and file names are searched for: of texts that are not taken away."""
        some = [part.wording for part in self.parts if part.text is not None and part.weight > 0]
        return Wording(" ".join(each.rest for each in some), tuple(phrase for each in some for phrase in each.phrases))

    @property
    def key(self) -> Hashable | None:
        """What tells this query from others, None where a part has no such key."""
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
            raise InputError(f"the factor of a query is a finite number, got {shown(factor)}")
        return Query(tuple(replace(part, weight=part.weight * factor) for part in self.parts))

    __rmul__ = __mul__

    def __neg__(self) -> Query:
        return self * -1

    def __repr__(self) -> str:
        return f"<Query {shown(str(self))}>"

    def __str__(self) -> str:
        if len(self.parts) == 1 and self.parts[0].weight == 1:
            return self.parts[0].text or str(self.parts[0])
        shown = ""
        for part in self.parts:
            sign = "-" if part.weight < 0 else "+"
            factor = "" if abs(part.weight) == 1 else f"{abs(part.weight):g} * "
            shown += f" {sign} {factor}{part}" if shown else f"{'-' if sign == '-' else ''}{factor}{part}"
        return shown


def _terms(text: str) -> Iterator[tuple[int, str]]:
    """Split at + and - that stand between spaces, quotes or ends, outside of quotes: signs and terms."""
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
    """Return what stands of a term before a quote, but for a factor."""
    return re.sub(r"^\s*[0-9.]+\s*\*", "", before).strip()


def _is_edge(character: str) -> bool:
    return not character or character.isspace() or character in _EDGES


def _operand(sign: int, term: str, files: FileResolver | None) -> Part:
    """Return the part that a text in quotes or the name of an image is."""
    weight, bare = _factored(term)
    if _is_quoted(bare):
        return Part(sign * weight, text=bare[1:-1])
    if files is None:
        raise InputError(
            f"the query names the picture {_shortened(bare)}, but files cannot be used here: expected texts in quotes "
            "between + and -. A program allows files with Query.parse(text, files=...)"
        )
    return Part(sign * weight, picture=files(bare))


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
    return bare.lower().endswith(_SUFFIXES) and '"' not in bare


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
