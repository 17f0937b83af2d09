"""Making a store match the images and sounds of folders, once; and a dry run of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.ingest.discovery import FoundImages, absolute_paths, describe_skipped, files_below
from twinspire.ingest.files import files_of, has_vanished, is_folder
from twinspire.ingest.kinds import FileKinds, nouns_of
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.reconciler import OnDone, Reconciler
from twinspire.ingest.reports import FolderEvent, Happened, IngestReport, Tally
from twinspire.ingest.upsert import skipped_files
from twinspire.stores import AddReport, Item, ItemKind, StoredItem, VectorStore

if TYPE_CHECKING:
    from twinspire.client import Client


def sync(
    store: VectorStore,
    client: Client,
    folders: Iterable[str | os.PathLike[str]],
    options: IngestOptions | None = None,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda _, __: None,
) -> IngestReport:
    """Make `store` match the images and sounds in `folders` and below, once: what `watch` does at its start.

    New images are added, changed ones encoded again under their ids, moved ones keep their ids, and the items of
    images that are gone are removed. Items of images elsewhere and of texts stay as they are. With `dry_run` nothing is
    changed, decoded or encoded: the report says what would be done. `on_progress` is called with how many of the files
    to read are done, and how many these are.

    Raises `InputError` for what is not a folder, and for a folder whose images are all gone at once: a disk that is not
    mounted looks the same. Else as `add_images` does.
    """
    options = options or IngestOptions()
    roots = checked_folders(folders)
    store.check_space(client.space)
    tally = Tally(options.on_event)

    def emit(event: FolderEvent) -> None:
        if event.happened is Happened.FAILED and has_vanished(event.path):
            return  # since it was found
        if dry_run and event.happened is Happened.ADDED:
            event = replace(event, id=None)
        tally.count(event)

    target = cast("VectorStore", _DryRunStore(store, client.dim)) if dry_run else store
    reconciler = Reconciler(target, _dry_run_client(client) if dry_run else client, options, emit)
    state = FoldersState.of(store, roots, FileKinds.of(client).limits)
    state.require_images()
    for path, cause in state.found.failed:
        emit(FolderEvent(Happened.FAILED, path, cause=cause))
    already, _ = reconciler.run(state.found, state.items, on_done=folder_progress(on_progress))
    return tally.report(already=already, skipped=skipped_files(state.found, options))


def checked_folders(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths of folders. Raises `InputError` for no folder and for one within another."""
    roots = absolute_paths(folders)
    if not roots:
        raise InputError("no folder was given: expected folders of images")
    for root in roots:
        if not is_folder(root):
            found = "is not a folder" if os.path.lexists(root) else "does not exist"
            raise InputError(f"{root} {found}: expected a folder of images")
        if any(other in root.parents for other in roots):
            raise InputError(f"{root} is part of another folder that was given: leave it out")
    return roots


class FoldersState(NamedTuple):
    """The images in folders and below, the items of that place, and an error where a folder lost all its images.

    Items below a folder that cannot be read are left out: their files may still exist.
    """

    found: FoundImages
    items: list[StoredItem]
    vanished: str | None  # the error's message

    @classmethod
    def of(
        cls,
        store: VectorStore,
        folders: Iterable[Path],
        kinds: Collection[ItemKind],
        *,
        explained: Callable[[Path], bool] = lambda _: False,
    ) -> FoldersState:
        """Compare the files of some kinds in folders with a store. Images whose absence is `explained` are not lost."""
        found, items, vanished = FoundImages(), list[StoredItem](), None
        for folder in folders:
            below = files_below(folder, kinds)
            known = files_of(store.find(under=str(folder)))
            if unread := [failed.path for failed in below.failed]:
                known = [item for item in known if not any(path in Path(item.uri).parents for path in unread)]
            if not below and (lost := [item for item in known if not explained(Path(item.uri))]):
                left_out = f" ({describe_skipped(below.skipped)})" if below.skipped else ""
                vanished = (
                    f"the folder {folder} has no {nouns_of(kinds)}{left_out}, but the index has {len(lost):,} of it: "
                    f"is its disk mounted? If the files are gone for good, run `twinspire index remove INDEX {folder}`"
                )
            found += below
            found.failed += below.failed
            found.skipped += below.skipped
            items += known
        return cls(found, items, vanished)

    def require_images(self) -> None:
        """Raise `InputError` where a folder lost all its images at once."""
        if self.vanished is not None:
            raise InputError(self.vanished)


def folder_progress(on_progress: Callable[[int, int], None]) -> OnDone:
    """Return a callback for `Reconciler.run` that calls `on_progress` with how many files are read, of how many."""
    done = 0

    def report(more: int, planned: int) -> None:
        nonlocal done
        if planned:
            done += more
            on_progress(done, planned)

    return report


class _DryRunStore:
    """A store that stays as it is, and remembers which items would be changed."""

    def __init__(self, store: VectorStore, dim: int) -> None:
        self._store, self._dim = store, dim
        self._updated: dict[int, StoredItem] = {}
        self._ids = count(2**62)  # of items that would be added: no store has them

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = ItemKind.IMAGE) -> set[str]:
        return self._store.known_hashes(hashes, kind=kind)

    def find(self, *, uri: str | None = None, content_hash: str | None = None) -> list[StoredItem]:
        return [self._updated.get(item.id, item) for item in self._store.find(uri=uri, content_hash=content_hash)]

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        return _placeholder(len(list(ids)), self._dim)

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:  # noqa: ARG002
        return AddReport([next(self._ids) for _ in items], [])

    def update(self, id: int, **changes: Any) -> StoredItem:  # noqa: A002, ANN401 - as of `VectorStore.update`
        fields = {name: value for name, value in changes.items() if name not in ("embedding", "space")}
        before = self._updated[id] if id in self._updated else self._store.get([id])[0]
        self._updated[id] = replace(before, **fields)
        return self._updated[id]

    def remove(self, ids: Iterable[int]) -> int:
        return len(list(ids))


def _dry_run_client(client: Client) -> Client:
    """Return a client for the pipeline that decodes and encodes nothing, so no file fails for its content."""

    def preprocess(items: Sequence[object], *, on_error: str) -> tuple[NDArray[np.uint8], list[Any]]:  # noqa: ARG001
        return np.zeros((len(items), 1, 1, 3), np.uint8), []

    def encode(inputs: Sequence[object]) -> NDArray[np.float32]:
        return _placeholder(len(inputs), client.dim)

    return cast(
        "Client",
        SimpleNamespace(
            bundle=client.bundle,
            space=client.space,
            decode=client.decode,
            limits=client.limits,
            audio_limits=client.audio_limits,
            preprocess=preprocess,
            preprocess_audio=preprocess,
            encode_texts=encode,
            towers=SimpleNamespace(encode_images=encode, encode_audio=encode),
        ),
    )


def _placeholder(rows: int, dim: int) -> NDArray[np.float32]:
    """Return unit vectors without a meaning, (rows, dim) float32."""
    return np.full((rows, dim), dim**-0.5, np.float32)
