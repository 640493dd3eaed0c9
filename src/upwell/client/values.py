"""Cells ⇄ Python values, and the result of a statement.

Law: decoding loses nothing. BIGINT becomes int, DECIMAL Decimal, BYTES bytes, DATE, TIME and TIMESTAMP their
types of `datetime` (UTC, microseconds); a TIMESTAMP that `datetime` can't hold stays an int. JSON, UUID and
FILE stay the text that they are. With `raw` every cell stays as the wire has it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import UUID

from msgspec import UNSET

from upwell.client.failures import ProtocolViolation
from upwell.protocol.messages import Cell, DataType, FieldSchema, Param, SqlResponse, StatementResult, WireRow

Decode = Callable[[Any], Any]
Argument = Param | datetime | date | time | Decimal | UUID | bytes
"""What may be given for `$1`, `$2`, …"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave: `rows` (rows × columns, in the order of `columns`), or else a `message`.

    After a batch it is the last statement's, and `results` holds one for each that the server reported.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    row_count: int = 0
    message: str | None = None
    as_user: str = ""
    schema: tuple[FieldSchema, ...] = ()
    results: tuple["Result", ...] = field(default=(), repr=False)

    def dicts(self) -> list[dict[str, Any]]:
        """Return each row as a dict by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)


def read_results(response: SqlResponse, *, raw: bool = False) -> Result:
    """Return the last statement's result, with all of them in `results`."""
    results = tuple(_read_statement(statement, raw=raw) for statement in response.results)
    return replace(results[-1], results=results) if results else Result()


def read_each(response: SqlResponse) -> list[Result]:
    """Return one result for each statement that was sent."""
    return [_read_statement(statement, raw=False) for statement in response.results]


def decode_for(data_type: DataType) -> Decode | None:
    """Return what decodes a cell of this type, None if the cell is its own value."""
    name = data_type if isinstance(data_type, str) else next(iter(data_type), "")
    return _DECODERS.get(name)


def decode_row(row: WireRow, decoders: dict[str, Decode]) -> dict[str, Any]:
    """Return a live row with its cells decoded; a column without a decoder stays as it is."""
    return {name: _decode(cell, decoders.get(name)) for name, cell in row.items()}


def encode_argument(value: Argument) -> Param:
    """Return a parameter as JSON has it; times become ISO 8601, in UTC if they have a zone.

    Raises `TypeError` for what is no scalar, `ValueError` for NaN and infinity.
    """
    match value:
        case float() if not isfinite(value):
            raise ValueError(f"{value} cannot be a parameter: JSON has no form of it; send None or a text")
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            moment = value if value.tzinfo is None else value.astimezone(UTC)
            return moment.isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case bytes():
            return "\\x" + value.hex()
        case Decimal() | UUID():
            return str(value)
    hint = ": send each value as one of its own, or json.dumps(…) of it for a JSON column"
    is_several = isinstance(value, (dict, list, tuple))
    raise TypeError(f"a {type(value).__name__} cannot be a parameter{hint if is_several else ''}")


def _read_statement(statement: StatementResult, *, raw: bool) -> Result:
    schema = tuple(statement.schema) if statement.schema is not UNSET else ()
    decoders = [None if raw else decode_for(field.data_type) for field in schema]
    rows: Sequence[list[Cell]] = statement.rows if statement.rows is not UNSET else ()
    return Result(
        columns=tuple(field.name for field in schema),
        rows=tuple(tuple(map(_decode, row, decoders)) for row in rows),
        row_count=statement.row_count,
        message=statement.message if statement.message is not UNSET else None,
        as_user=statement.as_user,
        schema=schema,
    )


def _decode(cell: Cell, decode: Decode | None) -> Any:
    if cell is None or decode is None:
        return cell
    try:
        return decode(cell)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ProtocolViolation(f"the cell {cell!r} is not of its column's type") from error


def _moment(time_us: int) -> datetime | int:
    try:
        return _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return time_us


def _time_of_day(time_us: int) -> time:
    return (_EPOCH + timedelta(microseconds=time_us)).time()


def _date(days: int) -> date | int:
    try:
        return date(1970, 1, 1) + timedelta(days=days)
    except OverflowError:
        return days


_DECODERS: dict[str, Decode] = {
    "BigInt": int,
    "Decimal": Decimal,
    "Timestamp": _moment,
    "DateTime": _moment,
    "Date": _date,
    "Time": _time_of_day,
    "Bytes": bytes,
}
