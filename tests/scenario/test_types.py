"""Types: what a value becomes on its way through HTTP, a table, both tiers and back.

Written from the reference contract, sections 1.5, 3.3, 3.6. The oracle is computed here.
"""

import json
import math
import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upwell.testing.wire import Site, Wire

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**63 - 1, -(2**63), 2**53, 2**53 + 1, 0, -1])
FINITE = st.floats(allow_nan=False, allow_infinity=False)
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Kind:
    """A SQL type: what is sent for a value, and the cell that has to come back."""

    name: str
    data_type: str
    values: st.SearchStrategy[object]
    sent: Callable[[object], object]
    cell: Callable[[object], object]


def _same(value: object) -> object:
    return value


KINDS = (
    Kind("BOOLEAN", "Boolean", st.booleans(), _same, _same),
    Kind("SMALLINT", "SmallInt", st.integers(-(2**15), 2**15 - 1), _same, _same),
    Kind("INT", "Int", st.integers(-(2**31), 2**31 - 1), _same, _same),
    Kind("BIGINT", "BigInt", INT64, _same, str),
    Kind("DOUBLE", "Double", FINITE, _same, _same),
    Kind("TEXT", "Text", TEXT, _same, _same),
    Kind("TIMESTAMP", "Timestamp", MOMENTS.map(_micros), _same, _same),
    Kind("TIMESTAMP", "Timestamp", MOMENTS, lambda m: m.isoformat(), _micros),  # type: ignore[attr-defined,arg-type]
    Kind("UUID", "Uuid", st.uuids(), str, str),
    Kind("UUID", "Uuid", st.uuids(), lambda u: f"{{{str(u).upper()}}}", str),
    Kind("UUID", "Uuid", st.uuids(), lambda u: u.hex, str),  # type: ignore[attr-defined]
    Kind("JSON", "Json", JSON.map(lambda v: json.dumps(v)), _same, _same),
)


@pytest.fixture(scope="module")
def wide(site: Site) -> str:
    """A table with a column of every kind."""
    table = f"{site.namespace()}.wide"
    columns = ", ".join(f"c{index} {kind.name}" for index, kind in enumerate(KINDS))
    site.root.run(f"CREATE USER TABLE {table} (id BIGINT PRIMARY KEY, {columns})")
    return table


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(*(st.none() | kind.values for kind in KINDS)), min_size=1, max_size=3))
def test_values_come_back_as_they_went(site: Site, wide: str, rows: Sequence[Sequence[object]]) -> None:
    """Insert by parameters; read by key, by scan, and by the same values in WHERE."""
    root = site.root
    names = ", ".join(f"c{index}" for index in range(len(KINDS)))
    marks = ", ".join(f"${index + 2}" for index in range(len(KINDS)))
    root.run(f"DELETE FROM {wide}")
    expected = []
    for number, row in enumerate(rows):
        sent = [None if value is None else kind.sent(value) for value, kind in zip(row, KINDS, strict=True)]
        root.run(f"INSERT INTO {wide} (id, {names}) VALUES ($1, {marks})", number, *sent)
        cells = [None if value is None else kind.cell(value) for value, kind in zip(row, KINDS, strict=True)]
        expected.append([str(number), *cells])
    scan = root.run(f"SELECT id, {names} FROM {wide}")
    assert _exact(scan.rows) == _exact(expected)
    assert [data_type for _, data_type in scan.columns[1:]] == [kind.data_type for kind in KINDS]
    for number, row in enumerate(expected):
        assert _exact(root.run(f"SELECT id, {names} FROM {wide} WHERE id = {number}").rows) == _exact([row])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=INT64, text=TEXT, double=FINITE)
