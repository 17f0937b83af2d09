"""Copying a file: without taking space where the file system can share it, never as another name of the same one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_PORTION_BYTES = 1 << 30


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of `source` to the new file `target`; writing into one leaves the other as it is.

    btrfs and XFS share the blocks of both until one is written to. Raises OSError.
    """
    if not _copy_in_kernel(source, target):
        shutil.copyfile(source, target)


def _copy_in_kernel(source: Path, target: Path) -> bool:
    """Let the kernel copy, which then may share blocks; False where it cannot between these files."""
    if not hasattr(os, "copy_file_range"):
        return False
    with source.open("rb") as given, target.open("wb") as made:
        left = os.fstat(given.fileno()).st_size
        while left > 0:
            try:
                copied = os.copy_file_range(given.fileno(), made.fileno(), min(left, _PORTION_BYTES))
            except OSError:
                return False
            if copied == 0:  # some file systems take the call and do nothing
                return False
            left -= copied
    return True
