"""Files of libraries that keep their index in memory: saved whole, beside the old one, and synced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

DURABILITY = "saves the whole index to a new file, with fsync, and renames it"


def save(target: Path, write: Callable[[str], object]) -> None:
    """Let `write` write a file, sync it and its folder, and put it in place of `target`."""
    partial = target.with_suffix(".partial")
    write(str(partial))
    sync(partial)
    partial.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
