"""What the full text of an item is: its caption and its file name, as words that SQLite's FTS5 can find.

FTS5's own tokenizers miss a Chinese word of two characters (`unicode61` takes a whole run for one word, `trigram`
wants three), so runs of Chinese, Japanese and Korean characters are written as overlapping pairs: 红色的车 becomes
"红色 色的 的车 车". The last character stands alone too, so that the prefix query `"车"*` finds a single
character wherever it stands.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

# Hiragana, katakana, Chinese (with extension A and compatibility forms), Hangul, Chinese of the higher planes.
_CJK = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003134f\u3005-\u3007"
)
_WORD = re.compile(rf"(?P<run>[{_CJK}]+)|[^\W_{_CJK}]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def tokens(text: str) -> list[str]:
    """Return the words of a query: lower case; a run of Chinese, Japanese or Korean as its pairs.

    A run of one character is that character, to be asked for as a prefix (`"猫"*`).
    """
    return [token for word, is_run in _words(text) for token in (_pairs(word) if is_run else [word])]


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
