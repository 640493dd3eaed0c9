"""Expressions: three-valued logic, errors, what a tree tells about itself, and the query engine's answers."""

from typing import Any

import datafusion
import pyarrow as pa
import pytest

from upwell.engine.catalog import Table, TableKind
from upwell.engine.expression import (
    DELETED,
    SEQ,
    And,
    Arithmetic,
    Call,
    Cast,
    ColumnRef,
    Compare,
    Context,
    InList,
    Like,
    Literal,
    Node,
    Not,
    Or,
    Parameter,
    columns_read,
    compile_scalar,
    equalities,
    find_key,
    freeze,
    moved,
    predicate,
)
from upwell.errors import InvalidValue, QueryFailure
from upwell.sql.lex import Fragment, tokenize
from upwell.sql.scalar import Scope, parse_scalar
from upwell.types import Column, SqlType, TableId, Value

CONTEXT = Context("alice", "user", 1_700_000_000_000_000, lambda: 42, lambda: "uuid", lambda: "ulid")
UNKNOWN = Literal(None)


def value_of(node: Node, row: list[Value] | None = None, values: tuple[Value, ...] = ()) -> Value:
    return compile_scalar(node)(row or [], values, CONTEXT)


@pytest.mark.parametrize("a", [True, False, None])
@pytest.mark.parametrize("b", [True, False, None])
def test_logic_is_three_valued(a: bool | None, b: bool | None) -> None:
    both = (Literal(a), Literal(b))
    pair = (a, b)
    assert value_of(And(both)) is (False if False in pair else None if None in pair else True)
    assert value_of(Or(both)) is (True if True in pair else None if None in pair else False)
    assert value_of(Not(Literal(a))) is (None if a is None else not a)


def test_null_makes_every_strict_operation_null() -> None:
    for node in (
        Compare("=", UNKNOWN, Literal(1)),
        Arithmetic("+", Literal(1), UNKNOWN),
        Like(UNKNOWN, Literal("%")),
        InList(Literal(2), (Literal(1), UNKNOWN)),
        Cast(UNKNOWN, Column(1, "x", SqlType.UUID)),
    ):
        assert value_of(node) is None
    assert value_of(InList(Literal(1), (Literal(1), UNKNOWN))) is True


def test_a_predicate_is_true_only_for_true() -> None:
    assert predicate(Literal(True))([], (), CONTEXT)
    assert not predicate(Literal(False))([], (), CONTEXT)
    assert not predicate(UNKNOWN)([], (), CONTEXT)


@pytest.mark.parametrize(
    ("op", "a", "b"),
    [("/", 1, 0), ("%", 1, 0), ("/", 1.5, 0), ("+", 2**63 - 1, 1), ("*", 2**62, 2), ("+", "a", 1)],
)
def test_arithmetic_without_an_answer_fails(op: Any, a: Value, b: Value) -> None:
    with pytest.raises(QueryFailure):
        value_of(Arithmetic(op, Literal(a), Literal(b)))


def test_types_that_do_not_meet_fail() -> None:
    with pytest.raises(QueryFailure):
        value_of(Compare("<", Literal("a"), Literal(1)))


def test_system_columns_are_found_from_the_end_of_an_extended_row() -> None:
    node = And((Compare(">", ColumnRef(SEQ), Literal(6)), Not(ColumnRef(DELETED))))
    assert columns_read(node) == {SEQ, DELETED}
    assert value_of(node, ["a", "b", False, 7]) is True


def test_equalities_are_the_pairs_that_every_match_satisfies() -> None:
    key = Column(1, "id", SqlType.UUID)
    node = And(
        (
            Compare("=", ColumnRef(0), Literal(1)),
            And((Compare("=", Parameter(0), ColumnRef(1)), Compare(">", ColumnRef(2), Literal(3)))),
            Or((Compare("=", ColumnRef(3), Literal(1)), Literal(False))),
            Not(Compare("=", ColumnRef(4), Literal(1))),
            Compare("=", ColumnRef(5), Cast(Parameter(1), key)),
            Compare("=", ColumnRef(6), ColumnRef(7)),
            Compare("=", Call("CURRENT_USER"), ColumnRef(8)),
        )
    )
    assert equalities(node) == [
        (0, Literal(1)),
        (1, Parameter(0)),
        (5, Cast(Parameter(1), key)),
        (8, Call("CURRENT_USER")),
    ]


def test_freeze_leaves_only_columns_to_evaluate() -> None:
    moment = Column(1, "t", SqlType.TIMESTAMP)
    node = And(
        (
            Compare("=", ColumnRef(0), Call("CURRENT_USER")),
            InList(ColumnRef(1), (Parameter(0), Literal(2))),
            Compare("<", ColumnRef(2), Cast(Parameter(1), moment)),
        )
    )
    assert freeze(node, (1, "1970-01-01T00:00:01Z"), CONTEXT) == And(
        (
            Compare("=", ColumnRef(0), Literal("alice")),
            InList(ColumnRef(1), (Literal(1), Literal(2))),
            Compare("<", ColumnRef(2), Literal(1_000_000)),
        )
    )


def test_generators_ask_the_context() -> None:
    names = ("NOW", "SNOWFLAKE_ID", "UUID_V7", "ULID", "CURRENT_USER", "CURRENT_ROLE")
    found = [value_of(Call(name)) for name in names]
    assert found == [CONTEXT.now_us, 42, "uuid", "ulid", "alice", "user"]


