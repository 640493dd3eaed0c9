"""What a result calls an expression without a name: as it was written, where the engine reads other words."""

from collections.abc import Iterator

import pytest

from upwell.errors import UpwellError
from upwell.session.outcome import Answer
from upwell.testing.embedded import Embedded, memory_store
from upwell.types import Value


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("caption"), store=memory_store()) as db:
        db.run("CREATE TABLE t (id INT PRIMARY KEY, doc JSON, price DECIMAL(10,2))")
        db.run('INSERT INTO t VALUES (1, \'{"k": "v", "n": [1, 2]}\', 1.50), (2, \'{"k": "w"}\', NULL)')
        db.run("CREATE VIEW named (first) AS SELECT doc->>'k' FROM t")
        yield db


@pytest.mark.parametrize(
    ("text", "names", "first"),
    [
        ("SELECT doc->>'k' FROM t ORDER BY id", ["doc->>'k'"], ("v",)),
        ("SELECT (doc -> 'n' ->> 1) FROM t ORDER BY id", ["doc -> 'n' ->> 1"], ("2",)),
        ("SELECT json_length(doc->'n'), id FROM t ORDER BY id", ["json_length(doc->'n')", "id"], (2, 1)),
        ("SELECT *, doc->>'k' FROM t ORDER BY id", None, (1,)),
        ("SELECT doc->>'k', doc->>'k' FROM t ORDER BY id", ["doc->>'k'"] * 2, ("v", "v")),
        ("SELECT doc->>'k' AS a, doc->>'k' FROM t ORDER BY id", ["a", "doc->>'k'"], ("v", "v")),
        ("SELECT doc->>'k', COUNT(*) FROM t GROUP BY doc->>'k' ORDER BY doc->>'k' DESC", None, ("w", 1)),
        ("SELECT MAX(doc->>'k'), COUNT(*) FROM t", ["MAX(doc->>'k')", "count(*)"], ("w", 2)),
        ("SELECT doc->>'k' FROM t UNION SELECT 'a' ORDER BY 1", ["doc->>'k'"], ("a",)),
        ("SELECT * FROM (SELECT doc->>'k', id FROM t) AS q ORDER BY id", ["doc->>'k'", "id"], ("v", 1)),
        ("SELECT q.\"doc->>'k'\" FROM (SELECT doc->>'k' FROM t) q ORDER BY 1", ["doc->>'k'"], ("v",)),
        ("WITH w AS (SELECT doc->>'k' FROM t) SELECT * FROM w ORDER BY 1", ["doc->>'k'"], ("v",)),
        ("SELECT * FROM named ORDER BY first", ["first"], ("v",)),
        ("SELECT id IN (1, id), id NOT IN (3) FROM t", ["id IN (1, id)", "id NOT IN (3)"], (True, True)),
        ("SELECT price - 0.005 AS p, price - 0.005 FROM t ORDER BY id", ["p", "price - 0.005"], None),
        (
            "SELECT id IS DISTINCT FROM 1, TIME '10:00' FROM t",
            ["id IS DISTINCT FROM 1", "TIME '10:00'"],
            None,
        ),
        ("SELECT \"doc\" ->> 'k' FROM t ORDER BY id", ["\"doc\" ->> 'k'"], ("v",)),
        ("SELECT CASE WHEN doc->>'k' = 'v' THEN 1 END FROM t ORDER BY id", None, (1,)),
        ("SELECT id + 1 FROM t WHERE doc->>'k' = 'v'", ["t.id + Int64(1)"], (2,)),
        ("SELECT COUNT(*), 1 FROM t WHERE doc->>'k' = 'v'", ["count(*)", "Int64(1)"], (1, 1)),
        ("SELECT id FROM t WHERE doc->>'k' IN (SELECT doc->>'k' FROM t WHERE id = 2)", ["id"], (2,)),
        (
            "SELECT (SELECT MAX(1 * u.id) FROM t AS u WHERE u.id = t.id), doc->>'k' FROM t ORDER BY id",
            None,
            (1, "v"),
        ),
        ("SELECT (SELECT MAX(doc->>'k') FROM t)", ["SELECT MAX(doc->>'k') FROM t"], ("w",)),
        (
            "SELECT id + 1, (SELECT MAX(o.id + 1) FROM t o WHERE o.id = q.id), id IN (1, id) FROM t q",
            None,
            (2, 2, True),
        ),
    ],
)
def test_expressions_are_shown_as_they_were_written(
    db: Embedded, text: str, names: list[str] | None, first: tuple[Value, ...] | None
) -> None:
    answer = db.run(text).result
    if first is not None:
        assert db.rows(text)[0][: len(first)] == first
    if names is not None:
        assert isinstance(answer, Answer)
        assert answer.table.column_names == names


def test_what_a_change_returns_is_shown_as_it_was_written(db: Embedded) -> None:
    answer = db.run("INSERT INTO t VALUES (7, '{\"k\": 7}', 0) RETURNING doc->>'k', id").result
    assert isinstance(answer, Answer)
    assert answer.table.to_pylist() == [{"doc->>'k'": "7", "id": 7}]
    db.run("DELETE FROM t WHERE id = 7")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("SELECT DISTINCT doc->>'k' FROM t ORDER BY doc->>'k' DESC", [("w",), ("v",)]),
        ("SELECT DISTINCT upper(doc->>'k'), 1 FROM t ORDER BY UPPER(doc ->> 'k')", [("V", 1), ("W", 1)]),
        ("SELECT DISTINCT id * 2 AS n FROM t ORDER BY id * 2 DESC NULLS LAST, n", [(4,), (2,)]),
        ("SELECT DISTINCT -id AS n, id FROM t ORDER BY -id", [(-2, 2), (-1, 1)]),
        ("SELECT n FROM (SELECT DISTINCT id + 1 AS n FROM t ORDER BY id + 1 LIMIT 1) q", [(2,)]),
        ("SELECT DISTINCT id AS b, -id AS id FROM t ORDER BY id", [(2, -2), (1, -1)]),
    ],
)
def test_distinct_rows_are_ordered_by_what_they_show(
    db: Embedded, text: str, rows: list[tuple[Value, ...]]
) -> None:
    assert db.rows(text) == rows


def test_a_view_asks_for_a_name_in_the_words_of_its_text(db: Embedded) -> None:
    with pytest.raises(UpwellError, match=r"say doc->>'k' AS a_name"):
        db.run("CREATE VIEW v AS SELECT doc->>'k' FROM t")
