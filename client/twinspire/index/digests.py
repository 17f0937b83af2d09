"""Checksums of the catalogue: SQLite has none of its own, so a flipped bit in a page would go unnoticed into results.

Three kinds, which cover each other's gaps:

- Each item's row has the CRC-32 of its columns, checked whenever the item is read. The place of its vector (`row`)
  enters by a multiplication, so that a compaction moves items without reading their texts, and a damaged item stays
  damaged instead of getting a valid checksum.
- The rows of `catalogue` and `snapshots` have the CRC-32 of their columns, checked by each transaction.
- Sums over all rows, kept in `catalogue`, find rows that are missing, doubled or swapped: of the items' rows and ids
  (checked with each new state), of the items' contents and of the dead rows (checked by `verify`). A sum does not
  depend on the order and is updated from the changed rows alone.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUM_MODULUS = 2**63  # the range of an INTEGER column of SQLite
_MASK = 0xFFFF_FFFF
_ODD = 0x9E37_79B1  # odd, so that another row always gives another checksum
_NUMBERS = struct.Struct("<qdd4i").pack

MOVED_CHECKSUM = f"(checksum + ({{to}} - row) * {_ODD}) & {_MASK}"
"""SQL for the checksum of an item after its vector has moved to the row `to`."""


def item_checksum(row: tuple[Any, ...]) -> int | None:
    """Return the checksum of an item's row, in the order of `schema.ITEM_COLUMNS` without the checksum itself.

    None if a column has a type that no item's has.
    """
    number, place, kind, uri, caption, metadata, content_hash, added_at, changed_at = row
    try:
        numbers = _NUMBERS(
            number,
            added_at,
            changed_at,
            len(kind),
            len(uri),
            -1 if caption is None else len(caption),
            -1 if content_hash is None else len(content_hash),
        )
        texts = f"{kind}{uri}{caption or ''}{content_hash or ''}{metadata}".encode()
        return (zlib.crc32(texts, zlib.crc32(numbers)) + int(place) * _ODD) & _MASK
    except (TypeError, ValueError, struct.error):
        return None


def content_sum(rows: NDArray[np.int64], checksums: NDArray[np.int64]) -> int:
    """Return the sum over items, given by row and checksum, (n,) each, of the part that does not depend on the row."""
    contents = checksums.astype(np.uint64) - rows.astype(np.uint64) * np.uint64(_ODD)  # modulo 2**64
    return int((contents & np.uint64(_MASK)).sum(dtype=np.uint64)) % SUM_MODULUS


def pair_sum(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Return the sum over pairs of numbers, (n,) each, of a hash of both (the finaliser of SplitMix64, twice)."""
    if len(first) == 0:
        return 0
    mixed = _mixed(first.astype(np.uint64))
    mixed += second.astype(np.uint64)
    return int(_mixed(mixed).sum(dtype=np.uint64)) % SUM_MODULUS


def row_checksum(values: tuple[Any, ...]) -> int:
    """Return the checksum of the values of a row of `catalogue` or `snapshots`; -1 for values that no such row has."""
    try:
        return zlib.crc32(json.dumps(values).encode())
    except TypeError:  # a blob
        return -1


def tables_checksum(connection: sqlite3.Connection) -> int:
    """Return the checksum of the definitions of all tables and indexes, which never change."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT GLOB 'sqlite_stat*' ORDER BY name"
    found = connection.execute(query).fetchall()  # without the statistics of ANALYZE, which may change
    return row_checksum(tuple(found))


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = numbers + np.uint64(0x9E37_79B9_7F4A_7C15)
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58_476D_1CE4_E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D0_49BB_1331_11EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers
