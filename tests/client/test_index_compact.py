"""What `compact` and large changes give back to the file system."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from twinspire.errors import IndexStoreError
from twinspire.index import Index, Item, ItemKind, writer
from twinspire.index.connections import Connections
from twinspire.stores.filters.filter import Filter
from twinspire.stores.text_query import TextQuery

SPACE = "5" * 64
DIM = 8
COUNT = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a closed index of 2,000 items with a kilobyte of metadata each."""
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(f"/{n}.jpg", ItemKind.IMAGE, f"caption {n}", {"n": n, "note": "x" * 1000}) for n in range(COUNT)]
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(vectors, items, space=SPACE)
    return tmp_path / "index"


def size(path: Path, name: str) -> int:
    """Return the size of a file, 0 where there is none."""
    return (path / name).stat().st_size if (path / name).exists() else 0


def test_compact_shrinks_the_catalogue_while_a_reader_goes_on(path: Path) -> None:
    """Three quarters removed, the catalogue is a third or less; items and words of the rest are found."""
    with Index.open(path, mode="write") as index, Index.open(path) as reader:
        assert len(reader) == COUNT
        before = size(path, "catalogue.sqlite")
        index.remove_where(Filter.parse(f"n < {COUNT * 3 // 4}"))
        report = index.compact()
        assert size(path, "catalogue.sqlite") < before / 3
        assert report.catalogue_bytes_before > before
        assert report.catalogue_bytes_after < before / 3
        assert len(reader) == COUNT // 4
        assert [hit.id for hit in reader.search_text(TextQuery.all_of(f"caption {COUNT - 1}"))] == [COUNT - 1]
        assert index.compact().dropped_rows == 0
        assert index.verify().problems == []


def test_a_large_change_leaves_no_large_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's log is cut after it, with a reader beside it as well."""
    monkeypatch.setattr(writer, "_LOG_BYTES", 100_000)
    with Index.open(path, mode="write") as index, Index.open(path) as reader:
        assert len(reader) == COUNT
        index.remove_where(Filter.parse(f"n < {COUNT // 2}"))
        assert size(path, "catalogue.sqlite-wal") < 100_000
        assert len(reader) == COUNT // 2


def test_a_reader_in_the_middle_of_a_read_is_not_disturbed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log stays while somebody reads an earlier state, and is cut after a later change."""
    monkeypatch.setattr(writer, "_LOG_BYTES", 100_000)
    with Index.open(path, mode="write") as index:
        reader = sqlite3.connect(path / "catalogue.sqlite", isolation_level=None)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (COUNT,)
        index.remove_where(Filter.parse(f"n < {COUNT // 2}"))
        assert index.compact().dropped_rows == COUNT // 2
        assert size(path, "catalogue.sqlite-wal") > 100_000
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (COUNT,)
        reader.close()
        index.update(COUNT - 1, caption="new")
        assert size(path, "catalogue.sqlite-wal") < 100_000
        assert index.verify().problems == []


def test_compact_that_cannot_shrink_the_catalogue_has_still_worked(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where rows were dropped it is logged; where that was all there was to do, it is an error."""

    def fails(_: Connections) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with Index.open(path, mode="write") as index:
        index.remove([1])
        monkeypatch.setattr(Connections, "vacuum", fails)
        assert index.compact().dropped_rows == 1
        assert "full" in caplog.text
        with pytest.raises(IndexStoreError, match="full"):
            index.compact()
        assert index.verify().problems == []
