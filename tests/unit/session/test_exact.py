"""Promise: a literal finds the DECIMAL, UUID, bytes or moment that it says, however it is written."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from upwell.testing.embedded import Embedded

AMOUNTS = [
    Decimal(n) / 100 for n in (0, 1, 1010, 3330, 6660, 13320, -3330, 1234567890, 9999999999, 123456789)
]
KEY = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


@pytest.fixture(params=["hot", "cold"], scope="module")
def db(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with Embedded(Path(tmp_path_factory.mktemp("exact"))) as db:
        db.run(
            "CREATE NAMESPACE app;"
            "CREATE TABLE app.t (id INT PRIMARY KEY, x DECIMAL(12,2), d DOUBLE, u UUID, b BYTES)"
        )
        for number, amount in enumerate(AMOUNTS):
            db.run(f"INSERT INTO app.t VALUES ({number}, '{amount}', 1e300, '{KEY}', '\\x00{number:02x}')")
        if request.param == "cold":
            db.flush("app.t")
        yield db


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize(
    "condition",
    [
        "x = {}",
        "x = ({})",
        "x IN ({})",
        "x IN ((7.25), ({}))",
        "x BETWEEN ({}) AND ({})",
        "{} = x",
        "t.x = {}",
        'NOT "x" <> {}',
        "x IN (7.25, {}, -8.5)",
        "x NOT IN (7.25, 8.5) AND x BETWEEN {} AND {}",
        "x >= {} AND x <= {} AND d > 1.25",
        "id IN (SELECT id FROM app.t GROUP BY id HAVING SUM(x) = {})",
    ],
)
def test_each_amount_is_found_by_its_number(db: Embedded, condition: str, amount: Decimal) -> None:
    where = condition.replace("{}", f"{amount:.2f}")
    assert db.rows(f"SELECT x FROM app.t t WHERE {where}") == [(f"{amount:.2f}",)]


@pytest.mark.parametrize("amount", AMOUNTS)
def test_each_amount_is_found_by_a_change(db: Embedded, amount: Decimal) -> None:
    assert db.change(f"UPDATE app.t SET d = d / 2 WHERE x = {amount:.2f} AND id >= 0") == 1


@pytest.mark.parametrize("text", [r"'\x0002'", "'0002'", "X'0002'", "$1"])
@pytest.mark.parametrize(
    "condition",
    [
        "b = {}",
        "{} = b",
        "t.b IN (X'ff', {})",
        "b BETWEEN {} AND {}",
        "b > '\\x0001' AND b <= {}",
        "b IS NOT DISTINCT FROM {}",
        "NOT b IS DISTINCT FROM {}",
        "CASE WHEN b = {} THEN d > 0 END",
        "b IN (SELECT b FROM app.t WHERE b = {})",
    ],
)
def test_bytes_are_found_as_they_are_stored(db: Embedded, condition: str, text: str) -> None:
    where = condition.replace("{}", text)
    params = [r"\x0002"] if "$1" in where else []
    assert db.rows(f"SELECT id FROM app.t t WHERE {where}", params) == [(2,)]
    changed = where.replace("t.b", "b")
    assert db.change(f"UPDATE app.t SET d = d / 2 WHERE id >= 0 AND ({changed})", params) == 1


@pytest.mark.parametrize(
    "query",
    [
        "WITH x AS (SELECT id, b AS r FROM app.t) SELECT id FROM x WHERE r = {b}",
        "SELECT id FROM (SELECT t.id, t.u AS k, t.b AS r FROM app.t t) AS x WHERE x.r = {b} AND k = {u}",
        "SELECT i FROM (SELECT s AS r, i FROM (SELECT DISTINCT b AS s, id AS i FROM app.t) AS y) AS z"
        " WHERE r = {b}",
        "SELECT id FROM app.t WHERE x = 10.10 AND id IN (SELECT id AS x FROM app.t)",
        "SELECT id FROM app.t WHERE CAST(u AS TEXT) <> 'b' AND b = {b} AND CAST(id AS TEXT) = '2'",
        "SELECT id FROM (SELECT id, b AS d, d AS e FROM app.t) AS x WHERE id = 2 AND e > 1.5 AND d = X'0002'",
    ],
)
def test_a_column_is_known_by_another_name(db: Embedded, query: str) -> None:
    text = query.replace("{b}", r"'\x0002'").replace("{u}", f"'{KEY.upper()}'")
    assert db.rows(text) == [(2,)]


@pytest.mark.parametrize("text", [KEY, KEY.upper(), KEY.replace("-", ""), f"{{{KEY}}}"])
@pytest.mark.parametrize("condition", ["u = {}", "{} = u", "u IN ('x', {})", "u IS NOT DISTINCT FROM {}"])
def test_a_uuid_is_found_in_each_of_its_forms(db: Embedded, condition: str, text: str) -> None:
    where = condition.replace("{}", f"'{text}'")
    assert db.rows(f"SELECT count(*) FROM app.t WHERE {where}") == [(len(AMOUNTS),)]


def test_what_is_compared_with_something_else_stays(db: Embedded) -> None:
    assert db.rows(f"SELECT '{KEY.upper()}' AS text, 0.5 AS half FROM app.t WHERE d > 0.5 LIMIT 1") == [
        (KEY.upper(), 0.5)
    ]


MOMENTS = ["0001-01-01T00:00:00", "1970-01-01T00:00:00", "9999-12-31T00:00:00", None]
FAR: list[tuple[str, list[int]]] = [
    ("{} < '9999-12-31'", [0, 1]),
    ("{} = '9999-12-31T02:00:00+02:00'", [2]),
    ("{} = TIMESTAMP '9999-12-31'", [2]),
    ("'0001-01-01' < {}", [1, 2]),
    ("{} BETWEEN '1970-01-01' AND '9999-12-31'", [1, 2]),
    ("{} IN ('1970-01-01', '9999-12-31')", [1, 2]),
    ("{} > '1600-01-01' AND {} < '2020-01-01'", [1]),
    ("{} <> '1970-01-01'", [0, 2]),
    ("day > '1677-01-01' AND {} < '9999-12-31'", [1]),
]


@pytest.mark.parametrize("column", ["t", "z"])
@pytest.mark.parametrize(("condition", "found"), FAR)
def test_moments_are_compared_whatever_their_year(
    db: Embedded, condition: str, column: str, found: list[int]
) -> None:
    if ("app", "moments") not in db.view.catalog.tables:
        db.run("CREATE TABLE app.moments (id INT PRIMARY KEY, t TIMESTAMP, z DATETIME, day DATE)")
        for number, moment in enumerate(MOMENTS):
            db.run("INSERT INTO app.moments VALUES ($1, $2, $2, $2)", [number, moment])
        if db.cold_rows("app.t"):
            db.flush("app.moments")
    sql = f"SELECT id FROM app.moments WHERE {condition.replace('{}', column)}"
    assert db.rows(sql) == [(number,) for number in found]
