"""Answers of plain columns: reads by key and RETURNING, which never meet the query engine."""

from collections.abc import Sequence

from upwell.engine.catalog import Table
from upwell.engine.result import ResultColumn
from upwell.session.outcome import PointAnswer
from upwell.sql.statements import PointRead
from upwell.storage.hot import Version
from upwell.types import Column, Row, SqlType, Value

_SEQ, _DELETED = -1, -2
_SYSTEM_COLUMNS = {
    _SEQ: (SqlType.BIGINT, ("nn",)),
    _DELETED: (SqlType.BOOLEAN, ("nn",)),
}


def point_answer(point: PointRead, version: Version | None) -> PointAnswer:
    """Return the chosen columns of a live version, or no row."""
    columns = tuple(_column(point.table, index, name) for index, name in point.columns)
    if version is None:
        return PointAnswer(columns, [])
    return PointAnswer(columns, [[_cell(version, index) for index, _ in point.columns]])


def rows_answer(table: Table, chosen: Sequence[tuple[int, str]], rows: Sequence[Row]) -> PointAnswer:
    """Return the chosen columns (index, output name) of rows of `table`."""
    columns = tuple(_column(table, index, name) for index, name in chosen)
    return PointAnswer(columns, [[row[index] for index, _ in chosen] for row in rows])


def _column(table: Table, index: int, name: str) -> ResultColumn:
    if index < 0:
        return ResultColumn(name, *_SYSTEM_COLUMNS[index])
    column = table.columns[index]
    return ResultColumn(name, column.type, _flags(column), column.precision, column.scale)


def _flags(column: Column) -> tuple[str, ...]:
    flags = () if column.nullable and not column.primary_key else ("nn",)
    return (*flags, "pk", "uq") if column.primary_key else flags


def _cell(version: Version, index: int) -> Value:
    if index == _SEQ:
        return version.seq
    if index == _DELETED:
        return False
    assert version.row is not None, "only live versions are answered"
    value: Value = version.row[index]
    return value
