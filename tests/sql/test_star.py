"""`t.*` and `t.x` of a table that a query names with its namespace mean the table, at every place."""

from collections.abc import Iterator

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
