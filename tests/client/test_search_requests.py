"""Requests to a searcher: plain text and files, pages, the minimum similarity, notes, and how answers are shown."""

from __future__ import annotations

import base64
import builtins
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.search import Boost, Calibration, Classifier, Filter, Mode, Query, Searcher, SearchHit, SearchResponse

SPACE = "5" * 64
DIM = 8
WORDS = ("red", "green", "blue", "car", "dog", "boat")


class WordClient:
    """Encodes a text as the sum of one random direction for each of its words; remembers what images it was given."""

    space = SPACE

    def __init__(self) -> None:
        self.images: list[Any] = []

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (N, D) float32, L2-normalised."""
        rows = [
            sum(np.random.default_rng([ord(c) for c in word]).normal(size=DIM) for word in text.split())
            for text in texts
        ]
        vectors = np.array(rows).reshape(len(rows), DIM)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def encode_images(self, items: Iterable[Any]) -> NDArray[np.float32]:
        """Encode each as the word red."""
        self.images += items
        return self.encode_texts(["red"] * len(self.images))


@pytest.fixture
def client() -> WordClient:
    """Return a client that has encoded nothing yet."""
    return WordClient()


@pytest.fixture
def index(tmp_path: Path, client: WordClient) -> Iterator[Index]:
    """Make an index of 60 images with captions of two words, a year as a number and a code as a text."""
    captions = [f"{WORDS[number % 3]} {WORDS[3 + number % 2]}" for number in range(60)]
    items = [
        Item(f"/photos/{n:02}.jpg", "image", caption, {"year": 2000 + n, "code": f"{n:03}"})
        for n, caption in enumerate(captions)
    ]
    noise = 0.5 * np.random.default_rng(2).normal(size=(60, DIM))
    vectors = client.encode_texts(captions) + noise
    vectors = np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as made:
        made.add(vectors, items, space=SPACE)
        yield made


def ids(answer: SearchResponse) -> list[int]:
    """Return the hits' ids."""
    return [hit.id for hit in answer.hits]


