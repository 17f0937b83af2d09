"""Vector, keyword and hybrid search: filters, business rules, diversification, caches. Fake model, real index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.arrays import unit
from support.fakes import FakeClient
from twinspire.errors import InputError, SpaceMismatchError
from twinspire.index import Index, Item, ItemKind
from twinspire.search import Boost, Calibration, Filter, FusionWeights, Mode, Query, Searcher, Synonyms, Templates

SPACE = "5" * 64
DIM = 16


class WordClient(FakeClient):
    """Encodes a text as the sum of one random direction for each of its words, an image as the text in its file."""

    def __init__(self) -> None:
        super().__init__(SPACE, dim=DIM, text_vector=lambda text: sum(direction(word) for word in text.split()))

    def encode_images(self, items: Iterable[Any], *, on_error: str = "raise") -> NDArray[np.float32]:
        """Return (N, D) float32."""
        return self.encode_texts([Path(item).read_text() for item in items])


def direction(word: str) -> NDArray[np.float64]:
    """Return the same random direction for a word every time."""
    return np.random.default_rng([ord(character) for character in word]).normal(size=DIM)


COLOURS = ("red", "green", "blue", "black", "white")
KINDS = ("car", "dog", "boat", "tent")


@pytest.fixture
def client() -> WordClient:
    """Return a client that has encoded nothing yet."""
    return WordClient()


@pytest.fixture
def index(tmp_path: Path, client: WordClient) -> Iterator[Index]:
    """Make an index of 40 images of five colours and four kinds, some named, and of 5 texts."""
    things = [f"{COLOURS[number % 5]} {KINDS[number % 4]}" for number in range(40)]
    items = [
        Item(
            f"/photos/{'Zorblatt_' if number in (7, 30) else ''}{number:04d}.jpg",
            ItemKind.IMAGE,
            caption=f"a {thing}{' at Sunny Bay' if number % 10 == 3 else ''}，第{number}张，红色的汽车"
            if number < 20
            else None,
            metadata={"year": 2000 + number, "in_stock": number % 2 == 0},
        )
        for number, thing in enumerate(things)
    ]
    items += [
        Item(f"/texts.txt#{number}", ItemKind.TEXT, caption=f"about a {kind}") for number, kind in enumerate(KINDS)
    ]
    noise = np.random.default_rng(1).normal(size=(len(items), DIM))
    texts = [item.caption or "" for item in items[40:]]
    vectors = unit(unit(client.encode_texts(things + texts)) + 0.15 * noise)
    client.encoded_texts.clear()
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as made:
        made.add(vectors, items, space=SPACE)
        yield made


def all_vectors(index: Index) -> NDArray[np.float32]:
    """Return the vectors of ids 0 to N - 1."""
    return index.vectors(range(len(index)))


def ids(answer: Any) -> list[int]:
    """Return the hits' ids."""
    return [hit.id for hit in answer.hits]


def test_the_vector_side_is_exact_search(index: Index, client: WordClient) -> None:
    """Mode vector gives the ids and scores of a product by NumPy, of a sum of texts and an image as well."""
    Path(index.path.parent / "a.png").write_text("black boat")
    query = Query.text("red car") + 0.5 * Query.image(index.path.parent / "a.png") - 0.3 * Query.text("dog")
    a, b, c = (client.encode_texts([text])[0] for text in ("red car", "black boat", "dog"))
    scores = all_vectors(index) @ unit(a + 0.5 * b - 0.3 * c)
    answer = Searcher(client, index).search(query, 7, mode="vector")
    assert ids(answer) == np.argsort(-scores)[:7].tolist()
    np.testing.assert_allclose([hit.score for hit in answer.hits], np.sort(scores)[::-1][:7], atol=1e-6)
    assert answer.mode is Mode.VECTOR