def test_literals_mean_what_they_say(site: Site, wide: str, number: int, text: str, double: float) -> None:
    """The same value as a literal in INSERT, SELECT and WHERE."""
    root = site.root
    quoted = "'" + text.replace("'", "''") + "'"
    root.run(f"DELETE FROM {wide}; INSERT INTO {wide} (id, c4, c5) VALUES ({number}, {double!r}, {quoted})")
    assert _exact(root.run(f"SELECT id, c4, c5 FROM {wide}").rows) == _exact([[str(number), double, text]])
    for condition in (
        f"id = {number}",
        f"c5 = {quoted}",
        f"c4 = {double!r}",
        f"c5 = {quoted} AND id = {number}",
    ):
        assert root.run(f"SELECT COUNT(*) FROM {wide} WHERE {condition}").cell == "1", condition
    assert root.run(f"UPDATE {wide} SET c5 = {quoted} || 'x' WHERE id = {number}").count == 1
    assert root.run(f"SELECT c5 FROM {wide}").cell == text + "x"


def test_both_tiers_show_the_same_cells(site: Site, wide: str) -> None:
    root = site.root
    root.run(f"DELETE FROM {wide}")
    extremes = [
        (True, False),
        (2**15 - 1, -(2**15)),
        (2**31 - 1, -(2**31)),
        (2**63 - 1, -(2**63)),
        (1.7976931348623157e308, -5e-324),
        ("", "\x00ü😀'\""),
        (253402300799999999, -62135596800000000),
        ("2024-02-29T23:59:59.999999+05:30", "1969-12-31T23:59:59.999999Z"),
        (str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))),
        ("A" * 32, "0" * 32),
        ("f" * 32, "1" * 32),
        ('{"a": [1, 2.50, null], "ü": "\\u0000"}', "null"),
    ]
    marks = ", ".join(f"${index + 2}" for index in range(len(KINDS)))
    for number in range(2):
        root.run(f"INSERT INTO {wide} VALUES ($1, {marks})", number, *(pair[number] for pair in extremes))
    root.run(f"INSERT INTO {wide} (id) VALUES (2)")
    names = ", ".join(f"c{index}" for index in range(len(KINDS)))
    hot = root.run(f"SELECT id, {names} FROM {wide}")
    by_key = [root.run(f"SELECT id, {names} FROM {wide} WHERE id = {number}").rows[0] for number in range(3)]
    assert _exact(hot.rows) == _exact(by_key)
    assert hot.rows[0][1:6] == [True, 32767, 2147483647, "9223372036854775807", 1.7976931348623157e308]
    assert hot.rows[1][1:7] == [False, -32768, -2147483648, "-9223372036854775808", -5e-324, "\x00ü😀'\""]
    assert hot.rows[0][8] == _micros(datetime(2024, 2, 29, 18, 29, 59, 999999, tzinfo=UTC))
    assert hot.rows[1][8] == -1
    assert hot.rows[0][9:12] == [str(uuid.UUID(int=0)), str(uuid.UUID("A" * 32)), str(uuid.UUID("f" * 32))]
    assert hot.rows[0][12] == '{"a": [1, 2.50, null], "ü": "\\u0000"}'
    assert hot.rows[1][12] == "null"
    assert hot.rows[2][1:] == [None] * len(KINDS)
    site.flush(wide)
    cold = root.run(f"SELECT id, {names} FROM {wide}")
    assert _exact(cold.rows) == _exact(hot.rows)
    assert cold.columns == hot.columns
    assert [root.run(f"SELECT id, {names} FROM {wide} WHERE id = {n}").rows[0] for n in range(3)] == hot.rows


@pytest.mark.parametrize(
    ("declared", "data_type"),
    [
        ("BOOL", "Boolean"),
        ("INT2", "SmallInt"),
        ("INTEGER", "Int"),
        ("INT4", "Int"),
        ("INT8", "BigInt"),
        ("DOUBLE PRECISION", "Double"),
        ("FLOAT8", "Double"),
        ("VARCHAR(5)", "Text"),
        ("CHAR(2)", "Text"),
        ("STRING", "Text"),
        ("JSONB", "Json"),
        ("TIMESTAMP", "Timestamp"),
        ("uuid", "Uuid"),
    ],
)
def test_aliases_of_types(root: Wire, namespace: str, declared: str, data_type: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, c {declared})")
    assert root.run(f"SELECT c FROM {namespace}.t").columns == [("c", data_type)]


