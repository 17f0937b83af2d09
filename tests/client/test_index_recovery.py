"""What is noticed, kept and brought back where a crash left a damaged log of SQLite."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from twinspire.cli.index import app
from twinspire.errors import IndexStoreError
from twinspire.index import Index, Item, ItemKind, recover_index, verify_index
from twinspire.index.commit_record import RECORD_NAME, packed
from twinspire.index.log_frames import lost_frames

SPACE = "5" * 64
DIM = 16
ROOT = Path(__file__).parents[2]
COUNT = 100
LOG = "catalogue.sqlite-wal"
FRAME = 24 + 4096


def vectors(start: int, end: int) -> NDArray[np.float32]:
    """Return the unit vectors of items `start` to `end`, the same in every process."""
    drawn = np.stack([np.random.default_rng(number).standard_normal(DIM) for number in range(start, end)])
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def crash(path: Path) -> None:
    """Add 100 items by tens, remove one and end without closing; called in a process of its own."""
    index = Index.create(path, space=SPACE, dim=DIM)
    for start in range(0, COUNT, 10):
        items = [Item(f"/{n}.jpg", ItemKind.IMAGE, f"no {n}", {"n": n}, f"h{n}") for n in range(start, start + 10)]
        index.add(vectors(start, start + 10), items, space=SPACE)
    index.remove([7])
    os._exit(0)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an index whose writer was killed; all 11 changes are in the log, none in the catalogue."""
    path = tmp_path_factory.mktemp("crashed") / "index"
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'client')!r}, {str(Path(__file__).parent)!r}]\n"
        f"from pathlib import Path\nimport test_index_recovery as t\nt.crash(Path({str(path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    return path


@pytest.fixture
def path(crashed: Path, tmp_path: Path) -> Path:
    """Copy the crashed index."""
    return Path(shutil.copytree(crashed, tmp_path / "index", ignore=shutil.ignore_patterns("*-shm")))


def flip(path: Path, bit: int) -> None:
    """Flip a bit of the log."""
    data = bytearray((path / LOG).read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (path / LOG).write_bytes(data)


def assert_whole(path: Path) -> None:
    """Check that all items but the removed one are there under their ids, with their vectors, and in order."""
    assert verify_index(path).problems == []
    numbers = [n for n in range(COUNT) if n != 7]
    with Index.open(path, mode="write") as index:
        assert [(item.uri, item.metadata) for item in index.get(numbers)] == [(f"/{n}.jpg", {"n": n}) for n in numbers]
        assert len(index) == COUNT - 1
        assert np.array_equal(index.vectors(numbers), vectors(0, COUNT)[numbers])


def test_a_flipped_bit_in_the_log_loses_nothing(crashed: Path, tmp_path: Path) -> None:
    """Wherever it is: nobody writes over what lies behind, verify and readers say it, recover brings all back."""
    chance, seen = random.Random(5), Counter[str]()
    size = (crashed / LOG).stat().st_size
    places = [3, 8 * 17, *(chance.randrange(8 * size) for _ in range(12)), 8 * (size - 100)]
    for place in places:
        path = Path(shutil.copytree(crashed, tmp_path / "index", ignore=shutil.ignore_patterns("*-shm")))
        flip(path, place)
        found = lost_frames((path / LOG).read_bytes())
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        refusal = ""
        try:
            Index.open(path, mode="write").close()
        except IndexStoreError as error:
            refusal = str(error)
        if refusal:
            assert "recover" in refusal
            after = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith("-shm")}
            assert {name: after.get(name) for name in before if name != "writer.lock"} == {
                name: data for name, data in before.items() if name != "writer.lock"
            }
            assert any("missing" in problem for problem in verify_index(path).problems)
            report = recover_index(path)
            seen["ambiguous" if found is not None and found.ambiguous else "repaired"] += 1
            assert report.complete, place
            assert report.saved_in is not None
            assert (report.saved_in / LOG).read_bytes() == before[LOG]
        else:
            seen["harmless"] += 1
        assert_whole(path)
        shutil.rmtree(path)
    print(dict(seen))
    assert seen["repaired"] > 5


