"""Columns of one name: each gets one of its own in the text, and the result shows what was written."""

import pytest

from upwell.sql.twins import own_names

REFUSED = "Projections require unique expression names but the expression"


@pytest.mark.parametrize(
    ("text", "rewritten", "columns", "shown"),
    [
        ("SELECT 1, 1", 'SELECT 1, 1 AS "column_2"', ["Int64(1)", "column_2"], ["Int64(1)"] * 2),
        ("SELECT id, t.ID", 'SELECT id, t.ID AS "id_2"', ["id", "id_2"], ["id", "id"]),
        ("SELECT v AS x, w x FROM t", 'SELECT v AS x, w "x_2" FROM t', ["x", "x_2"], ["x", "x"]),
        ("SELECT *, id FROM t", 'SELECT *, id AS "id_2" FROM t', ["id", "v", "id_2"], ["id", "v", "id"]),
        (
            "SELECT DISTINCT ON (a, a) id_2, id, id FROM t",
            'SELECT DISTINCT ON (a, a) id_2, id, id AS "id_3" FROM t',
            ["id_2", "id", "id_3"],
            ["id_2", "id", "id"],
        ),
        (
            "SELECT x IS NULL, x is null, f(1, 1), CASE WHEN a THEN 1 ELSE 1 END",
            'SELECT x IS NULL, x is null AS "column_2", f(1, 1), CASE WHEN a THEN 1 ELSE 1 END',
            ["n", "column_2", "f", "c"],
            ["n", "n", "f", "c"],
        ),
        ("SELECT 1.0, 1.00", 'SELECT 1.0, 1.00 AS "column_2"', ["F(1)", "column_2"], ["F(1)", "1.00"]),
    ],
)
def test_twins_are_told_apart(text: str, rewritten: str, columns: list[str], shown: list[str]) -> None:
    own = next(own_names(text, REFUSED))
    assert own.text == rewritten
    assert own.restored(columns) == shown


def test_a_query_that_was_refused_for_something_else_stays() -> None:
    assert list(own_names("SELECT 1, 1, nope", "No field named nope")) == []