def test_fusion_is_by_reciprocal_rank(index: Index, client: WordClient) -> None:
    """A hybrid score is the weighted sum of 1 / (60 + rank) over vector and keyword search, 1 for the first of both."""
    searcher = Searcher(client, index, weights=FusionWeights(1, 0.5, 0))
    vector, words = (searcher.search("red car", 100, mode=mode) for mode in ("vector", "keyword"))
    answer = searcher.search("red car", 45, mode="hybrid")
    expected: dict[int, float] = {}
    for side, weight in ((vector, 1), (words, 0.5)):
        for rank, number in enumerate(ids(side), start=1):
            expected[number] = expected.get(number, 0) + weight * 61 / (60 + rank) / 1.5
    assert ids(answer) == sorted(expected, key=lambda number: (-expected[number], number))
    for hit in answer.hits:
        assert hit.score == pytest.approx(expected[hit.id])
        assert hit.parts["fused"] == pytest.approx(hit.score)
        assert hit.parts["vector"] == pytest.approx(
            float(all_vectors(index)[hit.id] @ client.encode_texts(["red car"])[0]), abs=1e-6
        )
        assert hit.parts["vector_rank"] == ids(vector).index(hit.id) + 1
        if hit.id in ids(words):
            assert hit.parts["keyword_rank"] == ids(words).index(hit.id) + 1


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("red car", Mode.HYBRID),
        ('"sunny bay"', Mode.KEYWORD),
        ('car "sunny bay"', Mode.HYBRID),
        ("nowhere mentioned", Mode.VECTOR),
        ("红色的汽车", Mode.HYBRID),
        ("红色 “汽车”", Mode.HYBRID),
    ],
)
def test_auto_goes_by_the_query(index: Index, client: WordClient, query: str, mode: Mode) -> None:
    """Phrases use keyword search, other text hybrid search, and words that no caption has vector search alone."""
    assert Searcher(client, index).search(query).mode is mode


def test_a_quoted_phrase_must_be_there(index: Index, client: WordClient) -> None:
    """Only items with the phrase are found, the rest of the query orders them by vectors too."""
    answer = Searcher(client, index).search('green dog "sunny bay"', 10)
    assert sorted(ids(answer)) == [3, 13]
    assert all("vector" in hit.parts and "keyword" in hit.parts for hit in answer.hits)
    assert client.encoded_texts == ["green dog"]


def test_a_name_in_a_file_name_is_found(index: Index, client: WordClient) -> None:
    """The model knows no Zorblatt; the file names do."""
    searcher = Searcher(client, index)
    assert set(ids(searcher.search("Zorblatt", 10, mode="keyword"))) == {7, 30}
    assert ids(searcher.search('black tent "zorblatt"', 1)) != []


def test_chinese_is_found_by_both_sides(index: Index, client: WordClient) -> None:
    """Words, single characters and phrases find Chinese captions, and the text is encoded as it is."""
    searcher = Searcher(client, index)
    assert set(ids(searcher.search("汽车", 45, mode="keyword"))) == set(range(20))
    assert set(ids(searcher.search("车", 45, mode="keyword"))) == set(range(20))
    assert ids(searcher.search('"第7张"', 45)) == [7]
    assert searcher.search("汽车", 3, mode="vector").hits
    assert client.encoded_texts == ["汽车"]


def test_filters_and_kinds_hold_on_both_sides(index: Index, client: WordClient) -> None:
    """Whatever the mode, hits are of the kind and satisfy the filter, as many as there are."""
    searcher = Searcher(client, index)
    for mode in ("vector", "keyword", "hybrid"):
        found = searcher.search("red car", 45, where="year < 2010 and in_stock = true", kind=ItemKind.IMAGE, mode=mode)
        assert set(ids(found)) <= {0, 2, 4, 6, 8}
        assert mode == "keyword" or len(ids(found)) == 5
    texts = searcher.search("about a car", 45, kind=ItemKind.TEXT)
    assert sorted(ids(texts)) == [40, 41, 42, 43]


def test_boosts_add_to_scores_and_are_shown(index: Index, client: WordClient) -> None:
    """A boost adds its weight to what the filter keeps, a weight below 0 takes away; both stand in the parts."""
    searcher = Searcher(client, index)
    plain = {hit.id: hit.score for hit in searcher.search("red car", 44, mode="vector").hits}
    boosts = ["in_stock = true:0.1", Boost.parse("year >= 2020:-0.25")]
    answer = searcher.search("red car", 44, mode="vector", boosts=boosts)
    expected = {n: s + 0.1 * (n < 40 and n % 2 == 0) - 0.25 * (20 <= n < 40) for n, s in plain.items()}
    assert ids(answer) == sorted(expected, key=lambda number: (-expected[number], number))
    for hit in answer.hits:
        assert hit.score == pytest.approx(expected[hit.id])
        assert hit.score == pytest.approx(sum(hit.parts.values()))
    assert answer.hits[-1].parts["boost year >= 2020"] == -0.25


