"""Names of the columns that metadata keys get in a table of items."""

from __future__ import annotations

from collections.abc import Collection, Iterable

_PREFIX = "metadata."


def metadata_columns(keys: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Return the column of each metadata key, sorted by key: the key itself, as in filters.

    A key that is named as one of the columns `taken` is `metadata.KEY`, as in filters, and so is one that starts with
    `metadata.` itself: no two keys share a column.
    """
    return {key: f"{_PREFIX}{key}" if key in taken or key.startswith(_PREFIX) else key for key in sorted(set(keys))}
