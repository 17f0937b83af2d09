"""Keyword queries, and the words of captions and file names that they are compared with.

A store's own tokenizer may miss a Chinese word of two characters (of SQLite's, `unicode61` takes a whole run for one
word, `trigram` wants three). So runs of Chinese, Japanese and Korean characters are indexed as overlapping pairs:
红色的车 becomes "红色 色的 的车 车". The last character is indexed alone too, so that a single character is found as
the beginning of a word wherever it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from twinspire._arguments import require_text, shown
from twinspire.errors import InputError

TextPhrase: TypeAlias = tuple[str, ...]
"""Words in a row, as `tokens` gives them; a single word is a phrase of one."""
TextTerm: TypeAlias = tuple[TextPhrase, ...]
"""Alternatives, any of which matches: a word, its plural and its synonyms."""

# Hiragana, katakana, Chinese (with extension A and compatibility forms), Hangul, Chinese of the higher planes.
_CJK = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003134f\u3005-\u3007"
)
_WORD = re.compile(rf"(?P<run>[{_CJK}]+)|[^\W_{_CJK}]+")
_SINGLE_CJK = re.compile(rf"[{_CJK}]")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True, slots=True)
class TextQuery:
    """A keyword query, free of any store's syntax: each store compiles it to its own full-text search.

    An item matches if it has every one of `phrases`, word by word, and of every term in `must` at least one
    alternative. If both are empty, it must have an alternative of at least one term in `should`. All phrases and
    alternatives that an item has count in its score (BM25). An empty query matches nothing. Raises `InputError` for
    phrases without a word, and for words that are no text, or have NUL characters or lone surrogates.
    """

    must: tuple[TextTerm, ...] = ()
    should: tuple[TextTerm, ...] = ()
    phrases: tuple[TextPhrase, ...] = ()

    def __post_init__(self) -> None:
        try:
            phrases = [*self.phrases, *(phrase for term in (*self.must, *self.should) for phrase in term)]
            is_valid = all(isinstance(phrase, tuple) and phrase for phrase in phrases)
            is_valid = is_valid and all(isinstance(term, tuple) and term for term in (*self.must, *self.should))
        except TypeError:
            is_valid = False
        if not is_valid:
            raise InputError(f"a text query needs tuples of one word or more in `phrases` and terms, got {shown(self)}")
        for word in (word for phrase in phrases for word in phrase):
            if not require_text(word, "a word of a text query") or "\0" in word:
                raise InputError(f"a word of a text query must have characters, none of them NUL; got {shown(word)}")

    def __bool__(self) -> bool:
        return bool(self.must or self.should or self.phrases)

    @classmethod
    def any_of(cls, text: str) -> TextQuery:
        """Return the query that matches items with any word of `text`."""
        return cls(should=tuple(((word,),) for word in dict.fromkeys(tokens(text))))

    @classmethod
    def all_of(cls, text: str) -> TextQuery:
        """Return the query that matches items with all words of `text`, in any order."""
        return cls(must=tuple(((word,),) for word in dict.fromkeys(tokens(text))))


def tokens(text: str) -> list[str]:
    """Return the words of a query: lower case; a run of Chinese, Japanese or Korean as its pairs.

    A run of one character is that character: `is_prefix` is true of it.
    """
    return [token for word, is_run in _words(text) for token in (_pairs(word) if is_run else [word])]


def is_prefix(word: str) -> bool:
    """Return whether a query's word matches all words that begin with it: a single character of CJK."""
    return len(word) == 1 and _SINGLE_CJK.match(word) is not None


def indexed_text(caption: str | None, uri: str) -> str:
    """Return the text that is indexed for an item: its caption's and its file name's words, separated by spaces.

    The file name is split at punctuation and, beside the whole, at camelCase: "redCar_02.jpg" gives
    "redcar 02 red car 02".
    """
    name = _stem(uri)
    split = _CAMEL.sub(" ", name)
    texts = [caption or "", name] + ([split] if split != name else [])
    return " ".join(
        token
        for text in texts
        for word, is_run in _words(text)
        for token in ([*_pairs(word), word[-1]] if is_run and len(word) > 1 else [word])
    )


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Yield words and whether each is a run of Chinese, Japanese or Korean."""
    normal = unicodedata.normalize("NFKC", text).lower()
    yield from ((match[0], match["run"] is not None) for match in _WORD.finditer(normal))


def _pairs(run: str) -> list[str]:
    return [run[start : start + 2] for start in range(max(1, len(run) - 1))]


def _stem(uri: str) -> str:
    path = unquote(urlsplit(uri).path) if "://" in uri else uri
    return PurePosixPath(path).stem
