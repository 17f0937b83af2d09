"""Let every write and sync of every change fail in turn, those of SQLite too, and look at what is left.

Needs `faults.c` compiled and in LD_PRELOAD (`test_index_faults.py` does that). Prints how often each change failed as a
JSON document. `--every N` takes each N-th call only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import test_index_crashes as crashes  # of this folder, which is the first on the path of a script

from twinspire.errors import IndexStoreError, IndexUncertainError
from twinspire.index import Index, snapshots, verify_index
from twinspire.stores.filters.filter import Filter

FAULTS = {"EIO": 0, "ENOSPC": 1, "short": 2, "torn": 3}
NO_FAULT = 1 << 40
_library = ctypes.CDLL(None)
_library.fault_disarm.restype = ctypes.c_long


def arm(folder: Path, at: int, fault: str, *, sticky: bool) -> None:
    """Make the call of number `at` in `folder`, counted from 0, fail; with `sticky` all later ones as well."""
    _library.fault_arm(str(folder).encode(), ctypes.c_long(at), FAULTS[fault], int(sticky))


def disarm() -> int:
    """Let all calls work again; return how many there were."""
    return int(_library.fault_disarm())


@dataclass(frozen=True)
class Change:
    """A change to an index that holds `before`, which makes it hold `after`."""

    run: Callable[[Index], object]
    before: crashes.Model
    after: crashes.Model


def prepared(folder: Path) -> tuple[crashes.Model, int]:
    """Make an index with a snapshot and dead rows; return what it holds and the next id."""
    Index.create(folder, space=crashes.SPACE, dim=crashes.DIM).close()
    model, next_id = crashes.Model(), 0
    with Index.open(folder, mode="write") as index:
        for number, name in enumerate(["add", "add", "build", "remove", "replace", "add"]):
            step = crashes.draw(model, next_id, number, name)
            crashes.remember(step.after)
            step.run(index)
            model, next_id = step.after, step.next_id
    return model, next_id


def changes(model: crashes.Model, next_id: int) -> dict[str, Change]:
    """Return the changes by name."""
    found = {}
    for number, name in enumerate(["add", "remove", "replace", "rename", "compact", "build"]):
        step = crashes.draw(model, next_id, 100 + number, name)
        crashes.remember(step.after)
        found[name] = Change(step.run, model, step.after)
    some = sorted(model)[len(model) // 2]
    found["remove_where"] = Change(
        lambda index: index.remove_where(Filter.parse(f"id < {some}")),
        model,
        {number: held for number, held in model.items() if number >= some},
    )
    found["close"] = Change(lambda index: index.close(), model, model)
    return found


def check_left(folder: Path, copy: Path, allowed: list[crashes.Model], where: str) -> None:
    """Check what a process that ended now, without closing, would leave."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    crashes.check_after_crash(copy, allowed, where)
    shutil.rmtree(copy)


def inject(folder: Path, change: Change, at: int, fault: str, *, sticky: bool, where: str) -> str:
    """Run a change with a fault; return how it went: unharmed, refused or uncertain."""
    copy = folder.with_name("left")
    index = Index.open(folder, mode="write")
    arm(folder, at, fault, sticky=sticky)
    try:
        change.run(index)
        outcome, allowed = "unharmed", [change.after]
    except IndexUncertainError:
        outcome, allowed = "uncertain", [change.before, change.after]
        assert sticky, f"{where}: a disk that fails once must not leave it open"
    except IndexStoreError:
        outcome, allowed = "refused", [change.before]
    finally:
        disarm()
    check_left(folder, copy, allowed, f"{where}: {outcome}")
    if "closed" not in repr(index):
        if outcome != "unharmed":
            held = len(index)
            assert held in {len(model) for model in allowed}, where
            if held == len(change.before):
                change.run(index)
        assert crashes.verify_index(folder).problems == [], where
        index.close()
        crashes.check_after_crash(folder, [change.after], f"{where}: again")
    return outcome


def inject_at_open(folder: Path, at: int, fault: str, *, sticky: bool, model: crashes.Model, where: str) -> str:
    """Open an index with a fault, which must lose nothing; return how it went."""
    outcome = "unharmed"
    index = None
    arm(folder, at, fault, sticky=sticky)
    try:
        index = Index.open(folder, mode="write")
    except IndexStoreError:
        outcome = "refused"
    finally:
        disarm()
    check_left(folder, folder.with_name("left"), [model], f"{where}: {outcome}")
    if index is not None:
        index.close()
    return outcome


def inject_at_create(folder: Path, at: int, fault: str, *, sticky: bool, where: str) -> str:
    """Create an index with a fault: an index is there or nothing is; return how it went."""
    arm(folder.parent, at, fault, sticky=sticky)
    try:
        Index.create(folder, space=crashes.SPACE, dim=crashes.DIM).close()
    except IndexStoreError:
        outcome = "refused"
    else:
        outcome = "unharmed"
    finally:
        disarm()
    assert [path for path in folder.parent.iterdir() if path != folder] == [], where
    if folder.exists():
        assert verify_index(folder).problems == [], where
        shutil.rmtree(folder)
    else:
        assert outcome == "refused", where
    return outcome


def main() -> None:
    """Run all faults at all calls of all changes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take each N-th call only")
    parser.add_argument("--only", help="a change")
    options = parser.parse_args()
    snapshots.TAIL_ROWS, snapshots.TAIL_SHARE = 0, 0.0  # so that the snapshot follows each add
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        template, folder = Path(scratch) / "template", Path(scratch) / "work" / "index"
        folder.parent.mkdir()
        model, next_id = prepared(template)

        def run_all(name: str, attempt: Callable[[int, str, bool, str], str], *, from_template: bool = True) -> None:
            if options.only not in (None, name):
                return
            calls = 0  # of a change without a fault, which is made first
            for at, fault, sticky in [
                (NO_FAULT, "EIO", False),
                *((at, fault, sticky) for at in range(1000) for fault in FAULTS for sticky in (False, True)),
            ]:
                if at != NO_FAULT and (at >= calls or at % options.every):
                    continue
                if from_template:
                    shutil.copytree(template, folder)
                outcome = attempt(at, fault, sticky, f"{name}, {fault} at call {at}, sticky {sticky}")
                if at == NO_FAULT:
                    calls = int(_library.fault_disarm())
                    outcomes[f"{name} calls"] = calls
                    assert outcome == "unharmed"
                else:
                    outcomes[f"{name} {outcome}"] += 1
                if from_template:
                    shutil.rmtree(folder)

        run_all(
            "create",
            lambda at, fault, sticky, where: inject_at_create(folder, at, fault, sticky=sticky, where=where),
            from_template=False,
        )
        run_all(
            "open",
            lambda at, fault, sticky, where: inject_at_open(folder, at, fault, sticky=sticky, model=model, where=where),
        )
        for name, change in changes(model, next_id).items():
            run_all(
                name,
                lambda at, fault, sticky, where, change=change: inject(  # type: ignore[misc]
                    folder, change, at, fault, sticky=sticky, where=where
                ),
            )
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
