"""The embedded vector store: L2-normalised vectors and their items in a folder on disk, and search over them.

It knows no models and no images. Durability: a change (`add`, `remove`, `update`, `compact`) that returned survives any
crash, whole and with the exact vectors; one that did not return is committed whole or not at all.

Damage: vectors are checked when the index is opened, items whenever they are read, and the assignment of vectors to
items with every new state. So no result has another caption, path, metadata, id or vector than was stored; it is an
`IndexStoreError` instead. Damage elsewhere in the catalogue may hide items from filters, keyword search, `find` and
`known_hashes`, and make keyword hits wrong or badly ranked, until `verify` finds it.
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
