"""Answers of plain columns: reads by key and RETURNING, which never meet the query engine."""

from collections.abc import Sequence

from upwell.engine.catalog import Table
from upwell.engine.result import plain_columns
from upwell.session.outcome import PointAnswer
from upwell.sql.statements import PointRead
from upwell.storage.hot import Version
from upwell.types import Row, Value

_SEQ, _DELETED = -1, -2


def point_answer(point: PointRead, version: Version | None) -> PointAnswer:
    """Return the chosen columns of a live version, or no row."""
    if version is None:
        return PointAnswer(point.result_columns, [])
    return PointAnswer(point.result_columns, [[_cell(version, index) for index, _ in point.columns]])


def rows_answer(table: Table, chosen: Sequence[tuple[int, str]], rows: Sequence[Row]) -> PointAnswer:
    """Return the chosen columns (index, output name) of rows of `table`."""
    return PointAnswer(plain_columns(table, chosen), [[row[index] for index, _ in chosen] for row in rows])


def _cell(version: Version, index: int) -> Value:
    if index == _SEQ:
        return version.seq
    if index == _DELETED:
        return False
    assert version.row is not None, "only live versions are answered"
    value: Value = version.row[index]
    return value
