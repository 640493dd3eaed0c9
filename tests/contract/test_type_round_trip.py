"""Values of every type on their whole way: SQL → hot store → Parquet → Arrow → JSON → SQL, exactly.

Each value goes in three ways (a literal, a parameter, and the JSON that came out), and is read hot and cold,
by key and by a scan. What has to come out is computed here by other means than the server's.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from upwell.edge.render import render_outcomes
from upwell.errors import UpwellError
from upwell.testing.embedded import Embedded
from upwell.types import Value

PHASES = (Phase.explicit, Phase.generate)
"""Without shrinking: each example is some dozens of statements."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(timezones=st.just(UTC))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def moment_us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def time_us(found: time) -> int:
    return ((found.hour * 60 + found.minute) * 60 + found.second) * 1_000_000 + found.microsecond


def single(number: float) -> float:
    found: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return found


@dataclass(frozen=True)
class Kind:
    """One SQL type: Python values, how SQL writes them, what is a parameter for them, what JSON shows."""

    sql: str
    values: st.SearchStrategy[Any]
    literal: Callable[[Any], str]
    parameter: Callable[[Any], Value]
    shown: Callable[[Any], object]
    data_type: object


def numbers(sql: str, bits: int, data_type: str, shown: Callable[[Any], object] = int) -> Kind:
    limit = 1 << (bits - 1)
    values = st.integers(-limit, limit - 1) | st.sampled_from((-limit, limit - 1, 0))
    return Kind(sql, values, str, int, shown, data_type)


def decimals(precision: int, scale: int) -> Kind:
    largest = 10**precision - 1
    values = st.integers(-largest, largest) | st.sampled_from((largest, -largest, 0))
    exact = values.map(lambda unscaled: Decimal(unscaled).scaleb(-scale, Context(prec=60)))
    data_type = {"Decimal": {"precision": precision, "scale": scale}}
    return Kind(f"DECIMAL({precision},{scale})", exact, plain, plain, plain, data_type)


def plain(number: Decimal) -> str:
    return format(number if number else number.copy_abs(), "f")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
).map(lambda document: json.dumps(document, ensure_ascii=False))
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
KINDS = [
    Kind("BOOLEAN", st.booleans(), str, bool, bool, "Boolean"),
    numbers("SMALLINT", 16, "SmallInt"),
    numbers("INT", 32, "Int"),
    numbers("BIGINT", 64, "BigInt", str),
    Kind("FLOAT", st.floats(allow_nan=False, allow_infinity=False, width=32), repr, float, single, "Float"),
    Kind("DOUBLE", DOUBLES, repr, float, float, "Double"),
    decimals(38, 10),
    decimals(38, 0),
    decimals(5, 5),
    Kind("TEXT", TEXTS, quoted, str, str, "Text"),
    Kind("TIMESTAMP", MOMENTS, lambda m: quoted(m.isoformat()), datetime.isoformat, moment_us, "Timestamp"),
    Kind("DATETIME", MOMENTS, lambda m: quoted(m.isoformat()), moment_us, moment_us, "DateTime"),
    Kind(
        "DATE",
        st.dates(),
        lambda day: quoted(day.isoformat()),
        date.isoformat,
        lambda day: (day - EPOCH.date()).days,
        "Date",
    ),
    Kind("TIME", st.times(), lambda found: quoted(found.isoformat()), time.isoformat, time_us, "Time"),
    Kind("UUID", st.uuids(), lambda each: quoted(each.hex.upper()), UUID.__str__, str, "Uuid"),
    Kind("JSON", DOCUMENTS, quoted, str, str, "Json"),
    Kind(
        "BYTES", st.binary(), lambda data: f"X'{data.hex()}'", lambda data: "\\x" + data.hex(), list, "Bytes"
    ),
]
BY_NAME = {kind.sql: kind for kind in KINDS}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("types")) as db:
        for kind in KINDS:
            db.run(f"CREATE USER TABLE {table(kind)} (id INT PRIMARY KEY, v {kind.sql})")
        yield db


def table(kind: Kind) -> str:
    return "t_" + "".join(letter if letter.isalnum() else "_" for letter in kind.sql.lower())


def answer(db: Embedded, sql: str) -> tuple[object, list[list[Any]]]:
    """Return type and rows of a SELECT's last column as its client gets them."""
    (result,) = json.loads(render_outcomes([db.run(sql)], took_ms=0.0))["results"]
    return result["schema"][-1]["data_type"], result["rows"]


def same(found: object, wanted: object) -> bool:
    is_signed = isinstance(found, float) and isinstance(wanted, float)
    return found == wanted and (not is_signed or math.copysign(1, found) == math.copysign(1, wanted))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BY_NAME)
