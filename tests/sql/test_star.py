"""Stars: `t.*` of a table that a query names with its namespace means the table, at every place; what a star
stores are the columns that were declared.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.errors import UpwellError
from upwell.session.outcome import Answer, PointAnswer
from upwell.testing.embedded import Embedded, memory_store


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("star"), store=memory_store()) as db:
        db.run("CREATE NAMESPACE a")
        db.run("CREATE TABLE a.t (id INT PRIMARY KEY, x INT)")
        db.run("CREATE TABLE a.u (id INT PRIMARY KEY, y INT)")
        db.run("INSERT INTO a.t VALUES (1, 10), (2, 20)")
        db.run("INSERT INTO a.u VALUES (1, 5), (2, 6)")
        db.run("CREATE VIEW a.v AS SELECT t.*, u.y FROM a.t JOIN a.u ON t.id = u.id")
        yield db


@pytest.mark.parametrize(
    ("text", "columns", "first"),
    [
        ("SELECT t.* FROM a.t", "id x _seq _deleted", (1, 10)),
        ("SELECT a.t.* FROM a.t", "id x _seq _deleted", (1, 10)),
        ('SELECT T.*, "t".x AS again FROM a.t', "id x _seq _deleted again", (1, 10)),
        (
            "SELECT u.y, t.* FROM a.t JOIN a.u ON t.id = u.id ORDER BY t.id",
            "y id x _seq _deleted",
            (5, 1, 10),
        ),
        ("SELECT t.* FROM a.t, a.u WHERE t.id = u.id AND u.y = 6", "id x _seq _deleted", (2, 20)),
        ("SELECT q.* FROM (SELECT t.* FROM a.t WHERE t.x > 10) AS q", "id x _seq _deleted", (2, 20)),
        ("WITH w AS (SELECT t.* FROM a.t) SELECT w.* FROM w ORDER BY w.id", "id x _seq _deleted", (1, 10)),
        ("SELECT t.* FROM a.u AS t", "id y _seq _deleted", (1, 5)),
        ("SELECT b.* FROM a.t AS b", "id x _seq _deleted", (1, 10)),
        ("SELECT v.* FROM a.v ORDER BY v.id", "id x _seq _deleted y", (1, 10)),
        ("SELECT id FROM a.t WHERE EXISTS (SELECT u.* FROM a.u WHERE u.id = t.id AND u.y = 6)", "id", (2,)),
        ("SELECT tables.* FROM system.tables WHERE tables.table_name = 't'", None, ("a", "t")),
        ("SELECT t.x FROM a.t UNION SELECT u.y FROM a.u ORDER BY 1", "x", (5,)),
    ],
)
def test_a_star_means_the_table(db: Embedded, text: str, columns: str | None, first: tuple[int, ...]) -> None:
    answer = db.run(text).result
    assert isinstance(answer, Answer)
    if columns is not None:
        assert answer.table.column_names == columns.split()
    assert db.rows(text)[0][: len(first)] == first


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("INSERT INTO a.t VALUES (7, 70) RETURNING t.*", (7, 70)),
        ("UPDATE a.t SET x = t.x + 1 WHERE t.id = 7 RETURNING t.*, t.x AS again", (7, 71, 71)),
        (
            "INSERT INTO a.t VALUES (7, 1) ON CONFLICT (id) DO UPDATE SET x = t.x + excluded.x RETURNING t.*",
            (7, 72),
        ),
        ("DELETE FROM a.t WHERE t.id = 7 RETURNING t.*", (7, 72)),
    ],
)
def test_changes_return_the_whole_table(db: Embedded, text: str, row: tuple[int, ...]) -> None:
    answer = db.run(text).result
    assert isinstance(answer, PointAnswer)
    assert [tuple(found) for found in answer.rows] == [row]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT u.* FROM a.t",
        "SELECT t.* FROM a.t AS b",
        "SELECT b.* FROM (SELECT 1 AS n FROM a.t AS b) AS q",
        "INSERT INTO a.t VALUES (8, 80) RETURNING u.*",
        "DELETE FROM a.t RETURNING u.*",
    ],
)
def test_a_star_of_another_name_is_refused(db: Embedded, text: str) -> None:
    with pytest.raises(UpwellError):
        db.run(text)
    assert len(db.rows("SELECT id FROM a.t")) == 2


@pytest.fixture(scope="module", params=["USER", "SHARED"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Tables of one kind with a row that is cold, one that is hot and one that was changed since."""
    with Embedded(tmp_path_factory.mktemp("stored"), store=memory_store()) as db:
        db.run("CREATE NAMESPACE a")
        for name in ("t", "u", "copy"):
            db.run(f"CREATE {request.param} TABLE a.{name} (id INT PRIMARY KEY, x BIGINT)")
        db.run("CREATE SHARED TABLE a.pairs (id INT PRIMARY KEY, x BIGINT, other INT, y BIGINT)")
        db.run("INSERT INTO a.t VALUES (1, 10), (2, 1)")
        db.run("INSERT INTO a.u VALUES (1, 5), (3, 7)")
        db.flush("a.t")
        db.run("UPDATE a.t SET x = 20 WHERE id = 2")
        db.run("INSERT INTO a.t VALUES (3, 30)")
        db.run("CREATE VIEW a.v AS SELECT * FROM a.t")
        db.run("CREATE VIEW a.named AS SELECT id, _seq FROM a.t WHERE id = 1")
        yield db


