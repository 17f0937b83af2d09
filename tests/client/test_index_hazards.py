"""What happens to the files of an open index: truncated, replaced, unreadable, changed while they are read."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.arrays import random_vectors
from twinspire.errors import IndexStoreError
from twinspire.index import Index, Item, ItemKind, connections, disk, verify_index
from twinspire.stores.filters.filter import Filter
from twinspire.stores.text_query import TextQuery

pytestmark = pytest.mark.slow

SPACE, DIM, COUNT = "5" * 64, 32, 2_000
unit = partial(random_vectors, dim=DIM)


def items(count: int, prefix: str = "p") -> list[Item]:
    """Make images with captions."""
    return [Item(f"/{prefix}{n}.jpg", ItemKind.IMAGE, f"no {n}", {"n": n}, f"{prefix}{n}") for n in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a closed index."""
    with Index.create(tmp_path / "index", space=SPACE, dim=DIM) as index:
        index.add(unit(COUNT), items(COUNT), space=SPACE)
    return tmp_path / "index"


READS: dict[str, Callable[[Index], object]] = {
    "search": lambda index: index.search(unit(1), k=COUNT, space=SPACE),
    "filtered": lambda index: index.search(unit(1), space=SPACE, where=Filter.parse("n > 3")),
    "vectors": lambda index: index.vectors(range(COUNT)),
    "get": lambda index: index.get([COUNT - 1]),
    "words": lambda index: index.search_text(TextQuery.any_of("no")),
}


