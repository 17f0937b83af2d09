"""Items and embeddings as one Parquet file, written a row group at a time."""

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
    from twinspire.index.export import Selection

FIXED = ("id", "uri", "kind", "caption", "metadata", "content_hash", "added_at", "changed_at", "embedding")
"""Columns that no metadata key takes; `metadata` is written where there are too many keys for columns."""
MOST_COLUMNS = 1_000
_EXACT = 2**53  # whole numbers up to here are floats without loss
_INT64 = 2**63


class Type(Enum):
    """What a metadata column holds."""

    TRUTH = auto()
    WHOLE = auto()
    LARGE = auto()  # a whole number that no float has exactly
    NUMBER = auto()
    TEXT = auto()
    JSON = auto()


class ParquetWriter:
    """Writes one Parquet file: fixed columns, a column for each metadata key, and `embedding`, (D,) float32.

    Reads the metadata of all items once, to know the columns' types. A key whose values are of one type is a column of
    that type, any other holds its values as JSON. Above `MOST_COLUMNS` keys one column `metadata` holds the object.
    """

    def __init__(self, path: Path, selection: Selection) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._types = _metadata_types(selection.items())
        self._columns = None if self._types is None else metadata_columns(self._types, FIXED)
        self._schema = self._schema_of(selection)
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
                as_json = self._types[key] is Type.JSON
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

    def _schema_of(self, selection: Selection) -> Any:  # noqa: ANN401 - pyarrow.Schema
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
        own.append(arrow.field("embedding", arrow.list_(arrow.float32(), selection.dim), nullable=False))
        return arrow.schema(own, metadata={"twinspire.space": selection.space})


_TIMES = ("added_at", "changed_at")


def require_pyarrow() -> None:
    """Raise `MissingDependencyError` without pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "parquet", "writing Parquet") from error


def _metadata_types(pages: Iterator[list[StoredItem]]) -> Mapping[str, Type] | None:
    """Return the type of each metadata key over all items, None where there are too many keys."""
    found: dict[str, set[Type]] = {}
    for items in pages:
        for item in items:
            for key, value in item.metadata.items():
                types = found.setdefault(key, set())
                if value is not None:
                    types.add(_type_of(value))
        if len(found) > MOST_COLUMNS:
            return None
    return {key: _common(types) for key, types in found.items()}


def _type_of(value: object) -> Type:
    if isinstance(value, bool):
        return Type.TRUTH
    if isinstance(value, int):
        if abs(value) <= _EXACT:
            return Type.WHOLE
        return Type.LARGE if -_INT64 <= value < _INT64 else Type.JSON
    if isinstance(value, float):
        return Type.NUMBER
    return Type.TEXT if isinstance(value, str) else Type.JSON


def _common(types: set[Type]) -> Type:
    if types <= {Type.WHOLE, Type.LARGE} and types:
        return Type.WHOLE
    if types == {Type.WHOLE, Type.NUMBER}:
        return Type.NUMBER
    if not types:  # null in every item
        return Type.TEXT
    return next(iter(types)) if len(types) == 1 else Type.JSON


def _field(arrow: Any, name: str, kind: Type) -> Any:  # noqa: ANN401 - pyarrow's module and Field
    if kind is Type.JSON:
        return _json_field(arrow, name)
    types = {
        Type.TRUTH: arrow.bool_(),
        Type.WHOLE: arrow.int64(),
        Type.NUMBER: arrow.float64(),
        Type.TEXT: arrow.string(),
    }
    return arrow.field(name, types[kind])


def _json_field(arrow: Any, name: str) -> Any:  # noqa: ANN401 - pyarrow's module and Field
    return arrow.field(name, arrow.string(), metadata={"twinspire.encoding": "json"})


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