def test_pins_stand_first(index: Index, client: WordClient) -> None:
    """What a pin keeps comes first, however far it ranked, in the order of the pins; filters still hold."""
    searcher = Searcher(client, index)
    far = ids(searcher.search("red car", 44, mode="vector"))[-1]
    answer = searcher.search("red car", 4, pins=[f"id = {far}", Filter.parse("id in (1, 2)")], mode="vector")
    assert ids(answer)[0] == far
    assert set(ids(answer)[1:3]) == {1, 2}
    assert [hit.parts.get("pinned") for hit in answer.hits] == [1, 1, 1, None]
    assert far not in ids(searcher.search("red car", 4, pins=[f"id = {far}"], where=f"id != {far}", mode="vector"))


def test_min_score_drops_what_lies_below(index: Index, client: WordClient) -> None:
    """All hits reach it, and none that does is missing."""
    searcher = Searcher(client, index)
    plain = searcher.search("red car", 44, mode="vector").hits
    answer = searcher.search("red car", 44, mode="vector", min_score=0.4)
    assert ids(answer) == [hit.id for hit in plain if hit.score >= 0.4]
    assert 0 < len(answer.hits) < 44


def test_diversify_is_maximal_marginal_relevance(index: Index, client: WordClient) -> None:
    """The hits are those of the textbook's greedy choice over the candidates."""
    answer = Searcher(client, index).search("red car", 6, mode="vector", diversify=0.6)
    vectors = all_vectors(index).astype(np.float64)
    scores = all_vectors(index) @ client.encode_texts(["red car"])[0]
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < 6:
        value = 0.4 * relevance - 0.6 * (vectors @ vectors[chosen].T).max(axis=1)
        value[chosen] = -np.inf
        chosen.append(int(np.argmax(value)))
    assert ids(answer) == chosen


def test_synonyms_and_templates_are_used(index: Index, client: WordClient) -> None:
    """Synonyms apply to keyword search, templates to the model."""
    synonyms = Synonyms({("automobile",): (("car",),)})
    templates = Templates(("{}", "seen {}"))
    searcher = Searcher(client, index, synonyms=synonyms, templates=templates)
    assert {
        KINDS[number % 4] for number in ids(searcher.search("automobile", 45, mode="keyword", kind=ItemKind.IMAGE))
    } == {"car"}
    answer = searcher.search("car", 5, mode="vector")
    assert client.encoded_texts == ["car", "seen car"]
    expected = unit(unit(direction("car")) + unit(direction("seen") + direction("car")))
    assert ids(answer) == np.argsort(-(all_vectors(index) @ expected))[:5].tolist()


def test_a_known_query_is_neither_encoded_nor_searched_again(index: Index, client: WordClient) -> None:
    """The second answer is the first one, until the index changes; a part that is known is not encoded again."""
    searcher = Searcher(client, index)
    first = searcher.search("red car", 3)
    second = searcher.search("red car", 3)
    assert (first.cached, second.cached) == (False, True)
    assert second.hits == first.hits
    index.remove([first.hits[0].id])
    third = searcher.search("red car", 3)
    assert not third.cached
    assert first.hits[0].id not in ids(third)
    assert client.encoded_texts == ["red car"]
    searcher.search("red car", 3, where="year > 2003")
    stats = searcher.stats()
    assert (stats.responses.hits, stats.responses.misses, stats.responses.hit_rate) == (1, 3, 0.25)
    assert stats.embeddings.hits == 2
    assert Searcher(client, index, cache=False).search("red car", 3).cached is False


def test_another_process_changes_the_answer(index: Index, client: WordClient) -> None:
    """A reader's cache is keyed by the generation, which it reads anew."""
    with Index.open(index.path) as reader:
        searcher = Searcher(client, reader)
        best = searcher.search("red car", 1).hits[0].id
        assert searcher.search("red car", 1).cached
        index.remove([best])
        assert searcher.search("red car", 1).hits[0].id != best


