"""Promise: names and functions that only look like a clause that is passed over are let through."""

import pytest

from upwell.session.ignored import refuse_ignored


@pytest.mark.parametrize(
    "text",
    [
        "SELECT substring(v FROM 1 FOR 2) FROM t",
        "SELECT overlay(v PLACING 'x' FROM 1 FOR 1) FROM t",
        "SELECT sample, connect FROM t AS sample WHERE v = 'FOR UPDATE'",
        'SELECT "for" FROM t -- TABLESAMPLE',
        'SELECT 1 AS "for", "update" FROM t ORDER BY sample LIMIT 1',
    ],
)
def test_what_only_looks_like_a_clause_is_let_through(text: str) -> None:
    refuse_ignored(text)
