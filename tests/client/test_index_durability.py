"""What an index keeps through crashes, and what damage it finds."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from support.arrays import numbered_vectors
from twinspire.errors import IndexLockedError, IndexStoreError
from twinspire.index import Index, Item, ItemKind, disk

SPACE = "5" * 64
DIM = 16
vectors = partial(numbered_vectors, dim=DIM)
ROOT = Path(__file__).parents[2]


def items(start: int, end: int) -> list[Item]:
    """Return items `start` to `end`."""
    return [Item(f"/{n}.jpg", ItemKind.IMAGE, f"no {n}", {"n": n}, content_hash=f"h{n}") for n in range(start, end)]


def assert_whole(path: Path, at_least: int) -> int:
    """Check that the index holds the first n items, n at least as given, with their exact vectors; return n."""
    with Index.open(path) as index:
        count = len(index)
        assert count >= at_least, f"{at_least} items were acknowledged, {count} are there"
    with sqlite3.connect(path / "catalogue.sqlite") as connection:
        rows = connection.execute("SELECT id, uri, caption, metadata FROM items ORDER BY id").fetchall()
    connection.close()
    assert rows == [(n, f"/{n}.jpg", f"no {n}", f'{{"n":{n}}}') for n in range(count)]
    stored = np.fromfile(path / "vectors-1.f32", "<f4", offset=64, count=count * DIM).reshape(count, DIM)
    assert np.array_equal(stored, vectors(0, count) if count else stored)
    return count


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a closed index of 50 items in 5 adds."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        for start in range(0, 50, 10):
            index.add(vectors(start, start + 10), items(start, start + 10), space=SPACE)
    return tmp_path / "index"


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_torn_tail_is_ignored_by_readers_and_cut_off_by_the_next_writer(path: Path) -> None:
    """Bytes behind the committed length, not even a whole vector, change nothing."""
    with (path / "vectors-1.f32").open("ab") as file:
        file.write(b"torn" * 25)
    torn = (path / "vectors-1.f32").stat().st_size
    with Index.open(path) as index:
        assert len(index) == 50
        assert (path / "vectors-1.f32").stat().st_size == torn
    with Index.open(path, mode="write") as index:
        assert (path / "vectors-1.f32").stat().st_size == 64 + 50 * DIM * 4
        index.add(vectors(50, 53), items(50, 53), space=SPACE)
    assert assert_whole(path, 53) == 53


def assert_refused(path: Path, message: str) -> None:
    """Check that the index opens neither for reading nor for writing, and that trying changes no file."""
    before = contents(path)
    for mode in ("read", "write"):
        with pytest.raises(IndexStoreError, match=message):
            Index.open(path, mode=mode)  # type: ignore[arg-type]
    assert {name: contents(path)[name] for name in before if name != "writer.lock"} == {
        name: data for name, data in before.items() if name != "writer.lock"
    }


@pytest.mark.parametrize("where", [64, 64 + 25 * DIM * 4 + 3, -1])
def test_a_flipped_byte_is_found(path: Path, where: int) -> None:
    """One changed bit in the first, a middle or the last vector fails the checksum; nothing is touched."""
    data = bytearray((path / "vectors-1.f32").read_bytes())
    data[where] ^= 1
    (path / "vectors-1.f32").write_bytes(data)
    assert_refused(path, "checksum")


def cut(path: Path) -> None:
    """Cut one byte off the last vector."""
    file = path / "vectors-1.f32"
    file.write_bytes(file.read_bytes()[:-1])


def write_other_header(path: Path) -> None:
    """Put the header of another dimension before the vectors."""
    file = path / "vectors-1.f32"
    data = bytearray(file.read_bytes())
    data[12] += 1
    file.write_bytes(data)


def execute(statement: str) -> Callable[[Path], None]:
    """Return damage done to the catalogue by a statement."""

    def change(path: Path) -> None:
        connection = sqlite3.connect(path / "catalogue.sqlite", isolation_level=None)
        connection.execute(statement)
        connection.close()

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "3263"),
        (write_other_header, "float32"),
        (lambda path: (path / "vectors-1.f32").unlink(), r"\blost\b"),
        (lambda path: (path / "vectors-1.f32").write_bytes(b""), "float32"),
        (lambda path: (path / "catalogue.sqlite").write_bytes(b"no database" * 999), "database"),
        (lambda path: (path / "catalogue.sqlite").write_bytes(b""), "SQLite"),
        (lambda path: (path / "catalogue.sqlite").unlink(), "no catalogue"),
        (execute("PRAGMA application_id = 7"), "SQLite"),
        (execute("UPDATE catalogue SET schema_version = 1"), "schema"),
        (execute("UPDATE catalogue SET checksum = checksum + 1"), r"\bdamaged\b"),
        (execute("DELETE FROM catalogue"), r"\blost\b"),
        (execute("DELETE FROM items WHERE id = 3"), "vector 3"),
        (execute("UPDATE items SET row = 50 WHERE id = 3"), r"\b50\b"),
        (execute("DROP TABLE catalogue"), "table"),
    ],
)
def test_damage_is_named_and_nothing_is_touched(path: Path, damage: Callable[[Path], None], message: str) -> None:
    """Each kind of damage to the folder has its own message, and opening changes nothing."""
    damage(path)
    assert_refused(path, message)


def test_a_damaged_item_is_found_when_it_is_hit(path: Path) -> None:
    """A hit whose metadata are no longer JSON is an IndexStoreError, not an answer."""
    execute("UPDATE items SET metadata = '{' WHERE id = 4")(path)
    with Index.open(path) as index, pytest.raises(IndexStoreError, match="item 4"):
        index.search(vectors(4, 5), k=1, space=SPACE)


def test_no_damaged_page_of_the_catalogue_gives_a_wrong_answer(path: Path, tmp_path: Path) -> None:
    """With any page overwritten there is an IndexStoreError or the right items; the vectors stay as they are."""
    size = (path / "catalogue.sqlite").stat().st_size
    refused = 0
    for offset in range(0, size, 4096):
        folder = Path(shutil.copytree(path, tmp_path / str(offset)))
        with (folder / "catalogue.sqlite").open("r+b") as file:
            file.seek(offset)
            file.write(random.Random(offset).randbytes(4096))
        before = (folder / "vectors-1.f32").read_bytes()
        try:
            with Index.open(folder, mode="write") as index:
                found = index.search(vectors(0, 50), k=1, space=SPACE)
                assert [(hits[0].id, hits[0].caption) for hits in found] == [(n, f"no {n}") for n in range(50)]
                assert [item.metadata for item in index.get(range(50))] == [{"n": n} for n in range(50)]
                index.update(3, caption="new", embedding=vectors(99, 100)[0], space=SPACE)
                index.remove([5])
        except IndexStoreError:
            refused += 1
        assert (folder / "vectors-1.f32").read_bytes()[: len(before)] == before
        shutil.rmtree(folder)
    assert refused >= 8


@pytest.mark.parametrize("name", ["nowhere", "file", "folder"])
@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_path_without_an_index_is_named(tmp_path: Path, name: str, mode: str) -> None:
    """Nothing, a file and a foreign folder are refused, and left as they are."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IndexStoreError, match=rf"/{name}\b"):
        Index.open(tmp_path / name, mode=mode)  # type: ignore[arg-type]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder"]


