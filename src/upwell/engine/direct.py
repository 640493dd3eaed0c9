"""Direct reads: SELECTs so plain that Arrow answers them from a partition's hot rows, without a planner.

Law: what is answered here is what the query engine would answer, to the last cell, name and flag. Where
that isn't sure the answer is None, and the query engine is asked: values of another type than their
column, rows that are cold, and −0.0 in a column to order by, which Arrow takes for equal to 0.0.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from math import copysign
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as compute

from upwell.engine.catalog import Table
from upwell.engine.expression import DELETED, SEQ
from upwell.engine.hot_rows import HotRows
from upwell.engine.operation import CompareOp
from upwell.storage.arrow import arrow_type, cells
from upwell.types import INTEGER_BITS, Key, SqlType, Value

_COMPARE: dict[CompareOp, Callable[[Any, Any], Any]] = {
    "=": compute.equal,
    "!=": compute.not_equal,
    "<": compute.less,
    "<=": compute.less_equal,
    ">": compute.greater,
    ">=": compute.greater_equal,
}
_EXACT_IN_DOUBLE = 1 << 53
_MINUS_ZERO_BITS = pa.scalar(-(1 << 63), pa.int64())


class Comparison(msgspec.Struct, frozen=True):
    """`column op value`; `column` is an index with `expression`'s ones for system columns."""

    column: int
    op: CompareOp
    value: Value


class OrderKey(msgspec.Struct, frozen=True):
    column: int
    descending: bool
    nulls_first: bool


class DirectQuery(msgspec.Struct, frozen=True):
    """SELECT `columns` (index, output name), or COUNT(*) named `count`, of the rows that meet all of `where`.

    Without `order` rows come by primary key.
    """

    columns: tuple[tuple[int, str], ...]
    count: str | None
    where: Sequence[Comparison]
    order: tuple[OrderKey, ...]
    limit: int | None
    offset: int


def run_direct(rows: HotRows, query: DirectQuery) -> pa.Table | None:
    """Return the result, None if only the query engine is sure of it."""
    table = rows.table
    if not all(_is_plain(table, each) for each in query.where):
        return None
    if query.count is not None:
        return _count(query.count, _counted(rows, query))
    found = rows.arrow
    if query.where:
        found = found.filter(_mask(found, table, query.where))
    if query.order or not (rows.is_ordered or found.num_rows <= 1):
        by_rows = _by_order(found, table, query.order)
        if by_rows is None:
            return None
        found = found.take(by_rows.slice(query.offset, query.limit))
    elif query.limit is not None or query.offset:
        found = found.slice(query.offset, query.limit)
    return _projected(found, table, query.columns)


def keys_direct(rows: HotRows, where: Sequence[Comparison]) -> list[Key] | None:
    """Return the primary keys of the rows that meet all of `where`, in any order; None as `run_direct`."""
    table = rows.table
    if not all(_is_plain(table, each) for each in where):
        return None
    found: list[Key] = []
    for chunk in rows.chunks:
        # Only the columns that are asked for; after a change of a row a chunk has another bitmap.
        keys = chunk.batch.column(_position(table, table.key_index))
        masks = [_mask(chunk.batch, table, where)] if where else []
        if chunk.alive is not None:
            masks.append(chunk.alive)
        if masks:
            keys = keys.filter(reduce(compute.and_kleene, masks))
        found += [key for key in cells(keys, table.columns[table.key_index].type) if key is not None]
    return found


def count_direct(name: str, count: int) -> pa.Table:
    """Return what COUNT(*) gives."""
    return _count(name, count)


def _count(name: str, count: int) -> pa.Table:
    schema = pa.schema([pa.field(name, pa.int64(), nullable=False)])
    return pa.Table.from_arrays([pa.array([count], pa.int64())], schema=schema)


def _counted(rows: HotRows, query: DirectQuery) -> int:
    if not query.where:
        return rows.count
    found = rows.arrow
    return compute.sum(_mask(found, rows.table, query.where)).as_py() or 0 if found.num_rows else 0


def _mask(found: pa.Table | pa.RecordBatch, table: Table, where: Sequence[Comparison]) -> pa.ChunkedArray:
    masks = [
        _COMPARE[each.op](found.column(_position(table, each.column)), _scalar(table, each)) for each in where
    ]
    return reduce(compute.and_kleene, masks)


def _scalar(table: Table, comparison: Comparison) -> pa.Scalar:
    # Of the column's own type: else each comparison would look for a common one.
    return pa.scalar(comparison.value, arrow_type(_type(table, comparison.column)))


def _is_plain(table: Table, comparison: Comparison) -> bool:
    """Whether Arrow compares a column with this value as the query engine does."""
    value = comparison.value
    match _type(table, comparison.column):
        case SqlType.SMALLINT | SqlType.INT | SqlType.BIGINT as kind if type(value) is int:
            limit = 1 << (INTEGER_BITS[kind] - 1)
            return -limit <= value < limit
        case SqlType.DOUBLE if type(value) is int:
            return abs(value) <= _EXACT_IN_DOUBLE
        case SqlType.DOUBLE:
            # The engine's simplifier orders −0.0 below 0.0, its comparison doesn't.
            return type(value) is float and (value != 0 or copysign(1, value) > 0)
        case SqlType.TEXT:
            return type(value) is str
        case SqlType.BOOLEAN:
            return type(value) is bool
        case _:
            return False


def _by_order(found: pa.Table, table: Table, order: Sequence[OrderKey]) -> pa.Array | None:
    columns: list[pa.ChunkedArray] = []
    keys: list[tuple[str, str, str]] = []
    # The primary key comes last, so that equal rows have an order as well.
    for each in (*order, OrderKey(table.key_index, descending=False, nulls_first=False)):
        column = found.column(_position(table, each.column))
        if _type(table, each.column) is SqlType.FLOAT:
            return None
        kind = _type(table, each.column)
        if kind is SqlType.FLOAT or (kind is SqlType.DOUBLE and _has_minus_zero(column)):
            return None
        columns.append(column)
        direction = "descending" if each.descending else "ascending"
        keys.append((str(len(keys)), direction, "at_start" if each.nulls_first else "at_end"))
    sorted_by = pa.Table.from_arrays(columns, names=[name for name, _, _ in keys])
    return compute.sort_indices(sorted_by, sort_keys=keys)


def _has_minus_zero(column: pa.ChunkedArray) -> bool:
    return any(
        compute.any(compute.equal(chunk.view(pa.int64()), _MINUS_ZERO_BITS)).as_py()
        for chunk in column.chunks
    )


def _projected(found: pa.Table, table: Table, columns: Sequence[tuple[int, str]]) -> pa.Table:
    positions = [_position(table, index) for index, _ in columns]
    if positions == list(range(found.num_columns)):
        return found
    fields = [
        found.schema.field(at).with_name(name) for at, (_, name) in zip(positions, columns, strict=True)
    ]
    return pa.Table.from_arrays([found.column(at) for at in positions], schema=pa.schema(fields))


def _position(table: Table, index: int) -> int:
    """Return where a column stands in the overlay's batches."""
    return index if index >= 0 else len(table.columns) + (0 if index == SEQ else 1)


def _type(table: Table, index: int) -> SqlType:
    if index >= 0:
        return table.columns[index].type
    return SqlType.BOOLEAN if index == DELETED else SqlType.BIGINT
