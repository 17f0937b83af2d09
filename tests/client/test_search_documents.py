"""Search requests and responses as JSON documents: round trips, what is refused, and which files are opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinspire.errors import InputError
from twinspire.search import Boost, Filter, Mode, Query, QueryPart, SearchHit, SearchRequest, SearchResponse
from twinspire.stores import ItemKind

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
WEIGHTS = st.floats(-1e6, 1e6).filter(bool)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
FILTERS = st.sampled_from(
    ["year >= 2020", " camera = 'X' ", "not (a = 1 or b contains '红')", "added_at >= 2026-01-01"]
).map(Filter.parse)
PARTS = st.one_of(
    st.builds(lambda weight, text: QueryPart(weight, text=text), WEIGHTS, TEXTS.filter(str.strip)),
    st.builds(lambda weight, name: QueryPart(weight, image=name), WEIGHTS, TEXTS),
)
REQUESTS = st.builds(
    SearchRequest,
    query=st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: Query(tuple(parts))),
    k=st.integers(1, 2**40),
    offset=st.integers(0, 2**40),
    kind=st.none() | st.sampled_from(ItemKind),
    where=st.none() | FILTERS,
    mode=st.sampled_from(Mode),
    boosts=st.lists(st.builds(Boost, FILTERS, WEIGHTS), max_size=3).map(tuple),
    pins=st.lists(FILTERS, max_size=3).map(tuple),
    diversify=st.none() | st.floats(0, 1),
    min_score=st.none() | st.floats(-1, 1),
    effort=st.none() | st.integers(1, 2**40),
    group=st.none() | st.booleans() | st.floats(0, 1),
)
JSON_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
METADATA = st.dictionaries(
    JSON_TEXTS,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | FINITE | JSON_TEXTS,
        lambda values: st.lists(values, max_size=3) | st.dictionaries(JSON_TEXTS, values, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)
HITS = st.builds(
    SearchHit,
    rank=st.integers(1, 10**6),
    id=st.integers(0, 2**63 - 1),
    uri=TEXTS,
    score=FINITE,
    kind=st.sampled_from(ItemKind),
    caption=st.none() | TEXTS,
    metadata=METADATA,
    parts=st.dictionaries(JSON_TEXTS, FINITE, max_size=4),
    probability=st.none() | st.floats(0, 1),
    similar=st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
)
RESPONSES = st.builds(
    SearchResponse,
    hits=st.lists(HITS, max_size=3).map(tuple),
    mode=st.sampled_from(Mode),
    searched=st.integers(0, 2**50),
    cached=st.booleans(),
    notes=st.lists(TEXTS, max_size=3).map(tuple),
    offset=st.integers(0, 2**40),
)


def _through_json(document: dict[str, Any]) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


@given(REQUESTS)
def test_a_request_survives_json(request: SearchRequest) -> None:
    """What is read from its document, images by their names, is equal and has the same document."""
    document = request.to_dict()
    read = SearchRequest.from_dict(_through_json(document), images=str)
    assert read == request
    assert hash(read) == hash(request)
    assert read.to_dict() == document


@given(RESPONSES)
def test_a_response_survives_json(response: SearchResponse) -> None:
    """What is read from its document is equal and has the same document."""
    document = response.to_dict()
    read = SearchResponse.from_dict(_through_json(document))
    assert read == response
    assert read.to_dict() == document


def test_a_response_of_an_earlier_version_is_read() -> None:
    """A hit without `similar` stands for itself alone."""
    hit = SearchHit(1, 7, "/a.jpg", 0.5, ItemKind.IMAGE, None, {})
    document = SearchResponse((hit,), Mode.VECTOR, 9).to_dict()
    del document["hits"][0]["similar"]
    assert SearchResponse.from_dict(document).hits == (hit,)


def test_a_request_needs_a_query_alone() -> None:
    """Every other key may be left out, a str is plain text, whatever it looks like, and a part's weight is 1."""
    assert SearchRequest.from_dict({"query": '"a" + b.jpg'}) == SearchRequest(Query.text('"a" + b.jpg'))
    assert SearchRequest.from_dict({"query": [{"text": "a"}]}) == SearchRequest(Query.text("a"))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"limit": 3}, "limit"),
        ({"query": ""}, "query.text"),
        ({"query": 3}, "query"),
        ({"query": []}, "query"),
        ({"query": [{"text": "a"}, {}]}, "query[1]"),
        ({"query": [{"text": "a", "image": "b.jpg"}]}, "query[0]"),
        ({"query": [{"text": 3}]}, "query[0].text"),
        ({"query": [{"text": None}]}, "query[0].text"),
        ({"query": [{"text": "\ud800"}]}, "query[0].text"),
        ({"query": [{"image": ["a.jpg"]}]}, "query[0].image"),
        ({"query": [{"text": "a", "weight": 0}]}, "query[0].weight"),
        ({"query": [{"text": "a", "weight": "1"}]}, "query[0].weight"),
        ({"query": [{"text": "a", "weight": True}]}, "query[0].weight"),
        ({"query": [{"text": "a", "wieght": 2}]}, "query[0].wieght"),
        ({"k": 0}, "k"),
        ({"k": 3.0}, "k"),
        ({"k": "3"}, "k"),
        ({"k": True}, "k"),
        ({"k": None}, "k"),
        ({"offset": -1}, "offset"),
        ({"kind": "photo"}, "kind"),
        ({"where": "year >"}, "where"),
        ({"where": ["year = 1"]}, "where"),
        ({"mode": "words"}, "mode"),
        ({"mode": None}, "mode"),
        ({"boosts": "year = 1:2"}, "boosts"),
        ({"boosts": {"where": "a = 1", "weight": 1}}, "boosts"),
        ({"boosts": ["year = 1:2"]}, "boosts[0]"),
        ({"boosts": [{"where": "a = 1", "weight": 1}, {"where": "a = 1"}]}, "boosts[1].weight"),
        ({"boosts": [{"where": "a = 1", "weight": float("nan")}]}, "boosts[0].weight"),
        ({"boosts": [{"where": "a =", "weight": 1}]}, "boosts[0].where"),
        ({"pins": {"a = 1": 2}}, "pins"),
        ({"pins": ["a = 1", 7]}, "pins[1]"),
        ({"diversify": 1.1}, "diversify"),
        ({"diversify": "0.5"}, "diversify"),
        ({"min_score": -1.5}, "min_score"),
        ({"min_score": float("inf")}, "min_score"),
        ({"effort": 0}, "effort"),
        ({"group": 2}, "group"),
        ({"group": "true"}, "group"),
    ],
)
def test_a_request_names_the_key_that_is_wrong(changes: dict[str, Any], option: str) -> None:
    """Unknown keys, wrong types and values out of range are errors about that key, however deep it is."""
    with pytest.raises(InputError) as caught:
        SearchRequest.from_dict({"query": "a"} | changes, images=str)
    assert caught.value.option == option


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(key)


