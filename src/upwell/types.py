"""SQL types and the values that Upwell stores, and how text and JSON become them.

A value is one of `None, bool, int, float, str, bytes`:

    BOOLEAN bool · SMALLINT, INT, BIGINT int · FLOAT (32 bits), DOUBLE float · TEXT str
    DECIMAL(p, s) str with exactly s decimals · JSON str (the JSON text) · UUID str, dashed lower case
    TIMESTAMP, DATETIME int, microseconds since 1970-01-01T00:00:00Z · DATE int, days since then
    TIME int, microseconds of the day · BYTES bytes

Law: what `coerce` returns is exactly what its column may hold; everything else raises `InvalidValue`.
On the wire (`to_json`): 64-bit integers are strings, moments, dates and times numbers as above, JSON a
string with the JSON text, BYTES an array of numbers (reference contract, section 1.5).
"""

import json
import math
import re
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal, DecimalException
from decimal import Context as Precision
from enum import Enum
from typing import NewType

from upwell.errors import InvalidValue

Value = bool | int | float | str | bytes | None
Row = list[Value]
Key = bool | int | float | str | bytes
TableId = NewType("TableId", int)
Owner = NewType("Owner", str)
"""Whose rows: `u:<user>` for a user, `s:` for everybody. A user named `s:` owns `u:s:` and nothing else."""

SHARED = Owner("s:")
_DECIMAL_CHARS_MAX = 200
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def user_owner(user: str) -> Owner:
    """Return the owner tag of a user's rows."""
    return Owner("u:" + user)


def owner_user(owner: Owner) -> str | None:
    """Return the user behind an owner, None for SHARED."""
    return owner[2:] if owner[0] == "u" else None


class SqlType(Enum):
    """A column's type; the value is the name that `data_type` has on the wire."""

    __hash__ = object.__hash__  # a member is one object; the hash of its name costs a call

    BOOLEAN = "Boolean"
    SMALLINT = "SmallInt"
    INT = "Int"
    BIGINT = "BigInt"
    FLOAT = "Float"
    DOUBLE = "Double"
    DECIMAL = "Decimal"
    TEXT = "Text"
    TIMESTAMP = "Timestamp"
    DATETIME = "DateTime"
    DATE = "Date"
    TIME = "Time"
    UUID = "Uuid"
    JSON = "Json"
    BYTES = "Bytes"


TIMESTAMP_MIN = -62_135_596_800_000_000
TIMESTAMP_MAX = 253_402_300_799_999_999
"""Microseconds of 0001-01-01 and of the end of 9999-12-31: what ISO 8601 text with four digits can say."""

DAY_US = 86_400_000_000
DECIMAL_DIGITS_MAX = 38
INTEGER_BITS = {SqlType.SMALLINT: 16, SqlType.INT: 32, SqlType.BIGINT: 64}


_WIDENINGS = {
    SqlType.SMALLINT: {SqlType.INT, SqlType.BIGINT, SqlType.FLOAT, SqlType.DOUBLE},
    SqlType.INT: {SqlType.BIGINT, SqlType.DOUBLE},
    SqlType.FLOAT: {SqlType.DOUBLE},
    SqlType.UUID: {SqlType.TEXT},
    SqlType.JSON: {SqlType.TEXT},
}
_WHOLE_DIGITS = {SqlType.SMALLINT: 5, SqlType.INT: 10, SqlType.BIGINT: 19}


class WrittenFloat(float):
    """A number literal with decimals or too many digits: a double, and the text that says it exactly."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> "WrittenFloat":
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True, slots=True)
class Default:
    """A column's DEFAULT: a function's name (`NOW`, `SNOWFLAKE_ID`, …) or, with `function` None, a value."""

    function: str | None = None
    value: bool | int | float | str | None = None


_DEFAULT_HOLDERS = {
    "NOW": frozenset({SqlType.TIMESTAMP, SqlType.DATETIME}),
    "SNOWFLAKE_ID": frozenset({SqlType.BIGINT, SqlType.TEXT}),
    "UUID_V7": frozenset({SqlType.UUID, SqlType.TEXT}),
    "ULID": frozenset({SqlType.TEXT}),
    "CURRENT_USER": frozenset({SqlType.TEXT}),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One declared column. `physical` is its name in Parquet, unique for ever within its table.

    `added` is the schema version that brought it, 0 for a column of the table's begin; a row written
    before that reads `initial` there: the literal that was the DEFAULT then, for ever. `retyped` and
    `dropped` are the versions that widened its type last and that took it away, 0 if none did.
    `precision` and `scale` are a DECIMAL's.
    """

    id: int
    name: str
    type: SqlType
    nullable: bool = True
    primary_key: bool = False
    default: Default | None = None
    physical: str = ""
    added: int = 0
    initial: bool | int | float | str | None = None
    retyped: int = 0
    dropped: int = 0
    precision: int = 0
    scale: int = 0


