"""Arithmetic of integers against DuckDB: the same numbers, and an error for what doesn't fit, on both tiers.

Expressions are random, of a fixed seed. `SUM` is a BIGINT here, so DuckDB's is made one; what is written as a
number is a BIGINT, too.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from upwell.errors import UpwellError
from upwell.testing.embedded import Embedded, memory_store

SEED = 20261123
QUERIES = 100
CREATE = "CREATE TABLE {} (id INT PRIMARY KEY, g INT, s SMALLINT, n INT, b BIGINT, x DOUBLE)"
BITS = {"s": 16, "n": 32, "b": 64}


def rows(chance: random.Random) -> Iterator[tuple[int | float | None, ...]]:
    """Yield rows of which each fourth number is at an edge of its type, and some are NULL."""
    for key in range(1, 17):
        numbers = [_number(chance, bits) for bits in BITS.values()]
        yield key, key % 3, *numbers, chance.choice((None, 0.5, -2.0, 3.25))


def _number(chance: random.Random, bits: int) -> int | None:
    most = (1 << (bits - 1)) - 1
    edges = (most, -most - 1, most // 2 + 1, 1 << (bits // 2))
    return chance.choice((None, chance.choice(edges), *(chance.randint(-5, 9) for _ in range(6))))


class Expressions:
    """Makes expressions, in which `[1]` stands for a number, `:` for a division and `{n}` for a sum."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def of_row(self, depth: int) -> str:
        chance = self._chance
        if depth == 0 or chance.random() < 0.15:
            return chance.choice((*"snb", *"snb", f"[{chance.choice((1, 2, 7, 3037000500))}]"))
        return self._made(self.of_row, depth)

    def of_group(self, depth: int) -> str:
        chance = self._chance
        if depth == 0 or chance.random() < 0.3:
            within = self.of_row(chance.choice((0, 0, 1)))
            return chance.choice(
                (f"{{{within}}}", f"{{{within}}}", f"MAX({within})", f"MIN({within})", "COUNT(*)")
            )
        return self._made(self.of_group, depth)

    def as_double(self, depth: int) -> str:
        whole = self.of_row(depth)
        return self._chance.choice(
            (f"{whole} * 1.5e0", f"x - {whole}", f"({whole}) * x", f"{whole} + x * 2e0")
        )

    def _made(self, inner: Callable[[int], str], depth: int) -> str:
        chance = self._chance
        left, right = inner(depth - 1), inner(depth - 1)
        operator = chance.choice("++--**")
        return chance.choice(
            (
                f"{left} {operator} {right}",
                f"({left} {operator} {right})",
                f"{left} {operator} {right} {chance.choice(':%')} [{chance.choice((2, 3, 7))}]",
                f"- ({left})",
                f"abs({left})",
                f"greatest({left}, {right})",
                f"CAST({left} AS BIGINT) {operator} {right}",
            )
        )


def _queries(chance: random.Random) -> Iterator[str]:
    make = Expressions(chance)
    for number in range(QUERIES):
        match number % 3:
            case 0:
                yield f"SELECT id, {make.of_row(3)} AS y, {make.of_row(1)} AS z FROM t ORDER BY id"
            case 1:
                total = make.of_group(2)
                yield f"SELECT g, {total} AS y FROM t WHERE id > {number % 14} GROUP BY g ORDER BY g"
            case _:
                inner = f"SELECT id, {make.of_row(1)} AS s, g AS n, x, b FROM t WHERE id > {number % 14}"
                yield f"SELECT id, {make.as_double(2)} AS y FROM ({inner}) AS q ORDER BY id"


def _here(text: str) -> str:
    return text.translate(str.maketrans({"[": "", "]": "", ":": "/", "{": "SUM(", "}": ")"}))


def _there(text: str) -> str:
    marks = {"[": "(", "]": "::BIGINT)", ":": "//", "{": "CAST(SUM(", "}": ") AS BIGINT)"}
    return text.translate(str.maketrans(marks))


@pytest.fixture(scope="module")
def oracle() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(CREATE.format("t"))
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", list(rows(random.Random(SEED))))
        yield connection


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    directory: Path = tmp_path_factory.mktemp("arithmetic")
    with Embedded(directory, store=memory_store()) as db:
        db.run(CREATE.format("default.t"))
        for row in rows(random.Random(SEED)):
            db.change("INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6)", list(row))
            if row[0] == 9:
                db.flush("default.t")
        yield db


def test_numbers_are_exact_or_an_error(db: Embedded, oracle: duckdb.DuckDBPyConnection) -> None:
    refused = 0
    for text in _queries(random.Random(SEED)):
        try:
            expected: list[tuple[object, ...]] | None = oracle.execute(_there(text)).fetchall()
        except (duckdb.OutOfRangeException, duckdb.ConversionException):
            expected = None
        if expected is None:
            refused += 1
            assert _refusal(db, _here(text)), text
        else:
            assert _plain(db.rows(_here(text))) == _plain(expected), text
    assert refused > 5


def _refusal(db: Embedded, text: str) -> bool:
    try:
        db.rows(text)
    except UpwellError as error:
        return "overflow" in str(error)
    return False


def _plain(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [tuple(float(f"{cell:.12g}") if isinstance(cell, float) else cell for cell in row) for row in rows]
