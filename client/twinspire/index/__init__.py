"""The index: unit vectors and what they stand for, on disk, and exact search over them.

It knows no models and no pictures. What it promises: an item whose `add` returned is there after any crash,
whole and with its exact vector; an item whose `add` did not return is there whole or not at all.
"""

from __future__ import annotations

from twinspire.index.items import AddReport, Hit, IndexStats, Item, ItemKind
from twinspire.index.store import Index

__all__ = ["AddReport", "Hit", "Index", "IndexStats", "Item", "ItemKind"]