_ALL = [(1, 10), (2, 20), (3, 30)]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT * FROM a.t", _ALL),
        ("SELECT t.* FROM a.t", _ALL),
        ("SELECT a.t.* FROM a.t", _ALL),
        ('SELECT q.* FROM a.t AS q WHERE q."_seq" > 0', _ALL),
        ('SELECT "Q".* FROM a.t "Q" WHERE NOT _deleted', _ALL),
        ("SELECT DISTINCT * FROM a.t", _ALL),
        ("SELECT id, x * 2 FROM a.t WHERE x > 10", [(2, 40), (3, 60)]),
        ("WITH w AS (SELECT * FROM a.t WHERE _seq > 0) SELECT * FROM w", _ALL),
        ("WITH w (p, r) AS (SELECT * FROM a.t) SELECT w.* FROM w", _ALL),
        ("SELECT * FROM (SELECT * FROM (SELECT * FROM a.t) p) q ORDER BY x DESC LIMIT 1", [(3, 30)]),
        ("SELECT * FROM a.t WHERE id < 3 UNION ALL SELECT u.* FROM a.u WHERE u.id = 3", [*_ALL[:2], (3, 7)]),
        ("SELECT t.* FROM a.t JOIN a.u USING (id)", [(1, 10), (3, 30)]),
        ("SELECT u.* FROM a.t, a.u WHERE t.id = u.id", [(1, 5), (3, 7)]),
        ("SELECT * FROM a.v", _ALL),
        ("SELECT v.* FROM a.v WHERE v._seq > 0", _ALL),
        ("SELECT id, x FROM a.t WHERE EXISTS (SELECT * FROM a.t JOIN a.u USING (id))", _ALL),
        ("SELECT id, (SELECT COUNT(*) FROM a.u) FROM a.t WHERE id = 2", [(2, 2)]),
    ],
)
def test_what_is_stored_by_a_star_was_declared(
    stored: Embedded, query: str, rows: list[tuple[int, int]]
) -> None:
    assert stored.change(f"INSERT INTO a.copy {query}") == len(rows)
    assert stored.rows("SELECT id, x FROM a.copy ORDER BY id") == rows
    stored.run("DELETE FROM a.copy")


def test_a_star_over_a_join_stores_the_columns_of_both(stored: Embedded) -> None:
    stored.run("INSERT INTO a.pairs SELECT * FROM a.t JOIN (SELECT * FROM a.u) AS q ON t.id = q.id")
    assert stored.rows("SELECT id, x, other, y FROM a.pairs ORDER BY id") == [(1, 10, 1, 5), (3, 30, 3, 7)]
    stored.run("DELETE FROM a.pairs")


