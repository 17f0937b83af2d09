"""Reranked search: the first hits in the order of a model that reads text and image together. Fake model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.arrays import random_vectors, unit
from support.fakes import FakeClient
from support.rerankers import with_reranker
from twinspire import Bundle, Client, sample_bundle
from twinspire.errors import BundleError, ImageError, InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.ingest import add_images, find_images
from twinspire.search import Query, Searcher, SearchHit, SearchRequest
from twinspire.search.request import MAX_RERANKED
from twinspire_eval.scenes import Split, draw_dataset

SPACE, DIM = "5" * 64, 24
QUERY = random_vectors(1, seed=9, dim=DIM)[0]
IMAGES = 60


class Reranks(FakeClient):
    """A client whose reranker prefers files by the last digits of their number; `missing` cannot be opened."""

    def __init__(self, missing: frozenset[int] = frozenset()) -> None:
        super().__init__(SPACE, dim=DIM, text_vector=lambda _: QUERY)
        self.bundle.manifest.reranker = lambda: ("reranker", None)
        self.missing = missing
        self.asked: list[tuple[str, str]] = []

    def score_pairs(
        self, items: Sequence[Any], texts: Sequence[str], *, on_error: str
    ) -> tuple[NDArray[np.float32], list[ImageError]]:
        """Return the probability of each file's number; the texts are recorded."""
        assert on_error == "skip"
        self.asked += zip(items, texts, strict=True)
        numbers = [int(Path(item).stem) for item in items]
        scores = [np.nan if number in self.missing else probability(number) for number in numbers]
        errors = [
            ImageError(place, str(items[place]), "the file does not exist")
            for place, number in enumerate(numbers)
            if number in self.missing
        ]
        return np.array(scores, np.float32), errors


def probability(number: int) -> float:
    """Return what the reranker gives an image: no two are equal."""
    return float(np.float32((number * 37 % 101) / 101))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Make an index of 60 images, and a text and a remote image that are as near to the query as the best of them."""
    vectors = unit(random_vectors(IMAGES, seed=4, dim=DIM) + 0.6 * QUERY)
    items = [Item(f"/photos/{number}.jpg", ItemKind.IMAGE, metadata={"n": number}) for number in range(IMAGES)]
    items += [Item("/texts.txt#1", ItemKind.TEXT, caption="words"), Item("s3://bucket/61.jpg", ItemKind.IMAGE)]
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as made:
        made.add(np.concatenate([vectors, np.stack([QUERY, QUERY])]), items, space=SPACE)
        yield made


def ids(hits: Sequence[SearchHit]) -> list[int]:
    """Return the ids of hits."""
    return [hit.id for hit in hits]


def expected(ranked: list[int], count: int, missing: frozenset[int] = frozenset()) -> list[int]:
    """Reorder the first `count` of a ranking by the fake's probabilities; what has none comes after, as it was."""
    first = [number for number in ranked[:count] if number < IMAGES and number not in missing]
    by_probability = sorted(first, key=probability, reverse=True)
    return by_probability + [number for number in ranked[:count] if number not in first] + ranked[count:]


@pytest.mark.parametrize(("count", "k", "offset"), [(20, 10, 0), (20, 10, 15), (5, 10, 0), (3, 2, 40), (1000, 62, 0)])
def test_the_first_hits_are_in_the_rerankers_order(index: Index, count: int, k: int, offset: int) -> None:
    """Exactly the first candidates are reordered, pages are slices of that order, and hits say their probability."""
    client = Reranks()
    searcher = Searcher(client, index)  # type: ignore[arg-type]
    ranked = ids(searcher.search("a", IMAGES + 2, mode="vector").hits)
    found = searcher.search("a", k, offset=offset, mode="vector", rerank=count)
    assert ids(found.hits) == expected(ranked, count)[offset : offset + k]
    assert [hit.rank for hit in found.hits] == list(range(offset + 1, offset + 1 + len(found.hits)))
    for hit in found.hits:
        reranked = hit.id in ranked[:count] and hit.id < IMAGES
        assert hit.parts.get("rerank") == (probability(hit.id) if reranked else None)
        assert hit.score == hit.parts["vector"]
    assert {text for _, text in client.asked} == {"a"}
    assert [note for note in found.notes if "asked for" in note] == (
        ["1,000 candidates were asked for, and the index has only 62 items"] if count == 1000 else []
    )


def test_what_has_no_file_comes_after_and_is_named(index: Index) -> None:
    """A text, a remote image and files that are gone keep their order behind the others; a note counts them."""
    missing = frozenset({3, 8})
    searcher = Searcher(Reranks(missing), index)  # type: ignore[arg-type]
    ranked = ids(searcher.search("a", IMAGES + 2, mode="vector").hits)
    found = searcher.search("a", IMAGES + 2, mode="vector", rerank=IMAGES + 2)
    assert ids(found.hits) == expected(ranked, IMAGES + 2, missing)
    (note,) = found.notes
    assert note.startswith("4 of 62 candidates were not reranked")
    assert "2 without a local image" in note
    assert "2 that cannot be opened" in note
    assert "does not exist" in note