def test_creation_refuses_what_is_there(path: Path, tmp_path: Path) -> None:
    """Neither an index nor a folder with a file nor a link is overwritten; a missing parent is named."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = contents(path)
    for name in ("index", "full", "link"):
        with pytest.raises(IndexStoreError, match="already"):
            Index.create(tmp_path / name, space=SPACE, dim=DIM)
    with pytest.raises(IndexStoreError, match=r"\bfolder\b"):
        Index.create(tmp_path / "a" / "b", space=SPACE, dim=DIM)
    assert contents(path) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full", "index", "link"]


def test_an_empty_folder_becomes_an_index_with_its_own_rights(tmp_path: Path) -> None:
    """What `mkdir` made is taken, permissions included."""
    folder = tmp_path / "empty"
    folder.mkdir(mode=0o700)
    Index.create(folder, space=SPACE, dim=DIM).close()
    assert len(Index.open(folder)) == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in tmp_path.iterdir()] == ["empty"]


def test_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder appears only when it is whole."""
    monkeypatch.setattr("twinspire.index.disk.sync_folder", fail_with(OSError(28, "No space left on device")))
    with pytest.raises(IndexStoreError, match="room"):
        Index.create(tmp_path / "index", space=SPACE, dim=DIM)
    assert list(tmp_path.iterdir()) == []


def fail_with(error: Exception) -> Callable[..., None]:
    """Return a function that raises `error`."""

    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), OSError(5, "Input/output error")])