def test_a_reader_says_that_changes_are_missing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It finds what is left of the index."""
    flip(path, 8 * (32 + 30 * FRAME + 2000))
    with Index.open(path) as reader:
        assert len(reader) < COUNT - 1
    assert "missing" in caplog.text


def test_what_cannot_be_repaired_is_kept(path: Path) -> None:
    """A page written over in the middle: the vectors behind are saved, the log too, and the index goes on."""
    data = bytearray((path / LOG).read_bytes())
    frames = (len(data) - 32) // FRAME
    for frame in range(frames // 2, frames, 2):
        for place in range(32 + frame * FRAME + 500, 32 + frame * FRAME + 1000):
            data[place] ^= 0xFF
    (path / LOG).write_bytes(data)
    with pytest.raises(IndexStoreError, match="recover"):
        Index.open(path, mode="write")
    report = recover_index(path)
    assert not report.complete
    assert report.saved_in is not None
    assert report.generation_after == report.generation_before
    assert 0 < report.vectors_saved < COUNT
    assert report.acknowledged == 11
    first = COUNT - report.vectors_saved
    saved = np.fromfile(report.saved_in / "vectors-1.f32", "<f4", offset=64).reshape(-1, DIM)
    assert np.array_equal(saved, vectors(first, COUNT))
    assert (report.saved_in / LOG).read_bytes() == bytes(data)
    with Index.open(path, mode="write") as index:
        assert len(index) == first
        index.add(vectors(0, 1), [Item("/new.jpg", ItemKind.IMAGE)], space=SPACE)
    assert recover_index(path).saved_in is None
    assert verify_index(path).problems == []


@pytest.mark.parametrize("record", [packed(3, 30, bytes(range(16))), b""])
def test_a_loss_is_noticed_by_the_log_alone(path: Path, record: bytes) -> None:
    """After a power cut the record may be old, or empty."""
    (path / RECORD_NAME).write_bytes(record)
    flip(path, 8 * (32 + 30 * FRAME + 2000))
    with pytest.raises(IndexStoreError, match="recover"):
        Index.open(path, mode="write")
    assert recover_index(path).complete
    assert_whole(path)


def test_a_log_that_is_gone_is_noticed(path: Path) -> None:
    """The record beside the catalogue says how far the index was acknowledged."""
    (path / LOG).unlink()
    with pytest.raises(IndexStoreError, match="recover"):
        Index.open(path, mode="write")
    report = recover_index(path)
    assert (report.items_after, report.vectors_saved, report.complete) == (0, COUNT, False)
    Index.open(path, mode="write").close()


def test_without_the_record_whole_vectors_behind_are_saved(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing tells then whether they were acknowledged."""
    (path / LOG).unlink()
    (path / RECORD_NAME).unlink()
    with Index.open(path, mode="write") as index:
        assert len(index) == 0
    assert "recovered-1" in caplog.text
    saved = np.fromfile(path / "recovered-1" / "vectors-1.f32", "<f4", offset=64).reshape(-1, DIM)
    assert np.array_equal(saved, vectors(0, COUNT))


def test_a_compaction_behind_the_damage_is_brought_back(path: Path) -> None:
    """The vector file that the earlier state names is gone by then."""
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT / "client")!r}]
from twinspire.index import Index
from twinspire.index.catalogue import Catalogue
Catalogue.shrink = lambda self: None  # killed before the log was copied
index = Index.open({str(path)!r}, mode="write")
index.compact()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with sqlite3.connect(f"{(path / 'catalogue.sqlite').as_uri()}?mode=ro", uri=True) as connection:
        frames = (path / LOG).stat().st_size // FRAME
    connection.close()
    flip(path, 8 * (32 + 2 * FRAME + 1234) + 3)
    assert frames > 5
    with pytest.raises(IndexStoreError):
        Index.open(path, mode="write")
    assert recover_index(path).complete
    assert_whole(path)


def test_an_unfinished_add_is_no_loss(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Vectors behind the committed length that the record does not count are cut off, as ever."""
    with (path / "vectors-1.f32").open("ab") as file:
        file.write(vectors(0, 3).tobytes())
    with (path / LOG).open("ab") as file:
        file.write(bytes(FRAME))
    assert_whole(path)
    assert caplog.text == ""
    assert not list(path.glob("recovered-*"))


def test_recover_as_a_command(path: Path) -> None:
    """It says what it did; a second time nothing is missing."""
    flip(path, 8 * (32 + 30 * FRAME + 2000))
    first = CliRunner().invoke(app, ["recover", str(path)])
    assert (first.exit_code, "recovered-1" in first.output) == (0, True)
    second = CliRunner().invoke(app, ["recover", str(path)])
    assert (second.exit_code, "recovered" in second.output) == (0, False)
    assert_whole(path)
