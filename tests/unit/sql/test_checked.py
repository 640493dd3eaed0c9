"""Arithmetic that may not fit fails; what surely fits, and what isn't surely integers, stays as it is."""

import pytest

from upwell.sql.checked import with_checked_integers

COLUMNS = {"s": 16, "n": 32, "m": 32, "b": 64, "c": 64, "x": 0}
TABLES = {("default", "t"): COLUMNS, ("default", "u"): {"b": 0, "x": 64, "n": 64}}


@pytest.mark.parametrize(
    "text",
    [
        "SELECT x + 1, -x, x * b FROM t",  # x is no integer
        "SELECT f(b) + b, b::TEXT, b / 2, b % 2 FROM t",
        "SELECT x + b + 1, x - b - 1, f(x) - b % 2, 1.5 - b + 1, (x) - b, x::INT - b FROM t",
        "SELECT CASE WHEN x THEN 1.5 END - b, 'a' - b % 2, x[1] - b FROM t WHERE x - b > 1 AND x = x - b",
        "SELECT q.b + 1 FROM (SELECT x AS b FROM t) AS q",
        "WITH w (b) AS (SELECT x FROM t) SELECT b + 1 FROM w",
        "SELECT q.b + 1 FROM (VALUES (1.5)) AS q (b)",
        "SELECT 'b + 1', \"b + 1\" -- b + 1",
        "SELECT COUNT(*), t.* FROM t",
        "SELECT n + 1, n * 1000 - 7, s + 40000, n % 7 + n / 2 * 3, COUNT(*) + 1, length(x) * 2 FROM t",
        "SELECT SUM(n), SUM(s) OVER (ORDER BY s), SUM(CASE WHEN x THEN 1 ELSE 0 END) FROM t",
        "SELECT MAX(n) + 1, ABS(n % 10), b % 10 + 5, n::BIGINT + 1 FROM t",
        "SELECT b * x, b + 1 * x FROM t",
    ],
)
def test_what_surely_fits_or_is_no_integer_stays(text: str) -> None:
    assert with_checked_integers(text, TABLES, "default") == text


@pytest.mark.parametrize(
    ("text", "checked"),
    [
        ("SELECT b + 1 FROM t", "SELECT checked_add(b, 1) FROM t"),
        ("SELECT -t.b FROM t", "SELECT checked_negate(t.b) FROM t"),
        ("SELECT n * m FROM t", "SELECT CAST(CAST(n AS BIGINT) * CAST(m AS BIGINT) AS INT) FROM t"),
        ("SELECT -s FROM t", "SELECT CAST((-CAST(s AS BIGINT)) AS SMALLINT) FROM t"),
        ("SELECT SUM(b) FROM t", "SELECT checked_total(SUM(b), SUM((b) * 1e0)) FROM t"),
        (
            "SELECT SUM(b) FILTER (WHERE b + 1 > 2) OVER w FROM t",
            "SELECT checked_total(SUM(b) FILTER (WHERE checked_add(b, 1) > 2) OVER w, "
            "SUM((b) * 1e0) FILTER (WHERE checked_add(b, 1) > 2) OVER w) FROM t",
        ),
        ("SELECT b - n / 2, x FROM t", "SELECT checked_subtract(b, n / 2), x FROM t"),
        (
            "SELECT 1 FROM t WHERE b + 1 > 1 GROUP BY b * 2",
            "SELECT 1 FROM t WHERE checked_add(b, 1) > 1 GROUP BY checked_multiply(b, 2)",
        ),
        ("SELECT x - b * c FROM t", "SELECT x - checked_multiply(b, c) FROM t"),
        (
            "SELECT - -b, -9223372036854775808 - b FROM t",
            "SELECT checked_negate(checked_negate(b)), checked_subtract((-9223372036854775808), b) FROM t",
        ),
        (
            "SELECT COUNT(b + 1), (SELECT MAX(o.b) FROM t AS o) - 1 FROM t",
            "SELECT COUNT(checked_add(b, 1)), checked_subtract((SELECT MAX(o.b) FROM t AS o), 1) FROM t",
        ),
        (
            "SELECT t.b + 1, u.b + 1, t.x + 1, u.x + 1 FROM t JOIN u ON t.n = u.n",
            "SELECT checked_add(t.b, 1), u.b + 1, t.x + 1, checked_add(u.x, 1) FROM t JOIN u ON t.n = u.n",
        ),
        (
            "SELECT x AS b FROM t WHERE b + 1 > 1 GROUP BY b * 2 ORDER BY b + 1",
            "SELECT x AS b FROM t WHERE checked_add(b, 1) > 1 GROUP BY checked_multiply(b, 2) ORDER BY b + 1",
        ),
        (
            "SELECT b + 1 FROM (SELECT x FROM t) q (b) UNION SELECT b + 1 FROM t ORDER BY b + 1",
            "SELECT b + 1 FROM (SELECT x FROM t) q (b) UNION SELECT checked_add(b, 1) FROM t ORDER BY b + 1",
        ),
        (
            "SELECT SUM(DISTINCT b) FROM t",
            "SELECT CAST(SUM(DISTINCT CAST(b AS DECIMAL(38, 0))) AS BIGINT) FROM t",
        ),
        ("SELECT f(b * c) FROM t", "SELECT f(checked_multiply(b, c)) FROM t"),
        ("SELECT b + c + x * 2 FROM t", "SELECT checked_add(b, c) + x * 2 FROM t"),
        (
            "SELECT CASE WHEN b * 2 > 1 THEN b + 1 ELSE NULL END FROM t",
            "SELECT CASE WHEN checked_multiply(b, 2) > 1 THEN checked_add(b, 1) ELSE NULL END FROM t",
        ),
        (
            "SELECT y + 1, b FROM (SELECT b * 2 AS y, SUM(b) b FROM t) AS q",
            "SELECT checked_add(y, 1), b FROM "
            "(SELECT checked_multiply(b, 2) AS y, checked_total(SUM(b), SUM((b) * 1e0)) b FROM t) AS q",
        ),
    ],
)
def test_what_may_not_fit_is_checked(text: str, checked: str) -> None:
    assert with_checked_integers(text, TABLES, "default") == checked


def test_what_is_stored_may_need_more_bits_than_its_operands() -> None:
    stored = with_checked_integers(
        "SELECT n * m, -n, n * m * b, n * m * 4 FROM t", TABLES, "default", is_stored=True
    )
    product = "(CAST(n AS BIGINT) * CAST(m AS BIGINT))"
    assert stored == (
        f"SELECT {product}, (-CAST(n AS BIGINT)), checked_multiply({product}, b), "
        f"checked_multiply({product}, 4) FROM t"
    )
