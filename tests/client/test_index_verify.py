"""What `verify` finds, and that it changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from twinspire.errors import IndexStoreError
from twinspire.index import Index, Item, ItemKind, VectorType, verify_index
from twinspire.index.catalogue import Catalogue
from twinspire.stores.filters.filter import Filter

SPACE = "5" * 64
DIM = 16
ROW = DIM * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a closed index of 50 items, 3 of which are gone and 1 replaced."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        fill(index)
    return tmp_path / "index"


def fill(index: Index) -> None:
    """Add 50 items, remove 3, replace the vector of one."""
    vectors = np.random.default_rng(0).standard_normal((51, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [Item(f"/{n}.jpg", ItemKind.IMAGE, f"no {n}, 红猫", {"n": n}, f"h{n}") for n in range(50)]
    index.add(vectors[:50], items, space=SPACE)
    index.remove([7, 8, 9])
    index.update(20, embedding=vectors[50], space=SPACE, caption="new")


def execute(statement: str) -> Callable[[Path], None]:
    """Return damage done to the catalogue by a statement."""

    def change(path: Path) -> None:
        connection = sqlite3.connect(path / "catalogue.sqlite", isolation_level=None)
        connection.execute(statement)
        connection.close()

    return change


def write(offset: int, data: bytes) -> Callable[[Path], None]:
    """Return damage done to the vector file."""

    def change(path: Path) -> None:
        with (path / "vectors-1.f32").open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return change


def commit(path: Path, **values: int) -> None:
    """Commit other values, with a right checksum."""
    catalogue = Catalogue(path, writable=True)
    with closing(catalogue), catalogue.change() as change:
        change.commit = replace(change.commit, **values)  # type: ignore[arg-type]
        change.touch()


def scribble(path: Path) -> None:
    """Damage a page in the middle of the catalogue."""
    with (path / "catalogue.sqlite").open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * 4096)


@pytest.mark.parametrize("dtype", VectorType)
def test_an_index_in_order_has_no_problems(tmp_path: Path, dtype: VectorType) -> None:
    """Open for writing or closed, before and after a compaction, with float32 and float16."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM, dtype=dtype) as index:
        assert index.verify().ok
        fill(index)
        report = index.verify()
        assert (report.problems, report.items, report.rows) == ([], 47, 51)
        index.compact()
        assert (index.verify().problems, index.verify().rows) == ([], 47)
    assert verify_index(tmp_path / "index").problems == []


@pytest.mark.parametrize(
    ("damage", "word", "ids"),
    [
        (write(64 + 30 * ROW, b"\0"), "checksum", ""),
        (write(0, b"x"), "float32", ""),
        (lambda path: (path / "vectors-1.f32").unlink(), "lost", ""),
        (lambda path: (path / "vectors-1.f32").write_bytes(b""), "float32", ""),
        (scribble, "catalogue", ""),
        (lambda path: (path / "catalogue.sqlite").unlink(), "no catalogue", ""),
        (lambda path: (path / "catalogue.sqlite").write_bytes(b"x" * 9999), "database", ""),
        (execute("DELETE FROM items WHERE id = 3"), "without", " 3"),
        (execute("DELETE FROM dead"), "without", " 7, 8, 9, 20"),
        (execute("INSERT INTO dead VALUES (3, 1)"), "twice", " 3"),
        (execute("UPDATE items SET row = 51 WHERE id = 3"), "vectors", " 51"),
        (lambda path: commit(path, next_id=48), "ids", " 48, 49"),
        (execute("UPDATE catalogue SET next_id = 48"), "first row", ""),
        (execute("UPDATE items SET metadata = '[]' WHERE id IN (4, 5)"), "longer", " 4, 5"),
        (execute("UPDATE items SET metadata = '{' WHERE id = 4"), "longer", " 4"),
        (execute("UPDATE items SET uri = x'ff' WHERE id = 4"), "longer", " 4"),
        (execute("UPDATE items SET caption = 'x' WHERE id = 4"), "longer", " 4"),
        (execute("UPDATE words SET text = 'x' WHERE rowid = 4"), "captions", " 4"),
        (execute("DELETE FROM words WHERE rowid = 4"), "captions", " 4"),
        (execute("INSERT INTO words (rowid, text) VALUES (7, 'x')"), "items", " 7"),
        (execute("DELETE FROM words_data WHERE id > 10"), "catalogue", ""),
    ],
)
def test_each_damage_is_named_and_nothing_is_changed(
    path: Path, damage: Callable[[Path], None], word: str, ids: str
) -> None:
    """The report says what is wrong; the files stay as they are."""
    damage(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    problems = verify_index(path).problems
    assert any(word in found and found.endswith(ids) for found in problems), problems
    assert {name: (path / name).read_bytes() for name in before} == before  # SQLite may make a log, empty


def test_a_vector_that_is_none_is_found_behind_a_right_checksum(path: Path) -> None:
    """What was written wrong in the first place is named by its item."""
    file = path / "vectors-1.f32"
    data = bytearray(file.read_bytes())
    data[64 + 30 * ROW : 64 + 31 * ROW] = bytes(ROW)
    data[64 + 50 * ROW : 64 + 50 * ROW + 4] = np.float32("nan").tobytes()
    data[64 + 7 * ROW : 64 + 8 * ROW] = bytes(ROW)  # dead
    file.write_bytes(data)
    commit(path, checksum=crc32(data[64:]))
    (problem,) = verify_index(path).problems
    assert problem.endswith(" 20, 30")


@pytest.mark.parametrize(
    "damage",
    ["caption = 'x'", "uri = x'ff'", "kind = 'text'", "checksum = checksum + 1", "checksum = 'x'"],
)
def test_damaged_items_can_be_removed_and_added_again(path: Path, damage: str) -> None:
    """Reading or updating them is refused, as is a filter that may keep them wrongly; the rest stays as it is."""
    execute(f"UPDATE items SET {damage} WHERE id IN (3, 4)")(path)
    with Index.open(path, mode="write") as index:
        rest = [number for number in range(50) if number not in (2, 3, 4, 7, 8, 9)]
        before = index.get(rest)
        for call in (
            lambda: index.get([3]),
            lambda: index.update(3, caption="y"),
            lambda: index.remove_where(Filter.parse("n < 5")),
        ):
            with pytest.raises(IndexStoreError, match="item 3"):
                call()
        assert index.remove([2, 3, 4]) == 3
        assert index.verify().problems == []
        vector = np.eye(DIM, dtype=np.float32)[:1]
        index.add(vector, [Item("/3.jpg", ItemKind.IMAGE, "no 3", content_hash="h3")], space=SPACE)
        assert index.get(rest) == before
        assert index.stats().items_by_kind == {ItemKind.IMAGE: 45, ItemKind.TEXT: 0, ItemKind.AUDIO: 0}
        assert index.verify().problems == []
    with Index.open(path) as reader:
        assert len(reader) == 45


def test_too_little_room_for_the_copy_is_not_called_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the temporary folder, for what was not checked is not known to be right."""
    connect = sqlite3.connect

    def connected(name: str, **options: Any) -> sqlite3.Connection:
        connection = connect(name, **options)
        if name == "":
            connection.execute("PRAGMA max_page_count = 2")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connected)
    (problem,) = verify_index(path).problems
    assert "SQLITE_TMPDIR" in problem
