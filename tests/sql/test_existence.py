"""EXISTS as a column says what DuckDB says, and as a condition what it said before."""

from collections.abc import Iterator

import duckdb
import pytest

from upwell.errors import QueryFailure
from upwell.testing.embedded import Embedded, memory_store

_ROWS = {
    "t": "(1, 10), (2, 20), (3, NULL)",
    "u": "(1, 5), (3, NULL), (4, 20)",
}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("exists"), store=memory_store()) as db:
        for name, rows in _ROWS.items():
            db.run(f"CREATE TABLE {name} (id INT PRIMARY KEY, x INT)")
            db.run(f"INSERT INTO {name} VALUES {rows}")
        db.flush("default.u")
        yield db


@pytest.fixture(scope="module")
def oracle() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        for name, rows in _ROWS.items():
            connection.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY, x INT)")
            connection.execute(f"INSERT INTO {name} VALUES {rows}")
        yield connection


@pytest.mark.parametrize(
    "text",
    [
        "SELECT id, EXISTS (SELECT 1 FROM u WHERE u.id = t.id) FROM t ORDER BY id",
        "SELECT id, NOT EXISTS (SELECT * FROM u WHERE u.x = t.x) AS lacks FROM t ORDER BY id",
        "SELECT id, EXISTS (SELECT x, 1 FROM u WHERE u.id = t.id AND u.x IS NULL LIMIT 1) FROM t ORDER BY 1",
        "SELECT EXISTS (SELECT 1 FROM u), EXISTS (SELECT 1 FROM u WHERE id > 9) AS later",
        "SELECT id, CASE WHEN EXISTS (SELECT 1 FROM u WHERE u.id = t.id) THEN 1 ELSE 2 END FROM t ORDER BY 1",
        "SELECT COUNT(*), EXISTS (SELECT DISTINCT x FROM u) FROM t",
        "SELECT id FROM (SELECT id, EXISTS (SELECT 1 FROM u WHERE u.id = t.id) AS e FROM t) "
        "WHERE e ORDER BY id",
        "WITH w AS (SELECT EXISTS (SELECT 1 FROM u WHERE x = 20) AS e) SELECT e, NOT e FROM w",
        "SELECT id, EXISTS (SELECT 1 FROM u WHERE id = t.id AND EXISTS (SELECT 1 FROM t WHERE x = 10)) "
        "FROM t ORDER BY id",
        "SELECT id FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.id = t.id) ORDER BY id",
        "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.id = t.id) OR id = 1 ORDER BY id",
        "SELECT id IS DISTINCT FROM 2, EXISTS (SELECT 1 FROM u WHERE u.id = t.id) FROM t ORDER BY id",
    ],
)
def test_existence_is_a_column(db: Embedded, oracle: duckdb.DuckDBPyConnection, text: str) -> None:
    assert db.rows(text) == oracle.execute(text).fetchall()


@pytest.mark.parametrize(
    "inner", ["SELECT COUNT(*) FROM u", "SELECT 1 FROM u GROUP BY x", "SELECT 1 FROM u LIMIT 0"]
)
def test_more_than_rows_is_refused(db: Embedded, inner: str) -> None:
    with pytest.raises(QueryFailure, match="not support logical expression Exists"):
        db.run(f"SELECT EXISTS ({inner})")