def widens(narrow: Column, wide: Column) -> bool:
    """Whether every value of one column's type is one of the other's, exactly."""
    if wide.type is SqlType.DECIMAL:
        whole = _WHOLE_DIGITS.get(narrow.type, narrow.precision - narrow.scale)
        is_number = narrow.type is SqlType.DECIMAL or narrow.type in _WHOLE_DIGITS
        return is_number and whole <= wide.precision - wide.scale and narrow.scale <= wide.scale
    return wide.type in _WIDENINGS.get(narrow.type, ())


def type_text(column: Column) -> str:
    """Return a column's type as SQL writes it."""
    if column.type is SqlType.DECIMAL:
        return f"DECIMAL({column.precision},{column.scale})"
    return column.type.name


def wire_type(sql_type: SqlType, precision: int = 0, scale: int = 0) -> str | dict[str, int | dict[str, int]]:
    """Return a type as `data_type` shows it."""
    if sql_type is SqlType.DECIMAL:
        return {"Decimal": {"precision": precision, "scale": scale}}
    return str(sql_type.value)


class Op(Enum):
    """What a change did to its row."""

    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    EXPIRE = "EXPIRE"
    """The row's time to live was over; only a live query that asks for views is told."""


def coerce(value: Value, column: Column) -> Value:
    """Return `value` as `column` holds it; raise `InvalidValue` if it can't.

    Text is read as the type (`'42'`, `'t'`, ISO 8601), integers that fit are widened to DOUBLE,
    a TIMESTAMP also takes an integer of microseconds. None stays None.
    """
    return binder(column)(value)


def binder(column: Column) -> Callable[[Value], Value]:
    """Return `coerce` for one column, with everything looked up that doesn't depend on the value."""
    is_decimal = column.type is SqlType.DECIMAL
    convert = _decimal(column.precision, column.scale) if is_decimal else _COERCIONS[column.type]

    def bind(value: Value) -> Value:
        if value is None:
            return None
        try:
            return convert(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidValue(
                f"column '{column.name}' ({type_text(column)}) cannot hold {_shown(value)}: {error}"
            ) from error

    return bind


def fitted(default: Default, column: Column) -> Default:
    """Return `default` as the DEFAULT of `column`; raise `InvalidValue` if it can't be."""
    if default.function is not None:
        holders = _DEFAULT_HOLDERS.get(default.function, frozenset())
        if column.type not in holders:
            names = " or ".join(sorted(holder.name for holder in holders)) or "nothing"
            raise InvalidValue(
                f"{default.function}() cannot be the DEFAULT of column '{column.name}' "
                f"({column.type.name}); it fits {names}"
            )
        return default
    try:
        held = coerce(default.value, column)
    except InvalidValue as error:
        raise InvalidValue(f"DEFAULT does not fit: {error.args[0]}") from error
    # Bytes have no form in the catalog's JSON: their text stays, and is read when a row needs it.
    return default if isinstance(held, bytes) else Default(None, held)


def parse_timestamp(text: str) -> int:
    """Return microseconds since the epoch of an ISO 8601 text; without a zone it is UTC."""
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND


def format_timestamp(time_us: int) -> str:
    """Return microseconds since the epoch as ISO 8601 in UTC with six decimals and `Z`."""
    moment = (_EPOCH + time_us * _MICROSECOND).replace(tzinfo=None)
    return moment.isoformat(timespec="microseconds") + "Z"


def to_json(value: Value, sql_type: SqlType) -> object:
    """Return `value` as the SQL wire's JSON shows it."""
    if value is None:
        return None
    if sql_type is SqlType.BIGINT:
        return str(value)
    if isinstance(value, bytes):
        return list(value)
    return value


def _boolean(value: Value) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("t", "true", "yes", "on", "1"):
            return True
        if text in ("f", "false", "no", "off", "0"):
            return False
    elif value in (0, 1):
        return bool(value)
    raise ValueError("not a boolean")


def _integer(bits: int) -> Callable[[Value], int]:
    limit = 1 << (bits - 1)

    def convert(value: Value) -> int:
        if type(value) is not int:  # what most are
            value = _integral(value)
        if not -limit <= value < limit:
            raise ValueError(f"out of range for {bits} bits")
        return value

    return convert


def _integral(value: Value) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool):
        return int(value)
    raise ValueError("not an integer")


