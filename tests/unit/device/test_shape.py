"""Promises: a captured number reads back as the same number; a shape tells what the server has to know."""

import json
import math
import random
import sqlite3
import struct
from collections.abc import Callable

import pytest

from upwell.device.schema import payload_expression, read_shape

SEED, ROUNDS = 20_260, 20_000


def any_bits(chance: random.Random) -> float:
    value = float("nan")
    while not math.isfinite(value):
        (value,) = struct.unpack("d", chance.randbytes(8))
    return value


def computed(chance: random.Random) -> float:
    return float(chance.random() * 10.0 ** chance.randrange(-20, 20))


def price(chance: random.Random) -> float:
    return chance.randrange(10**9) / 100


@pytest.mark.parametrize("make", [any_bits, computed, price])
def test_a_captured_real_is_the_same_number(make: Callable[[random.Random], float]) -> None:
    chance = random.Random(SEED)
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY, r REAL, n NUMERIC)")
    payload = payload_expression(read_shape(connection, "t"), "t")
    values = [make(chance) for _ in range(ROUNDS)] + [1.7976931348623157e308, 5e-324, 2.0**-1022, 0.0]
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(str(i), v, v) for i, v in enumerate(values)])
    rows = connection.execute(f"SELECT {payload} FROM t ORDER BY CAST(id AS INTEGER)").fetchall()
    connection.close()
    found = [json.loads(row[0]) for row in rows]
    assert [(row["r"], row["n"]) for row in found] == [(value, value) for value in values]


def test_a_shape_tells_declarations() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE TABLE t (Id TEXT PRIMARY KEY, n decimal ( 10, 2) NOT NULL DEFAULT -1.5, bare,"
        " up TEXT REFERENCES T ON DELETE SET NULL, twice AS (n * 2) STORED)"
    )
    shape = read_shape(connection, "T")
    connection.close()
    assert [(c.wire, c.declared, c.is_required, c.default) for c in shape.columns] == [
        ("id", "TEXT", False, None),
        ("n", "DECIMAL ( 10, 2)", True, "-1.5"),
        ("bare", "", False, None),
        ("up", "TEXT", False, None),
    ]
    assert [(r.columns, r.parent, r.parent_columns, r.on_delete) for r in shape.references] == [
        (("up",), "t", ("Id",), "SET NULL")
    ]
    assert shape.generated == ("twice",)