def test_values_come_back_exactly(db: Embedded, name: str) -> None:
    kind = BY_NAME[name]

    @settings(max_examples=2, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
    @given(st.lists(kind.values, min_size=3, max_size=6))
    def check(values: list[Any]) -> None:
        space = table(kind)
        db.change(f"DELETE FROM {space}")
        db.change(f"INSERT INTO {space} VALUES (0, NULL)")
        for at, value in enumerate(values):
            db.change(f"INSERT INTO {space} VALUES ({3 * at + 1}, {kind.literal(value)})")
            db.change(f"INSERT INTO {space} VALUES ({3 * at + 2}, $1)", [kind.parameter(value)])
        # What came out as JSON goes in again (an array of bytes has no parameter: as hexadecimal text).
        for at, (_, cell) in enumerate(
            answer(db, f"SELECT id, v FROM {space} WHERE id % 3 = 1 ORDER BY id")[1]
        ):
            again = "\\x" + bytes(cell).hex() if isinstance(cell, list) else cell
            db.change(f"INSERT INTO {space} VALUES ({3 * at + 3}, $1)", [again])
        wanted = [None] + [kind.shown(value) for value in values for _ in range(3)]
        for tier in ("hot", "cold"):
            found_type, rows = answer(db, f"SELECT id, v FROM {space} ORDER BY id")
            assert (tier, found_type) == (tier, kind.data_type)
            assert all(same(row[1], each) for row, each in zip(rows, wanted, strict=True)), (
                tier,
                rows,
                wanted,
            )
            for at in (0, 1, len(wanted) - 1):
                by_key = answer(db, f"SELECT v FROM {space} WHERE id = {at}")
                assert by_key[0] == kind.data_type
                assert same(by_key[1][0][0], wanted[at]), (tier, by_key, wanted[at])
            db.flush(f"default.{space}")
        assert db.cold_problems() == []

    check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BOOLEAN", 2), ("SMALLINT", 32768), ("INT", -(2**31) - 1), ("BIGINT", 2**63), ("BIGINT", 1.5),
        ("FLOAT", 3.5e38), ("FLOAT", "NaN"), ("DOUBLE", "NaN"), ("DOUBLE", "Infinity"),
        ("DECIMAL(38,10)", 10**28), ("DECIMAL(5,5)", "1"), ("DECIMAL(5,5)", "NaN"),
        ("DECIMAL(38,0)", "1e999999"), ("DECIMAL(38,0)", "9" * 5000), ("DECIMAL(38,0)", True),
        ("TIMESTAMP", "yesterday"), ("TIMESTAMP", 2**62),
        ("DATE", "2026-02-30"), ("DATE", 10**7), ("DATE", "0000-01-01"), ("TIME", "24:00:01"), ("TIME", -1),
        ("TIME", "12:00+02:00"), ("TIME", 86_400_000_000), ("DATETIME", "12"), ("UUID", "x"), ("JSON", "{"),
        ("BYTES", "0g"), ("TEXT", "\ud800"),
    ],
)  # fmt: skip
def test_what_a_type_cannot_hold_is_refused_by_column(db: Embedded, name: str, value: Value) -> None:
    space = table(BY_NAME[name])
    with pytest.raises(UpwellError, match=r"column 'v'|surrogate"):
        db.change(f"INSERT INTO {space} VALUES (-1, $1)", [value])
    assert db.rows(f"SELECT id FROM {space} WHERE id = -1") == []


def test_decimals_are_exact_and_round_half_away_from_zero(db: Embedded) -> None:
    db.run("CREATE USER TABLE money (id INT PRIMARY KEY, v DECIMAL(12,2) DEFAULT 1.005, w NUMERIC)")
    db.change("INSERT INTO money (id, v) VALUES (1, 0.1), (2, 12345678.905), (3, -0.005), (4, '2.675')")
    db.change("INSERT INTO money (id, w) VALUES (5, 1234567890123456789012345678.0123456789)")
    for _ in ("hot", "cold"):
        assert db.rows("SELECT v FROM money ORDER BY id") == [
            ("0.10",), ("12345678.91",), ("-0.01",), ("2.68",), ("1.01",)
        ]  # fmt: skip
        assert db.rows("SELECT w FROM money WHERE id = 5") == [("1234567890123456789012345678.0123456789",)]
        assert db.rows("SELECT SUM(v), MAX(v) FROM money WHERE id < 4") == [("12345679.00", "12345678.91")]
        assert db.rows("SELECT id FROM money WHERE v > 2.67 ORDER BY v") == [(4,), (2,)]
        assert db.rows("SELECT id FROM money WHERE v = 0.10") == [(1,)]
        db.flush("default.money")
    assert db.change("UPDATE money SET v = v * 2 WHERE id <= 2") == 2
    assert db.change("UPDATE money SET v = 0.20 WHERE id = 1") == 0, "nothing changes"
    assert db.rows("SELECT v FROM money WHERE id <= 2 ORDER BY id") == [("0.20",), ("24691357.82",)]
    db.run("ALTER TABLE money MODIFY COLUMN v DECIMAL(20,4)")
    assert db.rows("SELECT v FROM money ORDER BY id LIMIT 2") == [("0.2000",), ("24691357.8200",)]
    db.flush("default.money")
    assert db.rows("SELECT id, v FROM money WHERE v >= 2.68 AND v < 3") == [(4, "2.6800")]
    with pytest.raises(UpwellError, match="only be widened"):
        db.run("ALTER TABLE money MODIFY COLUMN v DECIMAL(20,5)")


