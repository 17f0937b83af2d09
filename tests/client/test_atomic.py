"""Files and folders that appear whole or not at all, however early or late they are interrupted."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from twinspire._atomic import atomic_file, atomic_folder

TARGET = "target"


def write_file(folder: Path) -> None:
    """Write a file atomically."""
    with atomic_file(folder / TARGET) as draft:
        draft.write_text("whole", encoding="utf-8")


def write_folder(folder: Path) -> None:
    """Write a folder of one file atomically."""
    with atomic_folder(folder / TARGET) as draft:
        (draft / "content").write_text("whole", encoding="utf-8")


def interrupted(write: Callable[[Path], None], folder: Path, step: int) -> bool:
    """Call `write` with a Ctrl-C before the `step`-th line of Python code; tell whether there were as many."""
    seen = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        nonlocal seen
        seen += event == "line"
        if seen == step:
            raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        write(folder)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(previous)
    return False


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # interrupted before it is closed
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Ctrl-C between any two lines, also while the hidden draft is being made, leaves the whole target or nothing."""
    left: list[bool] = []
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        folder.mkdir()
        was_interrupted = interrupted(write, folder, step)
        names = [path.name for path in folder.iterdir()]
        assert names in ([], [TARGET]), f"at step {step}"
        if names:
            target = folder / TARGET
            assert (target / "content" if target.is_dir() else target).read_text(encoding="utf-8") == "whole"
        left.append(bool(names))
        if not was_interrupted:
            break
    assert len(left) > 20
    assert left[0] is False
    assert left[-1] is True
    assert left == sorted(left)  # nothing until it is in place, and then it stays


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_target_has_the_mode_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    """Neither a file nor a folder is its owner's alone unless the umask says so."""
    before = os.umask(umask)
    try:
        write_file(tmp_path)
        (tmp_path / TARGET).rename(tmp_path / "file")
        write_folder(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / TARGET).stat().st_mode) == 0o777 & ~umask
