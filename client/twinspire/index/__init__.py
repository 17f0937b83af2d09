"""The index: unit vectors and what they stand for, on disk, and search over them.

It knows no models and no pictures. What it promises: a change (`add`, `remove`, `update`, `compact`) that returned is
there after any crash, whole and with the exact vectors; one that did not return is there whole or not at all.
"""

from __future__ import annotations

from twinspire.index.items import Hit, Item, ItemKind, StoredItem
from twinspire.index.recovery import RecoverReport, recover_index
from twinspire.index.reference import BundleReference
from twinspire.index.reports import AddReport, CompactReport, IndexStats, VerifyReport
from twinspire.index.store import Index
from twinspire.index.vectors import VectorType
from twinspire.index.verify import verify_index

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
