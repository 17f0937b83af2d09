"""Grouped search: one of each group of near-equal hits, with the ids of the others. Fake model, real index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from support.arrays import random_vectors, unit
from support.fakes import FakeClient
from twinspire.errors import InputError
from twinspire.index import Index, Item, ItemKind
from twinspire.search import Query, Searcher, SearchRequest, SearchResponse

SPACE = "5" * 64
DIM = 24
SCENES, COPIES = 40, 15
QUERY = random_vectors(1, seed=9, dim=DIM)[0]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """Make an index of 40 scenes with 15 near-equal images each, shuffled, and a text at the vector of every scene."""
    random = np.random.default_rng(2)
    scenes = unit(random_vectors(SCENES, seed=4, dim=DIM) + 0.6 * QUERY)
    copies = np.repeat(np.arange(SCENES), COPIES)
    random.shuffle(copies)
    items = [
        Item(f"/photos/{number}.jpg", ItemKind.IMAGE, caption=f"scene{scene} shot", metadata={"scene": int(scene)})
        for number, scene in enumerate(copies)
    ]
    items += [Item(f"/texts.txt#{scene}", ItemKind.TEXT, caption="words") for scene in range(SCENES)]
    vectors = unit(scenes[copies] + 0.01 * random.normal(size=(len(copies), DIM)))
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as made:
        made.add(np.concatenate([vectors, scenes]), items, space=SPACE)
        yield made


@pytest.fixture
def searcher(index: Index) -> Searcher:
    """Return a searcher whose client encodes every text to the same vector."""
    return Searcher(FakeClient(SPACE, dim=DIM, text_vector=lambda _: QUERY), index)  # type: ignore[arg-type]


def vectors_of(index: Index) -> NDArray[np.float64]:
    """Return the vectors of all ids, in order."""
    return index.vectors(range(SCENES * COPIES + SCENES)).astype(np.float64)


def expected_groups(index: Index, ranked: list[int], threshold: float) -> list[list[int]]:
    """Group a ranking as documented: each id joins the nearest head of its kind at the threshold, or is one."""
    vectors = vectors_of(index)
    groups: list[list[int]] = []
    for number in ranked:
        is_text = number >= SCENES * COPIES
        near = [
            (vectors[number] @ vectors[group[0]], -place)
            for place, group in enumerate(groups)
            if (group[0] >= SCENES * COPIES) is is_text
        ]
        best = max(near, default=(-1.0, 0))
        if best[0] >= threshold:
            groups[-best[1]].append(number)
        else:
            groups.append([number])
    return groups


def groups_of(response: SearchResponse) -> list[list[int]]:
    """Return the ids of each hit and of those that are near-equal to it."""
    return [[hit.id, *hit.similar] for hit in response.hits]


def search(searcher: Searcher, k: int = 10, **options: Any) -> SearchResponse:
    """Search by vector."""
    return searcher.search(Query.text("any"), k, mode="vector", **options)


def test_one_of_each_group_stays(index: Index, searcher: Searcher) -> None:
    """Hits are the heads of the groups of the whole ranking, and k of them come, though the first 150 are of few."""
    ranking = [hit.id for hit in search(searcher, 1000).hits]
    found = search(searcher, 30, group=0.95)
    expected = expected_groups(index, ranking, 0.95)
    assert [hit.id for hit in found.hits] == [group[0] for group in expected[:30]]
    for group, whole in zip(groups_of(found), expected, strict=False):
        assert group == whole[: len(group)]
    assert len(groups_of(found)[0]) in (1, COPIES)  # a text, or all the copies of a scene
    assert found.notes == ()


def test_hits_are_the_same_without_near_equal_ones(index: Index, searcher: Searcher) -> None:
    """With a threshold that nothing reaches, grouping changes nothing."""
    plain = search(searcher, 20)
    assert search(searcher, 20, group=0.99999).hits == plain.hits
    assert search(searcher, 20, group=False).hits == plain.hits
    assert {hit.similar for hit in plain.hits} == {()}


def test_kinds_are_not_mixed(searcher: Searcher) -> None:
    """An image never stands for a text: each scene has two groups, and one where a kind is asked for."""
    both = search(searcher, 1000, group=0.9)
    assert [len(group) for group in groups_of(both)].count(1) == SCENES
    assert len(both.hits) == 2 * SCENES
    images = search(searcher, 1000, group=0.9, kind="image")
    assert sorted(len(group) for group in groups_of(images)) == [COPIES] * SCENES


def test_pages_are_slices_of_one_ranking(searcher: Searcher) -> None:
    """`offset` counts groups: pages joined are the page of all, without a repeated hit."""
    whole = search(searcher, 24, group=0.95, kind="image")
    pages = [search(searcher, 6, offset=offset, group=0.95, kind="image") for offset in range(0, 24, 6)]
    assert [hit.id for page in pages for hit in page.hits] == [hit.id for hit in whole.hits]
    assert [hit.rank for hit in pages[1].hits] == list(range(7, 13))
    beyond = search(searcher, 6, offset=200, group=0.95, kind="image")
    assert beyond.hits == ()
    assert f"{SCENES} hits" in beyond.notes[0]


def test_filters_and_the_minimum_hold_for_all_of_a_group(index: Index, searcher: Searcher) -> None:
    """No id is in `similar` that a search without grouping would not find."""
    options = {"where": "scene < 20", "min_score": 0.5, "kind": "image"}
    allowed = {hit.id for hit in search(searcher, 1000, **options).hits}
    found = search(searcher, 1000, group=0.95, **options)
    assert {number for group in groups_of(found) for number in group} == allowed
    assert sum(map(len, groups_of(found))) == len(allowed)


@pytest.mark.parametrize("mode", ["hybrid", "keyword"])
def test_every_mode_groups(searcher: Searcher, index: Index, mode: str) -> None:
    """By keyword and hybrid too, hits are of different groups and have the parts of their mode."""
    plain = searcher.search("shot scene3", 1, mode=mode, kind="image")
    found = searcher.search("shot scene3", 10, mode=mode, kind="image", group=0.9)
    assert len(found.hits) == 10
    assert len({index.get([hit.id])[0].metadata["scene"] for hit in found.hits}) == 10
    assert found.hits[0].parts.keys() == plain.hits[0].parts.keys()


def test_pins_and_boosts_come_before_grouping(searcher: Searcher, index: Index) -> None:
    """A pinned hit stands for its group, and a boosted copy for the better ones that it passed."""
    last = search(searcher, 1000, kind="image").hits[-1]
    pinned = search(searcher, 5, kind="image", group=0.9, pins=[f"id = {last.id}"])
    assert pinned.hits[0].id == last.id
    assert [hit.metadata["scene"] for hit in pinned.hits].count(last.metadata["scene"]) == 1
    copy = search(searcher, 5, kind="image", group=0.9).hits[0].similar[-1]
    boosted = search(searcher, 5, kind="image", group=0.9, boosts=[f"id = {copy}:0.5"])
    assert boosted.hits[0].id == copy
    assert len(boosted.hits[0].similar) == COPIES - 1


def test_diversified_hits_are_of_different_groups(searcher: Searcher, index: Index) -> None:
    """MMR chooses among the heads of groups."""
    found = search(searcher, 10, kind="image", group=0.9, diversify=0.5)
    scenes = [index.get([hit.id])[0].metadata["scene"] for hit in found.hits]
    assert len(set(scenes)) == len(found.hits) == 10


def test_a_search_ends_at_the_most_hits(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too many hits are near-equal, the page is short and a note says how many were looked at."""
    monkeypatch.setattr("twinspire.search.ranking.MAX_GROUPED", 200)
    found = search(searcher, 30, kind="image", group=0.9)
    assert len(found.hits) < 30
    assert "200 hits" in found.notes[0]
    assert search(searcher, 3, kind="image", group=0.9).notes == ()


