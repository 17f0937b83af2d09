"""What keeps two writers from undoing each other's changes, and what a change that raised leaves."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire.errors import IndexLockedError, IndexStoreError, IndexUncertainError
from twinspire.index import Index, Item, ItemKind, connections, disk, snapshots, verify_index
from twinspire.index.connections import CATALOGUE_NAME
from twinspire.index.lock import LOCK_NAME

SPACE = "5" * 64
DIM = 16
ROOT = Path(__file__).parents[2]


def vectors(start: int, end: int) -> NDArray[np.float32]:
    """Return the unit vectors of items `start` to `end`, the same in every process."""
    drawn = np.stack([np.random.default_rng(number).standard_normal(DIM) for number in range(start, end)])
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def add(index: Index, start: int, end: int) -> None:
    """Add items `start` to `end`."""
    new = [Item(f"/{n}.jpg", ItemKind.IMAGE, f"no {n}", {"n": n}, content_hash=f"h{n}") for n in range(start, end)]
    index.add(vectors(start, end), new, space=SPACE)


def assert_holds(path: Path, numbers: list[int]) -> None:
    """Check that the index at `path` is in order and holds exactly these items, each with its vector."""
    assert verify_index(path).problems == []
    with Index.open(path) as index:
        held = {item.metadata["n"]: item.id for item in index.get(index.sample_ids(10_000))}
        assert sorted(held) == numbers
        stored = index.vectors([held[number] for number in numbers])
    assert np.array_equal(stored, np.concatenate([vectors(number, number + 1) for number in numbers]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a closed index of 10 items."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        add(index, 0, 10)
    return tmp_path / "index"


def test_deleting_the_lock_file_lets_no_second_writer_in(path: Path) -> None:
    """The folder itself is locked; the first writer notices and writes no more; what it was told stays."""
    with Index.open(path, mode="write") as first:
        add(first, 10, 12)
        (path / LOCK_NAME).unlink()
        with pytest.raises(IndexLockedError):
            Index.open(path, mode="write")
        with pytest.raises(IndexStoreError, match=r"writer\.lock"):
            add(first, 12, 14)
        assert len(first) == 12
    with Index.open(path, mode="write") as again:
        add(again, 14, 15)
    assert_holds(path, [*range(12), 14])


def test_a_writer_whose_folder_was_replaced_writes_no_more(path: Path, tmp_path: Path) -> None:
    """It would write into files that nobody finds any more."""
    with Index.open(path, mode="write") as first:
        path.rename(tmp_path / "old")
        Index.create(path, space=SPACE, dim=DIM).close()
        with pytest.raises(IndexStoreError, match="replaced"):
            first.remove([1])
    assert_holds(tmp_path / "old", list(range(10)))


@pytest.mark.parametrize("change", ["add", "remove", "update", "compact", "build"])
def test_two_writers_in_spite_of_the_lock_lose_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The one that finds what it did not write raises and changes nothing; all that was acknowledged is there."""
    changes: dict[str, Callable[[Index], object]] = {
        "add": lambda index: add(index, 30, 33),
        "remove": lambda index: index.remove([1]),
        "update": lambda index: index.update(1, caption="other", embedding=vectors(1, 2)[0], space=SPACE),
        "compact": lambda index: index.compact(),
        "build": lambda index: index.build("hnsw"),
    }
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    first, second = Index.open(path, mode="write"), None
    try:
        if change == "compact":
            first.remove([9])
        second = Index.open(path, mode="write")
        add(second, 20, 23)
        with pytest.raises(IndexStoreError, match="generation"):
            changes[change](first)
        add(second, 23, 25)
    finally:
        first.close()
        if second is not None:
            second.close()
    assert_holds(path, [*range(9 if change == "compact" else 10), *range(20, 25)])


