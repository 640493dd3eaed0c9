"""Promise: what could exhaust the query engine's stack is refused, and what could not is let through."""

import pytest

from upwell.errors import InvalidSql
from upwell.session.depth import OPERATORS_DEEP_MAX, RELATIONS_MAX, operators_deep, refuse_deep
from upwell.sql.lex import tokenize


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("SELECT 1", 0),
        ("SELECT 1 + 2 + 3", 2),
        ("SELECT 1 + 2, 3 + 4", 1),
        ("SELECT a = 1 OR b = 2 OR c = 3", 3),
        ("SELECT a AND b AND c OR d", 3),
        ("SELECT (1 + (2 + (3 + 4)))", 3),
        ("SELECT f(1 + 2) + f(3 + 4)", 2),
        ("SELECT a[1][2]::INT", 3),
        ("SELECT CASE WHEN a + 1 = 2 THEN 1 WHEN b = 2 THEN 2 END + 1", 3),
        ("SELECT x IN (1, 2, 3, 4)", 1),
        ("SELECT '1 + 2 + 3' -- + 4 + 5", 0),
        ("SELECT ((1 + 2)", 1),
        ("SELECT 1)) + 2", 1),
    ],
)
def test_depth_is_the_longest_chain_through_all_parentheses(text: str, depth: int) -> None:
    assert operators_deep(tokenize(text)) == depth


@pytest.mark.parametrize("name", ["t.limit", "limit", "t.on", "end", "t.from", "order", "t.case"])
@pytest.mark.parametrize("operator", ["+", "*", "=", "AND", "OR", "||"])
def test_names_that_are_spelled_like_clauses_end_no_chain(name: str, operator: str) -> None:
    with pytest.raises(InvalidSql, match="operators deep"):
        refuse_deep("SELECT 1" + f" {operator} {name}" * (OPERATORS_DEEP_MAX + 1) + " FROM t")


def test_the_limits_are_exact() -> None:
    refuse_deep("SELECT " + "+".join(["1"] * (OPERATORS_DEEP_MAX + 1)))
    with pytest.raises(InvalidSql, match="at most 1000 are allowed"):
        refuse_deep("SELECT " + "+".join(["1"] * (OPERATORS_DEEP_MAX + 2)))
    refuse_deep(" UNION ALL ".join(["SELECT 1"] * RELATIONS_MAX))
    with pytest.raises(InvalidSql, match="at most 250 are allowed"):
        refuse_deep(" UNION ALL ".join(["SELECT 1"] * (RELATIONS_MAX + 1)))


def test_long_lists_are_not_deep() -> None:
    refuse_deep("SELECT * FROM t WHERE x IN (" + ", ".join(map(str, range(50_000))) + ")")
    refuse_deep("SELECT CASE " + " ".join(f"WHEN x = {n} THEN {n} + 1" for n in range(5_000)) + " END")
