"""Direct reads of a session: a bound read with its values, answered from the overlay if that is sure.

Law: None says only that the query engine has to be asked; nothing of it shows to who asked.
"""

from collections.abc import Sequence

import pyarrow as pa

from upwell.engine.direct import Comparison, DirectQuery, count_direct, keys_direct, run_direct
from upwell.engine.expression import Literal, Parameter
from upwell.engine.query import QueryEngine
from upwell.engine.source import Source
from upwell.engine.view import View
from upwell.sql.statements import DirectRead
from upwell.types import Key, Value

INLINE_ROWS_MAX = 4_000
INLINE_SEARCHED_MAX, INLINE_KEYS_MAX = 50_000, 300
"""Of so many rows, of which only the columns of a condition are looked at, so many may be found."""
INLINE_CHANGES_MAX = 400
"""More than so many changes are converted in a thread."""


def find_direct(
    read: DirectRead,
    values: Sequence[Value],
    source: Source,
    view: View,
    engine: QueryEngine,
    *,
    inline: bool,
) -> pa.Table | None:
    """Return the rows of a read; `inline` only if neither files nor long work are needed for it."""
    if view.catalog.by_id.get(read.table.id) is not read.table:
        return None  # bound to another version of the table than the View has
    query = _with_values(read, values)
    if query is None:
        return None
    if query.count is not None and not query.where and not inline and not source.alive_from:
        count = engine.find_count(view, source)
        if count is not None:
            return count_direct(query.count, count)
    rows = engine.find_hot_only(view, source, changes_max=INLINE_CHANGES_MAX if inline else None)
    if rows is None:
        return None
    is_long = rows.count > INLINE_ROWS_MAX and (query.count is None or query.where)
    return None if inline and is_long else run_direct(rows, query)


def find_keys(
    read: DirectRead,
    values: Sequence[Value],
    source: Source,
    view: View,
    engine: QueryEngine,
    *,
    inline: bool,
) -> list[Key] | None:
    """Return the keys of the rows that meet the conditions of a read, which asks for nothing else."""
    if view.catalog.by_id.get(read.table.id) is not read.table:
        return None
    query = _with_values(read, values)
    rows = engine.find_hot_only(view, source, changes_max=INLINE_CHANGES_MAX if inline else None)
    if query is None or rows is None or (inline and rows.count > INLINE_SEARCHED_MAX):
        return None
    keys = keys_direct(rows, query.where)
    return None if inline and keys is not None and len(keys) > INLINE_KEYS_MAX else keys


def _with_values(read: DirectRead, values: Sequence[Value]) -> DirectQuery | None:
    limit, offset = _value(read.limit, values), _value(read.offset, values)
    if read.limit is not None and not _is_count(limit):
        return None
    if read.offset is not None and not _is_count(offset):
        return None
    where = [Comparison(column, op, _value(value, values)) for column, op, value in read.where]
    return DirectQuery(read.columns, read.count, where, read.order, limit, offset or 0)  # type: ignore[arg-type]


def _value(node: Literal | Parameter | None, values: Sequence[Value]) -> Value:
    match node:
        case Parameter(index):
            return values[index]
        case Literal(value):
            return value
        case None:
            return None


def _is_count(value: Value) -> bool:
    return type(value) is int and value >= 0
