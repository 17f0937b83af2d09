"""Files and folders that appear whole or not at all: written beside their destination, synced, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a path to write to; at the end of the block it becomes `target`, in place of what is there.

    The file and its folder are synced to the disk. Where the block raises, `target` stays as it was. Raises OSError.
    """
    draft = draft_path(target, suffix=".partial")
    try:
        draft.touch(exist_ok=False)
        yield draft
        sync(draft)
        draft.replace(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    sync(target.parent)


@contextmanager
def atomic_folder(target: Path, *, many_files: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill; at the end of the block it becomes `target`, which must not exist or be empty.

    Folders above `target` are made, all files in the folder are synced: one by one, or with `many_files` by a sync of
    all file systems, which takes seconds for tens of thousands of files in place of minutes. Where the block raises,
    nothing is left. Raises OSError, also where `target` has content by then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_path(target)
    try:
        draft.mkdir()
        yield draft
        if many_files:
            os.sync()
        else:
            for folder, _, files in os.walk(draft):
                for file in files:
                    sync(Path(folder, file))
                sync(Path(folder))
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(target.parent)


def draft_path(target: Path, *, suffix: str = "") -> Path:
    """Return a new hidden path beside `target`. Create it inside the `try` block that removes it.

    `tempfile` creates the file before it returns the name: a signal in between would leave the file behind.
    """
    return target.with_name(f".{target.name}.{secrets.token_urlsafe(6)}{suffix}")


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
