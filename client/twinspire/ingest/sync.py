"""Images into an index: files that are named, and folders with all that changes in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from twinspire.errors import InputError
from twinspire.index import Index, StoredItem
from twinspire.ingest.captions import SIDECAR_SUFFIX, CaptionSource, Sidecars
from twinspire.ingest.discovery import FoundImages, absolute, described, images_below, require_list
from twinspire.ingest.dry_run import DryRunIndex, dry_run_client
from twinspire.ingest.files import has_vanished, images_of, is_folder, is_gone, is_text
from twinspire.ingest.reconcile import Progress, Reconciler
from twinspire.ingest.reports import FolderEvent, Happened, IngestReport, ItemIndex, Tally
from twinspire.ingest.stages import ImageItems

if TYPE_CHECKING:
    from twinspire.client import Client


def add_images(
    index: ItemIndex,
    client: Client,
    paths: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 32,
    captions: CaptionSource | None = None,
    fuse_captions: float | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Encode the image files at `paths` and add them to `index`, `batch` files at a time.

    An item is a file: its uri is the file's absolute path, its content hash the SHA-256 of its bytes, its metadata what
    `picture_metadata` reads and `captions` tells. A file that is as it was when it was added is not read again, but its
    item takes a new caption and new metadata. A file of a content that the index has elsewhere takes over that item,
    with its id and vector, where that item's own file is gone or holds something else (it was moved); else it is a
    copy, an item of its own with the same vector. A file with other content than the item of its path changes that
    item. A file that fails is reported and does not stop the rest. Reading, decoding, encoding and writing each run in
    a thread of their own with one batch between them, so at most nine batches are in memory, of at most 128 MiB of
    encoded files each.

    `captions` gives what is said about each image; several captions are one, on a line each. What the index has and
    the source says nothing of stays. With `fuse_captions`, above 0 and below 1, a captioned image's vector is the
    unit vector of (1 - w) * image + w * mean of its captions, and `fused_captions` in its metadata tells w.

    `on_progress` is called, from the calling thread, with the number of files that are done since the last call.
    Every batch is durable once it is done: after an error or an interruption the same call goes on where it ended.
    What `find_pictures` could not read or skipped is part of the report.

    Raises `SpaceMismatchError`, `IndexStoreError`, `EngineError`, `ServerError`, and `InputError` for a `batch` below 1
    and a `fuse_captions` out of its range or without captions.
    """
    require_list(paths)
    index.check_space(client.space)
    tally = Tally()
    reconciler = Reconciler(index, client, ImageItems(captions, fuse_captions), batch=batch, on_event=tally.take)
    files = list(dict.fromkeys(absolute(path) for path in paths))
    progress = Progress(done=on_progress, unchanged=on_progress) if on_progress is not None else None
    already, _ = reconciler.run(files, _items_at(index, files), progress=progress)
    found = paths if isinstance(paths, FoundImages) else FoundImages()
    for path, cause in found.failed:
        tally.take(FolderEvent(Happened.FAILED, path, cause=cause))
    return tally.report(already=already, skipped=_skipped(found, captions))


