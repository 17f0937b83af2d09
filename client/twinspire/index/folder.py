"""The folder of an index: its path, whether it is one, and how an empty one is made, whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from twinspire._arguments import as_member, as_whole, require_text, shown
from twinspire._dims import split_space
from twinspire.errors import IndexStoreError, InputError
from twinspire.index import disk
from twinspire.index.catalogue import Catalogue
from twinspire.index.commit_record import RECORD_NAME, packed
from twinspire.index.connections import CATALOGUE_NAME
from twinspire.index.error_mapping import store_errors
from twinspire.index.lock import LOCK_NAME
from twinspire.index.vectors import VectorType, create_vector_file, vectors_name
from twinspire.stores.items import BundleReference
from twinspire.stores.validation import check_bundle

_MAX_DIM = 2**31 - 1  # an int of FAISS
_MAX_VECTORS_PER_ITEM = 4096


def absolute_folder(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of an index. Raises `InputError` for what cannot be a path."""
    try:
        if not os.fspath(path) or b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):  # lone surrogates are a ValueError
        raise InputError(f"the path of an index: expected the path of a folder, got {shown(path)}") from None
    return Path(os.fsdecode(path)).absolute()


def require_index(folder: Path) -> None:
    """Raise `IndexStoreError` where no index is in `folder`."""
    if not folder.is_dir():
        found = "it is not a folder" if os.path.lexists(folder) else "the path does not exist"
        raise IndexStoreError(f"no index at {folder}: {found}. `twinspire index add` creates one")
    if not (folder / CATALOGUE_NAME).is_file():
        raise IndexStoreError(
            f"{folder} is not an index: it has no {CATALOGUE_NAME}. `twinspire index add` creates one"
        )


def is_free(folder: Path) -> bool:
    """Return whether an index can be made at `folder`: it does not exist or is an empty folder."""
    return not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()))


def create_folder(
    folder: Path,
    *,
    space: str,
    dim: int,
    dtype: VectorType | str,
    bundle: BundleReference | None,
    vectors_per_item: int = 1,
) -> None:
    """Check the arguments of `Index.create`, which says what is raised, and make an empty index."""
    if not isinstance(space, str) or not space.strip():
        raise InputError(f"an index's space must be a non-empty str, got {shown(space)}")
    require_text(space, "an index's space")
    dim = as_whole(dim, "an index's dim", minimum=1, maximum=_MAX_DIM)
    cut = split_space(space)[1]
    if cut not in (None, dim):
        raise InputError(f"an index's dim is {dim}: expected {cut}, to which the embeddings of its space are cut")
    count = as_whole(vectors_per_item, "an index's vectors per item", minimum=1, maximum=_MAX_VECTORS_PER_ITEM)
    dtype = as_member(dtype, VectorType, "an index's dtype")
    if bundle is not None:
        check_bundle(bundle)
    with store_errors(folder, "create"):
        if not is_free(folder):
            raise IndexStoreError(
                f"cannot create an index at {folder}: the path exists already. Open it, or name another folder"
            )
        if not folder.parent.is_dir():
            raise IndexStoreError(
                f"cannot create an index at {folder}: there is no folder {folder.parent}, create it first"
            )
        _write_folder(folder, space=space, dim=dim, dtype=dtype, bundle=bundle, vectors_per_item=count)


def _write_folder(
    folder: Path, *, space: str, dim: int, dtype: VectorType, bundle: BundleReference | None, vectors_per_item: int
) -> None:
    """Write an empty index beside `folder`, wait until the disk has it, then rename it.

    `folder` may exist if it is empty, its parent must. Raises `IndexStoreError` where another process put something
    there meanwhile, `OSError` and `sqlite3.Error`; leaves nothing then.
    """
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    draft.mkdir()
    try:
        name = vectors_name(1, dtype)
        Catalogue.create(
            draft,
            space=space,
            dim=dim,
            dtype=dtype,
            vectors_file=name,
            bundle=bundle,
            vectors_per_item=vectors_per_item,
        )
        create_vector_file(draft / name, dim, dtype, vectors_per_item)
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
                f"cannot make an index at {folder}: another process wrote something there meanwhile. If it is an "
                "index, open it: one process at a time can write to it"
            ) from error
        if isinstance(error, OSError) and error.errno == errno.EBUSY:
            raise IndexStoreError(
                f"cannot make an index at {folder}: it is a mount point. Name a new folder inside it"
            ) from error
        raise
    disk.sync_folder(folder.parent)
