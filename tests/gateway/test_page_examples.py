"""What the page shows before a search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twinspire import Index
from twinspire.stores import Item, ItemKind
from twinspire_server.gateway.page_examples import page_examples

COUNT = 100


@pytest.mark.parametrize(
    ("captions", "examples"),
    [
        ([None] * COUNT, []),
        (["x" * 200, "ab"] * (COUNT // 2), []),  # too long, too short
        (["the same words"] * COUNT, ["the same words"]),
        (["a red car\n一辆红色的车"] * COUNT, ["a red car", "一辆红色的车"]),
    ],
)
def test_examples_are_captions_that_make_queries(
    tmp_path: Path, captions: list[str | None], examples: list[str]
) -> None:
    """Examples are different captions of a query's length, in each language; without captions there are none."""
    with _index(tmp_path, captions) as index:
        assert page_examples(index)["examples"] == examples


def test_items_are_spread_over_the_index(tmp_path: Path) -> None:
    """24 items, in the order of ids, from all of the index; of a smaller one all."""
    with _index(tmp_path, [f"a picture with number {number}" for number in range(COUNT)]) as index:
        found = page_examples(index)
    ids = [item["id"] for item in found["items"]]
    assert len(ids) == 24
    assert ids == sorted(ids)
    assert ids[-1] > 0.9 * COUNT
    assert len(found["examples"]) == 6
    with _index(tmp_path, ["one picture"], "small") as index:
        assert [item["caption"] for item in page_examples(index)["items"]] == ["one picture"]


def _index(folder: Path, captions: list[str | None], name: str = "index") -> Index:
    vectors = np.zeros((len(captions), 4), np.float32)
    vectors[:, 0] = 1
    index = Index.create(folder / name, space="test", dim=4)
    items = [Item(f"/{number}.jpg", ItemKind.IMAGE, caption) for number, caption in enumerate(captions)]
    index.add(vectors, items, space="test")
    return index
