"""Kill migrations at random moments, with readers and changes beside them, and check what the index answers.

    python tests/client/kill_migrations.py --kills 200

One index is migrated between the models A and B, again and again, in processes that are killed; a killed one is run
again, until the index has switched. Between the runs items are added, removed, renamed and changed, with the model that
the index has then. Readers search all the time, open the index again where it was replaced, and must never meet another
error, nor a hit that does not have the score of its item's content in the space that they asked in. At the end of each
migration the index must have every item that the model has, and the vectors of a fresh index. Prints a JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.audio import AudioLimits
from twinspire.bundle import DecodeMode, Tower
from twinspire.errors import IndexReplacedError, InputError
from twinspire.images import ImageLimits
from twinspire.index import Index, verify_index
from twinspire.ingest import add_images
from twinspire.migration import migrate

SPACES = ("a" * 64, "b" * 64)
DIMS = (8, 12)
READERS = 2
FIRST = 150
CONTENTS = {hashlib.sha256(content).hexdigest(): content for content in (f"{n:08}".encode() for n in range(100_000))}


def vectors_of(contents: Sequence[bytes], place: int) -> NDArray[np.float32]:
    """Return the vectors of files with these contents in the space of this place, (N, D)."""
    rows = []
    for content in contents:
        drawn = np.random.default_rng([place, *content]).standard_normal(DIMS[place])
        rows.append(drawn / np.linalg.norm(drawn))
    return np.array(rows, np.float32).reshape(-1, DIMS[place])


class Model:
    """A client that encodes the bytes of files; two spaces have vectors of different lengths."""

    limits, audio_limits, vectors_per_item = ImageLimits(), AudioLimits(), 1
    decode = DecodeMode.EXACT

    def __init__(self, place: int) -> None:
        self.place, self.space, self.dim = place, SPACES[place], DIMS[place]
        self.bundle = SimpleNamespace(name="model", towers=(Tower.IMAGE, Tower.TEXT))
        self.towers = SimpleNamespace(encode_images=self.encode)

    def preprocess(self, contents: Sequence[bytes], *, on_error: str) -> tuple[NDArray[np.uint8], list[Any]]:
        """Return the contents as rows of bytes."""
        del on_error
        return np.array([np.frombuffer(content.ljust(32), np.uint8) for content in contents], np.uint8), []

    def encode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, D), slowly enough to be killed between two batches."""
        time.sleep(0.002)
        return vectors_of([row.tobytes().rstrip() for row in rows], self.place)