@pytest.mark.parametrize("key_type", ["INT", "BIGINT", "SMALLINT", "TEXT", "UUID", "BOOLEAN", "DOUBLE"])
def test_keys_of_every_scalar_type(site: Site, namespace: str, key_type: str) -> None:
    table, root = f"{namespace}.t", site.root
    root.run(f"CREATE TABLE {table} (id {key_type} PRIMARY KEY, v INT)")
    keys: list[object] = {
        "TEXT": ["", "a", "a\x00", "a\x00b", "ab", "b", "ü", "\U0010ffff"],
        "UUID": [str(uuid.UUID(int=n)) for n in (0, 1, 2**64, 2**128 - 1)],
        "BOOLEAN": [False, True],
        "DOUBLE": [-1e300, -2.5, -5e-324, 0.0, 1.5, 1e300],
        "BIGINT": [-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1],
    }.get(key_type, [-32768, -1, 0, 1, 256, 32767])  # type: ignore[assignment]
    for number, key in reversed(list(enumerate(keys))):
        root.run(f"INSERT INTO {table} VALUES ($1, $2)", key, number)
    expected = [[str(key) if key_type == "BIGINT" else key] for key in keys]
    for _ in range(2):
        assert root.run(f"SELECT id FROM {table}").rows == expected
        for number, key in enumerate(keys):
            assert root.run(f"SELECT v FROM {table} WHERE id = $1", key).cell == number
            assert "Primary key" in root.sql(f"INSERT INTO {table} VALUES ($1, 0)", key).refused(
                400, "SQL_EXECUTION_ERROR"
            )
        site.flush(table)
    assert root.run(f"UPDATE {table} SET v = v + 100 WHERE id = $1", keys[0]).count == 1
    assert root.run(f"DELETE FROM {table} WHERE id = $1", keys[-1]).count == 1
    assert root.run(f"SELECT v FROM {table}").rows == [[100], *([n] for n in range(1, len(keys) - 1))]


def test_timestamps_as_keys(site: Site, namespace: str) -> None:
    table, root = f"{namespace}.t", site.root
    root.run(f"CREATE TABLE {table} (id TIMESTAMP PRIMARY KEY)")
    moments = ["1969-12-31T23:59:59.999999Z", "1970-01-01T00:00:00Z", "2024-02-29T12:00:00.5Z"]
    for moment in reversed(moments):
        root.run(f"INSERT INTO {table} VALUES ($1)", moment)
    cells = [[_micros(datetime.fromisoformat(moment))] for moment in moments]
    for _ in range(2):
        assert root.run(f"SELECT id FROM {table}").rows == cells
        for moment, cell in zip(moments, cells, strict=True):
            assert root.run(f"SELECT id FROM {table} WHERE id = $1", moment).rows == [cell]
            assert root.run(f"SELECT id FROM {table} WHERE id = '{moment}'").rows == [cell]
        assert root.run(f"SELECT id FROM {table} WHERE id < '1970-01-01'").rows == cells[:1]
        site.flush(table)


def test_minus_zero_is_zero_as_a_key(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id DOUBLE PRIMARY KEY)")
    root.run(f"INSERT INTO {namespace}.t VALUES (0.0)")
    root.sql(f"INSERT INTO {namespace}.t VALUES ($1)", -0.0).refused(400, "SQL_EXECUTION_ERROR")
    assert root.run(f"SELECT COUNT(*) FROM {namespace}.t WHERE id = $1", -0.0).cell == "1"


