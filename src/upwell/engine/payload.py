"""Payloads: rows as devices write and read them, one JSON object a row.

    BOOLEAN 0 or 1 · integers numbers · DOUBLE number · TEXT, JSON, UUID (dashed) strings
    TIMESTAMP ISO 8601 text in UTC · BYTES base64

Law: a payload comes back as it was uploaded. Where the columns alone would not give it back (seconds
instead of a timestamp, a missing or unknown key), its text is kept beside the row, and a change by SQL
replaces only the keys that it changed.
"""

import base64
import binascii
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from upwell.engine.catalog import Table
from upwell.errors import InvalidValue
from upwell.types import Column, Row, SqlType, Value, coerce, format_timestamp

SECONDS_MAX = 100_000_000_000
MILLISECONDS_MAX = 100_000_000_000_000

_canonical = msgspec.json.Encoder(order="deterministic")
_raw_object = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True, slots=True)
class Parsed:
    """An uploaded payload: values by column index, and its text."""

    values: dict[int, Value]
    text: str


def parse_payload(table: Table, payload: bytes) -> Parsed:
    """Read a payload; keys that are no column are kept in the text only.

    Raises `ValueError` if it is no JSON object, `InvalidValue` if a column can't hold its value.
    """
    content = msgspec.json.decode(payload)
    if not isinstance(content, dict):
        raise ValueError("payload is no JSON object")
    index_of = table.index_of
    values: dict[int, Value] = {}
    for name, value in content.items():
        index = index_of.get(name.lower())
        if index is not None:
            values[index] = _from_device(value, table.columns[index])
    return Parsed(values, payload.decode())


def kept_text(table: Table, row: Row, text: str) -> str | None:
    """Return the uploaded text if the columns alone don't give it back, else None."""
    built = _canonical.encode(_as_object(table, row))
    return None if built == _canonical.encode(msgspec.json.decode(text)) else text


def payload_of(table: Table, row: Row, uploaded: str | None) -> bytes:
    """Return a row's payload: the text that was uploaded, or one built from the columns."""
    return uploaded.encode() if uploaded is not None else msgspec.json.encode(_as_object(table, row))


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


def _as_object(table: Table, row: Row) -> dict[str, object]:
    return {column.name: _to_device(value, column) for column, value in zip(table.columns, row, strict=True)}


def _to_device(value: Value, column: Column) -> object:
    if value is None:
        return None
    match column.type:
        case SqlType.BOOLEAN:
            return int(value)
        case SqlType.TIMESTAMP:
            assert isinstance(value, int)
            return format_timestamp(value)
        case SqlType.BYTES:
            assert isinstance(value, bytes)
            return base64.b64encode(value).decode()
        case _:
            return value


def _in_form(value: Value, column: Column, old: Raw | None) -> object:
    """Return a value as the device wrote the old one: a timestamp as seconds if it was seconds."""
    if column.type is SqlType.TIMESTAMP and isinstance(value, int) and old is not None:
        was = msgspec.json.decode(old)
        if isinstance(was, int) and not isinstance(was, bool):
            return value // _timestamp_unit_us(was)
    if column.type is SqlType.BOOLEAN and value is not None and old in (Raw(b"true"), Raw(b"false")):
        return bool(value)
    return _to_device(value, column)


def _from_device(value: object, column: Column) -> Value:
    if isinstance(value, (dict, list)):
        if column.type is SqlType.JSON:
            return msgspec.json.encode(value).decode()
        raise InvalidValue(f"column '{column.name}' ({column.type.name}) cannot hold a JSON {_kind(value)}")
    assert value is None or isinstance(value, (bool, int, float, str))
    match column.type:
        case SqlType.TIMESTAMP if isinstance(value, (int, float)) and not isinstance(value, bool):
            return coerce(int(value * _timestamp_unit_us(value)), column)
        case SqlType.BYTES if isinstance(value, str):
            return _from_base64(value, column)
        case SqlType.UUID if isinstance(value, str) and len(value) == 24:
            return coerce(_from_base64(value, column).hex(), column)
        case SqlType.JSON if isinstance(value, (bool, int, float)):
            return msgspec.json.encode(value).decode()
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
