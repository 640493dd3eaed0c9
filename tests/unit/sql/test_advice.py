"""Advice: what people write from other databases is answered with what to write here."""

import pytest

from upwell.errors import InvalidSql
from upwell.sql.advice import advised
from upwell.sql.parse import parse

GRAMMAR = [
    ("SELEC * FROM t", "SELECT"),
    ("CREATE DATABASE x", "CREATE NAMESPACE"),
    ("TRUNCATE t", "DELETE FROM t"),
    ("REPLACE INTO t (id) VALUES (1)", "ON CONFLICT"),
    ("INSERT IGNORE INTO t (id) VALUES (1)", "ON CONFLICT"),
    ("INSERT INTO a.t (id) VALUES (1) ON DUPLICATE KEY UPDATE n = 1", "ON CONFLICT"),
    ("INSERT INTO t SET id = 1", "VALUES"),
    ("UPDATE t SET n = 1 LIMIT 1", "subquery"),
    ("UPDATE t SET n = 1 FROM s WHERE s.id = t.id", "SELECT"),
    ("DELETE t WHERE id = 1", "DELETE FROM t"),
    ("DELETE FROM t USING s WHERE s.id = t.id", "subquery"),
    ("CREATE UNIQUE INDEX i ON t (n)", "no indexes"),
    ("CREATE TABLE t AS SELECT 1", "INSERT INTO t SELECT"),
    ("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)", "SNOWFLAKE_ID()"),
    ("CREATE TABLE t (id UUID PRIMARY KEY DEFAULT gen_random_uuid())", "UUID_V7()"),
    ("CREATE TABLE t (id INT PRIMARY KEY, tags TEXT[])", "JSON"),
    ("CREATE TABLE t (id INT PRIMARY KEY, k ENUM('a', 'b'))", "TEXT"),
    ("CREATE TABLE t (id INT PRIMARY KEY) ENGINE=InnoDB", "leave it out"),
    ("CREATE USER ann IDENTIFIED BY 'x'", "WITH PASSWORD"),
    ("GRANT SELECT ON t TO ann", "role"),
    ("CREATE TABLE t (a INT, b INT, PRIMARY KEY (a, b))", "one TEXT key"),
    ("CREATE TABLE t (a INT PRIMARY KEY, b INT, KEY by_b (b))", "no indexes"),
    ("ALTER TABLE IF EXISTS t ADD COLUMN x INT", "leave IF EXISTS out"),
    ("DROP TABLE t CASCADE", "leave CASCADE out"),
    ("DROP TABLE t, s", "one a statement"),
    ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "USER table"),
    ("ALTER TABLE t ADD COLUMN x INT AFTER n", "last one"),
    ("SET @n = 1", "USE namespace"),
    ("SAVEPOINT x", "as a whole"),
    ("COPY t FROM 'x.csv'", "text/csv"),
    ("LISTEN x", "/v1/ws"),
    ("VACUUM t", "by itself"),
    ("PRAGMA table_info(t)", "DESCRIBE TABLE"),
    ("STORAGE FLUSH a.t", "STORAGE FLUSH TABLE"),
]


@pytest.mark.parametrize(("sql", "wanted"), GRAMMAR)
def test_what_isnt_our_grammar(sql: str, wanted: str) -> None:
    with pytest.raises(InvalidSql) as refused:
        parse(sql)
    told = advised(str(refused.value), sql, is_grammar=True)
    assert told.startswith(str(refused.value).rstrip("."))
    assert wanted in told.split("Instead: ")[1]


@pytest.mark.parametrize(
    ("message", "sql", "wanted"),
    [
        ("No field named bob. Valid fields are a", 'SELECT 1 FROM t WHERE n = "bob"', "single quotes: 'bob'"),
        ("Physical plan does not support logical expression Exists(x)", "SELECT EXISTS (…)", "COUNT(*)"),
        ("does not support logical expression ScalarSubquery(<subquery>)", "SELECT (SELECT …)", "JOIN"),
        ("Physical plan does not support logical expression InSubquery(x)", "SELECT 1 IN (…)", "EXISTS"),
        ("This feature is not implemented: TOP", "SELECT TOP 5 * FROM t", "LIMIT n"),
        ("Invalid function 'last_insert_id'", "SELECT LAST_INSERT_ID()", "RETURNING"),
        ("Placeholder ':id' was not provided", "SELECT :id", "$1"),
        ("Parameter count mismatch: expected 0 parameters, got 1", "SELECT 1 FROM t WHERE id = ?", "$1"),
        ("Table not found: app.generate_series", "SELECT * FROM generate_series(1, 3)", "unnest"),
        ("Table not found: default.sqlite_master", "SELECT * FROM sqlite_master", "information_schema"),
    ],
)
def test_what_the_query_engine_refuses(message: str, sql: str, wanted: str) -> None:
    assert wanted in advised(message, sql, is_grammar=False).split("Instead: ")[1]


@pytest.mark.parametrize(
    ("message", "sql"),
    [
        ("Already exists: Primary key violation", "INSERT INTO t SET id = 1"),
        ("No field named bob", "SELECT 1 FROM t WHERE n = bob"),
        ("Invalid role 'boss'; use user or dba", "CREATE USER ann WITH PASSWORD 'x' ROLE boss"),
        (
            "Conflicting table type definitions",
            "CREATE USER TABLE t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')",
        ),
        ("Unsupported statement type: XYZZY", "XYZZY 'TRUNCATE'"),
    ],
)
def test_nothing_is_added_where_nobody_knows_better(message: str, sql: str) -> None:
    assert advised(message, sql, is_grammar=not message.startswith(("Already", "No field"))) == message


def test_a_tree_of_the_query_engine_is_not_shown() -> None:
    for refusal in (
        "Unsupported ast node in sqltorel: RLike { n: 1 }",
        "not support logical expression Exists({ n: 1 })",
    ):
        told = advised(refusal, "SELECT 1", is_grammar=False)
        assert "{" not in told.split("Instead")[0]


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("Unsupported SQL type UUID", "CAST(x AS TEXT)"),
        ("Unsupported SQL type JSON", "json_get_str"),
        ("LIKE does not support escape_char other than the backslash", "literal pattern"),
        ("Cannot coerce arithmetic expression Decimal128(10, 2) + Utf8 to valid types", "DECIMAL(p,s)"),
        ("Function 'coalesce' failed: Expect to get struct but got Timestamp(µs)", "TIMESTAMP '"),
    ],
)
def test_what_the_engine_lacks_is_told_in_other_words(refusal: str, told: str) -> None:
    assert told in advised(refusal, "SELECT 1", is_grammar=False)
