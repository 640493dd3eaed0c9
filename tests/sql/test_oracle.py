"""Queries against DuckDB: the same rows in both, hot, cold and mixed; the same answer to every query.

Only where the dialects agree: NULLs are ordered explicitly, integer division and text of numbers are left
out. Queries are made from parts, so that each kind of clause meets each other one.
"""

import itertools
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from upwell.testing.embedded import Embedded, memory_store

PEOPLE = [(n, f"p{n % 7}", None if n % 5 == 0 else n * 3 % 11, n % 4 * 1.5, n % 3 == 0) for n in range(1, 41)]
SALES = [
    (n, None if n % 9 == 0 else n * 7 % 45, (n * 13) % 50 - 10, ("a", "b", "ä", None)[n % 4])
    for n in range(1, 121)
]
CREATE = {
    "people": "CREATE TABLE {} (id INT PRIMARY KEY, name TEXT, team INT, score DOUBLE, active BOOLEAN)",
    "sales": "CREATE TABLE {} (id INT PRIMARY KEY, person INT, amount INT, region TEXT)",
}
# Columns × predicates × orders of one table.
_COLUMNS = ("*", "id, name AS n, score", "id, score * 2 AS twice, upper(name) AS u, coalesce(team, -1) AS t")
_WHERE = (
    "",
    "WHERE team > 4",
    "WHERE team IS NULL OR score >= 3",
    "WHERE NOT (active AND team < 6)",
    "WHERE name IN ('p1', 'p3') AND id BETWEEN 5 AND 30",
    "WHERE name LIKE 'p%' AND name <> 'p2'",
    "WHERE active = FALSE AND team <> 3 AND score < 4.5",
    "WHERE CASE WHEN team IS NULL THEN 0 ELSE team END % 2 = 1",
)
_ORDER = (
    "ORDER BY id",
    "ORDER BY score DESC NULLS LAST, id LIMIT 7",
    "ORDER BY name ASC NULLS FIRST, team DESC NULLS LAST, id LIMIT 5 OFFSET 4",
)
_GROUP = (
    "COUNT(*), COUNT(team), MIN(score), MAX(name)",
    "SUM(team), AVG(score), COUNT(DISTINCT name)",
    "COUNT(*) FILTER (WHERE active), SUM(CASE WHEN active THEN 1 ELSE 0 END)",
)
_BY = ("name", "team", "active", "team, active")
_JOINS = ("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
_SETS = ("UNION", "UNION ALL", "INTERSECT", "EXCEPT")
_WINDOWS = (
    "ROW_NUMBER() OVER (PARTITION BY name ORDER BY id)",
    "RANK() OVER (ORDER BY score DESC NULLS LAST)",
    "DENSE_RANK() OVER (PARTITION BY active ORDER BY team NULLS FIRST)",
    "SUM(score) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)",
    "LAG(id) OVER (ORDER BY id)",
    "FIRST_VALUE(id) OVER (PARTITION BY team ORDER BY id)",
    "COUNT(*) OVER (PARTITION BY team)",
)
_OTHERS = (Path(__file__).parent / "oracle.sql").read_text().split("\n\n")


def queries() -> Iterator[str]:
    for columns, where, order in itertools.product(_COLUMNS, _WHERE, _ORDER):
        yield f"SELECT {columns} FROM people {where} {order}"
    for what, by, where in itertools.product(_GROUP, _BY, _WHERE[:4]):
        keys = ", ".join(f"{key} NULLS LAST" for key in by.split(", "))
        yield f"SELECT {by}, {what} FROM people {where} GROUP BY {by} ORDER BY {keys}"
    for join, where in itertools.product(_JOINS, ("", "WHERE amount > 10", "WHERE team = 3 OR region = 'b'")):
        yield (
            f"SELECT p.id, p.name, s.id, s.amount FROM people p {join} sales s ON s.person = p.id {where} "
            "ORDER BY p.id NULLS LAST, s.id NULLS LAST"
        )
    for operation, where in itertools.product(_SETS, ("", "WHERE amount > 0", "WHERE region IS NULL")):
        yield f"SELECT team FROM people {operation} SELECT person FROM sales {where} ORDER BY 1 NULLS LAST"
    for window, where in itertools.product(_WINDOWS, _WHERE[:3]):
        yield f"SELECT id, {window} AS w FROM people {where} ORDER BY id"
    for where in _WHERE:
        yield f"SELECT COUNT(*) FROM people {where}"
    yield from _OTHERS


@pytest.fixture(scope="module")
def oracle() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        for table, rows in (("people", PEOPLE), ("sales", SALES)):
            connection.execute(CREATE[table].format(table))
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        yield connection


@pytest.fixture(scope="module", params=["hot", "cold", "mixed"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    directory: Path = tmp_path_factory.mktemp("oracle")
    with Embedded(directory, store=memory_store()) as db:
        for table, rows in (("people", PEOPLE), ("sales", SALES)):
            db.run(CREATE[table].format(f"default.{table}"))
            # Every third row is written wrong first, and corrected when the others are cold.
            wrong = [(*row[:2], 0, *row[3:]) if row[0] % 3 == 0 else row for row in rows]
            _insert(db, table, wrong)
            if request.param != "hot":
                db.flush(f"default.{table}")
            for row in rows[2::3]:
                column = ("team", "amount")[table == "sales"]
                db.change(f"UPDATE {table} SET {column} = $1 WHERE id = $2", [row[2], row[0]])
            if request.param == "cold":
                db.flush(f"default.{table}")
        yield db


def _insert(db: Embedded, table: str, rows: list[tuple[object, ...]]) -> None:
    db.change(
        f"INSERT INTO {table} VALUES " + ", ".join(f"({', '.join(map(_literal, row))})" for row in rows)
    )


def _literal(value: object) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def _plain(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return rows whose numbers compare: DuckDB sums integers to 128 bits, and some to decimals."""
    return [
        tuple(
            round(float(cell), 9)
            if isinstance(cell, (int, float, Decimal)) and not isinstance(cell, bool)
            else cell
            for cell in row
        )
        for row in rows
    ]


def test_every_query_is_answered_as_duckdb_does(db: Embedded, oracle: duckdb.DuckDBPyConnection) -> None:
    count = 0
    for text in queries():
        expected = oracle.execute(text).fetchall()
        found = [
            row[:-2] if text.startswith("SELECT * FROM people") else row  # `*` ends with the system columns
            for row in db.rows(text)
        ]
        assert _plain(found) == _plain(expected), text
        count += 1
    assert count > 180
