"""A payload comes back as it was uploaded, and SQL changes only the keys that it changed."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.engine.catalog import Table, TableKind
from upwell.engine.payload import (
    device_columns,
    device_rows,
    kept_text,
    parse_payload,
    patched_text,
    payload_of,
)
from upwell.errors import InvalidValue
from upwell.types import Column, Row, SqlType, TableId, parse_timestamp

KEY = "00000000-0000-4000-8000-000000000001"
NAMES = {
    "flag": SqlType.BOOLEAN, "small": SqlType.SMALLINT, "big": SqlType.BIGINT, "real": SqlType.DOUBLE,
    "text": SqlType.TEXT, "moment": SqlType.TIMESTAMP, "ref": SqlType.UUID, "doc": SqlType.JSON,
    "data": SqlType.BYTES,
}  # fmt: skip
COLUMNS = (
    Column(1, "id", SqlType.UUID, nullable=False, primary_key=True),
    *(Column(number, name, kind) for number, (name, kind) in enumerate(NAMES.items(), 2)),
)
TABLE = Table(TableId(1), "app", "things", TableKind.USER, COLUMNS, synced=True)

_INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
_SECONDS = st.integers(-(10**9), 10**10)
_JSON = st.recursive(
    st.none() | st.booleans() | _INT64 | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "id": st.just(KEY),
    "flag": st.sampled_from([0, 1, True, False, None]),
    "small": st.integers(-(1 << 15), (1 << 15) - 1) | st.none(),
    "big": _INT64 | st.none(),
    "real": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5) | st.none(),
    "text": st.text(max_size=8) | st.integers(0, 9) | st.none(),
    "moment": _SECONDS
    | _SECONDS.map(lambda s: s * 1000 + 10**14)
    | st.just("2025-10-09T08:53:20Z")
    | st.none(),
    "ref": st.uuids().map(str) | st.none(),
    "doc": _JSON.map(json.dumps) | st.dictionaries(st.text(max_size=3), _JSON, max_size=3) | st.none(),
    "data": st.binary(max_size=6).map(lambda data: base64.b64encode(data).decode()) | st.none(),
    "unknown": _JSON,
}
PAYLOADS = st.fixed_dictionaries({}, optional=_MEMBERS)


def stored(payload: dict[str, Any], before: tuple[Row, str | None] | None = None) -> tuple[Row, str | None]:
    """Do what an upload does to a row and its kept text."""
    parsed = parse_payload(TABLE, json.dumps(payload).encode())
    row: Row = list(before[0]) if before else [None] * len(COLUMNS)
    for index, value in parsed.values.items():
        row[index] = value
    row[TABLE.key_index] = KEY
    was, uploaded = before or (None, None)
    return row, kept_text(TABLE, row, parsed, was, uploaded)


def shown(found: tuple[Row, str | None]) -> str:
    """The payload that devices get, with its keys sorted."""
    return json.dumps(json.loads(payload_of(TABLE, *found)), sort_keys=True)


@given(PAYLOADS)
def test_a_payload_comes_back_as_it_was_uploaded(payload: dict[str, Any]) -> None:
    assert shown(stored(payload)) == json.dumps(payload, sort_keys=True)


@given(PAYLOADS, st.integers(1, len(COLUMNS)), st.integers(0, len(COLUMNS) - 1))
def test_many_rows_are_shown_as_each_alone(payload: dict[str, Any], length: int, key_index: int) -> None:
    """Whatever the column of the key; a row from before columns were added stays as short as it was."""
    rest = COLUMNS[1:]
    table = replace(TABLE, columns=(*rest[:key_index], COLUMNS[0], *rest[key_index:]))
    whole = stored(payload)[0]
    row: Row = [*whole[1 : 1 + key_index], KEY, *whole[1 + key_index :]]
    rows: list[Row] = [row, row[: max(length, key_index + 1)], row]
    given_rows = [list(each) for each in rows]
    names = device_columns(table)
    found = [
        json.loads(json.dumps(dict(zip(names, each, strict=False)))) for each in device_rows(table, rows)
    ]
    assert found == [json.loads(payload_of(table, each, None)) for each in rows]
    assert [len(each) for each in found] == [len(each) for each in rows]
    assert names[0] == "id"
    assert rows == given_rows


@given(PAYLOADS, PAYLOADS)
def test_an_update_replaces_what_it_names_and_keeps_the_rest(
    old: dict[str, Any], new: dict[str, Any]
) -> None:
    before = stored(old)
    after = stored(new, before)
    assert shown(after) == json.dumps({**old, **new}, sort_keys=True)
    # The columns say the same as if all had come at once.
    assert after[0] == stored({**old, **new})[0]


@given(PAYLOADS, PAYLOADS, st.sets(st.sampled_from(sorted(NAMES))))
def test_sql_changes_only_what_it_changes(old: dict[str, Any], new: dict[str, Any], names: set[str]) -> None:
    before, uploaded = stored(old)
    other, _ = stored(new)
    after = list(before)
    for name in names:
        after[TABLE.index_of[name]] = other[TABLE.index_of[name]]
    changed = {name for name in names if before[TABLE.index_of[name]] != after[TABLE.index_of[name]]}
    text = None if uploaded is None else patched_text(TABLE, uploaded, before, after)

    found = json.loads(payload_of(TABLE, after, text))

    rest = {name: value for name, value in found.items() if name not in changed}
    unchanged = {name: value for name, value in old.items() if name not in changed}
    assert json.dumps(rest, sort_keys=True) == json.dumps(unchanged, sort_keys=True)
    # Uploaded again, it means what SQL wrote; only parts of the device's time unit get lost.
    again, _ = stored(found)
    for column, wanted, got in zip(COLUMNS, after, again, strict=True):
        if column.type is SqlType.TIMESTAMP and isinstance(wanted, int) and isinstance(got, int):
            assert 0 <= wanted - got < 1_000_000
        else:
            assert got == wanted, column.name


@pytest.mark.parametrize(
    "text", [b"", b"[1]", b"7", b"null", b"{", b'{"a":NaN}', b"[" * 9999, b'{"doc":' + b"[" * 9999]
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_payload(TABLE, text)


@pytest.mark.parametrize("depth", [200, 400, 800, 1600, 3200])
def test_a_deep_document_is_stored_or_refused(depth: int) -> None:
    text = b'{"doc":' + b"[" * depth + b"]" * depth + b"}"
    try:
        parsed = parse_payload(TABLE, text)
    except ValueError:
        return
    row: Row = [None] * len(COLUMNS)
    row[TABLE.key_index] = KEY
    row[TABLE.index_of["doc"]] = parsed.values[TABLE.index_of["doc"]]
    kept = kept_text(TABLE, row, parsed, None, None)
    assert payload_of(TABLE, row, kept) == text


def test_a_value_that_its_column_cannot_hold_is_named() -> None:
    with pytest.raises(InvalidValue, match="column 'small'"):
        parse_payload(TABLE, b'{"small":[1]}')


@pytest.mark.parametrize(
    ("was", "now", "shown"),
    [
        ("2026-01-01", "2026-03-03T00:00:00Z", "2026-03-03"),
        ("2026-01-01", "2026-03-03T10:00:00Z", "2026-03-03T10:00:00.000000Z"),
        ("2026-01-01 10:00", "2026-03-03T11:30:00Z", "2026-03-03 11:30"),
        ("2026-01-01 10:00", "2026-03-03T11:30:05Z", "2026-03-03 11:30:05"),
        ("2026-01-01T10:00:00", "2026-03-03T11:30:05.25Z", "2026-03-03T11:30:05.250"),
        ("2026-01-01 10:00:00.123Z", "2026-03-03T11:30:05Z", "2026-03-03 11:30:05.000Z"),
        ("2026-01-01T10:00:00+02:00", "2026-03-03T11:30:05Z", "2026-03-03T13:30:05+02:00"),
        ("Thu, 01 Jan 2026", "2026-03-03T11:30:05Z", "2026-03-03T11:30:05.000000Z"),
    ],
)
def test_sql_keeps_the_form_of_a_moment_as_text(was: str, now: str, shown: str) -> None:
    table = Table(
        TableId(1),
        "app",
        "t",
        TableKind.USER,
        (Column(1, "id", SqlType.TEXT, False, True), Column(2, "at", SqlType.TIMESTAMP)),
    )
    after = ["k", parse_timestamp(now)]
    text = patched_text(table, json.dumps({"id": "k", "at": was}), ["k", 0], after)
    assert json.loads(text) == {"id": "k", "at": shown}
