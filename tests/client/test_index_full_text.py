"""Which words of an item are indexed, and which keyword queries find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.stores.text_query import TextQuery, indexed_text, tokens


@pytest.mark.parametrize(
    ("caption", "uri", "text"),
    [
        (None, "/a/redCar_02.jpg", "redcar 02 red car 02"),
        ("A Red-Car!", "/a/IMG_2041.JPG", "a red car img 2041"),
        ("Café ＡＢＣ", "/x/HTMLFile.png", "café abc htmlfile html file"),
        ("红色的车", "/x/y", "红色 色的 的车 车 y"),
        ("猫", "/x/猫狗.jpg", "猫 猫狗 狗"),
        ("ねこ 고양이", "/x/y", "ねこ こ 고양 양이 이 y"),
        ("red红car", "/x/y", "red 红 car y"),
        (None, "https://a.org/b/c/My%20Dog.jpg?size=2#x", "my dog"),
        (None, "captions.txt:12", "captions"),
        ("", "...", ""),
    ],
)
def test_the_indexed_text_is_this(caption: str | None, uri: str, text: str) -> None:
    """Lower case, split at punctuation and camelCase; Chinese, Japanese and Korean as pairs and the last character."""
    assert indexed_text(caption, uri) == text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("Red car", ["red", "car"]),
        ("红色的车", ["红色", "色的", "的车"]),
        ("猫", ["猫"]),
        ("a红b", ["a", "红", "b"]),
        ("!", []),
    ],
)
def test_the_words_of_a_query_are_these(query: str, words: list[str]) -> None:
    """As indexed, but without the last character of a run."""
    assert tokens(query) == words


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (TextQuery.any_of("red"), [0, 1]),
        (TextQuery.any_of("cafe"), [1]),
        (TextQuery.any_of("redcar"), [0]),
        (TextQuery.any_of("色的"), [2]),
        (TextQuery(phrases=(("红色", "色的", "的车", "车"),)), [2]),
        (TextQuery.any_of("的"), [2]),
        (TextQuery.any_of("车"), [2, 3]),
        (TextQuery.any_of("红绿"), []),
        (TextQuery.all_of("red a"), [1]),
        (TextQuery.any_of('red" OR "的'), [0, 1, 2]),
        (TextQuery(phrases=(('red"',), ('"a',))), [1]),
        (TextQuery(phrases=(("a", "red"),), should=((("车",),),)), [1]),
        (TextQuery(must=((("cafe",), ("车",)),), phrases=(("车",),)), [2, 3]),
        (TextQuery(), []),
    ],
)
def test_words_are_found_in_captions_and_names(tmp_path: Path, query: TextQuery, found: list[int]) -> None:
    """A word of either, with or without accents; a single character wherever it stands, as a prefix."""
    given = [("one", "/redCar.jpg"), ("a red café", "/b"), ("红色的车", "/c"), ("车", "/d")]
    with Index.create(tmp_path / "index", space="s", dim=4) as index:
        items = [Item(uri, ItemKind.IMAGE, caption) for caption, uri in given]
        index.add(np.eye(4, dtype=np.float32), items, space="s")
        hits = index.search_text(query)
        assert index.count_text(query, at_most=9) == len(found)
        assert sorted(hit.id for hit in hits) == found
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert len(index.search_text(query, k=1)) == min(1, len(found))
        assert index.search_text(query, kind=ItemKind.TEXT) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"phrases": ((),)},
        {"phrases": (("",),)},
        {"should": ((),)},
        {"must": (("word",),)},
        {"phrases": ("word",)},
        {"phrases": (("a\0b",),)},
        {"phrases": (("\ud800",),)},
        {"phrases": ((3,),)},
        {"must": 3},
    ],
)
def test_what_is_no_text_query_is_refused(arguments: dict[str, Any]) -> None:
    """Phrases and terms are tuples of words; a word has characters, none of them NUL."""
    with pytest.raises(InputError, match="text query"):
        TextQuery(**arguments)
