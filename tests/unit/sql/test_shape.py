"""The shape: literals are lifted only where a scan is sure, and nothing is lost."""

import pytest

from upwell.sql.shape import lift, numbered
from upwell.types import Value


@pytest.mark.parametrize(
    ("sql", "shape", "values"),
    [
        ("INSERT INTO t VALUES (1, 'a', TRUE, NULL)", "INSERT INTO t VALUES (?, ?, TRUE, NULL)", [1, "a"]),
        (
            "INSERT INTO t1 VALUES(-1,-2.5,1e3,-4E-2)",
            "INSERT INTO t1 VALUES(?,?,?,?)",
            [-1, -2.5, 1000.0, -0.04],
        ),
        ("update t set a='it''s -- $1;', b = b -1", "update t set a=?, b = b -?", ["it's -- $1;", 1]),
        ("DELETE FROM t WHERE a = -5 AND b > - 5", "DELETE FROM t WHERE a = ? AND b > - ?", [-5, 5]),
        ("SELECT * FROM t WHERE id = ''", "SELECT * FROM t WHERE id = ?", [""]),
        ("SELECT a1 FROM t WHERE x_2 = 'VALUES (1)'", "SELECT a1 FROM t WHERE x_2 = ?", ["VALUES (1)"]),
        ("DELETE FROM t WHERE a = 'é😀\n'", "DELETE FROM t WHERE a = ?", ["é😀\n"]),
        ("DELETE FROM t WHERE a = 'b' 'c'", "DELETE FROM t WHERE a = ? ?", ["b", "c"]),
        ("DELETE FROM t", "DELETE FROM t", []),
    ],
)
def test_lift(sql: str, shape: str, values: list[Value]) -> None:
    found = lift(sql)
    assert found == (shape, values)
    assert [isinstance(value, float) for value in found[1]] == [isinstance(value, float) for value in values]


@pytest.mark.parametrize(
    "rest",
    [
        "a = 1 -- x", "a = /* 1 */ 2", "\"a\" = 1", "a = $1", "a = 1::TEXT", "a = E'x'", "a = e'\\''",
        "a = N'x'",
        "a = x'00'", "a[1] = 2", "a = 'x", "a ? 'b'", "a = 99999999999999999999", "a = 1e999", "a = $$x$$",
        "a = `b`", "a = {1}", "a = 1; DELETE FROM t", "a = --1",
    ],
)  # fmt: skip
def test_what_a_scan_cannot_be_sure_of_has_no_shape(rest: str) -> None:
    assert lift("DELETE FROM t WHERE " + rest) is None


@pytest.mark.parametrize(
    "sql", ["CREATE TABLE t (a INT DEFAULT 1)", "WITH x AS (SELECT 1) SELECT 2", "USE x", ""]
)
def test_other_statements_have_no_shape(sql: str) -> None:
    assert lift(sql) is None


def test_numbered() -> None:
    assert numbered("VALUES (?, ?), (?)") == "VALUES ($1, $2), ($3)"
    assert numbered("DELETE FROM t") == "DELETE FROM t"
