"""Export of items and embeddings to one Parquet file, a row group at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import MissingDependencyError
from twinspire.stores.items import StoredItem, metadata_columns

if TYPE_CHECKING:
    from twinspire.index.export import ItemPages

FIXED = ("id", "uri", "kind", "caption", "metadata", "content_hash", "added_at", "changed_at", "embedding")
"""Columns whose names no metadata key gets; `metadata` is written if there are too many keys for columns."""
MAX_COLUMNS = 1_000
_EXACT = 2**53  # whole numbers up to here are floats without loss
_INT64 = 2**63


class ColumnType(Enum):
    """ColumnType of a metadata column."""

    BOOLEAN = auto()
    INTEGER = auto()
    LARGE = auto()  # a whole number that no float has exactly
    NUMBER = auto()
    TEXT = auto()
    JSON = auto()


class ParquetWriter:
    """Writes one Parquet file: fixed columns, a column for each metadata key, and `embedding`, (D,) float32.

    Reads the metadata of all items once, to know the columns' types. A key whose values are of one type is a column of
    that type, any other holds its values as JSON. Above `MAX_COLUMNS` keys one column `metadata` holds the object.
    """

    def __init__(self, path: Path, pages: ItemPages) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._types = _metadata_types(pages.items())
        self._columns = None if self._types is None else metadata_columns(self._types, FIXED)
        self._schema = self._schema_of(pages)
        scalar = [name for name in self._schema.names if name != "embedding"]
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=scalar)

    def write(self, items: list[StoredItem], embeddings: NDArray[np.float32]) -> None:
        """Write a row group; `embeddings` is (n, D) float32."""
        arrow = self._arrow
        columns: list[Any] = [
            [item.id for item in items],
            [item.uri for item in items],
            [item.kind.value for item in items],
            [item.caption for item in items],
        ]
        if self._types is None:
            columns.append([_json(dict(item.metadata)) for item in items])
        else:
            for key in self._columns or ():
                as_json = self._types[key] is ColumnType.JSON
                values = (item.metadata.get(key) for item in items)
                columns.append([_json(value) if as_json else value for value in values])
        columns.append([item.content_hash for item in items])
        columns += [[datetime.fromtimestamp(getattr(item, name), UTC) for item in items] for name in _TIMES]
        arrays = [arrow.array(values, field.type) for values, field in zip(columns, self._schema, strict=False)]
        flat = arrow.array(np.ascontiguousarray(embeddings).reshape(-1))
        arrays.append(arrow.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]))
        self._writer.write_batch(arrow.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()

    def _schema_of(self, pages: ItemPages) -> Any:  # noqa: ANN401 - pyarrow.Schema
        arrow = self._arrow
        text, time = arrow.string(), arrow.timestamp("us", tz="UTC")
        own = [arrow.field("id", arrow.int64(), nullable=False)]
        own += [arrow.field(name, text, nullable=name == "caption") for name in ("uri", "kind", "caption")]
        if self._types is None or self._columns is None:
            own.append(_json_field(arrow, "metadata"))
        else:
            own += [_field(arrow, self._columns[key], self._types[key]) for key in self._columns]
        own.append(arrow.field("content_hash", text))
        own += [arrow.field(name, time, nullable=False) for name in _TIMES]
        own.append(arrow.field("embedding", arrow.list_(arrow.float32(), pages.dim), nullable=False))
        return arrow.schema(own, metadata={"twinspire.space": pages.space})


_TIMES = ("added_at", "changed_at")


def require_pyarrow() -> None:
    """Raise `MissingDependencyError` without pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "parquet", "writing Parquet") from error


def _metadata_types(pages: Iterator[list[StoredItem]]) -> Mapping[str, ColumnType] | None:
    """Return the type of each metadata key over all items, None where there are too many keys."""
    found: dict[str, set[ColumnType]] = {}
    for items in pages:
        for item in items:
            for key, value in item.metadata.items():
                types = found.setdefault(key, set())
                if value is not None:
                    types.add(_type_of(value))
        if len(found) > MAX_COLUMNS:
            return None
    return {key: _common(types) for key, types in found.items()}


def _type_of(value: object) -> ColumnType:
    if isinstance(value, bool):
        return ColumnType.BOOLEAN
    if isinstance(value, int):
        if abs(value) <= _EXACT:
            return ColumnType.INTEGER
        return ColumnType.LARGE if -_INT64 <= value < _INT64 else ColumnType.JSON
    if isinstance(value, float):
        return ColumnType.NUMBER
    return ColumnType.TEXT if isinstance(value, str) else ColumnType.JSON


def _common(types: set[ColumnType]) -> ColumnType:
    if types <= {ColumnType.INTEGER, ColumnType.LARGE} and types:
        return ColumnType.INTEGER
    if types == {ColumnType.INTEGER, ColumnType.NUMBER}:
        return ColumnType.NUMBER
    if not types:  # null in every item
        return ColumnType.TEXT
    return next(iter(types)) if len(types) == 1 else ColumnType.JSON


def _field(arrow: Any, name: str, column_type: ColumnType) -> Any:  # noqa: ANN401 - pyarrow's module and Field
    if column_type is ColumnType.JSON:
        return _json_field(arrow, name)
    types = {
        ColumnType.BOOLEAN: arrow.bool_(),
        ColumnType.INTEGER: arrow.int64(),
        ColumnType.NUMBER: arrow.float64(),
        ColumnType.TEXT: arrow.string(),
    }
    return arrow.field(name, types[column_type])


def _json_field(arrow: Any, name: str) -> Any:  # noqa: ANN401 - pyarrow's module and Field
    return arrow.field(name, arrow.string(), metadata={"twinspire.encoding": "json"})


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