def test_probabilities_come_of_scale_and_bias(index: Index, client: WordClient) -> None:
    """A calibration gives the logistic function of the inner product; without a bias there is no probability."""
    assert Searcher(client, index).search("red car", 1).hits[0].probability is None
    searcher = Searcher(client, index, calibration=Calibration(10, -5))
    for hit in searcher.search("red car", 5, mode="hybrid").hits:
        assert hit.probability == pytest.approx(1 / (1 + np.exp(5 - 10 * hit.parts["vector"])))


def test_a_calibration_is_fitted_by_logistic_regression() -> None:
    """From marks drawn with a known scale and bias comes about that scale and bias."""
    generator = np.random.default_rng(3)
    scores = generator.uniform(-0.5, 0.5, 20_000)
    marks = generator.random(20_000) < 1 / (1 + np.exp(-(12 * scores - 2)))
    fitted = Calibration.fit(scores, marks)
    print(f"fitted {fitted}")
    assert fitted.scale == pytest.approx(12, rel=0.05)
    assert fitted.bias == pytest.approx(-2, abs=0.1)
    with pytest.raises(InputError, match="relevant"):
        Calibration.fit([0.1, 0.2], [True, False])
    with pytest.raises(InputError, match="booleans"):
        Calibration.fit([0.1, 0.2], [True, True])


@pytest.mark.parametrize(
    ("options", "option", "word"),
    [
        ({"k": 0}, "k", "got 0"),
        ({"k": True}, "k", "True"),
        ({"mode": "fuzzy"}, "mode", "keyword"),
        ({"where": "year >"}, "where", "filter"),
        ({"boosts": ["in_stock = true"]}, "boosts[0]", "colon"),
        ({"boosts": ["in_stock = true:nan"]}, "boosts[0].weight", "nan"),
        ({"pins": ["a = 1", "="]}, "pins[1]", "filter"),
        ({"diversify": 1.5}, "diversify", "1.5"),
        ({"min_score": float("inf")}, "min_score", "inf"),
        ({"kind": "photo"}, "kind", "image"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    index: Index, client: WordClient, options: dict[str, Any], option: str, word: str
) -> None:
    """Each wrong argument is an error that names it and says what was expected, before anything is encoded."""
    with pytest.raises(InputError) as caught:
        Searcher(client, index).search("red car", **options)
    assert caught.value.option == option
    assert word in str(caught.value)
    assert client.encoded_texts == []


def test_a_sum_that_cancels_out_is_refused(index: Index, client: WordClient) -> None:
    """Nothing is left of a text minus itself."""
    with pytest.raises(InputError, match="cancel"):
        Searcher(client, index).search(Query.text("car") - Query.text("car"), mode="vector")


def test_no_hits_are_explained(index: Index, client: WordClient, tmp_path: Path) -> None:
    """An empty answer says why: the index, the filter, the kind or the phrase."""
    searcher = Searcher(client, index)
    (note,) = searcher.search("car", where="year > 3000").notes
    assert "44" in note
    (note,) = searcher.search("car", where="yaer > 2000 or year > 3000").notes
    assert "yaer" in note
    (note,) = searcher.search('"zorblatt" car', where="year = 2001").notes
    assert "filter" in note
    assert '"zorblatt"' in note
    (note,) = searcher.search("nowhere", mode="keyword").notes
    assert "caption" in note
    with Index.create(tmp_path / "empty", space=SPACE, dim=DIM) as empty:
        assert Searcher(client, empty).search("car").notes == ("the index is empty",)
    with pytest.raises(InputError, match="captions"):
        searcher.search("?!", mode="keyword")


def test_another_space_is_refused(index: Index) -> None:
    """Client and index must be of one space."""
    other = WordClient()
    other.space = "6" * 64
    with pytest.raises(SpaceMismatchError):
        Searcher(other, index)


def test_an_item_that_is_removed_while_it_is_found_is_left_out(
    client: WordClient, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit that another thread removes before it is read is no error: the search runs again."""
    best = Searcher(client, index).search("red car", 3).hits[0].id
    get = index.get

    def get_late(ids: Iterable[int]) -> Any:
        index.remove([best])
        return get(ids)

    monkeypatch.setattr(index, "get", get_late)
    hits = Searcher(client, index).search("red car", 3).hits
    assert len(hits) == 3
    assert best not in [hit.id for hit in hits]
