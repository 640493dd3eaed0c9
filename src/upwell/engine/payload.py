"""Payloads: rows as devices write and read them, one JSON object a row.

    BOOLEAN 0 or 1 · integers numbers · DOUBLE number · TEXT, JSON, UUID (dashed) strings
    TIMESTAMP, DATETIME ISO 8601 text in UTC · DATE, TIME ISO 8601 text · DECIMAL text · BYTES base64

Law: a payload comes back as it was uploaded. Where the columns alone would not give it back (seconds
instead of a timestamp, a missing or unknown key), its text is kept beside the row, and a change by SQL
replaces only the keys that it changed, in the form that the device used there: a timestamp in its unit,
true as true, a base64 UUID in base64, an integer in text as text, a JSON document as a document.
"""

import base64
import binascii
import math
import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from types import NoneType

import msgspec
from msgspec import Raw

from upwell.engine.catalog import Table
from upwell.errors import InvalidValue
from upwell.storage.hot import Version
from upwell.types import Column, Row, SqlType, Value, coerce, format_date, format_time, format_timestamp

SECONDS_MAX = 100_000_000_000
MILLISECONDS_MAX = 100_000_000_000_000
_BASE64_UUID_CHARS = 24
_DOUBLE_CHARS_SAFE = 16
_MOMENTS = (SqlType.TIMESTAMP, SqlType.DATETIME)
_CONVERTED = (SqlType.BOOLEAN, *_MOMENTS, SqlType.DATE, SqlType.TIME, SqlType.BYTES)