def sync(
    index: Index,
    client: Client,
    folders: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 32,
    captions: CaptionSource | None = None,
    fuse_captions: float | None = None,
    dry_run: bool = False,
    on_event: Callable[[FolderEvent], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Bring `index` in step with the images in `folders` and below, once: what `watch` does at its start.

    New images are added, changed ones encoded again under their ids, moved ones keep their ids, and the items of
    images that are gone are removed. Images that the index holds from elsewhere are left alone, so are texts.
    With `dry_run` nothing is changed, decoded or encoded: the report says what would be done. `on_event` is told each
    change, `on_progress` how many of the files that are read are done, of how many.

    Raises `InputError` for what is no folder, and for a folder all of whose images are gone at once: a disk that is
    not mounted looks the same. Else as `add_images` does.
    """
    roots = checked_folders(folders)
    index.check_space(client.space)
    tally = Tally()

    def tell(event: FolderEvent) -> None:
        if event.happened is Happened.FAILED and has_vanished(event.path):
            return  # by now
        if dry_run and event.happened is Happened.ADDED:
            event = replace(event, id=None)
        tally.take(event)
        if on_event is not None:
            on_event(event)

    target = DryRunIndex(index, client.dim) if dry_run else index
    encoder = dry_run_client(client) if dry_run else client
    reconciler = Reconciler(target, encoder, ImageItems(captions, fuse_captions), batch=batch, on_event=tell)
    state = FoldersState.of(index, roots)
    state.require_images()
    for path, cause in state.found.failed:
        tell(FolderEvent(Happened.FAILED, path, cause=cause))
    already, _ = reconciler.run(state.found, state.items, progress=folder_progress(on_progress))
    return tally.report(already=already, skipped=_skipped(state.found, captions))


def checked_folders(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the absolute paths of folders. Raises `InputError` for what is none, and for one within another."""
    require_list(folders)
    roots = list(dict.fromkeys(absolute(folder) for folder in folders))
    if not roots:
        raise InputError("no folder was given: expected folders of pictures")
    for root in roots:
        if not is_folder(root):
            found = "is no folder" if os.path.lexists(root) else "is not there"
            raise InputError(f"{root} {found}: expected a folder of pictures")
        if any(other in root.parents for other in roots):
            raise InputError(f"{root} is part of another folder that was given: leave it out")
    return roots


class FoldersState(NamedTuple):
    """The images in folders and below, the items that are said to be there, and which folder has lost all of them.

    Items below a folder that cannot be read are left out: nobody can tell what became of their files.
    """

    found: FoundImages
    items: list[StoredItem]
    vanished: str | None  # says of which folder, and what to do

    @classmethod
    def of(
        cls, index: Index, folders: Iterable[Path], *, explained: Callable[[Path], bool] = lambda _: False
    ) -> FoldersState:
        """Compare folders with an index. Images whose absence is `explained` are not lost."""
        found, items, vanished = FoundImages(), list[StoredItem](), None
        for folder in folders:
            below = images_below(folder)
            known = images_of(index.find(under=str(folder)))
            if unread := [failed.path for failed in below.failed]:
                known = [item for item in known if not any(path in Path(item.uri).parents for path in unread)]
            if not below and (lost := [item for item in known if not explained(Path(item.uri))]):
                left_out = f" ({described(below.skipped)})" if below.skipped else ""
                vanished = (
                    f"the folder {folder} has no picture in it{left_out}, the index holds {len(lost):,} of it: is its "
                    f"disk mounted? If they are gone for good, `twinspire index remove INDEX {folder}` removes them"
                )
            found += below
            found.failed += below.failed
            found.skipped += below.skipped
            items += known
        return cls(found, items, vanished)

    def require_images(self) -> None:
        """Raise `InputError` where all images of a folder are gone at once."""
        if self.vanished is not None:
            raise InputError(self.vanished)


def folder_progress(on_progress: Callable[[int, int], None] | None) -> Progress:
    """Turn how many more files are done into how many are done, of how many."""
    if on_progress is None:
        return Progress()
    done = total = 0

    def planned(count: int) -> None:
        nonlocal total
        total = count

    def more(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    return Progress(planned=planned, done=more)


def _items_at(index: ItemIndex, files: Sequence[Path]) -> Iterator[StoredItem]:
    """Give the items of files that are there."""
    if len(index) == 0:  # thousands of questions less
        return
    for path in files:
        if is_text(path) and not is_gone(path):
            yield from images_of(index.find(uri=str(path)))


def _skipped(found: FoundImages, captions: CaptionSource | None) -> dict[str, int]:
    """Return what was skipped, without the text files where these are captions."""
    return {
        suffix: count
        for suffix, count in found.skipped.items()
        if not (suffix == SIDECAR_SUFFIX and isinstance(captions, Sidecars))
    }