def write_file(path: Path, number: int) -> None:
    """Write a file that no other number has, in one step."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(f"{number:08}".encode())
    draft.rename(path)


def change(folder: Path, photos: Path, chance: random.Random, count: Counter[str]) -> None:
    """Add, remove, rename and change files and their items, with the model that the index has."""
    with Index.open(folder, mode="write") as index:
        model: Any = Model(SPACES.index(index.space))
        for _ in range(chance.randint(1, 3)):
            kind = chance.choice(["add", "remove", "rename", "change"])
            files = sorted(photos.glob("*.png"))
            number = count["files"] = count["files"] + 1
            chosen = chance.choice(files)
            if kind == "add":
                chosen = photos / f"{number}.png"
                write_file(chosen, number)
            elif kind == "remove":
                index.remove([item.id for item in index.find(uri=str(chosen))])
                chosen.unlink()
            elif kind == "rename":
                chosen = chosen.rename(photos / f"{number}.png")
            else:
                write_file(chosen, number)
            if kind != "remove":
                add_images(index, model, [chosen])
            count[f"{kind} between runs"] += 1


def read(folder: Path, seed: int, progress: int) -> None:
    """Search for ever; ends with a message where something is wrong."""
    chance = np.random.default_rng(seed)
    while True:
        with Index.open(folder) as index, suppress(IndexReplacedError):
            place = SPACES.index(index.space)
            for _ in range(int(chance.integers(1, 40))):
                drawn = chance.standard_normal((1, DIMS[place])).astype(np.float32)
                query = drawn / np.linalg.norm(drawn)
                generation = index.generation
                hits = index.search(query, k=5, space=SPACES[place])[0]
                with suppress(InputError):  # an item was removed meanwhile
                    items = index.get([hit.id for hit in hits])
                if index.generation != generation:
                    continue
                assert len(items) == 5
                contents = [CONTENTS[item.content_hash or ""] for item in items]
                scores = vectors_of(contents, place) @ query[0]
                assert np.allclose(scores, [hit.score for hit in hits], atol=1e-5), (place, hits, scores)
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
    os._exit(0)


def run_migration(folder: Path, place: int) -> None:
    """Migrate the index to the model of this place."""
    model: Any = Model(place)
    report = migrate(folder, model)
    assert report.switched, report.lost


def check(folder: Path, photos: Path, place: int) -> int:
    """Check an index that has switched: its items are the files, its vectors those of the model. Return how many."""
    verified = verify_index(folder)
    assert verified.ok, verified.problems
    files = sorted(photos.glob("*.png"))
    with Index.open(folder) as index:
        assert index.space == SPACES[place]
        items = {item.uri: item for item in index.items()}
        assert items.keys() == {str(path) for path in files}, "items are lost, or others came"
        found = index.vectors([items[str(path)].id for path in files])
        wanted = vectors_of([path.read_bytes() for path in files], place)
        assert np.array_equal(found, wanted), "a vector is not that of the file"
    assert not (folder / "migration").exists()
    return len(files)


def main() -> None:
    """Kill migrations again and again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance, count, began = random.Random(options.seed), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder, photos = Path(scratch) / "index", Path(scratch) / "photos"
        photos.mkdir()
        for _ in range(FIRST):
            count["files"] += 1
            write_file(photos / f"{count['files']}.png", count["files"])
        place, first = 0, Model(0)
        with Index.create(folder, space=first.space, dim=first.dim) as index:
            add_images(index, first, sorted(photos.iterdir()))  # type: ignore[arg-type]
            index.build("hnsw")
        searches, progress = os.pipe()
        os.set_blocking(searches, False)
        readers = [start(read, folder, options.seed + each, progress) for each in range(READERS)]
        try:
            while count["kills"] < options.kills:
                target = 1 - place
                whole_s = count["slowest_ms"] / 1000 or 1.0
                while True:
                    began_s = time.monotonic()
                    child = start(run_migration, folder, target)
                    in_switch = chance.random() < 0.3
                    dies_s = began_s + (60 if in_switch else chance.random() * whole_s * 0.6)
                    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < dies_s:
                        if in_switch and len(list(folder.glob("vectors-*"))) > 1:  # the new one lies beside the old one
                            in_switch, dies_s = False, time.monotonic() + chance.random() * 0.04
                            count["aimed at the switch"] += 1
                        time.sleep(0.0002)
                    if ended[0]:
                        assert os.waitstatus_to_exitcode(ended[1]) == 0, "a migration failed"
                        break
                    os.kill(child, signal.SIGKILL)
                    _, status = os.waitpid(child, 0)
                    if not os.WIFSIGNALED(status):
                        assert os.waitstatus_to_exitcode(status) == 0, "a migration failed"
                        break
                    count["kills"] += 1
                    with Index.open(folder) as index:
                        switched = index.space == SPACES[target]
                    count["killed after the switch" if switched else "killed before it"] += 1
                    if count["kills"] >= options.kills or switched:
                        whole = time.monotonic()
                        run_migration(folder, target)
                        count["slowest_ms"] = max(count["slowest_ms"], round(1000 * (time.monotonic() - whole)))
                        break
                    if chance.random() < 0.3:
                        change(folder, photos, chance, count)
                count["migrations"] += 1
                place = target
                count["items at the end"] = check(folder, photos, place)
                for reader in readers:
                    assert os.waitpid(reader, os.WNOHANG) == (0, 0), "a reader ended by itself"
                with suppress(BlockingIOError):
                    count["searches"] += len(os.read(searches, 1 << 16))
        finally:
            for reader in readers:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(reader, signal.SIGKILL)
                    os.waitpid(reader, 0)
    print(json.dumps(dict(sorted(count.items())) | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