# Of a moment as text: separator, seconds, fraction and zone, as far as they are there.
_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d(?:([ T])\d\d:\d\d(:\d\d(\.\d{3}|\.\d{6})?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII
)

_canonical = msgspec.json.Encoder(order="deterministic")
_raw_object = msgspec.json.Decoder(dict[str, Raw])


def _number(text: str) -> float | Decimal:
    """Return a JSON number as a double if that has all its digits."""
    number = float(text)
    if len(text) <= _DOUBLE_CHARS_SAFE and "e" not in text.lower():
        return number
    if math.isinf(number):
        raise ValueError("a number is out of range")
    exact = Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


_decode = msgspec.json.Decoder(float_hook=_number).decode


@dataclass(frozen=True, slots=True)
class Parsed:
    """An uploaded payload: values by column index (but the key's), its text, and what that says."""

    values: dict[int, Value]
    text: str
    canonical: bytes


def parse_payload(table: Table, payload: bytes) -> Parsed:
    """Read a payload; keys that are no column are kept in the text only.

    Raises `ValueError` if it is no JSON object, `InvalidValue` if a column can't hold its value.
    """
    try:
        return _parse(table, payload)
    except RecursionError as error:
        raise ValueError("payload is nested too deeply") from error


def reparsed(table: Table, parsed: Parsed) -> Parsed:
    """Return what a payload says to a newer version of its table; raise as `parse_payload` does."""
    return parse_payload(table, parsed.text.encode()) if parsed.text else parsed


def kept_text(table: Table, row: Row, parsed: Parsed, before: Row | None, uploaded: str | None) -> str | None:
    """Return the text to keep beside `row`, None if the columns alone give it back.

    What an upload leaves out of a live row stays there, and so it stays in the row's payload; `before` and
    `uploaded` are that row and its kept text.
    """
    canonical, text = parsed.canonical, parsed.text
    if before is not None and (stays := _left_out(table, before, uploaded, text)):
        text = msgspec.json.encode({**_raw_object.decode(text), **stays}).decode()
        canonical = _canonical.encode(_decode(text))
    return None if canonical == _canonical.encode(_as_object(table, row)) else text


def payload_of(table: Table, row: Row, uploaded: str | None) -> bytes:
    """Return a row's payload: the text that was uploaded, or one built from the columns."""
    return uploaded.encode() if uploaded is not None else msgspec.json.encode(_as_object(table, row))


def device_columns(table: Table) -> list[str]:
    """Return the names of the columns in the order of `device_rows`: the key first."""
    names = [column.name for column in table.columns]
    names.insert(0, names.pop(table.key_index))
    return names


def device_rows(table: Table, rows: Sequence[Row]) -> list[Sequence[object]]:
    """Return many rows as their payloads show them, as lists of values (rows × columns), the key first.

    A row that is shorter than the table's columns stays shorter. The given rows aren't changed.
    """
    found: list[Sequence[object]] = []
    for length, run in groupby(rows, len):
        found += _device_run(table, length, list(run))
    return found


def text_without(table: Table, row: Row, left_out: Collection[int]) -> str:
    """Return the payload of a row without the columns of these indexes."""
    content = _as_object(table, row)
    for index in left_out:
        del content[table.columns[index].name]
    return msgspec.json.encode(content).decode()


def text_after(table: Table, before: Version, after: Row) -> str | None:
    """Return what stays of the kept text of a live version when the back end changes its row."""
    if before.uploaded is None or before.row is None:
        return None
    return patched_text(table, before.uploaded, before.row, after)


def patched_text(table: Table, uploaded: str, before: Row, after: Row) -> str:
    """Return the uploaded text with the values of changed columns replaced, in the form that was used."""
    content = _raw_object.decode(uploaded)
    names = {name.lower(): name for name in content}
    for column, old, new in zip(table.columns, before, after, strict=True):
        if old != new:
            name = names.get(column.name, column.name)
            value = _in_form(new, column, content.get(name))
            content[name] = Raw(msgspec.json.encode(value))
    return msgspec.json.encode(content).decode()


def _parse(table: Table, payload: bytes) -> Parsed:
    content = _decode(payload)
    if not isinstance(content, dict):
        raise ValueError("payload is no JSON object")
    values: dict[int, Value] = {}
    for name, each in content.items():
        value = float(each) if isinstance(each, Decimal) else each
        index = table.index_of.get(name.lower())
        if index is not None and index != table.key_index:
            column = table.columns[index]
            if value == "" and _is_nothing(table, index):
                value = None
            elif column.type is SqlType.JSON and isinstance(value, (dict, list, int, float)):
                # As it was written: numbers keep their digits.
                value = bytes(_raw_object.decode(payload)[name]).decode()
            values[index] = _from_device(value, column)
    return Parsed(values, payload.decode(), _canonical.encode(content))


def _is_nothing(table: Table, index: int) -> bool:
    """Whether an empty text in this column is no value: stock clients write a NULL BLOB so, also as a key."""
    is_reference = any(index in reference.columns for reference in table.references)
    return is_reference or table.columns[index].type is SqlType.UUID


def _left_out(table: Table, before: Row, uploaded: str | None, text: str) -> dict[str, Raw]:
    """Return the members of the payload before that `text` doesn't name."""
    named = {name.lower() for name in _raw_object.decode(text)}
    stood = _raw_object.decode(payload_of(table, before, uploaded))
    return {name: value for name, value in stood.items() if name.lower() not in named}


def _device_run(table: Table, length: int, rows: Sequence[Row]) -> Sequence[Sequence[object]]:
    columns = table.columns[:length]
    if table.key_index == 0 and not any(column.type in _CONVERTED for column in columns):
        return rows
    values: list[Sequence[object]] = list(zip(*rows, strict=True))
    for index, column in enumerate(columns):
        if column.type in _CONVERTED:
            values[index] = [_to_device(value, column) for value in values[index]]
    values.insert(0, values.pop(table.key_index))
    return list(zip(*values, strict=True))


def _as_object(table: Table, row: Row) -> dict[str, object]:
    # A row that was written before columns were added may be shorter than the table.
    return {column.name: _to_device(value, column) for column, value in zip(table.columns, row, strict=False)}


def _to_device(value: object, column: Column) -> object:
    # By the value's type where that says it: most values are text, and this is asked for each.
    match value:
        case str():
            return value
        case bool():
            return int(value)
        case int() if column.type in _MOMENTS:
            return format_timestamp(value)
        case int() if column.type is SqlType.DATE:
            return format_date(value)
        case int() if column.type is SqlType.TIME:
            return format_time(value)
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return value


def _in_form(value: Value, column: Column, old: Raw | None) -> object:
    """Return a value as the device wrote the old one: a timestamp as seconds, or as a date, if it was."""
    was = None if old is None else msgspec.json.decode(old)
    match column.type, value, was:
        case SqlType.BOOLEAN, bool(), bool():
            return value
        case SqlType.SMALLINT | SqlType.INT | SqlType.BIGINT, int(), str():
            return str(value)
        case SqlType.TIMESTAMP | SqlType.DATETIME, int(), int() | float() if not isinstance(was, bool):
            return _timestamp_like(value, was, column)
        case SqlType.TIMESTAMP | SqlType.DATETIME, int(), str() if form := _MOMENT.fullmatch(was):
            return _moment_like(value, form)
        case SqlType.UUID, str(), str() if len(was) == _BASE64_UUID_CHARS:
            return base64.b64encode(uuid.UUID(value).bytes).decode()
        case SqlType.JSON, str(), dict() | list() | int() | float():
            return _document(value)
        case _:
            return _to_device(value, column)


def _timestamp_like(value: int, was: int | float, column: Column) -> object:
    unit_us = _timestamp_unit_us(was)
    number = value // unit_us if isinstance(was, int) else value / unit_us
    # A number tells its unit by its size: one that would tell another becomes text.
    return number if _timestamp_unit_us(number) == unit_us else _to_device(value, column)


def _moment_like(value: int, form: re.Match[str]) -> str:
    """Return a timestamp as text of the same parts, and more of them only if it would lose something."""
    separator, seconds, fraction, zone = form.groups()
    at = datetime.fromisoformat(form[0]).tzinfo or UTC
    try:
        moment = (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=value)).astimezone(at)
    except OverflowError:  # beyond the calendar in that zone
        return format_timestamp(value)
    midnight = (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)
    if separator is None:
        return moment.date().isoformat() if midnight else format_timestamp(value)
    if moment.microsecond % 1000 or len(fraction or "") > 4:
        precision = "microseconds"
    elif moment.microsecond or fraction:
        precision = "milliseconds"
    else:
        precision = "seconds" if moment.second or seconds else "minutes"
    text = moment.replace(tzinfo=None if zone in (None, "Z") else at).isoformat(separator, precision)
    return text + "Z" if zone == "Z" else text