# ------------------------------------------------------------------------------------------------ text and files


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the paths with "secret" in them that are opened or asked for."""
    seen: list[Any] = []

    def recording(real: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(path: Any, *arguments: Any, **options: Any) -> Any:
            if "secret" in str(path):
                seen.append(path)
            return real(path, *arguments, **options)

        return recorded

    for module, name in ((os, "stat"), (os, "lstat"), (os, "open"), (io, "open"), (builtins, "open")):
        monkeypatch.setattr(module, name, recording(getattr(module, name)))
    return seen


@pytest.mark.parametrize(
    "text",
    [
        '"red" + {}',
        "- {}",
        "2 * {}",
        "0.5*{}",
        "{}",
        "{} + {}",
        "'red' - {}",
        '-"red" + {}',
    ],
)
def test_a_str_opens_no_file(index: Index, client: WordClient, tmp_path: Path, no_files: list[Any], text: str) -> None:
    """A search for a str is one for text: the same whether a file that it names is there or not."""
    path = tmp_path / "secret.jpg"
    asked = text.replace("{}", str(path))
    searcher = Searcher(client, index, cache=False)
    before = searcher.search(asked, 5)
    path.touch()
    no_files.clear()
    after = searcher.search(asked, 5)
    assert no_files == []
    assert after == before
    assert client.images == []


@pytest.mark.parametrize("text", ['"red" + secret.jpg', "2 * /a/secret.png", "secret.jpg - secret.tif", "- secret.bmp"])
def test_a_sum_without_a_resolver_opens_no_file(no_files: list[Any], text: str) -> None:
    """The name of an image in a sum is an error then, and the file is not looked at."""
    with pytest.raises(InputError, match="files"):
        Query.parse(text)
    with pytest.raises(InputError, match="files"):
        Query.term("0.5 * secret.jpg")
    assert no_files == []


def test_a_resolver_gives_the_images_of_a_sum(index: Index, client: WordClient) -> None:
    """It is called once for each name, and what it returns is encoded; what it refuses is refused."""
    asked: list[str] = []

    def files(name: str) -> bytes:
        asked.append(name)
        if name.startswith("/"):
            raise InputError("only names of this folder")
        return name.encode()

    query = Query.parse('"blue dog" + 2 * my photo.jpg - b.PNG', images=files)
    assert asked == ["my photo.jpg", "b.PNG"]
    assert [(part.weight, part.image) for part in query.parts[1:]] == [(2, b"my photo.jpg"), (-1, b"b.PNG")]
    Searcher(client, index).search(query, mode="vector")
    assert client.images == [b"my photo.jpg", b"b.PNG"]
    with pytest.raises(InputError, match="only names"):
        Query.parse('"a" + /etc/x.jpg', images=files)
    asked.clear()
    with pytest.raises(InputError, match="has the part"):
        Query.parse('a.jpg + "b" + c', images=files)
    assert asked == []  # a sum that is none opens nothing
    assert Query.parse("photo.jpg", images=files).parts[0].text == "photo.jpg"
    assert Query.term("a.jpg", images=files).parts[0].image == b"a.jpg"
    assert Query.term("0.5 * snow").parts[0].text == "snow"


def test_quoted_phrases_of_a_str_are_phrases(index: Index, client: WordClient) -> None:
    """They must be there word for word, also beside what looks like a sum."""
    searcher = Searcher(client, index)
    for text in ('"red car"', '"red car" + boat.jpg', "dog “red car”"):
        answer = searcher.search(text, 60, mode="keyword")
        assert answer.hits
        assert {hit.caption for hit in answer.hits} == {"red car"}


# --------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "vector"},
        {"mode": "keyword"},
        {"mode": "hybrid"},
        {"mode": "hybrid", "boosts": ["year > 2030:0.2"]},
        {"mode": "vector", "diversify": 0.5},
        {"mode": "hybrid", "pins": ["id in (3, 50, 51, 52, 53, 54)"]},
        {"mode": "vector", "min_score": 0.1},
        {"mode": "keyword", "min_score": 0.1},
        {"where": "year >= 2010"},
    ],
)
def test_pages_are_slices_of_one_ranking(index: Index, client: WordClient, options: dict[str, Any]) -> None:
    """Each page has the next hits, none twice and none left out, with the scores they have in one long list."""
    searcher = Searcher(client, index)
    pages = [searcher.search("red car", 7, offset=offset, **options) for offset in range(0, 70, 7)]
    together = [hit for page in pages for hit in page.hits]
    whole = searcher.search("red car", 60, **options)
    assert [hit.id for hit in together] == ids(whole)
    assert [hit.score for hit in together] == pytest.approx([hit.score for hit in whole.hits])
    assert [page.offset for page in pages] == list(range(0, 70, 7))


def test_pages_of_a_fusion_do_not_overlap(tmp_path: Path, client: WordClient) -> None:
    """Where more items are there than are fused, the pages within the first hits hold each hit once, best first."""
    generator = np.random.default_rng(4)
    captions = [" ".join(generator.choice(WORDS, 2)) for _ in range(400)]
    vectors = client.encode_texts([" ".join(generator.choice(WORDS, 2)) for _ in range(400)])
    vectors = vectors + 0.3 * generator.normal(size=vectors.shape)
    vectors = np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
    with Index.create(tmp_path / "large", space=SPACE, dim=DIM) as index:
        index.add(vectors, [Item(f"/{n}", "image", caption) for n, caption in enumerate(captions)], space=SPACE)
        searcher = Searcher(client, index, cache=False)
        for options in ({}, {"boosts": ["id < 200:0.01"]}, {"diversify": 0.3}):
            pages = [searcher.search("red car", 10, offset=offset, **options) for offset in range(0, 100, 10)]
            found = [number for page in pages for number in ids(page)]
            assert len(found) == len(set(found)) == 100
            scores = [hit.score for page in pages for hit in page.hits]
            assert "diversify" in options or scores == sorted(scores, reverse=True)
        deep = searcher.search("red car", 10, offset=390)
        assert len(deep.hits) == 10


def test_an_offset_behind_the_last_hit_says_so(index: Index, client: WordClient) -> None:
    """The answer is empty and tells how many there are; offsets that are none are refused."""
    searcher = Searcher(client, index)
    for offset in (60, 61, 2**63, 10**30):
        answer = searcher.search("red car", 5, offset=offset, mode="vector")
        assert answer.hits == ()
        assert "60" in answer.notes[0]
    assert len(searcher.search("red car", 5, offset=58, mode="vector").hits) == 2
    for wrong in (-1, True, 1.0, "3", None):
        with pytest.raises(InputError, match="offset"):
            searcher.search("red car", offset=wrong)  # type: ignore[arg-type]
    assert "filter" in searcher.search("red car", offset=5, where="year = 1").notes[0]


# ------------------------------------------------------------------------------------- similarity, rules and notes


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
def test_min_score_is_one_scale(index: Index, client: WordClient, mode: str) -> None:
    """In every mode it is the inner product of query and item, whatever the score is made of."""
    searcher = Searcher(client, index)
    everything = searcher.search("red car", 60, mode=mode, min_score=-1)
    products = index.vectors(range(60)) @ client.encode_texts(["red car"])[0]
    for least in (0.0, 0.3, 0.6):
        answer = searcher.search("red car", 60, mode=mode, min_score=least, boosts=["id >= 0:5"])
        assert ids(answer) == [number for number in ids(everything) if products[number] >= least]
        assert all(hit.parts["vector"] == pytest.approx(products[hit.id], abs=1e-5) for hit in answer.hits)
    few = searcher.search("red car", 3, mode=mode, min_score=0.3)
    assert ids(few) == [number for number in ids(everything) if products[number] >= 0.3][:3]
    none = searcher.search("red car", mode=mode, min_score=0.9999)
    assert none.hits == ()
    found = max(products[number] for number in ids(everything))
    assert f"{found:.3f}" in none.notes[0]
    for wrong in (1.01, -1.01, 5, float("nan"), "0.3", True):
        with pytest.raises(InputError, match="min_score"):
            searcher.search("red car", mode=mode, min_score=wrong)  # type: ignore[arg-type]


def test_pins_stand_whatever_their_similarity(index: Index, client: WordClient) -> None:
    """They are there because somebody wants them."""
    answer = Searcher(client, index).search("red car", 3, mode="vector", min_score=0.99, pins=["id = 5"])
    assert ids(answer) == [5]


def test_a_filter_of_the_wrong_type_is_told(index: Index, client: WordClient) -> None:
    """Of a filter, a boost and a pin that keep nothing the note says which comparison is never true."""
    searcher = Searcher(client, index)
    answer = searcher.search("red car", where='year >= "2020"')
    assert answer.hits == ()
    assert "year" in answer.notes[0]
    assert "number" in answer.notes[0]
    assert "quotes" in answer.notes[0]
    notes = searcher.search("red car", boosts=["code = 7:1", "year > 2000:1"], pins=["yaer = 3"]).notes
    assert len(notes) == 2
    assert "code = 7" in notes[0]
    assert "text" in notes[0]
    assert "yaer = 3" in notes[1]
    assert "yaer" in notes[1]
    assert searcher.search("red car", 4, boosts=["code = 7:1"]).notes == notes[:1]
    index.update(59, metadata={"code": 7})
    assert searcher.search("red car", 4, boosts=["code = 7:1"]).notes == ()
    assert searcher.search("red car", boosts=["year = 2001:1"], pins=["id = 1"]).notes == ()
    assert searcher.search("red car", 1, boosts=[Boost(Filter.parse("code = '007'"), 1)]).notes == ()


_CONDITIONS = st.one_of(
    st.tuples(st.just("year"), st.sampled_from(["=", "<", ">="]), st.integers(1995, 2065)),
    st.tuples(st.just("code"), st.sampled_from(["=", "<", ">="]), st.integers(0, 70).map(lambda n: f"{n:03}")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_CONDITIONS, min_size=1, max_size=3), st.sampled_from(["vector", "keyword", "hybrid"]))
def test_a_filtered_search_keeps_what_python_keeps(
    index: Index, client: WordClient, conditions: list[tuple[str, str, Any]], mode: str
) -> None:
    """Every hit satisfies the filter as Python evaluates it; without words all that do are hits."""
    holds = {"=": lambda a, b: a == b, "<": lambda a, b: a < b, ">=": lambda a, b: a >= b}
    text = " and ".join(f"{key} {relation} {value!r}" for key, relation, value in conditions)
    expected = {
        item.id
        for item in index
        if all(holds[relation](item.metadata[key], value) for key, relation, value in conditions)
    }
    answer = Searcher(client, index).search("red car", 60, where=text, mode=mode)
    assert set(ids(answer)) <= expected
    assert mode == "keyword" or set(ids(answer)) == expected
    assert bool(answer.notes) == (not answer.hits)


# --------------------------------------------------------------------------------------------------------- shown


class _Checked(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a tag."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Remember text."""
        self.text += data


