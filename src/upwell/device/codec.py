"""Payloads and keys between the file and the wire, by an explicit rule per column.

Law: a BLOB primary key is a dashed UUID on the wire and lower hex in `_sync_` tables; any other BLOB column
is base64 on the wire and lower hex there; everything else is the JSON value itself, integers intact.
"""

import base64
import binascii
import re
import sqlite3
import uuid
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from upwell.device.schema import Column, Row, SqlValue, TableShape, payload_expression, quoted

Json: TypeAlias = Any
JsonObject: TypeAlias = dict[str, Json]

encode_json = msgspec.json.encode

# What SQLite takes as it comes (not bool, which is an int too).
_PLAIN = frozenset((int, float, str, type(None)))


_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Undecodable(ValueError):
    """A value from the server that its column can't hold."""


def decode_object(payload: bytes | str) -> JsonObject:
    """Decode a JSON object."""
    return msgspec.json.decode(payload, type=dict[str, Json])


def key_to_wire(shape: TableShape, key: str) -> str:
    """Local key → wire key."""
    is_uuid = shape.primary_key.is_blob and len(key) == 32
    return str(uuid.UUID(key)) if is_uuid else key


def key_from_wire(shape: TableShape, key: str) -> str:
    """Wire key → local key."""
    if not shape.primary_key.is_blob:
        return key
    try:
        return uuid.UUID(key).hex
    except ValueError:
        return key.lower()


def is_uuid(key: str) -> bool:
    """Whether a key is a UUID as the wire has it: dashed, lower case."""
    return _UUID.fullmatch(key) is not None


def written_key(shape: TableShape, wire_key: str, payload: str) -> str:
    """Return a text key as the payload writes it, if that is the same UUID in another form."""
    name = shape.primary_key.wire
    if not is_uuid(wire_key) or f'"{wire_key}"' in payload:
        return wire_key
    try:
        members = decode_object(payload)
    except msgspec.MsgspecError:
        return wire_key
    written = next((value for wire, value in members.items() if wire.lower() == name), None)
    is_same = isinstance(written, str) and written.replace("-", "").lower() == wire_key.replace("-", "")
    return str(written) if is_same else wire_key


def keys_from_wire(shape: TableShape, keys: Sequence[str]) -> Sequence[str]:
    """Wire keys → local keys."""
    return [key_from_wire(shape, key) for key in keys] if shape.primary_key.is_blob else keys


def key_value(shape: TableShape, key: str) -> SqlValue:
    """Local key → the value of the primary key column."""
    if not shape.primary_key.is_blob:
        return key
    try:
        return bytes.fromhex(key)
    except ValueError as cause:
        raise Undecodable(f"{key!r} is not the hex of a BLOB key of {shape.name}") from cause


def payload_to_wire(shape: TableShape, payload: str, extra: JsonObject) -> bytes:
    """Captured payload → wire payload, completed by the columns that only the server knows."""
    if not extra and not any(column.is_blob for column in shape.columns):
        return payload.encode()
    row = {**extra, **decode_object(payload)}
    for column in shape.columns:
        value = row.get(column.wire)
        if column.is_blob and value is not None:
            row[column.wire] = _blob_to_wire(shape, column, value)
    return encode_json(row)


def _blob_to_wire(shape: TableShape, column: Column, value: str) -> str:
    if column is shape.primary_key:
        return key_to_wire(shape, value)
    return base64.b64encode(bytes.fromhex(value)).decode()


def row_from_wire(shape: TableShape, key: str, payload: bytes | str) -> tuple[Row, JsonObject]:
    """Wire payload → (row by column name, what the table has no column for); raise `Undecodable`."""
    row: Row = {}
    extra: JsonObject = {}
    try:
        members = decode_object(payload)
    except msgspec.MsgspecError as cause:
        raise Undecodable(str(cause)) from cause
    for wire, value in members.items():
        column = shape.column(wire.lower())
        if column is None:
            extra[wire] = value
        elif column is not shape.primary_key:
            row[column.name] = _value_from_wire(column, value)
    row[shape.primary_key.name] = key_value(shape, key)
    return row, extra


def values_from_wire(column: Column, values: Sequence[Json]) -> Sequence[SqlValue]:
    """Wire values of one column → what the column holds; raise `Undecodable`."""
    types = set(map(type, values))
    if not column.is_blob and types <= _PLAIN and not (int in types and _has_beyond(values, types)):
        return values
    return [_value_from_wire(column, value) for value in values]


def _value_from_wire(column: Column, value: Json) -> SqlValue:
    if column.is_blob and value is not None:
        return _blob_from_wire(column, value)
    if isinstance(value, bool):
        return int(value)
    if _is_beyond(value):
        return float(value)
    if value is None or isinstance(value, (int, float, str)):
        return value
    return encode_json(value).decode()


def _has_beyond(values: Sequence[Json], types: set[type]) -> bool:
    if types == {int}:
        return _is_beyond(min(values)) or _is_beyond(max(values))
    return any(map(_is_beyond, values))


def _is_beyond(value: Json) -> bool:
    """Whether it is an integer that SQLite has no integer for; its own literals become REAL then, too."""
    return type(value) is int and not -(1 << 63) <= value < 1 << 63


def _blob_from_wire(column: Column, value: Json) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as cause:
        raise Undecodable(f"column {column.name} is a BLOB, its value isn't base64") from cause


def row_from_capture(shape: TableShape, payload: str | None) -> Row | None:
    """Captured payload → row by column name."""
    if payload is None:
        return None
    row: Row = {}
    for wire, value in decode_object(payload).items():
        column = shape.column(wire)
        if column is not None:
            row[column.name] = bytes.fromhex(value) if column.is_blob and value is not None else value
    return row


def captured(connection: sqlite3.Connection, shape: TableShape, key: str) -> str | None:
    """Read the payload that a trigger would capture of the row now; None if there is no such row."""
    name = quoted(shape.primary_key.name)
    found = connection.execute(
        f"SELECT {payload_expression(shape, 'present')} FROM {quoted(shape.name)} AS present"
        f" WHERE {name} = ?",
        (key_value(shape, key),),
    ).fetchone()
    return None if found is None else str(found[0])