@pytest.mark.parametrize(
    ("expression", "data_type", "cell"),
    [
        ("1", "BigInt", "1"),
        ("-9223372036854775808", "BigInt", "-9223372036854775808"),
        ("1.5", "Double", 1.5),
        ("TRUE", "Boolean", True),
        ("NULL", "Text", None),
        ("'x'", "Text", "x"),
        ("1 = 1", "Boolean", True),
        ("COUNT(*)", "BigInt", "1"),
        ("SUM(1)", "BigInt", "1"),
        ("AVG(1)", "Double", 1.0),
        ("SUM(1.5)", "Double", 1.5),
        ("CAST(1 AS SMALLINT)", "SmallInt", 1),
        ("CAST(1 AS INT)", "Int", 1),
        ("length('abc')", "Int", 3),
        ("arrow_cast(18446744073709551615, 'UInt64')", "BigInt", "18446744073709551615"),
        ("arrow_cast(7, 'UInt8')", "SmallInt", 7),
        ("arrow_cast(1.5, 'Float32')", "Float", 1.5),
        ("TIMESTAMP '2024-01-01 00:00:00'", "Timestamp", 1704067200000000),
        ("to_timestamp('2024-01-01T00:00:00.123456789Z')", "Timestamp", 1704067200123456),
        ("CAST(100.5 AS DECIMAL(10, 2))", {"Decimal": {"precision": 10, "scale": 2}}, "100.50"),
        ("DATE '2024-01-02'", "Date", 19724),
        ("[1, 2]", "Text", "[1, 2]"),
        ("['a', NULL]", "Text", '["a", null]'),
        ("named_struct('a', 1)", "Text", '{"a": 1}'),
        ("X'00ff'", "Bytes", [0, 255]),
        ("INTERVAL '1 day'", "Text", "0 months 1 days 0 ns"),
        ("TIMESTAMP '2024-01-02' - TIMESTAMP '2024-01-01'", "Text", ...),
    ],
)
def test_results_of_expressions_have_a_form(
    root: Wire, expression: str, data_type: str, cell: object
) -> None:
    answer = root.run(f"SELECT {expression} AS x")
    assert answer.columns == [("x", data_type)]
    assert answer.result["schema"] == [{"name": "x", "data_type": data_type, "index": 0}]
    if cell is not ...:
        assert answer.cell == cell


def test_flags_survive_plain_columns_and_leave_expressions(root: Wire, namespace: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, a TEXT NOT NULL, b TEXT)")
    schema = root.run(f"SELECT id, a AS renamed, b, id + 1 AS next, upper(a) AS u FROM {namespace}.t").result[
        "schema"
    ]
    assert [(column["name"], column.get("flags")) for column in schema] == [
        ("id", ["nn", "pk", "uq"]),
        ("renamed", ["nn"]),
        ("b", None),
        ("next", None),
        ("u", None),
    ]
    assert all("flags" not in column or column["flags"] for column in schema)


def test_columns_may_have_equal_names_and_none(root: Wire, namespace: str) -> None:
    root.run(
        f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, v TEXT);"
        f"INSERT INTO {namespace}.t VALUES (1, 'a'), (2, 'b')"
    )
    joined = root.run(f"SELECT a.id, b.id FROM {namespace}.t a JOIN {namespace}.t b ON b.id = a.id + 1")
    assert joined.columns == [("id", "Int"), ("id", "Int")]
    assert joined.rows == [[1, 2]]
    star = root.run(f"SELECT * FROM {namespace}.t a CROSS JOIN {namespace}.t b ORDER BY a.id, b.id")
    assert [name for name, _ in star.columns] == ["id", "v", "_seq", "_deleted"] * 2
    assert [(row[0], row[4]) for row in star.rows] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    nothing = root.run(f"SELECT FROM {namespace}.t")
    assert nothing.result["schema"] == []
    assert nothing.rows == [[], []]


# Defaults