def _double(value: Value) -> float:
    if isinstance(value, (bool, bytes)):
        raise ValueError("not a number")
    try:
        number = float(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError("not a number") from error
    if not math.isfinite(number):
        raise ValueError("NaN and infinity have no form in JSON")
    return number


def _float(value: Value) -> float:
    try:
        number: float = struct.unpack("<f", struct.pack("<f", _double(value)))[0]
    except OverflowError as error:
        raise ValueError("out of range for 32 bits") from error
    return number


def _decimal(precision: int, scale: int) -> Callable[[Value], str]:
    quantum = Decimal(1).scaleb(-scale)
    exact = Precision(prec=2 * _DECIMAL_CHARS_MAX)

    def convert(value: Value) -> str:
        if value is None or isinstance(value, (bool, bytes)):
            raise ValueError("not a number")
        text = value.text if isinstance(value, WrittenFloat) else str(value).strip()
        if len(text) > _DECIMAL_CHARS_MAX:
            raise ValueError("too many digits")
        try:
            number = Decimal(text).quantize(quantum, ROUND_HALF_UP, exact)
            if number.is_nan() or number.copy_abs().scaleb(scale, exact) >= 10**precision:
                raise ValueError(f"more than {precision - scale} digits before the point")
        except DecimalException as error:
            raise ValueError("not a decimal number that fits") from error
        return format(number if number else number.copy_abs(), "f")

    return convert


def _text(value: Value) -> str:
    if type(value) is str and value.isascii():  # what most are
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        raise ValueError("bytes are not text")
    text = str(value)
    if not text.isascii():
        text.encode()  # a lone surrogate has no UTF-8 form
    return text


def _timestamp(value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("not a timestamp")
    try:
        number = parse_timestamp(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError("not a timestamp in ISO 8601") from error
    if not TIMESTAMP_MIN <= number <= TIMESTAMP_MAX:
        raise ValueError("timestamps lie in the years 1 to 9999")
    return number


def _date(value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("not a date")
    if isinstance(value, str):
        try:
            return (date.fromisoformat(value.strip()) - _EPOCH.date()).days
        except ValueError:
            pass
        try:
            return _timestamp(value) // DAY_US
        except ValueError as error:
            raise ValueError("not a date in ISO 8601") from error
    if not TIMESTAMP_MIN <= value * DAY_US <= TIMESTAMP_MAX:
        raise ValueError("dates lie in the years 1 to 9999")
    return value


def _time(value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("not a time of day")
    if isinstance(value, str):
        try:
            found = time.fromisoformat(value.strip())
        except ValueError as error:
            raise ValueError("not a time of day in ISO 8601") from error
        if found.tzinfo is not None:
            raise ValueError("a time of day has no zone")
        return ((found.hour * 60 + found.minute) * 60 + found.second) * 1_000_000 + found.microsecond
    if not 0 <= value < DAY_US:
        raise ValueError("a day has 86,400,000,000 microseconds")
    return value


def format_date(days: int) -> str:
    """Return days since 1970-01-01 as ISO 8601."""
    return (_EPOCH.date() + timedelta(days=days)).isoformat()


def format_time(time_us: int) -> str:
    """Return microseconds of the day as ISO 8601 with six decimals."""
    return (_EPOCH + time_us * _MICROSECOND).time().isoformat(timespec="microseconds")


def _uuid(value: Value) -> str:
    try:
        return str(uuid.UUID(str(value).strip()))
    except ValueError as error:
        raise ValueError("not a UUID") from error


def _json(value: Value) -> str:
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from error
        return _text(value)
    if isinstance(value, bytes):
        raise ValueError("bytes are not JSON")
    return json.dumps(value)


def _bytes(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return bytes.fromhex(value.removeprefix("\\x"))
        except ValueError as error:
            raise ValueError("not hexadecimal digits") from error
    raise ValueError("not bytes")


def _shown(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_COERCIONS: dict[SqlType, Callable[[Value], Value]] = {
    SqlType.BOOLEAN: _boolean,
    SqlType.SMALLINT: _integer(16),
    SqlType.INT: _integer(32),
    SqlType.BIGINT: _integer(64),
    SqlType.FLOAT: _float,
    SqlType.DOUBLE: _double,
    SqlType.TEXT: _text,
    SqlType.TIMESTAMP: _timestamp,
    SqlType.DATETIME: _timestamp,
    SqlType.DATE: _date,
    SqlType.TIME: _time,
    SqlType.UUID: _uuid,
    SqlType.JSON: _json,
    SqlType.BYTES: _bytes,
}