def run(path: Path, code: str) -> str:
    """Run Python code in another process, this file importable as `t`, and return what it prints."""
    preamble = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'client')!r}, {str(Path(__file__).parent)!r}]\n"
        "import os, time\nimport test_index_writers as t\nfrom pathlib import Path\n"
        "from twinspire.index import Index\nfrom twinspire.errors import IndexStoreError\n"
        f"path = Path({str(path)!r})\n"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # it forks: there should be one thread
    done = subprocess.run(
        [sys.executable, "-c", preamble + code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("end", ["os._exit(0)", "index.close(); sys.exit()", "sys.exit()", "del index; sys.exit()"])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_forked_child_cannot_use_its_parents_index(path: Path, mode: str, end: str) -> None:
    """Reading and writing are refused in the child; however it ends, the parent goes on undisturbed."""
    code = f"""
index = Index.open(path, mode={mode!r})
reader = Index.open(path)
len(index), len(reader)
if {mode!r} == "write":
    t.add(index, 10, 12)
child = os.fork()
if not child:
    for call in (lambda: t.add(index, 12, 14), lambda: len(index), lambda: index.remove([1]), lambda: len(reader)):
        try:
            call()
        except IndexStoreError as error:
            assert "forked" in str(error), error
        else:
            os._exit(7)
    {end}
assert os.waitpid(child, 0)[1] == 0
if {mode!r} == "write":
    assert (path / "catalogue.sqlite-wal").stat().st_size > 0
    t.add(index, 12, 14)
assert len(index) == len(reader) == (14 if {mode!r} == "write" else 10)
index.close()
with Index.open(path, mode="write"):
    print("open")
"""
    assert run(path, code) == "open\n"
    assert_holds(path, list(range(14 if mode == "write" else 10)))


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(path: Path) -> None:
    """When the writer is killed, the next one gets in although a child of the first still runs."""
    code = """
ours, theirs = os.pipe()
writer = os.fork()
if not writer:
    index = Index.open(path, mode="write")
    t.add(index, 10, 12)
    child = os.fork()
    if not child:
        os.close(ours)
        os.write(theirs, str(os.getpid()).encode())
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
child = int(os.read(ours, 20))
os.kill(writer, 9)
os.waitpid(writer, 0)
with Index.open(path, mode="write") as index:
    t.add(index, 12, 13)
    print(len(index))
os.kill(child, 9)
"""
    assert run(path, code) == "13\n"
    assert_holds(path, list(range(13)))


@pytest.mark.parametrize("change", ["add", "compact"])
def test_a_foreign_lock_while_the_snapshot_catches_up_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """The change has succeeded, so it does not raise."""
    monkeypatch.setattr(connections, "_BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(snapshots, "TAIL_ROWS", 0)
    foreign = sqlite3.connect(path / CATALOGUE_NAME, isolation_level=None)
    write = snapshots.write_snapshot

    def locking(*arguments: object) -> int:
        foreign.execute("BEGIN IMMEDIATE")
        return write(*arguments)  # type: ignore[arg-type]

    with Index.open(path, mode="write") as index:
        index.build("hnsw")
        index.remove([9])
        monkeypatch.setattr(snapshots, "write_snapshot", locking)
        if change == "add":
            add(index, 10, 15)
        else:
            index.compact()
        assert "locked" in caplog.text
        assert len(index) == (14 if change == "add" else 9)
        with pytest.raises(IndexStoreError, match="locked"):
            index.remove([1])
        foreign.execute("ROLLBACK")
        foreign.close()
        index.remove([1])
    assert_holds(path, [n for n in range(15 if change == "add" else 9) if n not in (1, 9)])


def test_a_commit_that_can_be_neither_made_nor_undone_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one of its own; the same Index goes on when the disk works again."""

    def fails(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with Index.open(path, mode="write") as index:
        with monkeypatch.context() as broken:
            broken.setattr(disk, "commit", fails)
            with pytest.raises(IndexUncertainError, match="disk I/O error"):
                add(index, 10, 12)
        add(index, 10, 12)
    assert_holds(path, list(range(12)))


def test_closing_lets_go_of_the_lock_even_where_a_part_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nobody could write until the process ends."""
    index = Index.open(path, mode="write")

    def fails(_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("twinspire.index.vectors.VectorFile.close", fails)
        with pytest.raises(IndexStoreError, match="Input/output error"):
            index.close()
    Index.open(path, mode="write").close()
