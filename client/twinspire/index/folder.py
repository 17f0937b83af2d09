"""Makes the folder of an empty index, whole or not at all."""

from __future__ import annotations

import errno
import secrets
import shutil
from pathlib import Path

from twinspire.errors import IndexStoreError
from twinspire.index import disk
from twinspire.index.catalogue import Catalogue
from twinspire.index.commit_record import RECORD_NAME, packed
from twinspire.index.connections import CATALOGUE_NAME
from twinspire.index.lock import LOCK_NAME
from twinspire.index.vectors import VectorType, create_vector_file, vectors_name
from twinspire.stores.reference import BundleReference


def make_folder(folder: Path, *, space: str, dim: int, dtype: VectorType, bundle: BundleReference | None) -> None:
    """Write an empty index beside `folder`, wait until the disk has it, then give it that name.

    `folder` may be there if it is empty, its parent must be. Raises `IndexStoreError` where another process put
    something there meanwhile, `OSError` and `sqlite3.Error`; leaves nothing then.
    """
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    draft.mkdir()
    try:
        name = vectors_name(1, dtype)
        Catalogue.create(draft, space=space, dim=dim, dtype=dtype, vectors_file=name, bundle=bundle)
        create_vector_file(draft / name, dim, dtype)
        (draft / LOCK_NAME).touch()
        (draft / RECORD_NAME).write_bytes(packed(0, 0))
        for file in (CATALOGUE_NAME, LOCK_NAME, RECORD_NAME):
            disk.sync_file(draft / file)
        disk.sync_folder(draft)
        if folder.is_dir():
            shutil.copymode(folder, draft)
        disk.rename(draft, folder)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise IndexStoreError(
                f"cannot make an index at {folder}: another process put something there meanwhile. If it is an "
                "index, open it: one process at a time can write to it"
            ) from error
        if isinstance(error, OSError) and error.errno == errno.EBUSY:
            raise IndexStoreError(
                f"cannot make an index at {folder}: it is a mount point. Name a folder in it that is not there yet"
            ) from error
        raise
    disk.sync_folder(folder.parent)
