"""Prepared statements: the same meaning with or without shapes, and no cache outlives its catalog."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upwell.engine.catalog import Catalog, Table, TableKind
from upwell.engine.expression import (
    And,
    Arithmetic,
    Call,
    Cast,
    Compare,
    Concat,
    Context,
    InList,
    IsNull,
    Like,
    Literal,
    Negate,
    Not,
    Or,
    Parameter,
    compile_scalar,
    is_constant,
)
from upwell.errors import InvalidSql, ParameterError, TableNotFound, UpwellError
from upwell.sql.lex import split, tokenize
from upwell.sql.prepare import Preparer
from upwell.sql.render import render
from upwell.sql.scalar import number_value
from upwell.sql.shape import lift, lift_all
from upwell.sql.statements import Insert, Select, Statement
from upwell.sql.tree import UpdateTree
from upwell.types import Column, SqlType, TableId, Value

CONTEXT = Context("alice", "user", 7, lambda: 42, lambda: "a-uuid", lambda: "a-ulid")
NODES = (
    And, Arithmetic, Call, Cast, Compare, Concat, InList, IsNull, Like, Literal, Negate, Not, Or, Parameter
)  # fmt: skip
NOTES = Table(
    TableId(1),
    "app",
    "notes",
    TableKind.USER,
    (
        Column(1, "id", SqlType.BIGINT, False, True),
        Column(2, "title", SqlType.TEXT),
        Column(3, "score", SqlType.DOUBLE),
        Column(4, "at", SqlType.TIMESTAMP),
    ),
)
CATALOG = Catalog({}, {("app", "notes"): NOTES}, {})


def meaning(value: object, values: Sequence[Value]) -> object:
    """A Statement with its values put in: constants evaluated, text as tokens with numbers read."""
    match value:
        case Table():
            return value.full_name
        case str():
            text = render(value, values, CONTEXT)
            return [
                number_value(t.text) if t.kind == "number" else t.text
                for t in tokenize(text)
                if t.word not in "()"
            ]
        case tuple():
            return [meaning(each, values) for each in value]
        case _ if isinstance(value, NODES) and is_constant(value):
            try:
                return ("constant", compile_scalar(value)([], values, CONTEXT))
            except UpwellError as error:
                return ("failure", str(error))
        case _ if is_dataclass(value):
            told = [field.name for field in fields(value) if field.compare]
            return [type(value), *(meaning(getattr(value, name), values) for name in told)]
        case _:
            return value


def outcome(preparer: Preparer, sql: str) -> object:
    try:
        statement, values = preparer.prepare(sql, CATALOG, "app")
    except UpwellError as error:
        return (type(error), str(error))
    return meaning(statement, values)


TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text("'\\$-/*\"; ,()VALUES?", max_size=12),
    st.sampled_from(["2024-01-01T00:00:00Z", "5", "x' OR 1=1 --", "INSERT INTO", "1; DROP TABLE notes"]),
)
WRITTEN = st.one_of(
    TEXT.map(lambda text: "'" + text.replace("'", "''") + "'"),
    st.integers(-(2**63), 2**64).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["TRUE", "null", "-5", "- 5", "+1", "1E3", "-2.50", ".5", "0x1F", "1.", "--1", "E'a\\n'", "007"]
    ),
    st.sampled_from(
        ["NOW()", "LOWER('A')", "'a' || 'b'", "1 + 2 * -3", "'5'::INT", '"title"', "(1)", "DEFAULT"]
    ),
    st.sampled_from(["DATE '2024-01-01'", "INTERVAL '1 day'", "TIMESTAMP '2024-01-01'", "'a' 'b'", "", "$1"]),
)
ROW = st.tuples(WRITTEN, WRITTEN, WRITTEN, WRITTEN).map(lambda row: "(" + ", ".join(row) + ")")
SAME_ROWS = st.builds(
    lambda row, count, comma: comma.join([row] * count), ROW, st.integers(1, 6), st.sampled_from([",", ", "])
)
STATEMENTS = st.one_of(
    st.lists(ROW, min_size=1, max_size=3).map(lambda rows: "INSERT INTO notes VALUES " + ", ".join(rows)),
    SAME_ROWS.map(lambda rows: "insert into app.notes (id,title,score,at) VALUES" + rows),
    st.builds(
        lambda a, b, k: f"UPDATE notes SET title = {a}, score=score+{b} WHERE id = {k}",
        WRITTEN,
        WRITTEN,
        WRITTEN,
    ),
    st.builds(lambda a, b: f"DELETE FROM notes WHERE title = {a} AND NOT (at > {b})", WRITTEN, WRITTEN),
    st.builds(lambda a, b: f"DELETE FROM notes n WHERE n.score IN ({a}, {b}) -- {a}", WRITTEN, WRITTEN),
    st.builds(lambda k: f"SELECT *, title AS t FROM notes WHERE {k}=id", WRITTEN),
    st.builds(
        lambda a, n: f"SELECT title FROM notes WHERE title LIKE {a} ORDER BY 1 LIMIT {n}", WRITTEN, WRITTEN
    ),
)


@settings(max_examples=300, deadline=None)
@given(STATEMENTS)
def test_shapes_change_nothing(sql: str) -> None:
    plain = outcome(Preparer(shapes=False), sql)
    preparer = Preparer()
    assert outcome(preparer, sql) == plain
    assert outcome(preparer, sql) == plain


SHARED = Preparer()


@settings(max_examples=150, deadline=None)
@given(STATEMENTS)
@example("INSERT INTO notes VALUES (NULL, TRUE), (NULL, TRUE), (NULL, TRUE)")
@example(
    "INSERT INTO notes VALUES (NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL)"
)
def test_a_warm_cache_changes_nothing(sql: str) -> None:
    assert outcome(SHARED, sql) == outcome(Preparer(shapes=False), sql)


def rows_of(statement: Statement) -> int:
    assert isinstance(statement, Insert)
    return len(statement.rows)


def test_a_shape_is_bound_once() -> None:
    preparer = Preparer()
    first, one = preparer.prepare("INSERT INTO notes (id, title) VALUES (1, 'a')", CATALOG, "app")
    second, two = preparer.prepare("INSERT INTO notes (id, title) VALUES (2, 'it''s')", CATALOG, "app")
    assert first is second
    assert (list(one), list(two)) == ([1, "a"], [2, "it's"])


def test_many_rows_of_one_form_come_from_one_row() -> None:
    preparer = Preparer()
    row = "({}, 'a', NULL, NOW())"
    sql = "INSERT INTO notes VALUES " + ", ".join(row.format(n) for n in range(200))
    statement, values = preparer.prepare(sql, CATALOG, "app")
    assert isinstance(statement, Insert)
    assert [scalars[0].node for scalars in statement.rows] == [Parameter(2 * n) for n in range(200)]
    assert statement.rows[199][3].node == Call("NOW")
    assert list(values) == [value for n in range(200) for value in (n, "a")]


def test_types_of_values_are_part_of_the_key_where_they_matter() -> None:
    preparer = Preparer()
    for written, value in (("5", 5), ("'5'", 5), ("5.0", 5.0)):
        statement, values = preparer.prepare(f"SELECT title FROM notes WHERE id = {written}", CATALOG, "app")
        assert isinstance(statement, Select)
        assert statement.point is not None
        assert statement.point.key.node is not None
        assert compile_scalar(statement.point.key.node)([], values, CONTEXT) == value


def test_a_query_keeps_its_literals() -> None:
    sql = "SELECT title FROM notes ORDER BY 1 LIMIT 5"
    preparer = Preparer()
    for _ in range(2):
        assert preparer.prepare(sql, CATALOG, "app") == (Select(sql, None), ())


def test_a_new_catalog_is_never_answered_from_the_old_ones_cache() -> None:
    preparer = Preparer()
    sql = "INSERT INTO notes VALUES (1, 'a', 1.5, NULL)"
    preparer.prepare(sql, CATALOG, "app")
    changed = Catalog({}, {("app", "notes"): replace(NOTES, version=2)}, {})
    statement, _ = preparer.prepare(sql, changed, "app")
    assert isinstance(statement, Insert)
    assert statement.table.version == 2
    with pytest.raises(TableNotFound):
        preparer.prepare(sql, Catalog({}, {}, {}), "app")
    with pytest.raises(TableNotFound):
        preparer.prepare(sql, changed, "other")


def test_the_cache_is_bounded() -> None:
    preparer = Preparer(cache_entries_max=4)
    for n in range(20):
        preparer.prepare(f"SELECT {n} AS c{n}", CATALOG, "app")
        preparer.prepare(f"DELETE FROM notes WHERE score > {n} AND title = 'c{n}'", CATALOG, "app")
    assert preparer._cache is not None
    assert len(preparer._cache.entries) == 4


def test_long_texts_are_not_kept_but_fifty_wide_rows_are() -> None:
    preparer = Preparer()

    def is_kept(sql: str, *params: Value) -> bool:
        first, _ = preparer.prepare(sql, CATALOG, "app", params)
        return preparer.prepare(sql, CATALOG, "app", params)[0] is first

    columns = [Column(n, f"a_column_{n}", SqlType.BIGINT, n != 1, n == 1) for n in range(1, 11)]
    wide = Table(TableId(2), "app", "wide", TableKind.USER, tuple(columns))
    catalog = Catalog({}, {("app", "wide"): wide}, {})
    names = ", ".join(column.name for column in columns)
    row = f"({', '.join(['1'] * 10)})"
    fifty = f"INSERT INTO app.wide ({names}) VALUES {', '.join([row] * 50)}"
    assert preparer.prepare(fifty, catalog, "app")[0] is preparer.prepare(fifty, catalog, "app")[0]

    assert is_kept("UPDATE notes SET score = score + 1 WHERE id = 1")
    assert is_kept("UPDATE notes SET score = score + 1 WHERE id = $1", 1)
    assert preparer._cache is not None
    before = len(preparer._cache.entries)
    assert not is_kept(f"UPDATE notes SET score = {'score + ' * 600}1 WHERE id = 1")
    assert not is_kept(f"UPDATE notes SET score = {'score + ' * 600}1 WHERE id = $1", 1)
    assert len(preparer._cache.entries) == before


def test_parameters_are_bound_by_position() -> None:
    preparer = Preparer()
    sql = "UPDATE notes SET title = $2 WHERE id = $1"
    statement, values = preparer.prepare(sql, CATALOG, "app", [1, "$1"])
    assert list(values) == [1, "$1"]
    assert preparer.prepare(sql, CATALOG, "app", [2, "b"])[0] is statement


PARAMETER_FAILURES: list[tuple[str, list[Value], str]] = [
    ("SELECT 1", [1] * 51, "Parameter count exceeded: maximum 50 parameters allowed, got 51"),
    ("SELECT $51", [], "Parameter count exceeded: maximum 50 parameters allowed, got 51"),
    ("SELECT $1", [], "Parameter count mismatch: expected 1 parameters, got 0"),
    ("SELECT $1", [1, 2], "Parameter count mismatch: expected 1 parameters, got 2"),
    ("SELECT '$1'", [1], "Parameter count mismatch: expected 0 parameters, got 1"),
    ("INSERT INTO notes (id) VALUES ($2)", [1], "Parameter count mismatch: expected 2 parameters, got 1"),
    ("DROP TABLE notes", [1], "Parameters not supported for DROP TABLE statements"),
    ("CREATE TABLE x (id INT PRIMARY KEY)", [1], "Parameters not supported for CREATE TABLE statements"),
    (
        "SELECT $1",
        ["é" * (256 * 1024 + 1)],
        "Parameter $1 too large: maximum 524288 bytes allowed, got 524290",
    ),
]


@pytest.mark.parametrize(("sql", "params", "message"), PARAMETER_FAILURES)
def test_parameter_failures(sql: str, params: list[Value], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        Preparer().prepare(sql, CATALOG, "app", params)
    assert str(caught.value) == message


def test_a_parameter_of_512_kib_passes() -> None:
    text = "é" * (256 * 1024)
    assert Preparer().prepare("SELECT $1", CATALOG, "app", [text])[1] == [text]


@pytest.mark.parametrize(
    ("sql", "texts"),
    [
        ("", []),
        (" \n-- nothing", []),
        ("/* nothing */;", []),
        ("SELECT 1;", ["SELECT 1"]),
        (" SELECT ';' ", ["SELECT ';'"]),
        ("USE app; INSERT INTO later VALUES (1);", ["USE app", "INSERT INTO later VALUES (1)"]),
    ],
)
def test_statements(sql: str, texts: list[str]) -> None:
    for shapes in (True, False):
        found = Preparer(shapes=shapes).statements(sql)
        assert [text for text, _ in found] == texts
        assert {lifted for _, lifted in found if not shapes} <= {None}


@pytest.mark.parametrize("shapes", [True, False])
def test_a_statement_is_checked_without_its_names(shapes: bool) -> None:
    preparer = Preparer(shapes=shapes)
    sound = "UPDATE nowhere SET a = lower(b) || '1' WHERE c = 2"
    for bad in ("SELEC 2", "INSERT INTO notes VALUES (1 +)", "DELETE FROM notes WHERE id = = 1"):
        with pytest.raises(InvalidSql):
            preparer.check(bad, lift(bad))
    lifted = lift(sound) if shapes else None
    assert isinstance(preparer.check(sound, lifted), UpdateTree)
    preparer.note_checked(lifted)
    other = sound.replace("2", "3")
    assert (preparer.check(other, lift(other) if shapes else None) is None) is shapes


def test_prepared_rows_count() -> None:
    sql = "INSERT INTO notes (id) VALUES (1),(2)"
    assert rows_of(Preparer().prepare(sql, CATALOG, "app")[0]) == 2


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(STATEMENTS, st.sampled_from(["BEGIN", "COMMIT", "", " ", "SELECT (1;2)", "x'"])), max_size=5
    )
)
def test_a_batch_lifted_by_one_scan_is_the_batch_split_and_lifted(texts: list[str]) -> None:
    sql = " ; ".join(texts)
    found = lift_all(sql)
    if found is not None:
        assert [text for text, _ in found] == split(sql)
        assert [lifted for _, lifted in found] == [lift(text) for text, _ in found]
