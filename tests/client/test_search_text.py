"""Queries as people type them: sums, phrases, stop words, synonyms, templates, and the small files for these."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinspire.errors import InputError
from twinspire.index.filter_sql import fts5_expression
from twinspire.search import Query, Synonyms, Templates
from twinspire.search.text_query import keyword_query, parse_phrases, phrase_query, rare_query
from twinspire.stores.text_query import TextQuery, indexed_text


def _parts(query: Query) -> list[tuple[float, object]]:
    return [(part.weight, part.text if part.text is not None else part.image) for part in query.parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('"a beach" + photo.jpg - "people"', [(1, "a beach"), (1, "photo.jpg"), (-1, "people")]),
        ('"a beach" - 0.5 * "people"', [(1, "a beach"), (-0.5, "people")]),
        ("2*'a \"b\" c' + x.PNG", [(2, 'a "b" c'), (1, "x.PNG")]),
        ('- "people"', [(-1, "people")]),
        ('-"people" + my photo.jpg', [(-1, "people"), (1, "my photo.jpg")]),
        ("a.jpg - b.png", [(1, "a.jpg"), (-1, "b.png")]),
        ('"a - b" + "c + d"', [(1, "a - b"), (1, "c + d")]),
        ("salt + pepper", [(1, "salt + pepper")]),
        ('red car "Sunny Bay"', [(1, 'red car "Sunny Bay"')]),
        ('"Sunny Bay"', [(1, '"Sunny Bay"')]),
        ("photo.jpg", [(1, "photo.jpg")]),
        ("a well-known dog - it's brown", [(1, "a well-known dog - it's brown")]),
        ('5" disk', [(1, '5" disk')]),
        ("-5 degrees", [(1, "-5 degrees")]),
        ("红色的汽车", [(1, "红色的汽车")]),
        ('"海滩" - "人"', [(1, "海滩"), (-1, "人")]),
        ("“海滩 - 沙”-“人” + 「船」", [(1, "海滩 - 沙"), (-1, "人"), (1, "船")]),
    ],
)
def test_a_query_is_read_as_it_is_meant(text: str, parts: list[tuple[float, object]]) -> None:
    """Texts in quotes and images between + and - make a sum; everything else is one text."""
    assert _parts(Query.parse(text, images=str)) == parts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"a beach" + people', "people"),
        ('"a beach" +', "ends"),
        ('"a" + 0 * "b"', "weight"),
        ('"a" + " "', "empty"),
        ("", "empty"),
        (" \t", "empty"),
        ("\udcff", "UTF-8"),
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(text: str, says: str) -> None:
    """The error names the part and shows how a sum looks."""
    with pytest.raises(InputError) as caught:
        Query.parse(text)
    assert says in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab +-*\"'.jpg2红“”"), max_size=20))
def test_any_text_is_a_query_or_a_clear_error(text: str) -> None:
    """Parsing raises nothing but InputError, and what it gives can be shown."""
    with suppress(InputError):
        assert str(Query.parse(text))


def test_queries_are_sums_in_python() -> None:
    """+, -, * and unary minus weigh parts; the operands stay as they were; the result is shown as a sum."""
    beach, photo = Query.text("a beach"), Query.image("photo.jpg")
    query = 2 * (beach - 0.5 * photo) - Query.text("people")
    assert _parts(query) == [(2, "a beach"), (-1, "photo.jpg"), (-1, "people")]
    assert _parts(beach) == [(1, "a beach")]
    assert str(query) == '2 * "a beach" - photo.jpg - "people"'
    assert _parts(Query.parse(str(query), images=str)) == _parts(query)
    with pytest.raises(TypeError):
        beach + "snow"  # type: ignore[operator]


def test_a_changed_file_is_another_query(tmp_path: Path) -> None:
    """An image's key follows the file's content by its times and size; pixels in memory have none."""
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = Query.image(path).key
    path.write_bytes(b"22")
    assert before != Query.image(path).key is not None
    assert Query.image(np.zeros((2, 2, 3), np.uint8)).key is None
    assert (Query.text("a") + Query.image(np.zeros((2, 2, 3), np.uint8))).key is None


# ---------------------------------------------------------------------------------------------- words


def _found(query: TextQuery | None, captions: list[str]) -> list[int]:
    """Return which captions FTS5 finds, in their order."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute('CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = "unicode61 remove_diacritics 2")')
        rows = [(number, indexed_text(caption, f"/{number}.jpg")) for number, caption in enumerate(captions)]
        connection.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", rows)
        rowids = connection.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid", [fts5_expression(query)]
        )
        return [number for (number,) in rowids]


