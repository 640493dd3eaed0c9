"""Promise: JSON operators and functions become calls of one step each, and nothing else is touched."""

import pytest

from upwell.errors import InvalidSql
from upwell.sql.json_path import OPERATORS_MAX, with_json_calls
from upwell.sql.query import Query


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("doc->'a'", "json_step(doc, 'a')"),
        ("doc ->> 'a'", "json_value_text(json_step(doc, 'a'))"),
        ("doc->0", "json_step_at(doc, 0)"),
        ("doc->-1", "json_step_at(doc, -1)"),
        ("t.doc->'a'->>'b'", "json_value_text(json_step(json_step(t.doc, 'a'), 'b'))"),
        ('n."t"."doc"->"t"."key"', 'json_step(n."t"."doc", "t"."key")'),
        ("(doc)->'a'", "json_step((doc), 'a')"),
        ("lower(doc)->'a'", "json_step(lower(doc), 'a')"),
        ("doc::text->'a'", "json_step(doc::text, 'a')"),
        ("doc->lower('A') = 1", "json_step(doc, lower('A')) = 1"),
        ("doc->('a' || 'b')", "json_step(doc, ('a' || 'b'))"),
        ("NOT doc ? 'a' AND x", "NOT (json_step(doc, 'a') IS NOT NULL) AND x"),
        ("x IN (doc->'a', 1)", "x IN (json_step(doc, 'a'), 1)"),
        ("WHERE (doc->>'a') = 'x'", "WHERE (json_value_text(json_step(doc, 'a'))) = 'x'"),
        ("json_get_int(doc)", "json_value_int(doc)"),
        ("JSON_Length( doc , 'a', (-1) )", "json_value_length(json_step_at(json_step(doc, 'a'), (-1)))"),
        ("json_contains(f(a, b), 'k')", "(json_step(f(a, b), 'k') IS NOT NULL)"),
        ("json_get_str(json_get(doc, 'a'), 'b')", "json_value_str(json_step(json_step(doc, 'a'), 'b'))"),
    ],
)
def test_a_path_becomes_its_steps(text: str, rewritten: str) -> None:
    assert with_json_calls(Query(text)).text == rewritten


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '->' || \"a->b\" -- doc->'a'",
        "SELECT 'json_get(doc, 1)', '?'",
        "SELECT json_get FROM t",
        "json_get()",
        "-> 'a'",
        "doc ->",
        "AND -> 'a'",
        "a - > b",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert with_json_calls(Query(text)).text == text


def test_there_is_an_end_to_it() -> None:
    assert with_json_calls(Query("d" + "->'a'" * OPERATORS_MAX)).text.count("json_step") == OPERATORS_MAX
    with pytest.raises(InvalidSql, match="200 JSON operators"):
        with_json_calls(Query("d" + "->'a'" * (OPERATORS_MAX + 1)))
