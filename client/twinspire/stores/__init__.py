"""Vector stores: the interface `VectorStore`, how one is opened, and what all have in common.

The embedded store is `twinspire.index.Index`. Items, filters and keyword queries are the same for every store.
"""

from __future__ import annotations

from twinspire.stores.filters.filter import Filter
from twinspire.stores.items import AddReport, BundleReference, Hit, Item, ItemKind, StoredItem
from twinspire.stores.protocol import VectorStore
from twinspire.stores.registry import OpenMode, open_index, register_store
from twinspire.stores.text_query import TextQuery

__all__ = [
    "AddReport",
    "BundleReference",
    "Filter",
    "Hit",
    "Item",
    "ItemKind",
    "OpenMode",
    "StoredItem",
    "TextQuery",
    "VectorStore",
    "open_index",
    "register_store",
]
