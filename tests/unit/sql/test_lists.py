"""Lists of one operand mean what they say: random conditions, with SQLite as the other opinion."""

import random
import sqlite3
from collections.abc import Iterator
from itertools import product

import pyarrow as pa
import pytest
from datafusion import SessionConfig, SessionContext

from upwell.errors import InvalidSql
from upwell.sql.lists import with_lists_apart
from upwell.sql.query import Query

ROWS = list(product((None, 1, 2, 3), (None, 1, 2), (1, 3), (2, 4)))
NAMES = "abcd"
CONDITIONS = 60


@pytest.fixture(scope="module")
def sqlite() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b, c, d)")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
    yield connection
    connection.close()


@pytest.mark.parametrize("seed", range(3))
def test_conditions_are_true_of_the_same_rows(sqlite: sqlite3.Connection, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(CONDITIONS):
        sql = f"SELECT a, b, c, d, {_condition(chance, 2)} AS x FROM t ORDER BY a, b, c, d"
        expected = [
            (*row[:4], None if row[4] is None else bool(row[4])) for row in sqlite.execute(sql).fetchall()
        ]
        found = _asked(_apart(sql.replace("BY a, b", "BY a NULLS FIRST, b NULLS FIRST")))
        assert found == expected, sql


def _apart(text: str) -> str:
    return with_lists_apart(Query(text)).text


def _asked(sql: str) -> list[tuple[object, ...]]:
    context = SessionContext(SessionConfig().with_target_partitions(1))
    columns = [pa.array([row[index] for row in ROWS], pa.int32()) for index in range(4)]
    context.register_record_batches("t", [[pa.record_batch(columns, names=list(NAMES))]])
    rows: list[tuple[object, ...]] = []
    for batch in context.sql(sql).collect():
        rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return rows


def _condition(chance: random.Random, depth: int) -> str:
    kind = chance.random()
    if depth and kind < 0.25:
        return f"NOT ({_condition(chance, depth - 1)})"
    if depth:
        parts = [_condition(chance, depth - 1) for _ in range(chance.randint(2, 3))]
        return "(" + chance.choice((" AND ", " OR ")).join(parts) + ")"
    name = chance.choice("ab")
    if kind < 0.3:
        return "(" + " OR ".join(f"{name} = {chance.randint(1, 4)}" for _ in range(2)) + ")"
    options = [chance.choice("1234abcd") for _ in range(chance.randint(1, 4))]
    return f"{name} {chance.choice(('IN', 'NOT IN'))} ({', '.join(options)})"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 FROM t WHERE a IN (1, 2) AND b IN (3) AND (c = 1 OR d = 2)",
        "SELECT 1 FROM (SELECT * FROM t WHERE a IN (1, 2)) AS q WHERE a IN (2) OR (a = 1 OR a = 2)",
        "SELECT count(a = 1 OR a = 2), f(a = 3) FROM t WHERE a = 3 OR a = 4",
        "SELECT 1 FROM t WHERE a IN (SELECT b FROM t) AND a IN (SELECT c FROM t)",
        "SELECT 'a IN (b) AND a IN (c)' FROM t WHERE day IN (DATE '2026-01-01', CAST('2026-01-02' AS DATE))",
    ],
)
def test_lists_that_cannot_be_merged_wrongly_stay(text: str) -> None:
    assert _apart(text) == text


def test_only_what_more_is_asked_of_than_its_truth_is_kept_apart() -> None:
    apart = _apart("SELECT 1 FROM t WHERE a IN (1, 2) AND NOT t.a NOT IN (2, 3)")
    assert apart == (
        "SELECT 1 FROM t WHERE a IN (1, 2) AND NOT NULLIF(t.a NOT IN (2, 3), CAST(NULL AS BOOLEAN))"
    )


def test_a_part_of_another_query_knows_nothing_of_its_other_lists() -> None:
    text = (
        "SELECT a IN (1, 2) AS x, t.b = -1 AS y FROM t "
        "WHERE a IN (1) AND NOT EXISTS (SELECT 1 FROM u WHERE u.a = t.a)"
    )
    assert with_lists_apart(Query(text), is_part=True).text == text.replace(
        "a IN (1, 2) AS", "NULLIF(a IN (1, 2), CAST(NULL AS BOOLEAN)) AS"
    ).replace("t.b = -1", "NULLIF(t.b = -1, CAST(NULL AS BOOLEAN))")


def test_lists_in_operands_of_lists_end_before_they_fill_the_memory() -> None:
    operand = "a"
    for _ in range(40):
        operand = f"({operand} IN (b, c))"
    with pytest.raises(InvalidSql, match="compare by ="):
        _apart(f"SELECT {operand} FROM t")
