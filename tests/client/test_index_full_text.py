"""Which words of an item are indexed, and that FTS5 finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.index.full_text import indexed_text, tokens


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
    ("match", "found"),
    [
        ('"red"', [0, 1]),
        ('"cafe"', [1]),
        ('"redcar"', [0]),
        ('"色的"', [2]),
        ('"红色" "车"*', [2]),
        ('"的"*', [2]),
        ('"车"*', [2, 3]),
        ('"红"', []),
        ('"red" NOT "cafe"', [0]),
    ],
)
def test_words_are_found_in_captions_and_names(tmp_path: Path, match: str, found: list[int]) -> None:
    """A word of either, with or without accents; a single character wherever it stands, as a prefix."""
    given = [("one", "/redCar.jpg"), ("a red café", "/b"), ("红色的车", "/c"), ("车", "/d")]
    with Index.create(tmp_path / "index", space="s", dim=4) as index:
        items = [Item(uri, ItemKind.IMAGE, caption) for caption, uri in given]
        index.add(np.eye(4, dtype=np.float32), items, space="s")
        hits = index.search_text(match)
        assert sorted(hit.id for hit in hits) == found
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert len(index.search_text(match, k=1)) == min(1, len(found))
        assert index.search_text(match, kind=ItemKind.TEXT) == []


@pytest.mark.parametrize("match", ['"', "caption : x", "AND", "", "NEAR(a"])
def test_what_fts5_does_not_understand_is_refused(tmp_path: Path, match: str) -> None:
    """The error shows what came and what SQLite says."""
    with Index.create(tmp_path / "index", space="s", dim=4) as index, pytest.raises(InputError, match="SQLite"):
        index.search_text(match)
