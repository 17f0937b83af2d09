"""Kill writers at random moments, with readers beside them, and check that nothing acknowledged is lost.

    python tests/client/kill_writers.py --kills 1000 --spec binary

Each writer opens the index and makes change after change (add, remove, replace, rename, compact, build), drawn from a
seed. Before a change it writes its number to a journal, after it that it returned. When it was killed, the folder must
be what the journal says: all changes that returned, and the one under way whole or not at all. Readers search all the
time and must find only items with their own vectors; they never see the index go back. A rival tries to open the index
for writing and must be locked out as long as the writer lives. Builds are of `--spec`; the index starts with as many
items as that needs, and keeps them. Prints a JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import test_index_crashes as crashes  # of this folder, which is the first on the path of a script

from twinspire.errors import IndexLockedError
from twinspire.index import Index, Item, ItemKind
from twinspire.index.ann import IndexSpec

CHANGES = ["add"] * 6 + ["remove", "replace", "rename"] * 3 + ["compact", "build"] * 2
READERS = 2
FILLED = 10**9
"""The version of the first item that is there from the start: larger than those of changes."""
MOST_REMOVED = 200
"""Items that one change removes, at most."""


def step_of(spec: str, model: crashes.Model, next_id: int, number: int) -> crashes.Step:
    """Draw the change of this number, the same in every process; none leaves too few items for `spec`."""
    name = random.Random(-1 - number).choice(CHANGES)
    minimum = IndexSpec.parse(spec).family.minimum_vectors
    if name == "remove" and 1 < minimum > len(model) - MOST_REMOVED:
        name = "add"
    return crashes.draw(model, next_id, number, name, spec)


def filled(folder: Path, spec: str) -> crashes.Model:
    """Make the index, with the items that `spec` needs and as many as a change removes; return what it holds."""
    minimum = IndexSpec.parse(spec).family.minimum_vectors
    count = minimum + MOST_REMOVED if minimum > 1 else 0
    model = {n: crashes.Held(f"/p/{n}.jpg", f"no {n}", FILLED + n) for n in range(count)}
    with Index.create(folder, space=crashes.SPACE, dim=crashes.DIM) as index:
        if model:
            items = [Item(held.uri, ItemKind.IMAGE, held.caption, {"id": n}, f"h{n}") for n, held in model.items()]
            index.add(np.stack([crashes.vector(held.version) for held in model.values()]), items, space=crashes.SPACE)
    crashes.remember(model)
    return model


def write(folder: Path, journal: int, spec: str, model: crashes.Model, next_id: int, number: int) -> None:
    """Make change after change, in a process that is killed."""
    with Index.open(folder, mode="write") as index:
        os.write(journal, b"open\n")
        while True:
            step = step_of(spec, model, next_id, number)
            os.write(journal, f"begin {number}\n".encode())
            step.run(index)
            os.write(journal, f"done {number}\n".encode())
            model, next_id, number = step.after, step.next_id, number + 1


def read(folder: Path, seed: int, progress: int) -> None:
    """Search for ever; ends with a message where something is wrong."""
    chance = np.random.default_rng(seed)
    while True:
        with Index.open(folder) as index:
            generation = 0
            for _ in range(int(chance.integers(1, 30))):
                before, generation = generation, index.generation
                assert generation >= before, f"went back from generation {before} to {generation}"
                drawn = chance.standard_normal((1, crashes.DIM)).astype(np.float32)
                hits = index.search(drawn / np.linalg.norm(drawn), k=5, space=crashes.SPACE)[0]
                for hit in hits:
                    assert hit.metadata == {"id": hit.id}, hit
                assert len({hit.id for hit in hits}) == len(hits)
                os.write(progress, b".")


def start(run: object, *arguments: object) -> int:
    """Fork a process that runs a function and tells what it died of."""
    child = os.fork()
    if child:
        return child
    try:
        run(*arguments)  # type: ignore[operator]
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
    os._exit(1)


def rival_is_locked_out(folder: Path) -> bool:
    """Return whether the index cannot be opened for writing now."""
    try:
        Index.open(folder, mode="write").close()
    except IndexLockedError:
        return True
    return False


def held_after_kill(folder: Path, allowed: list[crashes.Model]) -> crashes.Model:
    """Return what the index holds for those that have it open, once a copy of its files holds one of `allowed`.

    Both may differ: a commit that was written when the writer was killed, but not published in the shared memory that
    readers keep, counts for the copy alone, and the next writer takes its place.
    """
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    assert crashes.read_by_hand(copy) in allowed, "the files hold something else"
    shutil.rmtree(copy)
    return crashes.read_by_hand(folder)


def main() -> None:
    """Kill writers again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--spec", default="hnsw")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    count = Counter[str]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder, journal_path = Path(scratch) / "index", Path(scratch) / "journal"
        model, spec = filled(folder, options.spec), options.spec
        next_id, number = len(model), 0
        under_way = step_of(spec, model, next_id, number)
        searches, progress = os.pipe()
        os.set_blocking(searches, False)
        readers = [start(read, folder, options.seed + each, progress) for each in range(READERS)]
        try:
            for _ in range(options.kills):
                journal = os.open(journal_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                writer = start(write, folder, journal, spec, model, next_id, number)
                # It is killed while it opens, or some changes and a moment later.
                wanted = chance.choice([0, 0, 1, 1, 2, 3, 5, 8, 20])
                deadline = time.monotonic() + 60
                while os.pread(journal, 1 << 20, 0).count(b"done") < wanted and time.monotonic() < deadline:
                    time.sleep(0.001)
                if wanted and chance.random() < 0.1:
                    assert rival_is_locked_out(folder), "a second writer got in"
                    count["rivals locked out"] += 1
                time.sleep(chance.choice([0.004, 0.02, 0.1]) * chance.random())
                os.kill(writer, signal.SIGKILL)
                _, status = os.waitpid(writer, 0)
                assert os.WIFSIGNALED(status), "the writer ended by itself"
                lines = os.pread(journal, 1 << 20, 0).decode().splitlines()
                os.close(journal)
                for _ in range(sum(line.startswith("done") for line in lines)):
                    step = step_of(spec, model, next_id, number)
                    crashes.remember(step.after)
                    model, next_id, number = step.after, step.next_id, number + 1
                    count["changes acknowledged"] += 1
                    count["builds acknowledged"] += step.name == "build"
                under_way = step_of(spec, model, next_id, number)
                crashes.remember(under_way.after)
                held = held_after_kill(folder, [model, under_way.after])
                assert held in (model, under_way.after), f"killed in {under_way.name}: something is lost"
                begun = lines[-1:] == [f"begin {number}"]
                count[f"killed in {under_way.name}" if begun else "killed elsewhere"] += 1
                if held == under_way.after:
                    count["finished though killed"] += held != model
                    model, next_id, number = held, under_way.next_id, number + 1
                for place, reader in enumerate(readers):
                    assert os.waitpid(reader, os.WNOHANG) == (0, 0), "a reader ended by itself"
                    if chance.random() < 0.02:
                        os.kill(reader, signal.SIGKILL)
                        os.waitpid(reader, 0)
                        readers[place] = start(read, folder, chance.randrange(1 << 30), progress)
                        count["readers killed"] += 1
                with suppress(BlockingIOError):
                    count["searches"] += len(os.read(searches, 1 << 16))
        finally:
            for reader in readers:
                os.kill(reader, signal.SIGKILL)
                os.waitpid(reader, 0)
        # Without readers the shared memory is gone too: a commit that it did not publish counts now.
        crashes.check_after_crash(folder, [model, under_way.after], "at the end")
        count["kills"] = options.kills
        count["items at the end"] = len(model)
    print(json.dumps(dict(sorted(count.items())) | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
