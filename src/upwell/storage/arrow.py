"""Rows as Arrow, and Arrow as rows: the one place that knows which Arrow type a SQL type has.

    BOOLEAN bool · SMALLINT int16 · INT int32 · BIGINT int64 · FLOAT float32 · DOUBLE float64 · BYTES binary
    TEXT, JSON, UUID utf8 · TIMESTAMP timestamp[us] without zone (UTC) · DATETIME timestamp[us, UTC]
    DATE date32 · TIME time64[us] · DECIMAL(p, s) decimal128(p, s)

Law: `values(record_batch(versions, columns), columns)` gives the rows back exactly. Each field carries
its wire type and flags as metadata, so that a result of any plan still knows them.
All declared fields are nullable in Arrow, because a tombstone has nothing but its key; what is NOT NULL
says the flag `nn`.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa

from upwell.storage.hot import Version
from upwell.types import Column, Key, Row, SqlType, Value

SEQ = "_seq"
DELETED = "_deleted"
TYPE_METADATA = b"upwell.type"
FLAGS_METADATA = b"upwell.flags"
FIELD_ID_METADATA = b"PARQUET:field_id"

_ARROW_TYPES = {
    SqlType.BOOLEAN: pa.bool_(),
    SqlType.SMALLINT: pa.int16(),
    SqlType.INT: pa.int32(),
    SqlType.BIGINT: pa.int64(),
    SqlType.FLOAT: pa.float32(),
    SqlType.DOUBLE: pa.float64(),
    SqlType.TEXT: pa.string(),
    SqlType.TIMESTAMP: pa.timestamp("us"),
    SqlType.DATETIME: pa.timestamp("us", "UTC"),
    SqlType.DATE: pa.date32(),
    SqlType.TIME: pa.time64("us"),
    SqlType.UUID: pa.string(),
    SqlType.JSON: pa.string(),
    SqlType.BYTES: pa.binary(),
}


_INTEGERS = {
    SqlType.TIMESTAMP: pa.int64(),
    SqlType.DATETIME: pa.int64(),
    SqlType.TIME: pa.int64(),
    SqlType.DATE: pa.int32(),
}
"""Whose values are integers here, and something else to Arrow."""


def arrow_type(sql_type: SqlType) -> pa.DataType:
    """Return the Arrow type that holds values of `sql_type`, which isn't DECIMAL."""
    return _ARROW_TYPES[sql_type]


def column_type(column: Column) -> pa.DataType:
    """Return the Arrow type that holds the column's values."""
    if column.type is SqlType.DECIMAL:
        return pa.decimal128(column.precision, column.scale)
    return _ARROW_TYPES[column.type]


def physical_name(column: Column) -> str:
    """Return the column's name in Parquet, which never changes and is never used again."""
    return column.physical or column.name


def key_index(columns: Sequence[Column]) -> int:
    """Return the position of the primary key among `columns`."""
    return next(index for index, column in enumerate(columns) if column.primary_key)


def table_schema(columns: Sequence[Column], *, physical: bool) -> pa.Schema:
    """Return the declared columns, then `_seq` and `_deleted`; `physical` names them as Parquet does."""
    return _table_schema(tuple(columns), physical=physical)


@lru_cache(maxsize=1_024)
def _table_schema(columns: tuple[Column, ...], *, physical: bool) -> pa.Schema:
    fields = [_declared_field(column, physical=physical) for column in columns]
    fields.append(system_field(SEQ, SqlType.BIGINT, nullable=False))
    fields.append(system_field(DELETED, SqlType.BOOLEAN, nullable=False))
    return pa.schema(fields)


def scan_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the schema to scan segments with: physical names, otherwise the very fields of hot rows.

    Field ids are for the files: a plan over both tiers needs the same metadata on both sides.
    """
    logical = table_schema(columns, physical=False)
    named = zip(logical, [*map(physical_name, columns), SEQ, DELETED], strict=True)
    return pa.schema([field.with_name(name) for field, name in named])


def system_field(name: str, sql_type: SqlType, *, nullable: bool, field_id: int | None = None) -> pa.Field:
    """Return a field that is nobody's declared column."""
    return pa.field(
        name,
        arrow_type(sql_type),
        nullable=nullable,
        metadata=_metadata(sql_type, [] if nullable else ["nn"], field_id),
    )


