"""Results of queries as values: which SQL type each column has, and its cells.

Law: a column that comes straight from a table keeps its declared type (field metadata); an expression
gets the nearest type of its Arrow type, and what has none is shown as text.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute

from upwell.engine.catalog import Table
from upwell.engine.expression import SEQ
from upwell.errors import QueryFailure
from upwell.storage.arrow import FLAGS_METADATA, TYPE_METADATA, cells
from upwell.types import SqlType, Value

_DIRECTORIES = re.compile(r"(?:[^\s\[\](),:=/]*/)+(?=[^\s\[\](),/]+\.parquet)")


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A column of a result; `flags` are `pk`, `nn`, `uq` of a plain table column."""

    name: str
    type: SqlType
    flags: tuple[str, ...] = ()
    precision: int = 0
    scale: int = 0
    """Of a DECIMAL."""


def plain_columns(table: Table, chosen: Sequence[tuple[int, str]]) -> tuple[ResultColumn, ...]:
    """Return the chosen columns (index, output name) of a table; -1 is `_seq`, -2 is `_deleted`."""
    return tuple(_plain_column(table, index, name) for index, name in chosen)


def _plain_column(table: Table, index: int, name: str) -> ResultColumn:
    if index < 0:
        return ResultColumn(name, SqlType.BIGINT if index == SEQ else SqlType.BOOLEAN, ("nn",))
    column = table.columns[index]
    flags = () if column.nullable and not column.primary_key else ("nn",)
    flags = (*flags, "pk", "uq") if column.primary_key else flags
    return ResultColumn(name, column.type, flags, column.precision, column.scale)


def result_columns(schema: pa.Schema) -> list[ResultColumn]:
    """Return the columns of a result with their wire types."""
    return [_column(field) for field in schema]


def result_cells(table: pa.Table) -> list[Sequence[Value]]:
    """Return the values column by column: rows × columns, transposed."""
    columns = result_columns(table.schema)
    return [column_cells(array, column.type) for array, column in zip(table.columns, columns, strict=True)]


def column_cells(array: pa.ChunkedArray, sql_type: SqlType) -> list[Value]:
    """Return the values of one column of a result."""
    return cells(_plain(array), sql_type)


def result_rows(table: pa.Table) -> Iterator[tuple[Value, ...]]:
    """Yield the rows of a result."""
    if table.num_columns == 0:
        return iter(() for _ in range(table.num_rows))
    return zip(*result_cells(table), strict=True)


def refuse_not_finite(table: pa.Table) -> None:
    """Raise `QueryFailure` for NaN and infinity, which JSON can't hold."""
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_floating(field.type) and pa.compute.all(pa.compute.is_finite(column)).as_py() is False:
            raise QueryFailure(
                f"column '{field.name}' has NaN or infinity, which JSON can't hold; "
                "use NULLIF, NANVL or CAST(… AS TEXT)"
            )


def renamed(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return a result under these names, which may repeat."""
    if list(names) == table.column_names:
        return table
    fields = [field.with_name(name) for field, name in zip(table.schema, names, strict=True)]
    return pa.table(table.columns, schema=pa.schema(fields))


def without_directories(plan: pa.Table) -> pa.Table:
    """Return an explained plan with the names of files alone: where they are is the server's business."""
    texts = [_DIRECTORIES.sub("", text) for text in plan.column("plan").to_pylist()]
    field = plan.schema.field("plan")
    return plan.set_column(plan.schema.get_field_index("plan"), field, pa.array(texts, field.type))


def _column(field: pa.Field) -> ResultColumn:
    metadata = field.metadata or {}
    declared = metadata.get(TYPE_METADATA)
    flags = metadata.get(FLAGS_METADATA, b"").decode()
    sql_type = SqlType(declared.decode()) if declared else _nearest(field.type)
    is_declared = declared is not None and _fits(sql_type, field.type)
    sql_type = sql_type if is_declared else _nearest(field.type)
    precision, scale = 0, 0
    if sql_type is SqlType.DECIMAL:
        precision, scale = field.type.precision, field.type.scale
    is_flagged = bool(flags) and (is_declared or declared is None)
    return ResultColumn(field.name, sql_type, tuple(flags.split(",")) if is_flagged else (), precision, scale)


def _fits(sql_type: SqlType, arrow_type: pa.DataType) -> bool:
    nearest = _nearest(arrow_type)
    return nearest is sql_type or (nearest is SqlType.TEXT and sql_type in (SqlType.UUID, SqlType.JSON))


@lru_cache(maxsize=256)
def _nearest(arrow_type: pa.DataType) -> SqlType:
    is_a = pa.types
    tests: list[tuple[Any, SqlType]] = [
        (is_a.is_boolean, SqlType.BOOLEAN),
        (is_a.is_int64, SqlType.BIGINT),
        (is_a.is_uint64, SqlType.BIGINT),
        (is_a.is_uint32, SqlType.BIGINT),
        (is_a.is_int16, SqlType.SMALLINT),
        (is_a.is_int8, SqlType.SMALLINT),
        (is_a.is_uint8, SqlType.SMALLINT),
        (is_a.is_integer, SqlType.INT),
        (is_a.is_float32, SqlType.FLOAT),
        (is_a.is_float16, SqlType.FLOAT),
        (is_a.is_floating, SqlType.DOUBLE),
        (is_a.is_decimal, SqlType.DECIMAL),
        (lambda kind: is_a.is_timestamp(kind) and kind.tz is not None, SqlType.DATETIME),
        (is_a.is_timestamp, SqlType.TIMESTAMP),
        (is_a.is_date, SqlType.DATE),
        (is_a.is_time, SqlType.TIME),
        (is_a.is_binary, SqlType.BYTES),
        (is_a.is_large_binary, SqlType.BYTES),
        (is_a.is_binary_view, SqlType.BYTES),
    ]
    return next((sql_type for test, sql_type in tests if test(arrow_type)), SqlType.TEXT)


def _plain(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the array in a type whose Python values are ours."""
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.unit != "us":
        return array.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_time(kind) and kind != pa.time64("us"):
        return array.cast(pa.time64("us"), safe=False)
    if pa.types.is_date64(kind):
        return array.cast(pa.date32())
    if pa.types.is_float16(kind):
        return array.cast(pa.float32())
    if _nearest(kind) is SqlType.TEXT and not pa.types.is_string(kind):
        if not pa.types.is_nested(kind) and not pa.types.is_interval(kind):
            return array.cast(pa.string())
        texts = [None if value is None else _shown(value) for value in array.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return array


def _shown(value: Any) -> str:
    """Return a list or a struct as JSON, an interval as its parts."""
    if isinstance(value, pa.MonthDayNano):
        return f"{value.months} months {value.days} days {value.nanoseconds} ns"
    return json.dumps(value, ensure_ascii=False, default=str)
