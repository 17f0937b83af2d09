"""The index: unit vectors and what they stand for, on disk, and search over them.

It knows no models and no images. What it promises: a change (`add`, `remove`, `update`, `compact`) that returned is
there after any crash, whole and with the exact vectors; one that did not return is there whole or not at all.

What a damaged disk does: vectors are checked when the index is opened, items whenever they are read, and which vector
is whose with every new state, so that no answer has another caption, path, metadata, id or vector than was stored:
`IndexStoreError` instead. What remains until `verify` are items that a filter, keyword search, `find` or `known_hashes`
misses, and keyword hits that do not match or are ranked wrongly, because another part of the catalogue is damaged.
"""

from __future__ import annotations

from twinspire.index.recovery import RecoverReport, recover_index
from twinspire.index.reports import CompactReport, IndexStats, VerifyReport
from twinspire.index.store import Index
from twinspire.index.vectors import VectorType
from twinspire.index.verify import verify_index
from twinspire.stores.items import AddReport, BundleReference, Hit, Item, ItemKind, StoredItem

__all__ = [
    "AddReport",
    "BundleReference",
    "CompactReport",
    "Hit",
    "Index",
    "IndexStats",
    "Item",
    "ItemKind",
    "RecoverReport",
    "StoredItem",
    "VectorType",
    "VerifyReport",
    "recover_index",
    "verify_index",
]
