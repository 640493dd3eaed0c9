"""A query's text as all read it that write parts of it in other words."""

import pytest

from upwell.sql.query import Query
from upwell.sql.source import is_merged, sources


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("SELECT a, t.b, c AS d, e f FROM t", [("a", "a"), ("t.b", "b"), ("c", "d"), ("e", "f")]),
        ('SELECT DISTINCT ON (a, b) "A""b", n."X" AS y', [('"A""b"', 'A"b'), ('n."X"', "y")]),
        (
            "SELECT a + 1, f(b, c), a IS NULL UNION SELECT 1",
            [("a + 1", None), ("f(b, c)", None), ("a IS NULL", None)],
        ),
        ("SELECT CASE WHEN a, b THEN 1 END x, [1, 2], a IS DISTINCT FROM b FROM t", None),
        (
            "SELECT * EXCEPT (a), t.*, (SELECT b, c FROM u) FROM t",
            [("* EXCEPT (a)", None), ("t.*", None), ("(SELECT b, c FROM u)", None)],
        ),
        ("SELECT", []),
    ],
)
def test_items(text: str, items: list[tuple[str, str | None]] | None) -> None:
    query = Query(text)
    found = [
        (query.between(item.begin, item.expression_end), item.name) for item in query.items(query.selects[0])
    ]
    whole = [("CASE WHEN a, b THEN 1 END", "x"), ("[1, 2]", None), ("a IS DISTINCT FROM b", None)]
    assert found == (whole if items is None else items)


def test_sources() -> None:
    text = "SELECT 1 FROM a.t JOIN u AS v (x, y) ON f(1, 2), (SELECT 1 FROM q) w, LATERAL g(3) h, (b JOIN c)"
    found = [
        (
            ".".join(part.name for part in each.path),
            each.is_call,
            each.is_join,
            each.alias and each.alias.name,
            each.columns,
        )
        for each in sources(Query(text), 0)
    ]
    assert found == [
        ("a.t", False, False, None, ()),
        ("u", False, False, "v", ["x", "y"]),
        ("", False, False, "w", []),
        ("g", True, False, "h", []),
        ("", False, True, None, ()),
    ]


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("SELECT * FROM t JOIN u USING (id)", True),
        ("SELECT * FROM (SELECT * FROM t NATURAL JOIN u) AS q", False),
        ("SELECT *", False),
    ],
)
def test_columns_that_two_sources_share(text: str, merged: bool) -> None:
    assert is_merged(Query(text), 0) is merged


def test_what_is_edited_stays_apart_from_the_words_beside_it() -> None:
    query = Query("WHERE(a)AND b")
    assert query.edited([]) is query
    assert query.edited([*query.around(1, 4, "NOT", "x"), (12, 13, "'c'")]).text == "WHERE NOT(a)x AND 'c'"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT t.end, t.offset, n AS left FROM app.order",
        "SELECT offset, limit, group FROM app.order",
        "SELECT 1 * end, limit + 1, NOT end FROM app.order",
        "SELECT DISTINCT ON (a) *, b, c FROM app.order",
        "SELECT *, a * b, COUNT(*) FILTER (WHERE a) FROM app.order",
        "SELECT DISTINCT a, SUM(b) OVER (ORDER BY c), left(a, 1) FROM app.order",
    ],
)
def test_names_that_are_spelled_like_words_of_clauses(text: str) -> None:
    query = Query(text)
    assert len(query.items(0)) == 3
    assert [[part.name for part in source.path] for source in sources(query, 0)] == [["app", "order"]]


@pytest.mark.parametrize("text", ["SELECT DISTINCT ON (a) * FROM t", "SELECT t.* FROM t", "SELECT * FROM t"])
def test_a_star_is_no_product(text: str) -> None:
    assert Query(text).from_of(0) is not None
