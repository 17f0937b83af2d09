"""Single bits flipped in the catalogue at rest: damage is an error or is found by `verify`, never an unnoticed answer.

Longer, from the project's root: python tests/client/test_index_bit_flips.py --flips 4000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinspire.errors import IndexStoreError, InputError, TwinspireError
from twinspire.index import Index, Item, ItemKind, verify_index
from twinspire.stores.filters.filter import Filter
from twinspire.stores.text_query import TextQuery

SPACE, DIM, COUNT = "5" * 64, 8, 400
MISSES = ("filter", "words", "count", "find", "known")
"""Where a reader may silently miss items until `verify`: it would have to read all pages of an index."""


@dataclass
class Tally:
    """What came of some flips."""

    flips: int = 0
    harmless: int = 0  # every answer as before
    refused: int = 0  # an error at some call, no wrong answer
    wrong: Counter[str] = field(default_factory=Counter)  # flips with a wrong answer and no error, by call
    missed: int = 0  # flips with a wrong answer
    unseen: list[str] = field(default_factory=list)  # wrong, and `verify` finds nothing
    foreign: list[str] = field(default_factory=list)  # exceptions of others


def made(path: Path) -> None:
    """Make a closed index of some hundred items, of which some are gone and some replaced."""
    random_numbers = np.random.default_rng(0)
    vectors = random_numbers.standard_normal((COUNT + 20, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nouns = ["red car", "green tree", "black cat", "tall house", "红色的车", "一只猫在树上", "old boat at sea"]
    items = [
        Item(
            f"/photos/{n // 50}/IMG_{n:04}.jpg",
            ItemKind.TEXT if n % 5 == 0 else ItemKind.IMAGE,
            None if n % 17 == 0 else f"{nouns[n % 7]} beside a {nouns[n % 3]}, no {n}",
            {"n": n, "camera": f"X{n % 4}", "gps": {"lat": n / 7, "lon": -n / 3}, "tags": ["sea", "猫"][: n % 3]},
            f"{n * 7919:064x}",
        )
        for n in range(COUNT)
    ]
    with Index.create(path, space=SPACE, dim=DIM) as index:
        for start in range(0, COUNT, 50):
            index.add(vectors[start : start + 50], items[start : start + 50], space=SPACE)
        index.remove(range(100, 110))
        for place in range(5):
            index.update(200 + place, embedding=vectors[COUNT + place], space=SPACE, caption=f"new caption {place}")


def calls(index: Index) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the calls whose answers are compared."""
    ids = [n for n in range(COUNT) if not 100 <= n < 110]
    queries = np.eye(DIM, dtype=np.float32)
    yield "len", lambda: len(index)
    for start in range(0, len(ids), 30):
        yield "get", lambda start=start: index.get(ids[start : start + 30])
        yield "vectors", lambda start=start: index.vectors(ids[start : start + 30]).tobytes()
    for n in range(0, COUNT, 9):
        yield "find", lambda n=n: index.find(uri=f"/photos/{n // 50}/IMG_{n:04}.jpg")
        yield "find", lambda n=n: index.find(content_hash=f"{n * 7919:064x}")
    yield "find", lambda: index.find(under="/photos/3")
    yield "search", lambda: index.search(queries, k=20, space=SPACE)
    yield "known", lambda: index.known_hashes(f"{n * 7919:064x}" for n in range(COUNT))
    for text in (
        "n < 77 and camera = 'X1'",
        "gps.lat > 20 or tags contains '猫'",
        "caption contains '红' and not n = 3",
    ):
        where = Filter.parse(text)
        yield "filter", lambda where=where: index.search(queries, k=50, space=SPACE, where=where)
        yield "filter", lambda where=where: sorted(index.matching(ids, where))
    yield "filter", lambda: index.search(queries, k=50, space=SPACE, kind=ItemKind.TEXT)
    for query in (
        *map(TextQuery.any_of, ("car", "img", "0033", "猫", "sea car")),
        TextQuery.all_of("红色的"),
        TextQuery(phrases=(("new", "caption"),)),
    ):
        yield "words", lambda query=query: index.search_text(query, k=400)
        yield "count", lambda query=query: index.count_text(query, at_most=1000)
    yield "stats", lambda: index.stats().items_by_kind
    yield "bundle", lambda: (index.space, index.dim, index.generation, index.stats().dead_rows, index.sample_ids(9))


