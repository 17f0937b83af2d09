"""Items as rows of a table: which column holds which metadata key, and cells that no spreadsheet runs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

_PREFIX = "metadata."
# What spreadsheets take for the start of a formula, full-width forms included; OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def metadata_columns(keys: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """Return the column of each metadata key, sorted by key: the key itself, as in filters.

    A key that is named as one of the columns `taken` is `metadata.KEY`, as in filters, and so is one that starts with
    `metadata.` itself: no two keys share a column.
    """
    return {key: f"{_PREFIX}{key}" if key in taken or key.startswith(_PREFIX) else key for key in sorted(set(keys))}


def csv_cell(value: object) -> str:
    """Return a JSON value as a cell: texts as they are, null empty, lists and objects as JSON.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, unless it is a number.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    runs = value.startswith(_FORMULA) and not _NUMBER.fullmatch(value)
    return f"'{value}" if runs else value