def record_batch(
    versions: Sequence[Version], columns: Sequence[Column], *, physical: bool = False
) -> pa.RecordBatch:
    """Return rows × (`columns`, `_seq`, `_deleted`); a tombstone has its key and NULLs.

    Each row must have the shape of `columns`; a version of an older schema is brought to it before.
    """
    arrays = declared_arrays(versions, columns)
    arrays.append(pa.array([version.seq for version in versions], pa.int64()))
    arrays.append(pa.array([version.row is None for version in versions], pa.bool_()))
    return pa.RecordBatch.from_arrays(arrays, schema=table_schema(columns, physical=physical))


def row_batch(rows: Sequence[Row], seqs: Sequence[int], columns: Sequence[Column]) -> pa.RecordBatch:
    """Return live rows × (`columns`, `_seq`, `_deleted`) with the `seqs` given."""
    arrays = _column_arrays(rows, columns)
    arrays.append(pa.array(seqs, pa.int64()))
    arrays.append(pa.repeat(pa.scalar(False), len(rows)))
    return pa.RecordBatch.from_arrays(arrays, schema=table_schema(columns, physical=False))


def declared_arrays(versions: Sequence[Version], columns: Sequence[Column]) -> list[pa.Array]:
    """Return one array per column, converted column by column (measured: faster than by rows)."""
    rows = [_blank(version.key, key_index(columns), len(columns)) if version.row is None else version.row
            for version in versions]  # fmt: skip
    return _column_arrays(rows, columns)


def _column_arrays(rows: Sequence[Row], columns: Sequence[Column]) -> list[pa.Array]:
    by_column: Iterable[Sequence[Value]] = zip(*rows, strict=True) if rows else [()] * len(columns)
    return [column_array(cells, column) for cells, column in zip(by_column, columns, strict=True)]


def column_array(cells: Sequence[Value], column: Column) -> pa.Array:
    """Return values of a column as Arrow."""
    if column.type is SqlType.DECIMAL:
        numbers = [None if text is None else Decimal(str(text)) for text in cells]
        return pa.array(numbers, column_type(column))
    return array(cells, column.type)


def array(cells: Sequence[Value], sql_type: SqlType) -> pa.Array:
    """Return values of a type, which isn't DECIMAL, as Arrow."""
    integers = _INTEGERS.get(sql_type)
    if integers is not None:
        return pa.array(cells, integers).view(arrow_type(sql_type))
    return pa.array(cells, arrow_type(sql_type))


def cells(column: Any, sql_type: SqlType) -> list[Value]:
    """Return an Arrow array's (or chunked array's) values as Python's; moments as integers."""
    if sql_type is SqlType.DECIMAL:
        return [None if number is None else format(number, "f") for number in column.to_pylist()]
    integers = _INTEGERS.get(sql_type)
    values: list[Value] = column.to_pylist() if integers is None else column.cast(integers).to_pylist()
    return values


def plain_keys(keys: pa.Array, sql_type: SqlType) -> pa.Array:
    """Return an array whose elements are the keys as Python has them."""
    integers = _INTEGERS.get(sql_type)
    return keys if integers is None else keys.view(integers)


def values(batch: pa.RecordBatch | pa.Table, columns: Sequence[Column]) -> list[Row]:
    """Return the rows of a batch or table whose first fields are `columns`, in this order."""
    by_column = [cells(batch.column(index), column.type) for index, column in enumerate(columns)]
    return [list(row) for row in zip(*by_column, strict=True)]


def _declared_field(column: Column, *, physical: bool) -> pa.Field:
    flags = [] if column.nullable and not column.primary_key else ["nn"]
    if column.primary_key:
        flags += ["pk", "uq"]
    return pa.field(
        physical_name(column) if physical else column.name,
        column_type(column),
        metadata=_metadata(column.type, flags, column.id if physical else None),
    )


def _metadata(sql_type: SqlType, flags: Sequence[str], field_id: int | None) -> dict[bytes, bytes]:
    metadata = {TYPE_METADATA: sql_type.value.encode(), FLAGS_METADATA: ",".join(flags).encode()}
    if field_id is not None:
        metadata[FIELD_ID_METADATA] = str(field_id).encode()
    return metadata


def _blank(key: Key, key_at: int, width: int) -> Row:
    row: Row = [None] * width
    row[key_at] = key
    return row
