"""Giving an index the vectors of another model: `migrate` encodes all items again and switches in one step."""

from __future__ import annotations

from twinspire.migration.reencoding import LostItem
from twinspire.migration.run import MigrationReport, migrate

__all__ = ["LostItem", "MigrationReport", "migrate"]