def _with(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({key: value})


def _hit_with(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["hits"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (_without("notes"), "notes"),
        (_with("extra", 1), "extra"),
        (_with("schema_version", 2), "schema_version"),
        (_with("schema_version", True), "schema_version"),
        (_with("mode", "words"), "mode"),
        (_with("searched", -1), "searched"),
        (_with("searched", 1.5), "searched"),
        (_with("cached", 0), "cached"),
        (_with("notes", "one"), "notes"),
        (_with("notes", ["one", 2]), "notes[1]"),
        (_with("hits", {}), "hits"),
        (_hit_with("extra", 1), "hits[0].extra"),
        (_hit_with("rank", 0), "hits[0].rank"),
        (_hit_with("id", "1"), "hits[0].id"),
        (_hit_with("uri", None), "hits[0].uri"),
        (_hit_with("score", float("nan")), "hits[0].score"),
        (_hit_with("kind", "photo"), "hits[0].kind"),
        (_hit_with("caption", 3), "hits[0].caption"),
        (_hit_with("metadata", [1]), "hits[0].metadata"),
        (_hit_with("metadata", {"a": float("inf")}), "hits[0].metadata"),
        (_hit_with("parts", {"vector": "high"}), "hits[0].parts.vector"),
        (_hit_with("probability", 1.5), "hits[0].probability"),
        (_hit_with("similar", [1, -1]), "hits[0].similar[1]"),
    ],
)
def test_a_response_names_the_key_that_is_wrong(change: Callable[[dict[str, Any]], None], option: str) -> None:
    """Missing and unknown keys, another schema and wrong types are errors about that key."""
    hit = SearchHit(1, 7, "/a.jpg", 0.5, ItemKind.IMAGE, None, {"year": 2020}, {"vector": 0.5})
    document = SearchResponse((hit,), Mode.VECTOR, 9).to_dict()
    change(document)
    with pytest.raises(InputError) as caught:
        SearchResponse.from_dict(document)
    assert caught.value.option == option


@pytest.mark.parametrize("document", [None, [], "query", 3, b"{}"])
def test_only_an_object_is_a_document(document: Any) -> None:
    """A list, a text or a number is an InputError."""
    for read in (SearchRequest.from_dict, SearchResponse.from_dict, SearchHit.from_dict, Boost.from_dict):
        with pytest.raises(InputError, match="object"):
            read(document)


def test_images_of_a_request_go_through_the_resolver() -> None:
    """It gets each name and its result is what is encoded; without one an image is refused."""
    document = {"query": [{"text": "a"}, {"image": "a.jpg", "weight": -0.5}]}
    with pytest.raises(InputError) as caught:
        SearchRequest.from_dict(document)
    assert caught.value.option == "query[1].image"
    request = SearchRequest.from_dict(document, images=lambda name: name.upper().encode())
    assert request.query.parts[1] == QueryPart(-0.5, image=b"A.JPG")


def test_an_image_in_memory_is_not_json() -> None:
    """Encoded bytes and arrays have no name to write; a path is written as it is."""
    for image in (b"x", np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(InputError, match="memory"):
            SearchRequest(Query.image(image)).to_dict()
    (part,) = SearchRequest(Query.image(Path("/a/ü.jpg"))).to_dict()["query"]
    assert part == {"image": "/a/ü.jpg", "weight": 1.0}


def test_parts_are_equal_by_their_content() -> None:
    """Images by path or bytes compare by value, pixels only as the same object; weights and texts count."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert Query.image(b"x") == Query.image(b"x") != Query.image(b"y")
    assert Query.image(pixels) == Query.image(pixels) != Query.image(pixels.copy())
    assert Query.text("a") != Query.text("a", 2)
    assert Query.text("a") != Query.image("a")
    assert len({Query.text("a"), Query.text("a"), Query.image(pixels), Query.image(pixels)}) == 2
