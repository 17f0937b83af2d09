"""Export of items and embeddings to one Parquet file, a row group at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import MissingDependencyError
from twinspire.index.item_pages import ItemPages
from twinspire.stores.items import StoredItem, metadata_columns

FIXED = ("id", "uri", "kind", "caption", "metadata", "content_hash", "added_at", "changed_at", "embedding")
"""Columns whose names no metadata key gets; `metadata` is written if there are too many keys for columns."""
MAX_COLUMNS = 1_000
_EXACT = 2**53  # whole numbers up to here are floats without loss
_INT64 = 2**63
_Column: TypeAlias = tuple[Any, Callable[[StoredItem], object]]  # pyarrow's field, and the value that an item has there


class ColumnType(Enum):
    """Type of the values of a metadata key."""

    BOOLEAN = auto()
    INTEGER = auto()
    LARGE = auto()  # a whole number that no float has exactly
    NUMBER = auto()
    TEXT = auto()
    JSON = auto()


class ParquetWriter:
    """Writes one Parquet file: fixed columns, a column for each metadata key, and `embedding`, (D,) or (Q, D) float32.

    Reads the metadata of all items once, to know the columns' types. A key whose values are of one type is a column of
    that type, any other holds its values as JSON. Above `MAX_COLUMNS` keys one column `metadata` holds the object.
    """

    def __init__(self, path: Path, pages: ItemPages) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._columns = _columns(pyarrow, _metadata_types(pages.items()))
        fields = [field for field, _ in self._columns]
        embedding: Any = pyarrow.float32()
        for length in reversed(pages.shape):
            embedding = pyarrow.list_(embedding, length)
        vectors = pyarrow.field("embedding", embedding, nullable=False)
        self._schema = pyarrow.schema([*fields, vectors], metadata={"twinspire.space": pages.space})
        scalar = [field.name for field in fields]
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=scalar)

    def write(self, items: list[StoredItem], embeddings: NDArray[np.float32]) -> None:
        """Write a row group; `embeddings` is (n, *shape) float32."""
        arrow = self._arrow
        arrays = [arrow.array([value_of(item) for item in items], field.type) for field, value_of in self._columns]
        column = arrow.array(np.ascontiguousarray(embeddings).reshape(-1))
        for length in reversed(embeddings.shape[1:]):
            column = arrow.FixedSizeListArray.from_arrays(column, length)
        arrays.append(column)
        self._writer.write_batch(arrow.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


def require_pyarrow() -> None:
    """Raise `MissingDependencyError` without pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "parquet", "writing Parquet") from error


def _columns(arrow: Any, types: Mapping[str, ColumnType] | None) -> list[_Column]:  # noqa: ANN401 - pyarrow's module
    """Return all columns but `embedding`; `types` are those of the metadata keys, None for one column of metadata."""
    text, time = arrow.string(), arrow.timestamp("us", tz="UTC")
    if types is None:
        metadata: list[_Column] = [(_json_field(arrow, "metadata"), lambda item: _json(dict(item.metadata)))]
    else:
        names = metadata_columns(types, FIXED)
        metadata = [_metadata_column(arrow, names[key], key, types[key]) for key in names]
    return [
        (arrow.field("id", arrow.int64(), nullable=False), lambda item: item.id),
        (arrow.field("uri", text, nullable=False), lambda item: item.uri),
        (arrow.field("kind", text, nullable=False), lambda item: item.kind.value),
        (arrow.field("caption", text), lambda item: item.caption),
        *metadata,
        (arrow.field("content_hash", text), lambda item: item.content_hash),
        (arrow.field("added_at", time, nullable=False), lambda item: datetime.fromtimestamp(item.added_at, UTC)),
        (arrow.field("changed_at", time, nullable=False), lambda item: datetime.fromtimestamp(item.changed_at, UTC)),
    ]


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


def _metadata_column(arrow: Any, name: str, key: str, column_type: ColumnType) -> _Column:  # noqa: ANN401
    if column_type is ColumnType.JSON:
        return _json_field(arrow, name), lambda item: _json(item.metadata.get(key))
    types = {
        ColumnType.BOOLEAN: arrow.bool_(),
        ColumnType.INTEGER: arrow.int64(),
        ColumnType.NUMBER: arrow.float64(),
        ColumnType.TEXT: arrow.string(),
    }
    return arrow.field(name, types[column_type]), lambda item: item.metadata.get(key)


def _json_field(arrow: Any, name: str) -> Any:  # noqa: ANN401 - pyarrow's module and Field
    return arrow.field(name, arrow.string(), metadata={"twinspire.encoding": "json"})


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