def test_filters_pins_and_groups_come_first(index: Index) -> None:
    """Pinned items stay first, and only what a filter, a minimum and a grouping leave is reranked."""
    searcher = Searcher(Reranks(), index)  # type: ignore[arg-type]
    options: dict[str, Any] = {"mode": "vector", "where": "n < 30", "pins": ["n = 7"], "group": 0.999, "min_score": 0.1}
    ranked = ids(searcher.search("a", 40, **options).hits)
    found = ids(searcher.search("a", 40, rerank=10, **options).hits)
    assert ranked[0] == found[0] == 7
    assert found[1:] == expected(ranked[1:], 10)


def test_quotes_are_not_part_of_the_text(index: Index) -> None:
    """The reranker reads what the text tower reads: the words beside a quoted phrase."""
    client = Reranks()
    Searcher(client, index).search('a red car "Sunny Bay"', mode="vector", rerank=5)  # type: ignore[arg-type]
    assert {text for _, text in client.asked} == {"a red car"}


def test_a_reranked_response_is_cached_apart(index: Index) -> None:
    """The number of candidates is part of a request's identity."""
    searcher = Searcher(Reranks(), index)  # type: ignore[arg-type]
    first = searcher.search("a", rerank=20)
    assert searcher.search("a", rerank=20).cached
    assert not searcher.search("a", rerank=19).cached
    assert not searcher.search("a").cached
    assert first.hits == searcher.search("a", rerank=20).hits


@pytest.mark.parametrize("count", [0, -1, MAX_RERANKED + 1, 2.5, "20", True])
def test_a_wrong_number_is_refused(count: Any) -> None:
    """Anything but a whole number from 1 to the maximum is an error that names rerank."""
    with pytest.raises(InputError, match="rerank") as caught:
        SearchRequest(Query.text("a"), rerank=count)
    assert caught.value.option == "rerank"


def test_a_query_must_be_one_text() -> None:
    """Sums, images and a negative text are refused, and a diversified order too."""
    text, image = Query.text("a"), Query.image("a.jpg")
    for query in (image, text + image, text + Query.text("b"), -text):
        with pytest.raises(InputError, match="one text") as caught:
            SearchRequest(query, rerank=5)
        assert caught.value.option == "rerank"
    with pytest.raises(InputError, match="diversify"):
        SearchRequest(text, rerank=5, diversify=0.5)


def test_a_bundle_without_a_reranker_is_an_error(index: Index, tmp_path: Path) -> None:
    """The message names the bundle, also where the index is empty."""
    client = Reranks()

    def none() -> None:
        raise BundleError("the bundle 'fake' has no reranker")

    client.bundle.manifest.reranker = none
    with pytest.raises(BundleError, match="no reranker"):
        Searcher(client, index).search("a", rerank=5)  # type: ignore[arg-type]
    with Index.create(tmp_path / "empty", space=SPACE, dim=DIM) as empty, pytest.raises(BundleError):
        Searcher(client, empty).search("a", rerank=5)  # type: ignore[arg-type]


def test_documents_keep_it() -> None:
    """A request with candidates to rerank survives JSON, and null means none."""
    request = SearchRequest(Query.text("a"), rerank=20)
    assert SearchRequest.from_dict(request.to_dict()) == request
    assert SearchRequest.from_dict({"query": "a", "rerank": None}).rerank is None


def test_a_real_reranker_orders_files(tmp_path: Path) -> None:
    """The hits of a folder are in the order of `Client.score_pairs`, also by shorter embeddings."""
    draw_dataset(tmp_path / "photos", 16, seed=5, split=Split.HELDOUT)
    files = sorted((tmp_path / "photos").glob("*.jpg"))
    bundle = with_reranker(Bundle.open(sample_bundle()), tmp_path / "bundle")
    for dim in (128, 32):
        with (
            Client.local(bundle, dim=dim, provider="cpu") as client,
            Index.create(tmp_path / f"{dim}.index", space=client.space, dim=client.dim) as index,
        ):
            add_images(index, client, find_images([tmp_path / "photos"]))
            hits = Searcher(client, index).search("a red car", 16, rerank=16).hits
            probabilities = dict(zip(map(str, files), client.score_pairs(files, ["a red car"] * 16), strict=True))
        assert [hit.uri for hit in hits] == sorted(probabilities, key=lambda uri: -probabilities[uri])
        assert [hit.parts["rerank"] for hit in hits] == pytest.approx(
            [probabilities[hit.uri] for hit in hits], abs=1e-6
        )
