"""Which items have a content: those whose file has it no longer, which a file may take over, and those that keep it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from twinspire.images import ImageLimits
from twinspire.index import Item, StoredItem
from twinspire.ingest.files import ReadFile, holds, images_of
from twinspire.ingest.reports import ItemIndex
from twinspire.ingest.stages import vector_key

_ON_ITS_WAY = -1


class Contents:
    """The contents of an index during one run.

    An item is loose when its file is gone or holds something else: a file that has its content takes it over. What the
    index holds elsewhere is looked up once for each content, so that thousands of copies cost no thousand look-ups.
    """

    def __init__(self, index: ItemIndex, limits: ImageLimits) -> None:
        self._index, self._limits = index, limits
        self.loose: dict[int, StoredItem] = {}
        self._loose_by_hash: defaultdict[str | None, dict[int, StoredItem]] = defaultdict(dict)
        self._elsewhere: dict[str, dict[int, StoredItem]] = {}  # by content: items that others did not look at
        self._ids: dict[bytes, int] = {}  # of an item that has this vector, by its key

    def loosen(self, item: StoredItem) -> None:
        """Let an item be taken over."""
        self.loose[item.id] = item
        self._loose_by_hash[item.content_hash][item.id] = item

    def keep(self, item: StoredItem) -> None:
        """Let an item be taken over no longer."""
        self.loose.pop(item.id, None)
        self._loose_by_hash[item.content_hash].pop(item.id, None)

    def take_loose(self, file: ReadFile) -> StoredItem | None:
        """Return the loose item that a file takes over, which is then loose no longer."""
        return self._take(self._loose_by_hash[file.content_hash], file)

    def is_known(self, content_hash: str) -> bool:
        """Whether the index has a content; asked once for each that it has."""
        return content_hash in self._elsewhere or bool(self._index.known_hashes([content_hash]))

    def take(self, file: ReadFile) -> StoredItem | None:
        """Return the item that a file takes over: a loose one, else one from elsewhere whose file has gone."""
        if (item := self.take_loose(file)) is not None:
            return item
        if (gone := self._elsewhere.get(file.content_hash)) is None:
            gone = self._elsewhere[file.content_hash] = {}
            for item in images_of(self._index.find(content_hash=file.content_hash)):
                self._ids.setdefault(vector_key(item), item.id)
                if item.id not in self.loose and not holds(item, self._limits):
                    gone[item.id] = item
        return self._take(gone, file)

    def expect(self, key: bytes) -> None:
        """Remember that an item with the vector of this key is on its way."""
        self._ids.setdefault(key, _ON_ITS_WAY)

    def note(self, item: Item | StoredItem, number: int) -> None:
        """Remember an item that has its vector."""
        self._ids[vector_key(item)] = number

    def forget(self, item: StoredItem) -> None:
        """Remember an item no longer, whose vector is replaced."""
        if self._ids.get(key := vector_key(item)) == item.id:
            del self._ids[key]

    def has(self, key: bytes) -> bool:
        """Whether there is an item with this vector, or will be by the time that what follows is written."""
        return key in self._ids

    def twin(self, key: bytes) -> int | None:
        """Return the id of an item with this vector; None where there is none, though one was expected."""
        number = self._ids.get(key, _ON_ITS_WAY)
        return number if number != _ON_ITS_WAY else None

    def _take(self, items: dict[int, StoredItem], file: ReadFile) -> StoredItem | None:
        """Choose the item of the same inode, else of the same name, else the oldest: a rename keeps the inode."""
        if not items:
            return None
        chosen = min(
            items.values(),
            key=lambda item: (
                item.metadata.get("inode") != file.inode,
                Path(item.uri).name != file.path.name,
                item.id,
            ),
        )
        del items[chosen.id]
        self.keep(chosen)
        return chosen