def test_a_name_that_was_written_is_stored(stored: Embedded) -> None:
    seq = stored.rows("SELECT _seq FROM a.t WHERE id = 1")[0][0]
    for query in ("SELECT * FROM a.named", "SELECT * FROM (SELECT id, _seq FROM a.t WHERE id = 1) q"):
        stored.run(f"INSERT INTO a.copy {query}")
        assert stored.rows("SELECT id, x FROM a.copy") == [(1, seq)]
        stored.run("DELETE FROM a.copy")


def test_a_star_in_a_transaction_stores_what_is_staged(stored: Embedded) -> None:
    stored.run("BEGIN; INSERT INTO a.u VALUES (9, 9); INSERT INTO a.copy SELECT * FROM a.u; COMMIT")
    assert stored.rows("SELECT id, x FROM a.copy ORDER BY id") == [(1, 5), (3, 7), (9, 9)]
    stored.run("DELETE FROM a.copy")
    stored.run("DELETE FROM a.u WHERE id = 9")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM a.t, a.u",
        "SELECT *, 1 FROM a.t",
        "SELECT * FROM (a.t JOIN a.u ON t.id = u.id)",
        "SELECT * FROM a.t JOIN a.u USING (id)",
        "SELECT * FROM a.t NATURAL JOIN (SELECT id FROM a.u) AS q",
    ],
)
def test_a_star_of_other_columns_is_not_stored(stored: Embedded, query: str) -> None:
    with pytest.raises(UpwellError, match=r"2 columns|name them in its place"):
        stored.run(f"INSERT INTO a.copy {query}")
    assert stored.rows("SELECT id FROM a.copy") == []


def test_a_query_with_a_star_knows_its_columns_after_an_alter(tmp_path: Path) -> None:
    with Embedded(tmp_path, store=memory_store()) as db:
        db.run("CREATE TABLE t (id BIGINT PRIMARY KEY, x BIGINT)")
        db.run("INSERT INTO t VALUES (3, 4)")
        query = "SELECT *, id * x FROM t"
        assert db.rows(query)[0][:2] == (3, 4)
        db.run("ALTER TABLE t ADD COLUMN y TEXT")
        answer = db.run(query).result
        assert isinstance(answer, Answer)
        assert answer.table.column_names[:5] == ["id", "x", "y", "_seq", "_deleted"]
        assert db.rows(query)[0][:3] == (3, 4, None)
        assert db.rows(query)[0][-1] == 12


_STAR = ["id", "x", "_seq", "_deleted"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT *, * FROM a.t ORDER BY id", _STAR * 2),
        ("SELECT q.*, q.* FROM a.t q ORDER BY q.id", _STAR * 2),
        ("SELECT *, id, t.*, * FROM a.t ORDER BY id", [*_STAR, "id", *_STAR * 2]),
        ("SELECT t.*, u.id, t.* FROM a.t, a.u WHERE t.id = u.id ORDER BY t.id", [*_STAR, "id", *_STAR]),
        ("SELECT * FROM (SELECT *, * FROM a.t) q ORDER BY x", _STAR * 2),
        ("SELECT v.*, v.* FROM a.v ORDER BY v.id", [*_STAR, "y"] * 2),
    ],
)
def test_a_star_may_come_twice(db: Embedded, text: str, names: list[str]) -> None:
    answer = db.run(text).result
    assert isinstance(answer, Answer)
    assert answer.table.column_names == names
    seqs = dict(db.rows("SELECT id, _seq FROM a.t"))
    for row, (key, x, y) in zip(db.rows(text), [(1, 10, 5), (2, 20, 6)], strict=True):
        cells = {"id": key, "x": x, "y": y, "_seq": seqs[key], "_deleted": False}
        assert row == tuple(cells[name] for name in names)


def test_a_star_that_comes_twice_over_merged_columns_is_refused(db: Embedded) -> None:
    with pytest.raises(UpwellError, match="name them in its place"):
        db.run("SELECT *, * FROM a.t JOIN a.u USING (id)")
