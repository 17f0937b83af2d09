"""What an index is after a crash: a power cut at every point of every change, a writer killed 200 times, a full disk.

A change is drawn from a seed and made twice: on the index, and on a plain dict, the model. After each crash the
folder is read by hand (sqlite3 and numpy) and has to be the model before or after the change that was under way.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError
from twinspire.index import Index, Item, ItemKind, disk, verify_index

SPACE = "5" * 64
DIM = 16
ROOT = Path(__file__).parents[2]
SECTOR = 512


class Held(NamedTuple):
    """What the index should hold of one item; `version` seeds its vector."""

    uri: str
    caption: str
    version: int


Model = dict[int, Held]


@dataclass(frozen=True)
class Step:
    """A change: its name, what it does to an index, and the model after it."""

    name: str
    run: Callable[[Index], object]
    after: Model
    next_id: int


def vector(version: int) -> NDArray[np.float32]:
    """Return the unit vector of this version."""
    drawn = np.random.default_rng(version).standard_normal(DIM)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def draw(model: Model, next_id: int, number: int, name: str | None = None, spec: str = "hnsw") -> Step:
    """Draw the change of this number: the same for the same model and number, in every process.

    `spec` is what a build builds.
    """
    chance = random.Random(number)
    name = name or chance.choice(["add", "add", "add", "remove", "remove", "replace", "replace", "rename", "compact"])
    if not model:
        name = "add"
    version = 1000 * (number + 1)
    after = dict(model)
    if name == "add":
        ids = range(next_id, next_id + chance.randint(1, 40))
        after |= {n: Held(f"/p/{n}.jpg", f"no {n}", version + n - next_id) for n in ids}
        items = [Item(after[n].uri, ItemKind.IMAGE, after[n].caption, {"id": n}, f"h{n}") for n in ids]
        rows = np.stack([vector(after[n].version) for n in ids])
        return Step(name, lambda index: index.add(rows, items, space=SPACE), after, ids.stop)
    if name == "remove":
        gone = chance.sample(sorted(model), min(len(model), chance.randint(1, 40 if len(model) < 300 else 200)))
        after = {n: held for n, held in model.items() if n not in gone}
        return Step(name, lambda index: index.remove(gone), after, next_id)
    if name in ("compact", "build"):
        return Step(name, lambda index: index.compact() if name == "compact" else index.build(spec), after, next_id)
    n = chance.choice(sorted(model))
    if name == "replace":
        after[n] = model[n]._replace(caption=f"replaced {number}", version=version)
        change: dict[str, Any] = {"embedding": vector(version), "space": SPACE, "caption": after[n].caption}
    else:
        after[n] = model[n]._replace(uri=f"/q/{number}.jpg", caption=f"renamed {number}")
        change = {"uri": after[n].uri, "caption": after[n].caption}
    return Step(name, lambda index: index.update(n, **change), after, next_id)


def read_by_hand(folder: Path) -> Model:
    """Return what a folder holds, its vectors checked against their versions and its words against the captions."""
    connection = sqlite3.connect(f"{(folder / 'catalogue.sqlite').as_uri()}?mode=ro", uri=True)  # tidies nothing up
    name, committed = connection.execute("SELECT vectors_file, committed FROM catalogue").fetchone()
    rows = connection.execute("SELECT id, row, uri, caption, metadata, content_hash FROM items ORDER BY id").fetchall()
    words = dict(connection.execute("SELECT rowid, text FROM words").fetchall())
    dead = {row for (row,) in connection.execute("SELECT row FROM dead")}
    connection.close()
    stored = np.fromfile(folder / name, "<f4", offset=64, count=committed * DIM).reshape(committed, DIM)
    assert sorted([*dead, *(row[1] for row in rows)]) == list(range(committed))
    known = {vector_bytes: version for version, vector_bytes in _VERSIONS.items()}
    model = {}
    for n, row, uri, caption, metadata, content_hash in rows:
        assert (json.loads(metadata), content_hash) == ({"id": n}, f"h{n}")
        assert words.pop(n).startswith(caption)
        model[n] = Held(uri, caption, known[stored[row].tobytes()])
    assert not words
    return model


_VERSIONS: dict[int, bytes] = {}


def remember(model: Model) -> None:
    """Make the vectors of a model known to `read_by_hand`."""
    for held in model.values():
        if held.version not in _VERSIONS:
            _VERSIONS[held.version] = vector(held.version).tobytes()


class Cut(NamedTuple):
    """What was on the disk at one point, synced or not, and which models it may be."""

    where: str
    allowed: list[Model]
    durable: dict[str, bytes]
    pending: dict[str, bytes]


class FakeDisk:
    """Stands in for the file layer: does what it is told, and knows what a power cut would leave.

    A file's bytes last from its `sync` on, its name from `sync_folder` on. SQLite's own files count as they are.
    `cuts` has an entry before and after each call.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.where, self.allowed = "open", [Model()]
        self.cuts: list[Cut] = []
        self._synced: dict[int, bytes] = {}  # by inode
        self._names: dict[str, int] = {}
        for name in ("create", "write_at", "truncate", "sync", "sync_folder", "remove", "commit"):
            monkeypatch.setattr(disk, name, self._watched(name, getattr(disk, name)))
        self._settle_names()
        self._synced = {number: (folder / name).read_bytes() for name, number in self._names.items()}

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.cut(f"before {name}")
            result = real(*arguments)
            if name == "create":
                self._synced[os.fstat(result).st_ino] = b""
            elif name == "sync":
                self._synced[os.fstat(arguments[0]).st_ino] = Path(f"/proc/self/fd/{arguments[0]}").read_bytes()
            elif name == "sync_folder":
                self._settle_names()
            self.cut(f"after {name}")
            return result

        return call

    def _own(self) -> dict[str, Path]:
        return {path.name: path for path in self.folder.iterdir() if not path.name.startswith("catalogue")}

    def _settle_names(self) -> None:
        self._names = {name: path.stat().st_ino for name, path in self._own().items()}

    def cut(self, where: str) -> None:
        """Remember what there is now."""
        catalogue = {
            path.name: path.read_bytes()
            for path in self.folder.iterdir()
            if path.name in ("catalogue.sqlite", "catalogue.sqlite-wal")
        }
        durable = {name: self._synced.get(number, b"") for name, number in self._names.items()}
        pending = {name: path.read_bytes() for name, path in self._own().items()}
        self.cuts.append(Cut(f"{self.where}, {where}", self.allowed, durable | catalogue, pending | catalogue))


