"""Rendering: outcomes become the JSON of the SQL endpoint.

Law: cells are encoded as the reference contract's section 1.5 says, column by column; the message of a
batch's DML comes summed at the end (section 1.4), but where statements were sent one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from upwell.engine.result import ResultColumn, column_cells, result_columns
from upwell.protocol.messages import FieldSchema, SqlResponse, StatementResult
from upwell.session.outcome import Answer, Changed, Message, Outcome, PointAnswer, Streamed
from upwell.types import SqlType, to_json, wire_type

SLICE_ROWS = 1_000
SHOWN_MAX = 1_000
FEW_ROWS = 200
"""So few integers become texts sooner in Python than in Arrow."""
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
            shown = _shown(columns)
            cells: Any = rows
            for index in shown.converted:
                kind = columns[index].type
                cells = [[*row[:index], to_json(row[index], kind), *row[index + 1 :]] for row in cells]
            return StatementResult(
                schema=shown.schema, rows=cells, row_count=len(rows), as_user=outcome.as_user
            )
        case Streamed():
            raise AssertionError("a stream is no part of a JSON document")
        case Answer(table, columns):
            return _table_result(table, columns, outcome.as_user)


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


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the JSON of an answer needs to know of its columns."""

    columns: Sequence[ResultColumn]
    schema: Any
    converted: Sequence[int]
    """Columns whose values aren't what JSON shows."""


_shown_of: dict[int, _Shown] = {}


def _shown(columns: Sequence[ResultColumn]) -> _Shown:
    """Return it from memory if these very columns, of a prepared statement, were shown before."""
    found = _shown_of.get(id(columns))
    if found is None:
        schema = msgspec.Raw(_encoder.encode(field_schemas(columns)))
        converted = [at for at, each in enumerate(columns) if each.type in (SqlType.BIGINT, SqlType.BYTES)]
        if len(_shown_of) >= SHOWN_MAX:
            _shown_of.clear()
        # It holds on to the columns: so their identity stays theirs.
        found = _shown_of[id(columns)] = _Shown(columns, schema, converted)
    return found


def _table_result(table: pa.Table, known: tuple[ResultColumn, ...] | None, as_user: str) -> StatementResult:
    columns = known or tuple(result_columns(table.schema))
    schema: Any = field_schemas(columns) if known is None else _shown(known).schema
    rows: Any
    if table.num_rows <= SLICE_ROWS:
        rows = _json_rows(columns, table)
    else:
        # Slice by slice: the values of all rows at once would need ten times the memory of their text.
        slices = range(0, table.num_rows, SLICE_ROWS)
        texts = [_encoder.encode(_json_rows(columns, table.slice(at, SLICE_ROWS)))[1:-1] for at in slices]
        rows = msgspec.Raw(b"[" + b",".join(texts) + b"]")
    return StatementResult(schema=schema, rows=rows, row_count=table.num_rows, as_user=as_user)


def field_schemas(columns: Sequence[ResultColumn]) -> list[FieldSchema]:
    """Return the columns as answers describe them."""
    return [
        FieldSchema(c.name, wire_type(c.type, c.precision, c.scale), index, c.flags)
        for index, c in enumerate(columns)
    ]


def _json_rows(columns: Sequence[ResultColumn], table: pa.Table) -> list[list[object]]:
    if table.num_columns == 0:
        return [[] for _ in range(table.num_rows)]
    cells = (json_cells(column, array) for column, array in zip(columns, table.columns, strict=True))
    return list(map(list, zip(*cells, strict=True)))


def json_cells(column: ResultColumn, array: pa.ChunkedArray) -> Sequence[object]:
    """Return the cells of one column as JSON shows them."""
    if column.type is SqlType.BIGINT:
        if len(array) <= FEW_ROWS:
            return [None if number is None else str(number) for number in array.to_pylist()]
        texts: Sequence[object] = array.cast(pa.string()).to_pylist()
        return texts
    cells = column_cells(array, column.type)
    return [to_json(cell, column.type) for cell in cells] if column.type is SqlType.BYTES else cells
