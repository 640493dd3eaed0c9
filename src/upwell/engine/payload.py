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


def kept_text(table: Table, row: Row, parsed: Parsed, before: Row | None, uploaded: str | None) -> str | None:
    """Return the text to keep beside `row`, None if the columns alone give it back.

    What an upload leaves out of a live row stays there, and so it stays in the row's payload; `before` and
    `uploaded` are that row and its kept text.
    """
    canonical, text = parsed.canonical, parsed.text
    if before is not None and (stays := _left_out(table, before, uploaded, text)):
        text = msgspec.json.encode({**_raw_object.decode(text), **stays}).decode()
        canonical = _canonical.encode(msgspec.json.decode(text))
    return None if canonical == _canonical.encode(_as_object(table, row)) else text


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


def _parse(table: Table, payload: bytes) -> Parsed:
    content = msgspec.json.decode(payload)
    if not isinstance(content, dict):
        raise ValueError("payload is no JSON object")
    values: dict[int, Value] = {}
    for name, value in content.items():
        index = table.index_of.get(name.lower())
        if index is not None and index != table.key_index:
            column = table.columns[index]
            if column.type is SqlType.JSON and isinstance(value, (dict, list, int, float)):
                # As it was written: numbers keep their digits.
                value = bytes(_raw_object.decode(payload)[name]).decode()
            values[index] = _from_device(value, column)
    return Parsed(values, payload.decode(), _canonical.encode(content))


def _left_out(table: Table, before: Row, uploaded: str | None, text: str) -> dict[str, Raw]:
    """Return the members of the payload before that `text` doesn't name."""
    named = {name.lower() for name in _raw_object.decode(text)}
    stood = _raw_object.decode(payload_of(table, before, uploaded))
    return {name: value for name, value in stood.items() if name.lower() not in named}


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
    was = None if old is None else msgspec.json.decode(old)
    if column.type is SqlType.BOOLEAN and isinstance(value, bool) and isinstance(was, bool):
        return value
    if isinstance(was, bool) or not isinstance(was, (int, float)):
        return _to_device(value, column)
    if column.type is SqlType.TIMESTAMP and isinstance(value, int):
        unit_us = _timestamp_unit_us(was)
        number = value // unit_us if isinstance(was, int) else value / unit_us
        # A number tells its unit by its size: one that would tell another becomes text.
        if _timestamp_unit_us(number) == unit_us:
            return number
    return _to_device(value, column)


def _from_device(value: object, column: Column) -> Value:
    if isinstance(value, (dict, list)):
        raise InvalidValue(f"column '{column.name}' ({column.type.name}) cannot hold a JSON {_kind(value)}")
    assert value is None or isinstance(value, (bool, int, float, str))
    match column.type:
        case SqlType.TIMESTAMP if isinstance(value, (int, float)) and not isinstance(value, bool):
            return coerce(int(value * _timestamp_unit_us(value)), column)
        case SqlType.BYTES if isinstance(value, str):
            return _from_base64(value, column)
        case SqlType.UUID if isinstance(value, str) and len(value) == 24:
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
