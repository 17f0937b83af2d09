"""Which items of a store have a content, and which of them a file with that content may take over."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from twinspire.ingest.files import ReadFile, files_of, has_its_content
from twinspire.ingest.kinds import FileKinds
from twinspire.ingest.pipeline import vector_key
from twinspire.stores import Item, StoredItem, VectorStore

_PENDING = -1  # in place of the id of an item that will have been written


class Contents:
    """The contents of a store during one run.

    An item is loose when its file is gone or has other content: a file that has the item's content takes it over.
    Each content is looked up in the store once, so that thousands of copies do not cost thousands of queries.
    """

    def __init__(self, store: VectorStore, kinds: FileKinds) -> None:
        self._store, self._kinds = store, kinds
        self.loose: dict[int, StoredItem] = {}
        self._loose_by_hash: defaultdict[str | None, dict[int, StoredItem]] = defaultdict(dict)
        self._orphans: dict[str, dict[int, StoredItem]] = {}  # by hash: items outside of this run, without their file
        self._ids: dict[bytes, int] = {}  # by vector key: an item that has this vector

    def loosen(self, item: StoredItem) -> None:
        """Let an item be taken over."""
        self.loose[item.id] = item
        self._loose_by_hash[item.content_hash][item.id] = item

    def keep(self, item: StoredItem) -> None:
        """Stop an item from being taken over."""
        self.loose.pop(item.id, None)
        self._loose_by_hash[item.content_hash].pop(item.id, None)

    def take_loose(self, file: ReadFile) -> StoredItem | None:
        """Return the loose item that a file takes over, which is not loose any more."""
        return self._take(self._loose_by_hash[file.content_hash], file)

    def is_known(self, file: ReadFile) -> bool:
        """Whether the store has the content of a file."""
        known = file.content_hash in self._orphans
        return known or bool(self._store.known_hashes([file.content_hash], kind=file.kind))

    def take(self, file: ReadFile) -> StoredItem | None:
        """Return the item that a file takes over: a loose one, else one outside of this run without its file."""
        if (item := self.take_loose(file)) is not None:
            return item
        if (orphans := self._orphans.get(file.content_hash)) is None:
            orphans = self._orphans[file.content_hash] = {}
            for item in files_of(self._store.find(content_hash=file.content_hash)):
                self._ids.setdefault(vector_key(item), item.id)
                if item.id not in self.loose and not has_its_content(item, self._kinds):
                    orphans[item.id] = item
        return self._take(orphans, file)

    def expect(self, key: bytes) -> None:
        """Note that an item with the vector of this key will be written."""
        self._ids.setdefault(key, _PENDING)

    def note(self, item: Item | StoredItem, number: int) -> None:
        """Note the id of an item that has its vector."""
        self._ids[vector_key(item)] = number

    def forget(self, item: StoredItem) -> None:
        """Drop an item whose vector is replaced."""
        if self._ids.get(key := vector_key(item)) == item.id:
            del self._ids[key]

    def has(self, key: bytes) -> bool:
        """Whether an item has the vector of this key, or will have it before what follows is written."""
        return key in self._ids

    def twin(self, key: bytes) -> int | None:
        """Return the id of an item with the vector of this key; None where there is none, though one was expected."""
        number = self._ids.get(key, _PENDING)
        return number if number != _PENDING else None

    def _take(self, items: dict[int, StoredItem], file: ReadFile) -> StoredItem | None:
        """Choose the item of the same inode, which a rename keeps, else of the same name, else the oldest."""
        if not items:
            return None
        chosen = min(
            items.values(),
            key=lambda item: (item.metadata.get("inode") != file.inode, Path(item.uri).name != file.path.name, item.id),
        )
        del items[chosen.id]
        self.keep(chosen)
        return chosen
