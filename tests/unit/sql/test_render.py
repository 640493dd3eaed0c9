"""Rendering: one literal at each token's place, and no way for a value to become more."""

import datafusion
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.engine.expression import Context
from upwell.errors import InvalidSql, ParameterError
from upwell.sql.cast import with_typed_casts
from upwell.sql.membership import with_memberships
from upwell.sql.query import Query
from upwell.sql.render import literal, parameter_count, render
from upwell.types import Value

CONTEXT = Context("o'hara", "service", 0, lambda: 42, lambda: "a-uuid", lambda: "a-ulid")


@pytest.mark.parametrize(
    ("text", "values", "rendered"),
    [
        ("SELECT 1", (), "SELECT 1"),
        (
            "SELECT '$1', \"$1\", $1 -- $2\n/* $3 */",
            ("it's",),
            "SELECT '$1', \"$1\", 'it''s' -- $2\n/* $3 */",
        ),
        ("a = $1 AND b=$2 OR $1", (1, None), "a = 1 AND b=NULL OR 1"),
        ("5-$1", (-3,), "5-(-3)"),
        ("E$1 $1'x'$1", ("y",), "E$1 'y' 'x' 'y'"),
        ("SELECT$1", (1,), "SELECT$1"),
        ("$1", (1.5,), "1.5"),
        ("$1, $2, $3", (True, False, b"\x00'"), "TRUE, FALSE, X'0027'"),
        ("$1", (1e300,), "1e+300"),
        ("x = CURRENT_USER AND y = current_user()", (), "x = 'o''hara' AND y = 'o''hara'"),
        ("SELECT CURRENT_USER(), 1", (), "SELECT 'o''hara' AS \"current_user()\", 1"),
        ("SELECT a AS current_user, t.current_role", (), "SELECT a AS current_user, t.current_role"),
        ("SELECT 'CURRENT_USER', SNOWFLAKE_ID()", (), "SELECT 'CURRENT_USER', 42 AS \"snowflake_id()\""),
        ("VALUES (UUID_V7(), ULID(), CURRENT_ROLE())", (), "VALUES ('a-uuid', 'a-ulid', 'service')"),
        ("SELECT lower(CURRENT_USER) FROM t", (), "SELECT lower('o''hara') FROM t"),
        ("SELECT ulid FROM t", (), "SELECT ulid FROM t"),
    ],
)
def test_render(text: str, values: tuple[Value, ...], rendered: str) -> None:
    assert render(text, values, CONTEXT) == rendered


def test_a_query_over_rows_gets_no_repeated_ids() -> None:
    with pytest.raises(InvalidSql, match="would repeat one id"):
        render("SELECT SNOWFLAKE_ID(), a FROM t", (), CONTEXT)


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ParameterError, match="expected 2 parameters, got 1"):
        render("$1 + $2", (1,), CONTEXT)


def test_parameter_count_sees_parameters_only() -> None:
    assert parameter_count("SELECT '$9', $2, /* $8 */ $1") == 2
    assert parameter_count("SELECT 1") == 0
    for text in ("SELECT $0", "SELECT $" + "9" * 5000):
        with pytest.raises(InvalidSql):
            parameter_count(text)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.text("'\\$-/*\"; E"),
)


@given(st.lists(SCALARS, min_size=1, max_size=4))
def test_every_value_arrives_as_itself(values: list[Value]) -> None:
    engine = datafusion.SessionContext()
    text = "SELECT " + ",".join(f"${n + 1}AS c{n}" for n in range(len(values)))
    (batch,) = engine.sql(render(text, values, CONTEXT)).collect()
    found = [column[0].as_py() for column in batch.columns]
    assert [(type(a), a) for a in found] == [(type(b), b) for b in values]


def test_literals_stand_beside_any_operator() -> None:
    engine = datafusion.SessionContext()
    (batch,) = engine.sql(f"SELECT 5-{literal(-3)}, -{literal(-(2**63 - 1))}, {literal(-0.0)}").collect()
    assert [column[0].as_py() for column in batch.columns] == [8, 2**63 - 1, -0.0]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + ", ".join(["x IN (SELECT 1)"] * 65),
        "SELECT " + "x IN (SELECT " * 30 + "1" + ")" * 30,
    ],
)
def test_memberships_that_would_take_long_are_refused(text: str) -> None:
    with pytest.raises(InvalidSql, match="join the tables instead"):
        with_memberships(Query(text))


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("SELECT a IS DISTINCT FROM left(b, 1) AS x", "SELECT (a IS DISTINCT FROM left(b, 1)) AS x"),
        ("SELECT CASE WHEN a THEN b END::uuid AS x", "SELECT CASE WHEN a THEN b END::uuid AS x"),
        (
            "a - b BETWEEN INTERVAL '1' DAY AND INTERVAL '2' DAY",
            "a - b BETWEEN arrow_cast(86400000000, 'Duration(Microsecond)') "
            "AND arrow_cast(172800000000, 'Duration(Microsecond)')",
        ),
    ],
)
def test_words_that_are_names_and_units_keep_their_meaning(text: str, rendered: str) -> None:
    assert render(text, (), CONTEXT) == rendered


def test_a_long_chain_of_casts_is_read() -> None:
    query = Query("a" + "::text" * 1_200 + "::uuid")
    assert with_typed_casts(query).text.startswith("typed_uuid(a")