def _document(text: str) -> object:
    """Return JSON text as the document itself, or as text if a device would read something else there."""
    try:
        is_text = isinstance(msgspec.json.decode(text), (str, NoneType))
    except (ValueError, RecursionError):  # SQL takes a bit more for JSON: NaN
        is_text = True
    return text if is_text else Raw(text.encode())


def _from_device(value: object, column: Column) -> Value:
    if isinstance(value, (dict, list)):
        raise InvalidValue(f"column '{column.name}' ({column.type.name}) cannot hold a JSON {_kind(value)}")
    assert value is None or isinstance(value, (bool, int, float, str))
    match column.type:
        case SqlType.TIMESTAMP | SqlType.DATETIME if isinstance(value, (int, float)) and not isinstance(
            value, bool
        ):
            return coerce(int(value * _timestamp_unit_us(value)), column)
        case SqlType.BYTES if isinstance(value, str):
            return _from_base64(value, column)
        case SqlType.UUID if isinstance(value, str) and len(value) == _BASE64_UUID_CHARS:
            return coerce(_from_base64(value, column).hex(), column)
        case _:
            return coerce(value, column)


def _from_base64(text: str, column: Column) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidValue(f"column '{column.name}' needs base64: {error}") from error


def _timestamp_unit_us(number: int | float) -> int:
    """Return the unit of a timestamp number by its size: seconds until the year 5138, else ms, else µs."""
    if abs(number) < SECONDS_MAX:
        return 1_000_000
    return 1_000 if abs(number) < MILLISECONDS_MAX else 1


def _kind(value: object) -> str:
    return "object" if isinstance(value, dict) else "array"