def survived(cut: Cut, chance: random.Random | None) -> dict[str, bytes]:
    """Return the files after a power cut: what was synced and, by chance, of the rest a name, a length, a sector."""
    if chance is None:
        return cut.durable
    files = {}
    for name in {*cut.durable, *cut.pending}:
        old, new = cut.durable.get(name), cut.pending.get(name)
        if old is None or new is None:  # made or removed, not synced
            if chance.random() < 0.5:
                files[name] = old if old is not None else b"" if new is None else new
            continue
        if old == new:
            files[name] = new
            continue
        data = bytearray(chance.choice([old, new]))
        for start in range(0, len(data), SECTOR):
            some = chance.choice([old, new])[start : start + SECTOR]
            data[start : start + len(some)] = some
        files[name] = bytes(data)
    return files


@pytest.mark.slow
def test_a_power_cut_at_any_point_leaves_the_change_whole_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was not synced is lost, wholly or in part: what had returned is there, and the index goes on."""
    folder = tmp_path / "index"
    Index.create(folder, space=SPACE, dim=DIM).close()
    fake = FakeDisk(folder, monkeypatch)
    index, model, next_id = Index.open(folder, mode="write"), Model(), 0
    order = "add add build remove replace compact add rename build replace remove compact compact add"
    for number, name in enumerate(order.split(" ")):
        step = draw(model, next_id, number, name)
        remember(step.after)
        fake.where, fake.allowed = f"step {number} ({name})", [model, step.after]
        step.run(index)
        model, next_id = step.after, step.next_id
        fake.allowed = [model]
        fake.cut("returned")
    index.close()
    fake.cut("closed")
    monkeypatch.undo()

    chance, seen, left = random.Random(3), set(), Counter[str]()
    for cut in fake.cuts:
        for luck in (None, chance, chance):
            files = survived(cut, luck)
            key = (id(cut.allowed), tuple(sorted((name, hash(data)) for name, data in files.items())))
            if key in seen:
                continue
            seen.add(key)
            after = tmp_path / "after"
            after.mkdir()
            for name, data in files.items():
                (after / name).write_bytes(data)
            held = check_after_crash(after, cut.allowed, cut.where)
            left["undone" if held == cut.allowed[0] and len(cut.allowed) > 1 else "whole"] += 1
            shutil.rmtree(after)
    print(f"{len(fake.cuts)} points, {len(seen)} different disks, {dict(left)}")
    assert min(left.values()) > 20


def check_after_crash(folder: Path, allowed: list[Model], where: str) -> Model:
    """Check that a folder holds one of the models, is in order, and takes the next change; return what it holds."""
    with Index.open(folder) as reader:
        count = len(reader)
    held = read_by_hand(folder)
    assert held in allowed, where
    assert count == len(held), where
    assert verify_index(folder).problems == [], where
    with Index.open(folder, mode="write") as index:
        new = index.add(vector(1)[None], [Item("/x.jpg", ItemKind.IMAGE, "x", {}, "hx")], space=SPACE).added
        assert not set(new) & set(held), where
        assert index.remove(new) == 1, where
    assert read_by_hand(folder) == held, where
    assert len(list(folder.glob("vectors-*"))) == 1, where
    return held


def change_for_ever(folder: Path, model: Model, next_id: int, number: int, acknowledge: int) -> None:
    """Make change after change, a byte to `acknowledge` for each that has returned."""
    with Index.open(folder, mode="write") as index:
        os.write(acknowledge, b"o")
        while True:
            step = draw(model, next_id, number)
            step.run(index)
            os.write(acknowledge, b"+")
            model, next_id, number = step.after, step.next_id, number + 1


def kill_again_and_again(folder: Path, times: int) -> None:
    """Fork a writer, kill it at a random moment, check what is there, `times` times; prints how often it hit what."""
    chance = random.Random(11)
    model, next_id, number = Model(), 0, 0
    hit = Counter[str]()
    for _ in range(times):
        ours, theirs = os.pipe()
        writer = os.fork()
        if writer == 0:
            os.close(ours)
            change_for_ever(folder, model, next_id, number, theirs)
        os.close(theirs)
        # It is killed while it opens, or some changes and a moment later.
        acknowledged = b"".join(os.read(ours, 1) for _ in range(chance.choice([0, 1, 2, 3, 4, 5, 8])))
        time.sleep(chance.uniform(0, 0.012))
        os.kill(writer, signal.SIGKILL)
        _, status = os.waitpid(writer, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        with os.fdopen(ours, "rb") as pipe:
            acknowledged += pipe.read()
        for _ in range(acknowledged.count(b"+")):
            step = draw(model, next_id, number)
            remember(step.after)
            model, next_id, number = step.after, step.next_id, number + 1
        under_way = draw(model, next_id, number)
        remember(under_way.after)
        copy = shutil.copytree(folder, folder.with_name("copy"), ignore=shutil.ignore_patterns("*-shm"))
        held = read_by_hand(copy)  # reading would tidy up SQLite's log
        shutil.rmtree(copy)
        assert held in (model, under_way.after), f"killed in {under_way.name} after {acknowledged!r}"
        hit[under_way.name] += 1
        hit["finished"] += held == under_way.after != model
        hit["acknowledged"] += acknowledged.count(b"+")
        # A compaction shows in the files alone; whether it was done does not matter to the model.
        if held == under_way.after:
            model, next_id, number = held, under_way.next_id, number + 1
    check_after_crash(folder, [model], "at the end")
    print(json.dumps(hit))


@pytest.mark.slow
def test_a_writer_killed_200_times_keeps_every_change_that_returned(tmp_path: Path) -> None:
    """After SIGKILL at a random moment, the change under way is whole or undone, and all before it are there."""
    folder = tmp_path / "index"
    Index.create(folder, space=SPACE, dim=DIM).close()
    hit = run_here("kill_again_and_again", folder, 200)
    print(hit)
    assert hit["acknowledged"] > 200
    assert min(hit[name] for name in ("add", "remove", "replace", "rename", "compact")) > 5


def change_on_disks_that_fill_up(folder: Path) -> None:
    """Make each change with room for ever larger files until it succeeds; prints how often each failed first."""
    _, unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    model, next_id = Model(), 0
    failed = Counter[str]()
    with Index.open(folder, mode="write") as index, Index.open(folder) as reader:
        for number, name in enumerate(["add", "add", "remove", "replace", "compact", "rename", "add"]):
            step = draw(model, next_id, number, name)
            remember(step.after)
            size = 0
            while True:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited))
                try:
                    step.run(index)
                except IndexStoreError as error:
                    said = str(error)
                else:
                    break
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
                failed[name] += 1
                assert "room" in said or "failing" in said, said
                assert len(reader) == len(index) == len(model)
                assert reader.verify().problems == []
                size += 1500 + size // 4  # faster than SQLite's log grows by the attempts
            model, next_id = step.after, step.next_id
            assert len(reader) == len(model)
    check_after_crash(folder, [model], "at the end")
    print(json.dumps(failed))


def test_a_full_disk_undoes_the_change_and_says_so(tmp_path: Path) -> None:
    """Whichever write finds no room, of vectors or catalogue, nothing is lost, and the change can be repeated."""
    folder = tmp_path / "index"
    Index.create(folder, space=SPACE, dim=DIM).close()
    failed = run_here("change_on_disks_that_fill_up", folder)
    print(failed)
    assert min(failed[name] for name in ("add", "remove", "replace", "rename", "compact")) > 0


def run_here(function: str, folder: Path, *arguments: int) -> dict[str, int]:
    """Run a function of this file in a process of its own and return what it prints."""
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'client')!r}, {str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path\nimport test_index_crashes as t\n"
        f"t.{function}(Path({str(folder)!r}), *{arguments!r})"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # it may fork: there should be one thread
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, int] = json.loads(ran.stdout)
    return found
