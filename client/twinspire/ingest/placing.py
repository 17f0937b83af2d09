"""Where a picture's file belongs in the index: new, known, moved, or in the place of what its file held before."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Item, ItemKind, StoredItem
from twinspire.ingest.captions import CaptionSource
from twinspire.ingest.metadata import modified_text, own_keys, picture_metadata, with_told
from twinspire.ingest.reading import ReadFile, modified_s, read_file
from twinspire.ingest.reports import ItemIndex


class Place(Enum):
    """What is to be done with a file that was read."""

    ENCODE = auto()
    KNOWN = auto()
    CHANGED = auto()  # its item has followed it, or has new metadata
    CAPTIONED = auto()  # its item has a new caption; it may have new metadata too


class Placer:
    """Puts what is read and encoded in its place; used by the reading and the writing thread of one run.

    Both change items in place by what the index holds, so one waits for the other while it does. Without `follow` what
    the index has is left as it is.
    """

    def __init__(
        self,
        index: ItemIndex,
        *,
        space: str,
        captions: CaptionSource | None = None,
        weight: float | None = None,
        follow: bool = True,
    ) -> None:
        self._index, self._space, self._follow = index, space, follow
        self._was_empty = len(index) == 0  # then no item is in any file's place: thousands of questions less
        self._captions, self._weight = captions, weight
        self._deciding = threading.Lock()
        self._moved: dict[Path, str] = {}  # files that took over an item, and their content

    def read(self, file: ReadFile) -> Place:
        """Decide about a file: content that the index has follows the file where the old one does not hold it."""
        if not self._index.known_hashes([file.content_hash]):
            return Place.ENCODE
        if not self._follow:
            return Place.KNOWN
        with self._deciding:
            holder = picture_of(self._index.find(content_hash=file.content_hash))
            if holder is None:  # it has just got other content
                return Place.ENCODE
            moved = holder.uri != str(file.path)
            if moved:
                if holds(holder):
                    return Place.KNOWN
                metadata = {**holder.metadata, **picture_metadata(file)}
                holder = self._index.update(holder.id, uri=str(file.path), metadata=metadata)
                self._moved[file.path] = file.content_hash
            caption = self._new_caption(holder, file)
            if caption is not None and self._weight is not None:
                return Place.ENCODE
            changes: dict[str, Any] = {"caption": caption} if caption is not None else {}
            told = self._captions.metadata_of(file.path) if self._captions is not None else {}
            if (new := with_told(holder.metadata, told)) is not None:
                changes["metadata"] = new
            if changes:
                self._index.update(holder.id, **changes)
            if caption is not None:
                return Place.CAPTIONED
            return Place.CHANGED if moved or changes else Place.KNOWN

    def write(self, items: list[Item], embeddings: NDArray[np.float32]) -> tuple[list[Item], list[Item]]:
        """Add items with their vectors (N, D), or let them take the place of what their file held before.

        Returns those that were added and those that took a place; the others the index has by now.
        """
        changed: list[Item] = []
        new: list[int] = []
        with self._deciding:
            for place, item in enumerate(items):
                holder = None if self._was_empty else self._holder(item)
                if holder is None:
                    new.append(place)
                elif holder.uri == item.uri:
                    self._index.update(
                        holder.id,
                        embedding=embeddings[place],
                        space=self._space,
                        caption=item.caption or holder.caption,
                        metadata={**own_keys(holder.metadata), **item.metadata},
                        content_hash=item.content_hash,
                    )
                    changed.append(item)
        if not new:
            return [], changed
        report = self._index.add(embeddings[new], [items[place] for place in new], space=self._space)
        skipped = {new[position] for position in report.skipped}
        return [items[place] for place in new if place not in skipped], changed

    def _holder(self, item: Item) -> StoredItem | None:
        """Return the item that has this content, or that was made of this file."""
        return picture_of(self._index.find(content_hash=item.content_hash)) or picture_of(
            self._index.find(uri=item.uri)
        )

    def finish(self) -> None:
        """Remove what the files that took over an item held before, where no other file has it."""
        for path, content_hash in self._moved.items():
            stale = [item for item in self._index.find(uri=str(path)) if item.kind is ItemKind.IMAGE]
            self._index.remove([item.id for item in stale if item.content_hash != content_hash])

    def _new_caption(self, holder: StoredItem, file: ReadFile) -> str | None:
        """Return what is said about a picture now, where that is something else than the index says."""
        if self._captions is None:
            return None
        try:
            said = "\n".join(self._captions.of(file.path))
        except InputError:
            return None  # what is there stays
        return said if said and holder.caption != said else None


def picture_of(items: Iterable[StoredItem]) -> StoredItem | None:
    """Return the first picture of some items."""
    return next((item for item in items if item.kind is ItemKind.IMAGE), None)


def looks_the_same(item: StoredItem) -> bool:
    """Whether an item's file has the size, time and inode of when it was read."""
    try:
        status = Path(item.uri).stat()
    except (OSError, ValueError):
        return False
    known = tuple(item.metadata.get(key) for key in ("bytes", "modified", "inode"))
    return known == (status.st_size, modified_text(modified_s(status)), status.st_ino)


def is_gone(path: Path) -> bool:
    """Whether there is certainly no file: one that may not be looked at is not gone."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return path.is_dir()


def holds(item: StoredItem) -> bool:
    """Whether an item's file is there and has its content; where nobody can tell, it has."""
    path = Path(item.uri)
    if is_gone(path):
        return False
    if looks_the_same(item):
        return True
    try:
        return read_file(path).content_hash == item.content_hash
    except (OSError, UnicodeEncodeError, InputError):
        return True
