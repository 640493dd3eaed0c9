"""Rendering: outcomes become the JSON of the SQL endpoint.

Law: cells are encoded as the reference contract's section 1.5 says, column by column; the message of a
batch's DML comes summed at the end (section 1.4), but where statements were sent one by one.
"""

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from upwell.engine.result import ResultColumn, column_cells, result_columns
from upwell.protocol.messages import FieldSchema, SqlResponse, StatementResult
from upwell.session.outcome import Answer, Changed, Message, Outcome, PointAnswer
from upwell.types import SqlType, to_json

_VERBS = ("Inserted", "Updated", "Deleted")
_encoder = msgspec.json.Encoder()


def render_outcomes(outcomes: Sequence[Outcome], *, took_ms: float, each: bool = False) -> bytes:
    """Return the body of a successful request; with `each` every statement has its result at its place."""
    if len(outcomes) == 1 or each:
        results = [_result(outcome) for outcome in outcomes]
        single_rows = len(outcomes) == 1 and isinstance(outcomes[0].result, (Answer, PointAnswer))
    else:
        results = [_result(o) for o in outcomes if not isinstance(o.result, Changed)] + _sums(outcomes)
        single_rows = False
    if single_rows:
        return _encoder.encode(SqlResponse("success", results, round(took_ms, 3), error=None))
    return _encoder.encode(SqlResponse("success", results, round(took_ms, 3)))


def row_count(outcomes: Sequence[Outcome]) -> int:
    """Return how many rows a rendering has to write."""
    answers: int = sum(o.result.table.num_rows for o in outcomes if isinstance(o.result, Answer))
    return answers + sum(len(o.result.rows) for o in outcomes if isinstance(o.result, PointAnswer))


def _result(outcome: Outcome) -> StatementResult:
    match outcome.result:
        case Message(text):
            return StatementResult(row_count=0, message=text, as_user=outcome.as_user)
        case Changed(verb, count):
            return StatementResult(row_count=count, message=_changed(verb, count), as_user=outcome.as_user)
        case PointAnswer(columns, rows):
            cells = [[to_json(v, c.type) for v, c in zip(row, columns, strict=True)] for row in rows]
            return _rows_result(columns, cells, outcome.as_user)
        case Answer(table):
            return _rows_result(result_columns(table.schema), _json_rows(table), outcome.as_user)


def _sums(outcomes: Sequence[Outcome]) -> list[StatementResult]:
    sums: list[StatementResult] = []
    for verb in _VERBS:
        changed = [o for o in outcomes if isinstance(o.result, Changed) and o.result.verb == verb]
        count = sum(o.result.count for o in changed if isinstance(o.result, Changed))
        if count:
            sums.append(
                StatementResult(row_count=count, message=_changed(verb, count), as_user=changed[-1].as_user)
            )
    return sums


def _changed(verb: str, count: int) -> str:
    return f"{verb} {count} row(s)"


def _rows_result(columns: Sequence[ResultColumn], rows: list[list[object]], as_user: str) -> StatementResult:
    schema = [FieldSchema(c.name, c.type.value, index, c.flags) for index, c in enumerate(columns)]
    return StatementResult(schema=schema, rows=rows, row_count=len(rows), as_user=as_user)


def _json_rows(table: pa.Table) -> list[list[object]]:
    if table.num_columns == 0:
        return [[] for _ in range(table.num_rows)]
    columns = zip(result_columns(table.schema), table.columns, strict=True)
    return list(map(list, zip(*(_json_cells(column, array) for column, array in columns), strict=True)))


def _json_cells(column: ResultColumn, array: pa.ChunkedArray) -> Sequence[object]:
    if column.type is SqlType.BIGINT:
        texts: Sequence[object] = array.cast(pa.string()).to_pylist()
        return texts
    cells = column_cells(array, column.type)
    return [to_json(cell, column.type) for cell in cells] if column.type is SqlType.BYTES else cells
