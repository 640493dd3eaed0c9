"""What is stored is calculated so that it fails if it doesn't fit; what isn't surely integers stays."""

import pytest

from upwell.sql.checked import with_checked_integers

WIDE = "CAST({} AS DECIMAL(38, 0))"


@pytest.mark.parametrize(
    "text",
    [
        "SELECT x + 1, -x, x * n FROM t",  # x is no integer
        "SELECT f(n) + n, n::TEXT, n / 2, n % 2 FROM t",
        "SELECT x + n + 1 FROM t",
        "SELECT q.n + 1 FROM (SELECT x AS n FROM t) AS q",
        "WITH c (n) AS (SELECT x FROM t) SELECT n + 1 FROM c",
        "SELECT q.n + 1 FROM (VALUES (1.5)) AS q (n)",
        "SELECT 'n + 1', \"n + 1\" -- n + 1",
        "SELECT COUNT(*), t.* FROM t",
        "SELECT n FROM t JOIN u ON n + 1 = m WHERE n IN (SELECT n + 1 FROM t) AND (n * m > 1) GROUP BY n",
        "SELECT n * x, n + 1 * x FROM t",
        "SELECT SUM(n) OVER (ORDER BY n) FROM t",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert with_checked_integers(text, {"n", "m"}) == text


@pytest.mark.parametrize(
    ("text", "checked"),
    [
        ("SELECT n + 1", f"SELECT CAST({WIDE.format('n')} + {WIDE.format('1')} AS BIGINT)"),
        ("SELECT -t.n", f"SELECT CAST(-{WIDE.format('t.n')} AS BIGINT)"),
        ("SELECT SUM(n) FROM t", f"SELECT CAST(SUM({WIDE.format('n')}) AS BIGINT) FROM t"),
        (
            "SELECT n - m / 2, x",
            f"SELECT CAST({WIDE.format('n')} - {WIDE.format('(m / 2)')} AS BIGINT), x",
        ),
        (
            "SELECT n FROM t WHERE n + 1 > 1 UNION SELECT -n FROM t",
            f"SELECT n FROM t WHERE n + 1 > 1 UNION SELECT CAST(-{WIDE.format('n')} AS BIGINT) FROM t",
        ),
        ("f(n * m)", f"f(CAST({WIDE.format('n')} * {WIDE.format('m')} AS BIGINT))"),
        ("n + m + x * 2", f"CAST({WIDE.format('n')} + {WIDE.format('m')} AS BIGINT) + x * 2"),
    ],
)
def test_integers_are_checked(text: str, checked: str) -> None:
    assert with_checked_integers(text, {"n", "m"}) == checked
