"""When two items are the same one, and which bundle an index remembers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support.arrays import random_vectors
from twinspire.errors import IndexStoreError, InputError
from twinspire.index import BundleReference, Index, Item, ItemKind

SPACE, DIM = "5" * 64, 8
unit = partial(random_vectors, dim=DIM)


def copies(count: int) -> list[Item]:
    """Make items of the same content under paths of their own."""
    return [Item(f"/{n}/a.jpg", ItemKind.IMAGE, f"no {n}", {"price": n}, "same") for n in range(count)]


def test_the_same_bytes_under_another_path_are_another_item(tmp_path: Path) -> None:
    """Each keeps its path, caption and metadata; adding them again changes nothing."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        vectors = np.repeat(unit(1), 3, axis=0)
        assert index.add(vectors, copies(3), space=SPACE).added == [0, 1, 2]
        again = index.add(vectors, copies(3), space=SPACE)
        assert (again.added, again.skipped) == ([], [0, 1, 2])
        found = index.find(content_hash="same")
        assert [(item.uri, item.caption, item.metadata) for item in found] == [
            (item.uri, item.caption, item.metadata) for item in copies(3)
        ]
        assert index.known_hashes(["same"]) == {"same"}
        assert index.verify().problems == []


def test_an_item_is_known_by_kind_uri_and_content_together(tmp_path: Path) -> None:
    """Another kind, uri or content is another item; without a content hash an item is always taken."""
    known = Item("/a", ItemKind.IMAGE, content_hash="h")
    others = [
        Item("/a", ItemKind.TEXT, content_hash="h"),
        Item("/b", ItemKind.IMAGE, content_hash="h"),
        Item("/a", ItemKind.IMAGE, content_hash="i"),
        Item("/a", ItemKind.IMAGE),
        Item("/a", ItemKind.IMAGE),
    ]
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(unit(1), [known], space=SPACE)
        report = index.add(unit(7), [known, *others, others[0]], space=SPACE)
        assert report.skipped == [0, 6]
        assert len(index) == 6


def test_an_update_cannot_make_two_items_the_same(tmp_path: Path) -> None:
    """Taking another's uri and content is refused; its content alone is fine."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(unit(3), [*copies(2), Item("/c", ItemKind.IMAGE, content_hash="other")], space=SPACE)
        assert index.update(2, content_hash="same").content_hash == "same"
        with pytest.raises(InputError, match="item 0"):
            index.update(2, uri="/0/a.jpg")
        assert index.get([2])[0].uri == "/c"
        assert index.update(2, caption="no change of identity").caption == "no change of identity"


def test_removing_an_id_named_twice_removes_one_item(tmp_path: Path) -> None:
    """Also where the same id comes again far behind."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(unit(1200), [Item(f"/{n}", ItemKind.IMAGE) for n in range(1200)], space=SPACE)
        assert index.remove([*range(1000), *range(1000)]) == 1000
        assert len(index) == 200
        assert index.verify().problems == []


@pytest.mark.parametrize("path", ["/bundles/vit-b-32", None])
def test_an_index_remembers_its_bundle(tmp_path: Path, path: str | None) -> None:
    """Given when it is made, and there when it is opened again."""
    reference = BundleReference("vit-b-32", path)
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM, bundle=reference) as index:
        assert index.bundle == reference
        index.add(unit(2), copies(2), space=SPACE)
    with Index.open(tmp_path / "index") as reader:
        assert reader.bundle == reference


def test_a_bundle_can_be_set_later_and_readers_see_it(tmp_path: Path) -> None:
    """It is no change of the generation; nothing else changes."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index, Index.open(tmp_path / "index") as reader:
        assert reader.bundle is None
        generation = index.generation
        index.set_bundle(BundleReference("a", "/old"))
        index.set_bundle(BundleReference("a", "/new 红"))
        assert reader.bundle == index.bundle == BundleReference("a", "/new 红")
        assert index.generation == generation
        with pytest.raises(IndexStoreError, match="reading"):
            reader.set_bundle(BundleReference("b"))
        assert index.verify().problems == []


def test_what_is_no_bundle_reference_is_refused(tmp_path: Path) -> None:
    """An empty name, a relative path, text that is not UTF-8, another type; no index is made."""
    for name, path in (
        ("", "/x"),
        ("a", "relative"),
        ("a\ud800", None),
        ("a", "/\ud800"),
        (7, None),
        ("a", Path("/x")),
    ):
        with pytest.raises(InputError, match="bundle"):
            BundleReference(name, path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="BundleReference"):
        Index.create(tmp_path / "index", space=SPACE, dim=DIM, bundle="vit-b-32")  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()