@pytest.mark.slow
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("length", [0, 64, 5_000, 64 + COUNT * DIM * 4 - 1])
def test_a_truncated_vector_file_is_an_error_and_not_the_end_of_the_process(path: Path, read: str, length: int) -> None:
    """Each access looks at the length first: a child reads, truncates, reads again."""
    program = f"""
import os, sys
from pathlib import Path
from tests.client.test_index_hazards import READS
from twinspire.errors import IndexStoreError
from twinspire.index import Index
path = Path(sys.argv[1])
with Index.open(path) as index:
    READS["{read}"](index)
    os.truncate(path / "vectors-1.f32", {length})
    try:
        READS["{read}"](index)
    except IndexStoreError as error:
        sys.exit("truncated" not in str(error))
sys.exit("no error")
"""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (root, root / "client", root / "tests")))}
    done = subprocess.run([sys.executable, "-c", program, path], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_writer_does_not_append_behind_a_truncated_vector_file(path: Path) -> None:
    """It would leave a hole of zeros; build and compact refuse as well, and nothing is committed."""
    with Index.open(path, mode="write") as index:
        generation = Index.open(path).generation
        os.truncate(path / "vectors-1.f32", 5_000)
        for change in (
            lambda: index.add(unit(1, 1), items(1, "q"), space=SPACE),
            lambda: index.update(3, embedding=unit(1, 1)[0], space=SPACE),
            lambda: index.build("ivf"),
            index.compact,
        ):
            with pytest.raises(IndexStoreError, match="truncated"):
                change()
        assert (path / "vectors-1.f32").stat().st_size == 5_000
    catalogue = sqlite3.connect(path / "catalogue.sqlite")
    assert catalogue.execute("SELECT generation FROM catalogue").fetchone() == (generation,)
    catalogue.close()


def as_folder(file: Path) -> None:
    """Put a folder in the place of a file."""
    file.unlink()
    file.mkdir()


def as_pipe(file: Path) -> None:
    """Put a pipe in the place of a file."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def as_socket(file: Path) -> None:
    """Put a socket in the place of a file."""
    file.unlink()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(file))


def as_device(file: Path) -> None:
    """Put a link to a device in the place of a file."""
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "replace", [as_folder, as_pipe, as_socket, as_device, Path.unlink, lambda file: file.write_bytes(b"x" * 99)]
)
def test_a_snapshot_that_cannot_be_read_is_searched_around(
    path: Path, replace: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with it, search is exact then, says so once, and a writer builds it anew."""
    with Index.open(path, mode="write") as index:
        index.build("ivf")
        exact = index.search(unit(3), space=SPACE, effort=10**6)
    replace(path / "ann-1.faiss")
    with caplog.at_level(logging.WARNING), Index.open(path) as reader:
        for _ in range(3):
            assert [[hit.id for hit in hits] for hits in reader.search(unit(3), space=SPACE)] == [
                [hit.id for hit in hits] for hits in exact
            ]
        assert len(caplog.records) == 1
        snapshot = reader.stats().snapshot
        assert snapshot is not None
        assert snapshot.damage
    assert not verify_index(path).ok
    for _ in range(2):
        with Index.open(path, mode="write") as index:
            snapshot = index.stats().snapshot
            assert snapshot is not None
            assert snapshot.damage is None
    assert verify_index(path).ok


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_snapshot_the_disk_does_not_give_is_searched_around(
    path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing disk or missing permission of the snapshot alone costs speed, no answers."""
    with Index.open(path, mode="write") as index:
        index.build("ivf")
    open_file = disk.open_file

    def failing(file: Path, **options: Any) -> int:
        if file.name.startswith("ann-"):
            raise error
        return open_file(file, **options)

    monkeypatch.setattr(disk, "open_file", failing)
    with caplog.at_level(logging.WARNING), Index.open(path) as reader:
        assert reader.search(unit(1), k=1, space=SPACE)[0][0].id == 0
        assert reader.search(unit(1), k=1, space=SPACE)[0][0].id == 0
    assert [str(error.strerror) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("mode", ["read", "write"])
@pytest.mark.parametrize(
    "name",
    ["catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm", "catalogue.sqlite-journal", "vectors-1.f32"],
)
def test_a_pipe_in_place_of_a_file_is_refused(path: Path, name: str, mode: Any) -> None:
    """Opening does not wait for whoever would write to it; verify says it too."""
    as_pipe(path / name)
    with pytest.raises(IndexStoreError):
        Index.open(path, mode=mode)
    assert not verify_index(path).ok


@contextmanager
def opened(path: Path, mode: Any) -> Iterator[Index]:
    """Open an index, and close it whatever is there by then."""
    index = Index.open(path, mode=mode)
    try:
        yield index
    finally:
        with suppress(IndexStoreError):
            index.close()


def elsewhere(path: Path) -> None:
    """Put another index in the place of the folder."""
    path.rename(path.with_name("old"))
    with Index.create(path, space=SPACE, dim=DIM) as other:
        other.add(unit(3, 3), items(3, "other"), space=SPACE)


def restored(path: Path) -> None:
    """Put a copy of itself in the place of the folder."""
    shutil.copytree(path, path.with_name("copy"))
    path.rename(path.with_name("old"))
    path.with_name("copy").rename(path)


def catalogue_of_another(path: Path) -> None:
    """Write another index's catalogue over this one's, in place."""
    elsewhere(path.parent / "index")
    data = (path / "catalogue.sqlite").read_bytes()
    shutil.rmtree(path)
    path.with_name("old").rename(path)
    (path / "catalogue.sqlite").write_bytes(data)


@pytest.mark.parametrize(
    ("mode", "replace"),
    [
        *((mode, replace) for mode in ("read", "write") for replace in (elsewhere, restored, shutil.rmtree)),
        ("read", catalogue_of_another),  # a writer has the pages that count in its log
    ],
)
def test_a_replaced_folder_is_noticed(path: Path, replace: Callable[[Path], None], mode: Any) -> None:
    """A handle says so instead of giving answers of a folder that is gone; opening again works."""
    with opened(path, mode) as index:
        index.search(unit(1), space=SPACE)
        replace(path)
        for read in READS.values():
            with pytest.raises(IndexStoreError):
                read(index)
        if mode == "write":
            for change in (
                lambda: index.add(unit(1), items(1, "new"), space=SPACE),
                lambda: index.remove([1]),
                index.compact,
            ):
                with pytest.raises(IndexStoreError):
                    change()
    if replace in (elsewhere, restored):
        assert verify_index(path).problems == []


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every folder seem one that cannot be written to; tests may run as root."""
    access = os.access
    monkeypatch.setattr(connections.os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("read_only")
def test_a_reader_without_locks_reads_again_what_changed_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that comes and goes in the middle of a call: the answer is of one state, the later one."""
    reader = Index.open(path)
    assert reader.get([5])[0].caption == "no 5"
    from twinspire.index.view import View

    whole, times = View.items, []

    def slow(view: View, ids: Any) -> Any:
        found = whole(view, ids)
        if not times:
            times.append(1)
            with Index.open(path, mode="write") as writer:
                writer.update(5, caption="later")
        return found

    monkeypatch.setattr(View, "items", slow)
    assert reader.get([5])[0].caption == "later"
    reader.close()


@pytest.mark.usefixtures("read_only")
def test_a_reader_without_locks_says_where_a_writer_never_stops(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some times it gives up with an error, and reads as usual later."""
    reader = Index.open(path)
    from twinspire.index.view import View

    whole, count = View.items, 0

    def slow(view: View, ids: Any) -> Any:
        nonlocal count
        count += 1
        os.utime(path / "catalogue.sqlite", ns=(count, count))
        return whole(view, ids)

    with monkeypatch.context() as patch:
        patch.setattr(View, "items", slow)
        with pytest.raises(connections.CatalogueChangedError, match="again"):
            reader.get([5])
    assert count > 2
    assert reader.get([5])[0].id == 5
    reader.close()
