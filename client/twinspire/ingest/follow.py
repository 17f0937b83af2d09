"""Keeping an index in step with folders: what is on the disk is compared with what the index holds, and put right.

Nothing is remembered but copies: the index and the disk say all, so that a run goes on where the last one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinspire.errors import InputError
from twinspire.index import Index, ItemKind, StoredItem
from twinspire.ingest.captions import CaptionSource
from twinspire.ingest.finding import pictures_below
from twinspire.ingest.metadata import own_keys, picture_metadata, with_told
from twinspire.ingest.pictures import Batch, PictureStages, run
from twinspire.ingest.placing import Placer, holds, is_gone, looks_the_same
from twinspire.ingest.reading import WRITTEN_TO, ReadFile, cause_of, read_file
from twinspire.ingest.reports import FailedPicture

if TYPE_CHECKING:
    from twinspire.client import Client

_CHUNK = 512  # new pictures that are added before they are told


class Happened(StrEnum):
    """What became of a picture."""

    ADDED = "added"
    CHANGED = "changed"
    CAPTIONED = "captioned"
    MOVED = "moved"
    REMOVED = "removed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FolderEvent:
    """One thing that was done: to which file, under which id; `before` is where a moved one was, `cause` why it failed.

    A failed file that the index holds from before is left in the index as it was.
    """

    happened: Happened
    path: Path
    id: int | None = None
    before: Path | None = None
    cause: str | None = None


class Follower:
    """Puts an index right for some of the disk; see `watch` for the arguments. Used by one thread at a time."""

    def __init__(
        self,
        index: Index,
        client: Client,
        *,
        batch: int,
        captions: CaptionSource | None,
        fuse_captions: float | None,
        on_event: Callable[[FolderEvent], None],
    ) -> None:
        self._stages: Callable[[], PictureStages] = lambda: PictureStages(
            client, captions=captions, fuse_captions=fuse_captions
        )
        self._stages()  # refuses what does not fit
        self._index, self._client, self._batch = index, client, batch
        self._captions, self._weight = captions, fuse_captions
        self._tell = on_event
        self._copies: dict[str, set[Path]] = {}  # files whose content the index holds under another uri, by its hash
        self._loose: dict[int, StoredItem] = {}  # items whose file is gone or holds something else

    def catch_up(self, folder: Path, *, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Put right all of a folder. Raises `InputError` where all its pictures are gone at once."""
        pictures = pictures_below(folder)
        items = self._images(self._index.find(under=str(folder)))
        if items and not pictures:
            raise InputError(
                f"the folder {folder} has no picture in it, the index holds {len(items):,} of it: is its disk mounted? "
                f"If they are gone for good, `twinspire index remove INDEX {folder}` removes them"
            )
        self.put_right(pictures, items, on_progress=on_progress)

    def put_right(
        self,
        files: Sequence[Path],
        items: Sequence[StoredItem],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> set[Path]:
        """Bring the index in step with `files`, which are there, and `items`, whose files may not be.

        Files without an item are added, items without their file follow it to where it is now or are removed. Returns
        the files that could not be read because somebody writes to them, to be tried again.
        """
        self._loose = {}
        held = {Path(item.uri): item for item in items}
        changed = [found for item in items if (found := self._look_at(item)) is not None]
        new = [path for path in files if path not in held]
        unsettled: set[Path] = set()
        remaining = [file for file in changed if not self._follows(file)]
        for start in range(0, len(new), _CHUNK):
            unsettled |= self._add(new[start : start + _CHUNK], start, len(new), on_progress)
        for file in remaining:  # what it was may be elsewhere
            if (own := self._loose.get(held[file.path].id)) is not None and (copy := self._copy_of(own)) is not None:
                self._move(own, copy)
        for start in range(0, len(remaining), self._batch):
            self._encode_again(remaining[start : start + self._batch], held)
        self._let_go()
        return unsettled

    def _look_at(self, item: StoredItem) -> ReadFile | None:
        """Tell whether an item's file is gone (it is loose then) or has other content, which is returned."""
        path = Path(item.uri)
        if is_gone(path):
            self._loose[item.id] = item
            return None
        if looks_the_same(item):
            self._compare_told(item, path)
            return None
        try:
            file = read_file(path, self._client.limits)
        except (OSError, UnicodeEncodeError, InputError) as error:
            self._tell(FolderEvent(Happened.FAILED, path, item.id, cause=cause_of(error)))
            return None
        if file.content_hash == item.content_hash:
            item = self._index.update(item.id, metadata={**item.metadata, **picture_metadata(file)})
            self._compare_told(item, path)
            return None
        self._loose[item.id] = item
        return file

    def _compare_told(self, item: StoredItem, path: Path) -> None:
        """Take over what the source of captions says about a picture, where it says something else."""
        if self._captions is None:
            return
        try:
            said, told = self._captions.of(path), self._captions.metadata_of(path)
        except InputError as error:
            self._tell(FolderEvent(Happened.FAILED, path, item.id, cause=str(error)))
            return
        captioned = bool(said) and "\n".join(said) != item.caption
        if captioned and self._weight is not None:
            try:
                self._encode_again([read_file(path, self._client.limits)], {path: item}, Happened.CAPTIONED)
            except (OSError, InputError) as error:
                self._tell(FolderEvent(Happened.FAILED, path, item.id, cause=cause_of(error)))
            return
        changes: dict[str, Any] = {"caption": "\n".join(said)} if captioned else {}
        if (new := with_told(item.metadata, told)) is not None:
            changes["metadata"] = new
        if changes:
            self._index.update(item.id, **changes)
            self._tell(FolderEvent(Happened.CAPTIONED if captioned else Happened.CHANGED, path, item.id))

    def _follows(self, file: ReadFile) -> bool:
        """Give the file's item its path, where the index has its content; tell whether that is so."""
        holders = self._images(self._index.find(content_hash=file.content_hash))
        if not holders:
            return False
        holder = holders[0]
        if holder.uri == str(file.path):
            return True
        if self._holds(holder):
            self._copies.setdefault(file.content_hash, set()).add(file.path)
            return True
        self._move(holder, file)
        return True

    def _move(self, item: StoredItem, file: ReadFile) -> None:
        metadata = {**item.metadata, **picture_metadata(file)}
        self._index.update(item.id, uri=str(file.path), metadata=metadata)
        self._loose.pop(item.id, None)
        for copies in self._copies.values():
            copies.discard(file.path)
        self._tell(FolderEvent(Happened.MOVED, file.path, item.id, before=Path(item.uri)))

    def _add(
        self, files: Sequence[Path], before: int, total: int, on_progress: Callable[[int, int], None] | None
    ) -> set[Path]:
        done = before

        def progress(more: int) -> None:
            nonlocal done
            done += more
            if on_progress is not None:
                on_progress(done, total)

        # Moves are told, so they are made here.
        placer = Placer(self._index, space=self._client.space, follow=False, limits=self._client.limits)
        report = run(placer, self._stages(), files, batch=self._batch, on_progress=progress)
        failed: dict[Path, FailedPicture] = {failure.path: failure for failure in report.failed}
        unsettled: set[Path] = set()
        for path in files:
            if path in failed:
                if is_gone(path):  # by now
                    continue
                if failed[path].cause == WRITTEN_TO:
                    unsettled.add(path)
                else:
                    self._tell(FolderEvent(Happened.FAILED, path, cause=failed[path].cause))
            elif found := self._images(self._index.find(uri=str(path))):
                self._tell(FolderEvent(Happened.ADDED, path, found[0].id))
            else:
                try:
                    self._follows(read_file(path, self._client.limits))
                except (OSError, InputError):
                    unsettled.add(path)
        return unsettled

    def _encode_again(
        self, files: Sequence[ReadFile], held: dict[Path, StoredItem], happened: Happened = Happened.CHANGED
    ) -> None:
        """Give items the vectors of what their files hold now. An item that has found its old content is left alone."""
        stages = self._stages()
        step = stages.encode(stages.decode(Batch(read=list(files))))
        for file in files:
            if file.content_hash in {item.content_hash for item in step.items}:
                self._copies.setdefault(file.content_hash, set()).add(file.path)  # all but one of them
        for path, cause in step.failed:
            self._loose.pop(held[path].id, None)  # stays as it was
            self._tell(FolderEvent(Happened.FAILED, path, held[path].id, cause=cause))
        for place, item in enumerate(step.items):
            path = Path(item.uri)
            own = held[path]
            moved_away = happened is Happened.CHANGED and own.id not in self._loose
            holders = [other for other in self._index.find(content_hash=item.content_hash) if other.kind is item.kind]
            assert step.embeddings is not None
            if moved_away:
                report = self._index.add(step.embeddings[place : place + 1], [item], space=self._client.space)
                for number in report.added:
                    self._tell(FolderEvent(Happened.ADDED, path, number))
            elif not holders or holders[0].id == own.id:
                changes: dict[str, Any] = {"caption": item.caption} if item.caption is not None else {}
                self._index.update(
                    own.id,
                    embedding=step.embeddings[place],
                    space=self._client.space,
                    content_hash=item.content_hash,
                    metadata={**own_keys(own.metadata), **item.metadata},
                    **changes,
                )
                self._loose.pop(own.id, None)
                self._tell(FolderEvent(happened, path, own.id))
            else:  # another item has this content by now: this one ends, its file is a copy
                self._copies.setdefault(str(item.content_hash), set()).add(path)

    def _let_go(self) -> None:
        """Remove the items that are loose still, but let one pass to a copy of its file where there is one."""
        for item in list(self._loose.values()):
            if (copy := self._copy_of(item)) is not None:
                self._move(item, copy)
        self._index.remove(self._loose)
        for item in self._loose.values():
            self._tell(FolderEvent(Happened.REMOVED, Path(item.uri), item.id))
        self._loose = {}

    def _copy_of(self, item: StoredItem) -> ReadFile | None:
        for path in sorted(self._copies.get(item.content_hash or "", ())):
            try:
                file = read_file(path, self._client.limits)
            except (OSError, InputError):
                continue
            if file.content_hash == item.content_hash and not self._images(self._index.find(uri=str(path))):
                return file
        return None

    def _holds(self, item: StoredItem) -> bool:
        """Whether an item's file is there and has its content."""
        return item.id not in self._loose and holds(item, self._client.limits)

    @staticmethod
    def _images(items: Iterable[StoredItem]) -> list[StoredItem]:
        return [item for item in items if item.kind is ItemKind.IMAGE]
