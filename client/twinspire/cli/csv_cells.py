"""Cells of a CSV that no spreadsheet takes for a formula."""

from __future__ import annotations

import json
import re

# What spreadsheets take for the start of a formula, full-width forms included; OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


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