CAPTIONS = [
    "a red car",
    "two cars in the snow",
    "红色的汽车",
    "雪地里的自行车",
    "the Zor-Blatt café",
    "a photo of a dog",
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("car", [0, 1]),
        ("cars", [0, 1]),
        ("汽车", [2]),
        ("车", [2, 3]),
        ("红色的汽车", [2]),
        ("自行车", [3]),
        ("CAFE", [4]),
        ("a photo of the car", [0, 1]),
        ("a photo of the", [0, 1, 4, 5]),
        ('"red car"', [0]),
        ('"car red"', []),
        ('"car" snow', [0]),
        ('"zor blatt"', [4]),
        ("“自行车” 红色", [3]),
        ("「的汽车」", [2]),
        ('"car', [0, 1]),
        ("car OR NOT * NEAR(x) text:a ^b {c} 'd", [0, 1]),
    ],
)
def test_words_find_what_a_person_expects(text: str, found: list[int]) -> None:
    """Any word counts, stop words do not, quoted phrases must be there word for word, and nothing is syntax."""
    assert _found(keyword_query(parse_phrases(text)), CAPTIONS) == found


def test_no_words_no_expression() -> None:
    """Punctuation alone asks for nothing."""
    assert keyword_query(parse_phrases("?! --")) is None
    assert phrase_query(parse_phrases('red "!"')) is None


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(st.sampled_from("ab \"'*()^:-+{}红的车“”AND OR NOT"), max_size=30))
def test_no_text_breaks_the_full_text_search(anything: str, nasty: str) -> None:
    """Whatever is typed, FTS5 understands what is made of it."""
    for text in (anything.replace("\0", ""), nasty):
        for match in (keyword_query(parse_phrases(text)), phrase_query(parse_phrases(text))):
            if match is not None:
                _found(match, CAPTIONS)


def test_synonyms_are_looked_for_too(tmp_path: Path) -> None:
    """A group finds all its words, also of several words and languages; an arrow works one way."""
    path = tmp_path / "synonyms.txt"
    path.write_text(
        "# remark\ncar, automobile, 汽车  # cars\n\nnew york, big apple\ntv => television\n", encoding="utf-8"
    )
    synonyms = Synonyms.read(path)
    captions = ["an automobile", "汽车", "the big apple", "an apple", "television", "tv", "new york"]

    def found(text: str) -> list[int]:
        return _found(keyword_query(parse_phrases(text), synonyms=synonyms), captions)

    assert found("car") == [0, 1]
    assert found("汽车") == [0, 1]
    assert found("New York") == [2, 6]
    assert found("tv") == [4, 5]
    assert found("television") == [4]


@pytest.mark.parametrize(
    ("content", "says"),
    [("car", "line 1"), ("a, b\ncar,", "line 2"), ("=> car", "line 1"), ("", "empty"), ("# x", "empty")],
)
def test_a_bad_synonyms_file_is_refused(tmp_path: Path, content: str, says: str) -> None:
    """The error names the file and the line."""
    path = tmp_path / "synonyms.txt"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        Synonyms.read(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_rare_words_are_names_and_not_chance_pairs() -> None:
    """Rare English words count alone; of Chinese only several rare pairs in a row, or a whole run."""
    common = {"red", "绿色", "色的", "鸟儿"}

    def is_rare(query: TextQuery) -> bool:
        words = {word for phrase in [*query.phrases, *(p for term in query.should for p in term)] for word in phrase}
        return not words & common

    def found(text: str) -> tuple[tuple[tuple[str, ...], ...], ...] | None:
        query = rare_query(parse_phrases(text), is_rare)
        return query.must if query is not None else None

    assert found("a red Zorblatt") == ((("zorblatt",), ("zorblatts",)),)
    assert found("red") is None
    assert found("绿色的鸟儿，佩瑞库") == ((("佩瑞", "瑞库"),),)
    assert found("很绿色") is None
    assert found("绿色 张三") == ((("张三",),),)


def test_common_words_are_left_out_but_not_of_phrases() -> None:
    """What is said to be common counts no more; a phrase stays whatever is in it."""

    def found(text: str) -> TextQuery | None:
        return keyword_query(parse_phrases(text), is_common=lambda query: query.should[0][0] == ("red",))

    assert found("red car") == TextQuery(should=((("car",), ("cars",)),))
    assert found("red") is None
    assert found('"red"') == TextQuery(phrases=(("red",),))


def test_templates_fill_and_average() -> None:
    """Each text is put into every sentence, and its vectors' mean is brought to length 1."""
    templates = Templates(("{}", "a photo of {}"))
    vectors = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert templates.filled("x") == ["x", "a photo of x"]
    averaged = templates.averaged(vectors, ["x", "y"])
    np.testing.assert_allclose(averaged, [[0.5**0.5, 0.5**0.5], [1, 0]], atol=1e-6)
    assert averaged.dtype == np.float32


@pytest.mark.parametrize("content", ["a photo", "{} and {}", "\n# only a remark\n"])
def test_a_bad_templates_file_is_refused(tmp_path: Path, content: str) -> None:
    """A template has {} just once; the error names the file."""
    path = tmp_path / "templates.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=r"templates\.txt"):
        Templates.read(path)
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        Templates.read(tmp_path / "nowhere.txt")