def test_dates_and_times_compare_and_are_keys(db: Embedded) -> None:
    for kind, low, high in (
        ("DATE", "2026-01-02", "2026-11-22"),
        ("TIME", "01:02:03", "23:59:59.999999"),
        ("DATETIME", "2026-01-02T03:04:05Z", "2026-11-22T00:00:00+02:00"),
        ("TIMESTAMP", "2026-01-02 03:04:05", "2026-11-22T00:00:00.000001"),
    ):
        name = f"by_{kind.lower()}"
        db.run(f"CREATE USER TABLE {name} (at {kind} PRIMARY KEY, n INT)")
        db.change(f"INSERT INTO {name} VALUES ('{high}', 2), ('{low}', 1)")
        for _ in ("hot", "cold"):
            assert db.rows(f"SELECT n FROM {name}") == [(1,), (2,)]
            assert db.rows(f"SELECT n FROM {name} WHERE at = '{high}'") == [(2,)]
            assert db.rows(f"SELECT n FROM {name} WHERE at < '{high}' AND n > 0") == [(1,)]
            assert db.rows(f"SELECT MAX(n) FROM {name} WHERE at BETWEEN '{low}' AND '{high}'") == [(2,)]
            with pytest.raises(UpwellError, match="Primary key violation"):
                db.change(f"INSERT INTO {name} VALUES ('{low}', 3)")
            db.flush(f"default.{name}")
        assert db.change(f"UPDATE {name} SET n = 3 WHERE at = '{low}'") == 1
        assert db.change(f"DELETE FROM {name} WHERE at >= '{high}'") == 1
        assert db.rows(f"SELECT n FROM {name}") == [(3,)]


def test_the_names_of_types(db: Embedded) -> None:
    names = {
        "BOOL": "BOOLEAN", "INT2": "SMALLINT", "INTEGER": "INT", "INT4": "INT", "INT8": "BIGINT",
        "REAL": "FLOAT", "FLOAT4": "FLOAT", "DOUBLE PRECISION": "DOUBLE", "FLOAT8": "DOUBLE",
        "NUMERIC": "DECIMAL(38,10)", "DECIMAL(7)": "DECIMAL(7,0)", "VARCHAR(20)": "TEXT",
        "CHAR": "TEXT", "STRING": "TEXT",
        "JSONB": "JSON", "CHARACTER VARYING(3)": "TEXT", "BYTEA": "BYTES", "BLOB": "BYTES", "BINARY": "BYTES",
        "VARBINARY(16)": "BYTES", "TIMESTAMP(6)": "TIMESTAMP", "TIMESTAMP WITHOUT TIME ZONE": "TIMESTAMP",
        "TIMESTAMP WITH TIME ZONE": "DATETIME", "TIMESTAMPTZ": "DATETIME", "TIME(6)": "TIME",
        "SIGNED": "BIGINT", "UNSIGNED": "BIGINT",
    }  # fmt: skip
    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(names))
    db.run(f"CREATE TABLE names (id BIGSERIAL PRIMARY KEY, {columns})")
    found = db.rows("DESCRIBE TABLE names")
    assert [row[3] for row in found] == ["BIGINT", *names.values()]


def test_the_embedded_engine_stands_for_the_server(tmp_path: Path) -> None:
    """A value of each type survives a restart of the store, too."""
    with Embedded(tmp_path) as db:
        db.run(
            "CREATE USER TABLE t (id INT PRIMARY KEY, a DATE, b TIME, c DATETIME, d DECIMAL(4,1), e FLOAT)"
        )
        db.change("INSERT INTO t VALUES (1, '2026-11-22', '01:02', '2026-11-22T00:00:00Z', 12.35, 0.1)")
        row = db.rows("SELECT * FROM t")
        db.reopen()
        assert db.rows("SELECT * FROM t") == row
        assert row[0][1:6] == (20779, 3_720_000_000, 1_795_305_600_000_000, "12.4", single(0.1))