def answers(path: Path, foreign: list[str]) -> list[tuple[str, object]]:
    """Return what each call of a reader says; an error of ours is None."""
    found: list[tuple[str, object]] = []
    try:
        with Index.open(path) as index:
            for name, call in calls(index):
                try:
                    found.append((name, call()))
                except IndexStoreError:
                    found.append((name, None))
                except InputError as error:  # the input is right: an answer that is not
                    found.append((name, error))
                except Exception as error:
                    found.append((name, None))
                    foreign.append(f"{name}: {type(error).__name__}: {error}")
    except TwinspireError:
        pass
    except Exception as error:
        foreign.append(f"open: {type(error).__name__}: {error}")
    return found


def write(path: Path, foreign: list[str]) -> None:
    """Change the index in each way; only errors of others count."""
    vector = np.eye(DIM, dtype=np.float32)[:1]
    try:
        with Index.open(path, mode="write") as index:
            for call in (
                lambda: index.add(vector, [Item("/new", ItemKind.IMAGE, "new", content_hash="new")], space=SPACE),
                lambda: index.update(5, caption="other"),
                lambda: index.update(6, embedding=vector[0], space=SPACE),
                lambda: index.remove(range(20)),
                lambda: index.remove_where(Filter.parse("n > 300 and n < 320")),
                index.compact,
            ):
                try:
                    call()
                except TwinspireError:
                    pass
                except Exception as error:
                    foreign.append(f"write: {type(error).__name__}: {error}")
    except TwinspireError:
        pass
    except Exception as error:
        foreign.append(f"open to write: {type(error).__name__}: {error}")


def flipped(folder: Path, flips: int, seed: int) -> Tally:
    """Flip bits of a catalogue one at a time, at places drawn by `seed`, and return what came of it."""
    whole, damaged = folder / "whole", folder / "damaged"
    made(whole)
    tally, drawn = Tally(), random.Random(seed)
    truth = answers(whole, tally.foreign)
    assert verify_index(whole).problems == []
    data = (whole / "catalogue.sqlite").read_bytes()
    for _ in range(flips):
        offset, bit = drawn.randrange(len(data)), drawn.randrange(8)
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        broken = bytearray(data)
        broken[offset] ^= 1 << bit
        (damaged / "catalogue.sqlite").write_bytes(broken)
        place = f"page {offset // 4096 + 1} byte {offset % 4096} bit {bit}"
        foreign: list[str] = []
        found = answers(damaged, foreign)
        wrong = {
            name
            for (name, answer), (_, true) in zip(found, truth, strict=False)
            if answer is not None and answer != true
        }
        try:
            clean = verify_index(damaged).ok
        except Exception as error:
            foreign.append(f"verify: {type(error).__name__}: {error}")
            clean = True
        write(damaged, foreign)
        tally.flips += 1
        tally.missed += bool(wrong)
        tally.wrong.update(wrong)
        tally.foreign += [f"{place}: {error}" for error in dict.fromkeys(foreign)]
        if wrong and clean:
            tally.unseen.append(f"{place}: {', '.join(sorted(wrong))}")
        if not wrong:
            tally.harmless += found == truth
            tally.refused += found != truth
    return tally


@pytest.mark.slow
@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.thorough)])
def test_a_flipped_bit_is_no_unnoticed_answer(tmp_path: Path, flips: int) -> None:
    """Captions, metadata, uris, ids and vectors are right or refused; `verify` finds whatever made an answer wrong."""
    tally = flipped(tmp_path, flips, seed=1)
    assert tally.unseen == []
    assert tally.foreign == []
    assert set(tally.wrong) <= set(MISSES), tally


def main() -> None:
    """Print what came of some flips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = flipped(Path(folder), options.flips, options.seed)
    print(
        f"{tally.flips} flips: {tally.harmless} harmless, {tally.refused} refused, "
        f"{tally.missed} wrong without an error"
    )
    print("wrong without an error, by call:", dict(tally.wrong.most_common()))
    print(f"{len(tally.unseen)} of them called clean by verify:", *tally.unseen, sep="\n  ")
    print(f"{len(tally.foreign)} exceptions that are not twinspire's:", *tally.foreign, sep="\n  ")


if __name__ == "__main__":
    main()
