"""Files and folders that appear whole or not at all: written beside their destination, synced, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a path to write to; at the end of the block it becomes `target`, in place of what is there.

    The file and its folder are synced to the disk. Where the block raises, `target` stays as it was. Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        draft.chmod(0o666 & ~_umask())  # mkstemp's files are their owner's alone
        yield draft
        sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
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
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        draft.chmod(0o777 & ~_umask())  # mkdtemp's folders are their owner's alone
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


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it; Linux also shows it in /proc."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