@pytest.mark.parametrize(
    ("sql_type", "value", "key"),
    [
        (SqlType.INT, 5, 5),
        (SqlType.INT, 5.0, 5),
        (SqlType.INT, 5.5, None),
        (SqlType.INT, 2**31, None),
        (SqlType.INT, "7", 7),
        (SqlType.BIGINT, None, None),
        (SqlType.TEXT, "a", "a"),
        (SqlType.DOUBLE, 2, 2.0),
    ],
)
def test_find_key_selects_what_can_be_stored(sql_type: SqlType, value: Value, key: Value) -> None:
    assert find_key(value, Column(1, "id", sql_type)) == key


def test_find_key_refuses_text_that_is_no_key() -> None:
    with pytest.raises(InvalidValue):
        find_key("x", Column(1, "id", SqlType.INT))


COLUMNS = (
    Column(1, "i", SqlType.INT),
    Column(2, "n", SqlType.BIGINT),
    Column(3, "d", SqlType.DOUBLE),
    Column(4, "s", SqlType.TEXT),
    Column(5, "b", SqlType.BOOLEAN),
    Column(6, "t", SqlType.TIMESTAMP),
)
TABLE = Table(TableId(1), "app", "t", TableKind.USER, COLUMNS)
ROWS: list[list[Value]] = [
    [7, -3, 1.5, "Abc", True, 1_000_000],
    [-7, 2**62, -2.0, "a%_\\é😀\nz", False, -1],
    [0, 5, 0.0, "", None, 0],
    [None, None, None, None, None, None],
]
ASKED = [
    "i / 2", "i % 3", "n / 2.0", "d * 2", "i + d", "-i", "-n - 1", "7.5 % 2", "i - -3", "i / -2", "2 - 3 - 4",
    "2 + 3 * 4 % 5", "i = 7", "i = 7.0", "i <> 7", "d >= 1", "n > d", "i < n", "i = '7'", "d = '1.5'",
    "s < 'a'", "s > 'Z'", "s = 'Abc'", "s LIKE 'A%'", "s LIKE '_bc'", "s ILIKE 'aB_'", "s NOT LIKE '%'",
    "s LIKE 'a\\%\\_%'", "s LIKE '%z'", "s || 'x'", "i || s", "'n' || n", "s || NULL", "b", "NOT b",
    "b AND i > 0", "b OR n = 5", "b IS TRUE", "b IS NOT TRUE", "b IS FALSE", "b IS NOT FALSE", "s IS NULL",
    "s IS NOT NULL", "i IN (1, 7)", "i NOT IN (1, 7)", "i IN (1, NULL)", "i NOT IN (1, NULL)",
    "s IN ('Abc', '')", "i BETWEEN -7 AND 0", "i NOT BETWEEN 0 AND 7", "i BETWEEN 3 AND 1",
    "t = '1970-01-01T00:00:01Z'", "t > TIMESTAMP '1970-01-01 00:00:00'", "t < '1970-01-01T00:00:00+00:00'",
    "LOWER(s)", "UPPER(s)", "LENGTH(s)", "ABS(i)", "ABS(d)", "COALESCE(s, 'none')", "COALESCE(NULL, n, 1)",
    "CASE WHEN b THEN i WHEN i < 0 THEN i END", "CASE i WHEN 7 THEN s ELSE 'other' END",
    "CASE WHEN n <> 0 THEN 1 / n ELSE n END", "i IS DISTINCT FROM 7", "s IS NOT DISTINCT FROM NULL",
    "NOT b OR i IN (7) AND s <> ''", "(i > 0) = b", "i > 0 AND NOT (d < 1 OR s = '')", "1 = 1", "NULL",
    "'it''s'", "E'a\\tb\\u0041'", "1e3", "x'00ff'", "i * 1.5 + n % 4", "LENGTH(s || 'é') > 3",
]  # fmt: skip


def _plain_type(value: object) -> type:
    # A literal remembers the digits that it was written with.
    return float if isinstance(value, float) else type(value)


def test_trees_give_the_query_engines_answers() -> None:
    schema = pa.schema(
        [
            ("i", pa.int32()),
            ("n", pa.int64()),
            ("d", pa.float64()),
            ("s", pa.string()),
            ("b", pa.bool_()),
            ("t", pa.timestamp("us", tz="UTC")),
        ]
    )
    arrays = [pa.array([row[at] for row in ROWS], type=field.type) for at, field in enumerate(schema)]
    engine = datafusion.SessionContext()
    engine.register_record_batches("t", [[pa.RecordBatch.from_arrays(arrays, schema=schema)]])
    for asked in ASKED:
        batches = engine.sql(f"SELECT {asked} AS answer FROM t").collect()
        wanted = [value for batch in batches for value in batch.to_pydict()["answer"]]
        node = parse_scalar(Fragment(tuple(tokenize(asked)), asked), Scope(TABLE))
        assert node is not None, asked
        found = [value_of(node, row) for row in ROWS]
        assert (asked, found) == (asked, wanted)
        assert (asked, [_plain_type(value) for value in found]) == (asked, [type(value) for value in wanted])


@pytest.mark.parametrize("value", [None, 0, 1, 1.0, 2.5, True, False, "1", "", b"1"])
@pytest.mark.parametrize("options", [(1, 2), (1.0, "a"), (0, None), (2.5, "1", True), (None,), (b"1",)])
def test_a_list_of_literals_is_looked_up_as_it_is_gone_through(
    value: Value, options: tuple[Value, ...]
) -> None:
    """A long one is looked up; what isn't a literal is evaluated, one after the other."""
    literals = tuple(map(Literal, options))
    lists = [InList(ColumnRef(0), (*literals, *more)) for more in ((), (ColumnRef(1),))]
    found, gone_through = (compile_scalar(each)([value, options[0]], (), CONTEXT) for each in lists)
    assert found is gone_through
    assert columns_read(lists[0]) == {0}
    assert columns_read(lists[1]) == {0, 1}
    assert moved(lists[0], lambda index: index + 2) == InList(ColumnRef(2), literals)
