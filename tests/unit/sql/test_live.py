"""Live queries: what may be watched, and the contract's words for what may not."""

import pytest

from upwell.engine.catalog import Catalog, Table
from upwell.engine.expression import SEQ, And, Call, ColumnRef, Compare, Literal, Not
from upwell.errors import InvalidSql, InvalidValue, QueryFailure, TableNotFound, UpwellError
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
    ("SELECT * FROM app.notes WHERE EXISTS (SELECT 1)", UpwellError, "Subscription query WHERE supports"),
    ("SELECT * FROM app.notes WHERE stars = title", UpwellError, "Subscription query WHERE supports"),
    ("SELECT * FROM app.notes WHERE id = $1", UpwellError, "Subscription query WHERE supports"),
    ("SELECT * FROM app.notes WHERE ref = 'x'", InvalidValue, "column 'ref' (UUID) cannot hold 'x'"),
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