def _parsed(html: str) -> _Checked:
    parser = _Checked()
    parser.feed(html)
    parser.close()
    return parser


def _found(rank: int, uri: str, caption: str | None = None, kind: ItemKind = ItemKind.IMAGE) -> SearchHit:
    return SearchHit(rank, rank, uri, 0.5, kind, caption, {"gps": "SECRET 52.1 N", "html": "<b>SECRET</b>"})


NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'and' \u202egpj.exe\x1b[31m"


def test_an_answer_in_a_notebook(tmp_path: Path) -> None:
    """Thumbnails are small JPEGs in data URIs, without the image's own metadata; the rest is escaped text."""
    photo = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = "SECRET description"
    Image.new("RGB", (1200, 800), "red").save(photo, exif=exif, comment=b"SECRET comment")
    hits = (
        _found(21, str(photo), NASTY),
        _found(22, str(tmp_path / "gone <b>.jpg")),
        _found(23, f"/texts#{NASTY}", NASTY, ItemKind.TEXT),
        _found(24, "https://example.org/x.jpg"),
        _found(25, str(tmp_path)),
        _found(26, "javascript:alert(3)"),
    )
    html = SearchResponse(hits, Mode.HYBRID, 1234, notes=(f"none has {NASTY}",), offset=20)._repr_html_()
    parsed = _parsed(html)
    assert set(parsed.tags) <= {"div", "b", "i", "img"}
    assert {name for name, _ in parsed.attributes} <= {"style", "src", "alt"}
    sources = [value or "" for name, value in parsed.attributes if name == "src"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/jpeg;base64,")
    data = base64.b64decode(sources[0].partition(",")[2])
    with Image.open(io.BytesIO(data)) as thumbnail:
        assert max(thumbnail.size) == 128
        assert not thumbnail.getexif()
        assert "comment" not in thumbnail.info
    assert b"SECRET" not in data
    assert "SECRET" not in html
    assert len(html) < 20_000
    assert NASTY[:9] in parsed.text
    assert "\u202e" not in html
    assert "\x1b" not in html
    for word in ("21.", "26.", "1,234", "file"):
        assert word in parsed.text
    assert not re.search(r"https?:|javascript:[^<]*\"", html.replace(sources[0], ""))


def test_a_long_answer_in_a_notebook_is_bounded(tmp_path: Path) -> None:
    """Of many hits the first are shown; an answer without hits shows its notes."""
    Image.effect_noise((600, 600), 90).convert("RGB").save(tmp_path / "noise.png")
    hits = tuple(_found(rank, str(tmp_path / "noise.png"), "x" * 10_000) for rank in range(1, 101))
    html = SearchResponse(hits, Mode.VECTOR, 100)._repr_html_()
    assert _parsed(html).tags.count("img") == 24
    assert len(html) < 400_000
    assert "the index is empty" in SearchResponse((), Mode.AUTO, 0, notes=("the index is empty",))._repr_html_()


def test_objects_show_what_they_are(index: Index, client: WordClient, tiny: Any) -> None:
    """A repr is one short line, whatever it holds."""
    from twinspire import Client

    searcher = Searcher(client, index)
    answer = searcher.search("red car", 3)
    with Client.local(tiny.bundle, precision="fp32", provider="cpu") as local:
        classifier = Classifier(local, ["cat", "dog" * 1000])
        shown = {
            "tiny": repr(local),
            str(index.path): repr(index),
            "WordClient": repr(searcher),
            "3 hits of 60": repr(answer),
            answer.hits[0].uri: repr(answer.hits[0]),
            "red": repr(Query.text("red")),
            "'red'": repr(Query.text("red")),
            "bytes": repr(Query.text("a") + Query.image(b"x" * 10_000)),
            "2 labels": repr(classifier),
            "of 2 labels": repr(classifier.classify([Image.new("RGB", (9, 9))])[0]),
            "onnxruntime": repr(local.towers),
        }
    for word, text in shown.items():
        assert word in text
        assert "\n" not in text
        assert len(text) < 600
    assert "…" in repr(Query.text("x" * 10_000))
    assert "\\n" in repr(Query.text("a\nb"))
    assert "2" in repr(Calibration(2, 1))