@pytest.mark.parametrize("step", ["write_at", "sync", "commit"])
def test_an_add_that_fails_leaves_the_index_usable(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """Whichever step fails, it is an IndexStoreError; the same Index adds and finds correctly afterwards."""
    with Index.open(path, mode="write") as index:
        with monkeypatch.context() as broken:
            broken.setattr(disk, step, fail_with(error))
            with pytest.raises(IndexStoreError, match=error.args[-1]):
                index.add(vectors(50, 60), items(50, 60), space=SPACE)
        index.add(vectors(50, 60), items(50, 60), space=SPACE)
        assert [hits[0].id for hits in index.search(vectors(0, 60), k=1, space=SPACE)] == list(range(60))
    assert assert_whole(path, 60) == 60
    assert (path / "vectors-1.f32").stat().st_size == 64 + 60 * DIM * 4


@pytest.mark.parametrize("step", ["create", "write_at", "truncate", "sync", "sync_folder", "remove", "commit"])
@pytest.mark.parametrize("change", ["remove", "update", "compact"])
def test_a_change_that_fails_leaves_the_index_usable(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: str, step: str
) -> None:
    """Whichever step fails, nothing has changed for writer or reader, and the same change works afterwards."""
    changes: dict[str, Callable[[Index], object]] = {
        "remove": lambda index: index.remove([1, 2]),
        "update": lambda index: index.update(3, embedding=vectors(99, 100)[0], space=SPACE, caption="new"),
        "compact": lambda index: index.compact(),
    }
    with Index.open(path, mode="write") as index, Index.open(path) as reader:
        index.remove([0])
        before, generation = reader.get(range(1, 50)), reader.generation
        with monkeypatch.context() as broken:
            broken.setattr(disk, step, fail_with(OSError(5, "Input/output error")))
            failure = ""
            try:
                changes[change](index)
            except IndexStoreError as error:  # a change does not need every step
                failure = str(error)
        assert reader.generation == generation + (not failure)
        if failure:
            assert "Input/output error" in failure
            assert reader.get(range(1, 50)) == before
        changes[change](index)
        assert index.verify().problems == []
        hits = index.search(vectors(4, 50), k=1, space=SPACE)
        assert [found[0].id for found in hits] == list(range(4, 50))
    with Index.open(path, mode="write"):
        assert len(list(path.glob("vectors-*"))) == 1


def test_of_two_that_make_an_index_at_once_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second to finish is refused with what to do; the index of the first stays, and nothing else."""
    folder, rename = tmp_path / "index", disk.rename

    def late(old: Path, new: Path) -> None:
        monkeypatch.setattr(disk, "rename", rename)
        Index.create(folder, space=SPACE, dim=DIM).close()
        rename(old, new)

    monkeypatch.setattr(disk, "rename", late)
    with pytest.raises(IndexStoreError, match="process"):
        Index.create(folder, space=SPACE, dim=DIM + 1)
    with Index.open(folder) as index:
        assert index.dim == DIM
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in another process, this file importable as `t`."""
    preamble = (
        f"import sys; sys.path[:0] = {[str(ROOT / name) for name in ('client', 'tests', 'tests/client')]}\n"
        "import test_index_durability as t\nfrom twinspire.index import Index\n"
        "from twinspire.errors import IndexStoreError, IndexLockedError\n"
    )
    return subprocess.run([sys.executable, "-c", preamble + code], capture_output=True, text=True, timeout=240)


def test_a_writer_of_another_process_locks_this_one_out(path: Path) -> None:
    """The message names the process that writes; readers are let in."""
    with Index.open(path, mode="write"):
        code = f"""
Index.open({str(path)!r}).close()
try:
    Index.open({str(path)!r}, mode="write")
except IndexLockedError as error:
    print(error)
"""
        assert f"process {os.getpid()}" in run(code).stdout
    with pytest.raises(IndexLockedError), Index.open(path, mode="write"):
        Index.open(path, mode="write")


def test_a_full_disk_is_said_and_costs_nothing(path: Path) -> None:
    """With no room for more bytes an add fails with advice, the 50 items stay, and later adds work."""
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
with Index.open({str(path)!r}, mode="write") as index:
    for attempt in 1, 2:
        try:
            index.add(t.vectors(50, 950), t.items(50, 950), space=t.SPACE)
        except IndexStoreError as error:
            print(error)
"""
    result = run(code)
    assert result.stdout.count("File too large") == 2, result
    assert assert_whole(path, 50) == 50
    with Index.open(path, mode="write") as index:
        index.add(vectors(50, 60), items(50, 60), space=SPACE)
    assert assert_whole(path, 60) == 60


def test_a_folder_without_write_permission_can_be_read_but_not_written(path: Path) -> None:
    """A reader without rights finds items, sees the owner's later adds, and is refused as a writer."""
    if os.getuid() != 0:
        pytest.skip("needs root to become a user without rights")
    script = f"""
import mmap, os, sys
sys.path.insert(0, {str(ROOT / "client")!r})
from twinspire.index import Index
from twinspire.errors import IndexStoreError
os.setgid(65534)
os.setuid(65534)
with Index.open(sys.argv[1]) as index:
    print(len(index), flush=True)
    sys.stdin.readline()
    print(len(index), index.known_hashes(["h59"]))
    try:
        Index.open(sys.argv[1], mode="write")
    except IndexStoreError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory(prefix="twinspire-") as parent:
        Path(parent).chmod(0o755)
        folder = Path(shutil.copytree(path, Path(parent) / "index"))
        reader = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
        )
        assert reader.stdout is not None
        first = reader.stdout.readline()
        with Index.open(folder, mode="write") as index:
            index.add(vectors(50, 60), items(50, 60), space=SPACE)
        out, err = reader.communicate("\n", timeout=240)
        assert (first, err) == ("50\n", "")
        assert out.splitlines()[0] == "60 {'h59'}"
        assert "Permission denied" in out
