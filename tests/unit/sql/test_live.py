"""Live queries: what may be watched, and the contract's words for what may not."""

import pytest

from upwell.engine.catalog import Catalog, Table
from upwell.engine.expression import SEQ, And, Call, ColumnRef, Compare, Literal, Not
from upwell.errors import InvalidSql, QueryFailure, TableNotFound, UpwellError
from upwell.sql.live import LiveQuery, parse_live_query


def test_a_whole_table(catalog: Catalog, notes: Table) -> None:
    assert parse_live_query("SELECT * FROM app.notes;", catalog, "app") == LiveQuery(notes, None, None, None)


def test_columns_and_a_condition(catalog: Catalog, notes: Table) -> None:
    sql = """select n.id, title AS "T", _seq FROM App.Notes n -- mine
        WHERE n.title = CURRENT_USER() AND NOT n.stars > 3"""
    condition = And(
        (
            Compare("=", ColumnRef(1), Call("CURRENT_USER")),
            Not(Compare(">", ColumnRef(2), Literal(3))),
        )
    )
    where = "notes.title = CURRENT_USER() AND NOT notes.stars > 3"
    columns = ((0, "id"), (1, "T"), (SEQ, "_seq"))
    assert parse_live_query(sql, catalog, "other") == LiveQuery(notes, columns, condition, where)


def test_a_name_means_one_column(catalog: Catalog) -> None:
    sql = "SELECT title AS id, id AS number, stars, stars FROM app.notes"
    columns = ((1, "id"), (0, "number"), (2, "stars"))
    assert parse_live_query(sql, catalog, "app").columns == columns


REFUSED: list[tuple[str, type[UpwellError], str]] = [
    ("SELECT other.* FROM app.notes", UpwellError, "is not app.notes"),
    ("SELECT * FROM notes", UpwellError, "Invalid SQL: Query must use namespace.table format"),
    (
        "DELETE FROM app.notes",
        UpwellError,
        "Subscription query supports only SELECT ... FROM ... [WHERE ...].",
    ),
    ("WITH x AS (SELECT 1) SELECT * FROM x", UpwellError, "Subscription query supports only SELECT"),
    ("SELECT * FROM app.notes; SELECT 1", UpwellError, "must be exactly one SELECT"),
    ("", UpwellError, "must be exactly one SELECT"),
    ("SELECT id FROM app.notes GROUP BY id", UpwellError, "Subscription query does not support GROUP BY."),
    ("SELECT * FROM app.notes ORDER BY id", UpwellError, "Subscription query does not support ORDER BY."),
    ("SELECT * FROM app.notes LIMIT 5", UpwellError, "Subscription query does not support LIMIT."),
    ("SELECT DISTINCT id FROM app.notes", UpwellError, "Subscription query does not support DISTINCT."),
    ("SELECT * FROM app.notes a LEFT JOIN app.tags b ON TRUE", UpwellError, "does not support JOIN clauses."),
    ("SELECT * FROM app.notes, app.tags", UpwellError, "requires exactly one table in the FROM clause."),
    ("SELECT * FROM app.notes UNION SELECT * FROM app.notes", UpwellError, "does not support UNION."),
    ("SELECT COUNT(*) FROM app.notes", UpwellError, "The projection is * or column names"),
    ("SELECT 1", UpwellError, "The projection is * or column names"),
    ("SELECT * FROM app.notes WHERE EXISTS (SELECT 1)", InvalidSql, "a subquery at Line: 1, Column: 31"),
    ("SELECT * FROM app.notes WHERE id IN\n (SELECT 1)", InvalidSql, "a subquery at Line: 2, Column: 3"),
    (
        "SELECT * FROM app.notes WHERE sum(id) OVER () > 1",
        InvalidSql,
        "can't have OVER() at Line: 1, Column: 39",
    ),
    (
        "SELECT * FROM app.notes WHERE random() < 0.5",
        InvalidSql,
        "can't have RANDOM() at Line: 1, Column: 31",
    ),
    ("SELECT * FROM app.notes WHERE title <> ULID()", InvalidSql, "another one each time"),
    (
        "SELECT * FROM app.notes WHERE id = $1",
        InvalidSql,
        "write the value in place of $1 at Line: 1, Column: 36",
    ),
    ("SELECT * FROM app.nowhere", TableNotFound, "Table not found: app.nowhere"),
    ("SELECT id, title AS id FROM app.notes", InvalidSql, "calls two columns 'id'"),
    ("SELECT title AS id FROM app.notes", InvalidSql, "calls two columns 'id'"),
    ("SELECT id AS _seq FROM app.notes", InvalidSql, "calls two columns '_seq'"),
    ("SELECT *, title AS stars FROM app.notes", InvalidSql, "calls two columns 'stars'"),
    ("SELECT x FROM app.notes", QueryFailure, "column 'x' does not exist in app.notes"),
    ("SELECT * FROM app.notes WHERE x = 1", QueryFailure, "column 'x' does not exist in app.notes"),
]


@pytest.mark.parametrize(("sql", "error", "message"), REFUSED)
def test_refusals(sql: str, error: type[UpwellError], message: str, catalog: Catalog) -> None:
    with pytest.raises(error) as caught:
        parse_live_query(sql, catalog, "app")
    assert message in str(caught.value)


A, B = ColumnRef(0), ColumnRef(1)


@pytest.mark.parametrize(
    ("where", "predicate", "names"),
    [
        ("stars + 1 > 2", None, {"stars"}),
        ("id = 1 AND stars + 1 > 2", Compare("=", A, Literal(1)), {"id", "stars"}),
        (
            "id = 1 AND stars BETWEEN 1 + 1 AND 3 AND title = 'a'",
            And((Compare("=", A, Literal(1)), Compare("=", B, Literal("a")))),
            {"id", "stars", "title"},
        ),
        ("id = 1 OR stars + 1 > 2", None, {"id", "stars"}),
        ("NOT (id = 1 AND lower(title) = 'a')", None, {"id", "title"}),
        (
            "CASE WHEN id = 1 AND stars = 2 THEN TRUE ELSE notes.title ~ '' END",
            None,
            {"id", "stars", "title"},
        ),
        ("title = 'a' AND ref = 'x'", Compare("=", B, Literal("a")), {"title", "ref"}),
        ("title = 'a' AND CURRENT_DATE > DATE '2026-01-01'", Compare("=", B, Literal("a")), {"title"}),
    ],
)
def test_what_only_the_query_engine_decides(
    where: str, predicate: object, names: set[str], catalog: Catalog
) -> None:
    """What is left is true for each row that matches, so that it finds the live query."""
    found = parse_live_query(f"SELECT * FROM app.notes WHERE {where}", catalog, "app")
    assert (found.predicate, found.where, found.is_whole, found.names) == (predicate, where, False, names)
