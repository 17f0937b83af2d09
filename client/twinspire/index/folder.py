"""Makes the folder of an empty index, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from twinspire.index.catalogue import CATALOGUE_NAME, Catalogue
from twinspire.index.lock import LOCK_NAME
from twinspire.index.vectors import VECTORS_NAME, header


def make_folder(folder: Path, *, space: str, dim: int) -> None:
    """Write an empty index beside `folder`, wait until the disk has it, then give it that name.

    `folder` must not be there, its parent must. Raises `OSError` and `sqlite3.Error`, leaves nothing then.
    """
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    draft.mkdir()
    try:
        Catalogue.create(draft, space=space, dim=dim, dtype="float32")
        (draft / VECTORS_NAME).write_bytes(header(dim))
        (draft / LOCK_NAME).touch()
        for name in (CATALOGUE_NAME, VECTORS_NAME, LOCK_NAME, "."):
            _sync(draft / name)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    _sync(folder.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