def test_defaults_fill_what_is_left_out(root: Wire, namespace: str) -> None:
    table = f"{namespace}.t"
    root.run(
        f"CREATE USER TABLE {table} (id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(),"
        " at TIMESTAMP DEFAULT NOW(),"
        " u UUID DEFAULT UUID_V7(), l TEXT DEFAULT ULID(), who TEXT DEFAULT CURRENT_USER(), n INT DEFAULT -5,"
        " t TEXT DEFAULT 'it''s', b BOOLEAN DEFAULT TRUE, d DOUBLE DEFAULT 1.5, e TEXT)"
    )
    before = _micros(datetime.now(UTC))
    root.run(f"INSERT INTO {table} (e) VALUES ('a'), ('b'), ('c')")
    rows = root.run(f"SELECT id, at, u, l, who, n, t, b, d, e FROM {table}").rows
    ids = [int(row[0]) for row in rows]
    assert len(set(ids)) == 3
    now_ms = _micros(datetime.now(UTC)) // 1000
    for row in rows:
        assert before // 1000 <= (int(row[0]) >> 22) + 1704067200000 <= now_ms
        assert before <= row[1] <= _micros(datetime.now(UTC))
        assert uuid.UUID(row[2]).version == 7
        assert len(row[3]) == 26
        assert row[4:9] == ["root", -5, "it's", True, 1.5]
    assert len({row[2] for row in rows}) == len({row[3] for row in rows}) == 3
    assert len({row[1] for row in rows}) == 1  # NOW() is one moment per statement
    root.run(f"INSERT INTO {table} (id, n, t, who) VALUES (1, 7, NULL, 'me')")
    assert root.run(f"SELECT n, t, who FROM {table} WHERE id = 1").rows == [[7, None, "me"]]


@pytest.mark.parametrize("words", ["AUTO_INCREMENT", "GENERATED BY DEFAULT AS IDENTITY"])
def test_generated_keys(root: Wire, namespace: str, words: str) -> None:
    root.run(f"CREATE TABLE {namespace}.t (id BIGINT PRIMARY KEY {words}, v TEXT)")
    root.run(f"INSERT INTO {namespace}.t (v) VALUES " + ", ".join("('x')" for _ in range(500)))
    assert root.run(f"SELECT COUNT(DISTINCT id) FROM {namespace}.t").cell == "500"
    refused = root.sql(f"UPDATE {namespace}.t SET id = 5 WHERE id = (SELECT MAX(id) FROM {namespace}.t)")
    assert "cannot be modified" in refused.refused(400, "SQL_EXECUTION_ERROR")
    assert root.run(f"UPDATE {namespace}.t SET id = id, v = 'y'").json["results"][0]["row_count"] == 500
    assert root.run(f"SELECT COUNT(*) FROM {namespace}.t WHERE id = 5").cell == "0"


def test_text_is_read_as_its_column(root: Wire, namespace: str) -> None:
    root.run(
        f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, b BOOLEAN, n BIGINT, d DOUBLE, ts TIMESTAMP,"
        " x TEXT);"
        f"INSERT INTO {namespace}.t VALUES ('1', 'true', '-5', '2.5', '2024-01-01', 7);"
        f"INSERT INTO {namespace}.t VALUES (2, 'f', 3.0, 2, '2024-01-01 10:00:00', TRUE)"
    )
    assert root.run(f"SELECT id, b, n, d, ts, x FROM {namespace}.t").rows == [
        [1, True, "-5", 2.5, 1704067200000000, "7"],
        [2, False, "3", 2.0, 1704103200000000, "true"],
    ]


def _exact(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    """Return rows in which −0.0 differs from 0.0 and 1 from 1.0 and TRUE."""
    return [[_exactly(cell) for cell in row] for row in rows]


def _exactly(cell: object) -> object:
    if isinstance(cell, float):
        assert math.isfinite(cell)
        return struct.pack(">d", cell)
    return type(cell).__name__, cell