def test_everything_may_be_one_group(searcher: Searcher) -> None:
    """With a threshold of 0 all hits of a kind that point the same way are one."""
    found = search(searcher, 5, kind="image", group=0)
    assert len(found.hits) < 5
    assert sum(map(len, groups_of(found))) == SCENES * COPIES
    assert found.notes == ()


def test_several_vectors_an_item(tmp_path: Path) -> None:
    """Images of several vectors are near-equal by their best pair."""
    vectors = random_vectors(8, dim=DIM).reshape(4, 2, DIM)
    vectors[3] = vectors[1, ::-1]
    with Index.create(tmp_path / "several", space=SPACE, dim=DIM, vectors_per_item=2) as index:
        index.add(vectors, [Item(f"/{number}.jpg", "image") for number in range(4)], space=SPACE)
        client = FakeClient(SPACE, dim=DIM, text_vector=lambda _: vectors[1, 0])
        response = Searcher(client, index).search("any", 4, mode="vector", group=True)  # type: ignore[arg-type]
    assert groups_of(response)[0] == [1, 3]
    assert len(response.hits) == 3


@pytest.mark.parametrize("group", [1.01, -0.1, "yes", float("nan"), [0.9]])
def test_other_thresholds_are_refused(searcher: Searcher, group: Any) -> None:
    """The error names the option."""
    with pytest.raises(InputError, match="0 to 1") as error:
        search(searcher, group=group)
    assert error.value.option == "group"


def test_true_is_the_default_in_documents() -> None:
    """A document may say true; the request that it stands for has the number."""
    document = SearchRequest.from_dict({"query": "red", "group": True}).to_dict()
    assert document["group"] == 0.98
    assert SearchRequest.from_dict({"query": "red", "group": False}).group is None
