"""IS DISTINCT FROM binds as it does everywhere, whatever the query engine's parser would make of it."""

import pytest

from upwell.sql.distinct import with_whole_distinct
from upwell.sql.query import Query


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("x OR a IS DISTINCT FROM 1 AND b", "x OR (a IS DISTINCT FROM 1) AND b"),
        ("NOT a->1 IS NOT DISTINCT FROM -1::INT", "NOT (a->1 IS NOT DISTINCT FROM -1::INT)"),
        (
            "x WHERE t.a IS DISTINCT FROM (SELECT 1) LIMIT 1",
            "x WHERE (t.a IS DISTINCT FROM (SELECT 1)) LIMIT 1",
        ),
        ("SELECT f(a, b) IS DISTINCT FROM b AS c FROM t", "SELECT (f(a, b) IS DISTINCT FROM b) AS c FROM t"),
        ("a IS DISTINCT FROM b IS DISTINCT FROM c", "((a IS DISTINCT FROM b) IS DISTINCT FROM c)"),
        (
            "(a is not distinct from case when b is distinct from c or d then 1 end or e)",
            "((a is not distinct from case when (b is distinct from c) or d then 1 end) or e)",
        ),
        ("SELECT DISTINCT a FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT 'a IS DISTINCT FROM b'", "SELECT 'a IS DISTINCT FROM b'"),
    ],
)
def test_it_stands_in_parentheses(text: str, whole: str) -> None:
    assert with_whole_distinct(Query(text)).text == whole


def test_an_aggregate_with_a_filter_is_one_operand() -> None:
    text = "SELECT SUM(a) FILTER (WHERE b > 1) IS DISTINCT FROM 2 FROM t"
    assert with_whole_distinct(Query(text)).text == text.replace("SUM", "(SUM").replace("2 FROM", "2) FROM")
