"""Text → bound Statement: what every statement becomes, and what is refused with which words."""

import pytest

from upwell.engine.catalog import Catalog, Role, Table
from upwell.engine.direct import OrderKey
from upwell.engine.expression import (
    DELETED,
    SEQ,
    Arithmetic,
    Call,
    Cast,
    ColumnRef,
    Concat,
    Literal,
    Negate,
    Node,
    Parameter,
)
from upwell.engine.operation import CompareOp
from upwell.errors import InvalidInput, UpwellError
from upwell.protocol.messages import SubscriptionOptions
from upwell.sql.bind import Binder
from upwell.sql.maintenance import CompactAll, CompactTable, FlushTable, KillLive, ShowStats
from upwell.sql.parse import parse
from upwell.sql.statements import (
    AlterNamespace,
    CreateNamespace,
    CreateUser,
    Delete,
    DirectRead,
    DropNamespace,
    DropTable,
    ExecuteAs,
    Insert,
    PointRead,
    Scalar,
    Select,
    SetOption,
    Statement,
    Update,
    UseNamespace,
)
from upwell.sql.subscribe import SubscribeTo
from upwell.types import SqlType


def bound(sql: str, catalog: Catalog, types: tuple[type, ...] = ()) -> Statement:
    return Binder(catalog, "app", types).bind(parse(sql))


def test_insert_of_rows(catalog: Catalog, notes: Table) -> None:
    sql = """INSERT INTO notes (Stars, "title", at) VALUES (-5, 'it''s', NOW()), ($1, $2 || 'x', DEFAULT),
        (1 + $1, NULL, DATE_TRUNC('day', now()))"""
    statement = bound(sql, catalog, (int, str))
    assert statement == Insert(
        notes,
        (2, 1, 5),
        (
            (
                Scalar("-5", Literal(-5)),
                Scalar("'it''s'", Literal("it's")),
                Scalar("NOW()", Call("NOW")),
            ),
            (
                Scalar("$1", Parameter(0)),
                Scalar("$2 || 'x'", Concat(Parameter(1), Literal("x"))),
                Scalar("DEFAULT", Call("NOW")),
            ),
            (
                Scalar("1 + $1", Arithmetic("+", Literal(1), Parameter(0))),
                Scalar("NULL", Literal(None)),
                Scalar("DATE_TRUNC('day', now())", None),
            ),
        ),
        None,
    )


def test_insert_without_columns_of_a_query_and_of_defaults(
    catalog: Catalog, tags: Table, notes: Table
) -> None:
    both = (Scalar("'a'", Literal("a")), Scalar("1", Literal(1)))
    assert bound("INSERT INTO tags VALUES ('a', 1,)", catalog) == Insert(tags, (0, 1), (both,), None)
    query = "SELECT title, id FROM notes WHERE id > $1"
    assert bound(f"INSERT INTO app.tags {query};", catalog) == Insert(tags, (0, 1), (), query)
    assert bound("INSERT INTO notes DEFAULT VALUES", catalog) == Insert(notes, (), ((),), None)


def test_update_by_key(catalog: Catalog, notes: Table) -> None:
    statement = bound(
        "UPDATE app.notes AS n SET stars = stars + 1, title = 'x' WHERE (n.id = $1)", catalog, (int,)
    )
    assert statement == Update(
        notes,
        (
            (2, Scalar("stars + 1", Arithmetic("+", ColumnRef(2), Literal(1)))),
            (1, Scalar("'x'", Literal("x"))),
        ),
        Scalar("$1", Parameter(0)),
        "(notes.id = $1)",
    )


def test_update_by_predicate(catalog: Catalog, notes: Table) -> None:
    sql = "UPDATE notes SET done = TRUE, title = trim(title) WHERE id = 1 AND stars > 2"
    assert bound(sql, catalog) == Update(
        notes,
        ((4, Scalar("TRUE", Literal(True))), (1, Scalar("trim(title)", None))),
        None,
        "id = 1 AND stars > 2",
        matching=keys_of(notes, (0, "=", Literal(1)), (2, ">", Literal(2))),
    )


def keys_of(table: Table, *where: tuple[int, CompareOp, Literal | Parameter]) -> DirectRead:
    """The read of the keys of the rows that meet some comparisons."""
    key = ((table.key_index, table.columns[table.key_index].name),)
    return DirectRead(table, key, None, where, (), None, None)


@pytest.mark.parametrize(
    ("where", "text", "node"),
    [
        ("id = 5", "5", Literal(5)),
        ("-5 = notes.id", "-5", Literal(-5)),
        ("app.notes.id = -$1", "-$1", Negate(Parameter(0))),
        ("ID = '7'", "'7'", Literal(7)),
        ("id=SNOWFLAKE_ID( )", "SNOWFLAKE_ID( )", Call("SNOWFLAKE_ID")),
    ],
)
def test_delete_by_key(where: str, text: str, node: Node, catalog: Catalog, notes: Table) -> None:
    statement = bound(f"DELETE FROM notes WHERE {where}", catalog, (int,))
    assert statement == Delete(notes, Scalar(text, node), where)


@pytest.mark.parametrize("where", ["id = stars", "id = 5 OR TRUE", "id IN (5)", "id = (SELECT 1)"])
def test_delete_by_predicate(where: str, catalog: Catalog, notes: Table) -> None:
    assert bound(f"DELETE FROM notes WHERE {where}", catalog) == Delete(notes, None, where)


def test_delete_by_plain_predicate(catalog: Catalog, notes: Table) -> None:
    for where, parts in (
        ("id > 5", [(0, ">", Literal(5))]),
        ("5 <= stars AND title = $1", [(2, ">=", Literal(5)), (1, "=", Parameter(0))]),
    ):
        matching = keys_of(notes, *parts)  # type: ignore[arg-type]
        statement = bound(f"DELETE FROM notes WHERE {where}", catalog, (str,))
        assert statement == Delete(notes, None, where, matching=matching)
    assert bound("DELETE FROM notes", catalog) == Delete(notes, None, None, matching=keys_of(notes))


def test_a_parameter_compared_with_a_key_of_another_type_is_cast(catalog: Catalog) -> None:
    statement = bound("DELETE FROM notes WHERE id = $1", catalog, (str,))
    assert isinstance(statement, Delete)
    assert statement.key is not None
    assert isinstance(statement.key.node, Cast)
    assert statement.key.node.column.type is SqlType.BIGINT


def test_point_reads(catalog: Catalog, notes: Table) -> None:
    everything = (
        *((at, column.name) for at, column in enumerate(notes.columns)),
        (SEQ, "_seq"),
        (DELETED, "_deleted"),
    )
    sql = "SELECT * FROM notes WHERE id = 5;"
    assert bound(sql, catalog) == Select(sql[:-1], PointRead(notes, Scalar("5", Literal(5)), everything))
    sql = 'SELECT n.title AS T, stars, "at" "When", _seq FROM app.notes n WHERE 5 = n.id'
    columns = ((1, "t"), (2, "stars"), (5, "When"), (SEQ, "_seq"))
    assert bound(sql, catalog) == Select(sql, PointRead(notes, Scalar("5", Literal(5)), columns))


def test_direct_reads(catalog: Catalog, notes: Table) -> None:
    sql = (
        "SELECT title AS t, stars FROM app.notes n WHERE 3 < stars AND n.title = 'x' "
        "ORDER BY n.at DESC, t LIMIT 5"
    )
    assert bound(sql, catalog) == Select(
        sql,
        None,
        direct=DirectRead(
            notes,
            ((1, "t"), (2, "stars")),
            None,
            ((2, ">", Literal(3)), (1, "=", Literal("x"))),
            (OrderKey(5, True, True), OrderKey(1, False, False)),
            Literal(5),
            None,
        ),
    )
    sql = "SELECT COUNT(*) FROM notes WHERE id = 1"
    where = ((0, "=", Literal(1)),)
    counted = DirectRead(notes, (), "count(*)", where, (), None, None)
    assert bound(sql, catalog) == Select(sql, None, direct=counted)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM notes WHERE id = 1 AND done",
        "SELECT * FROM notes WHERE id = 1 OR stars = 2",
        "SELECT title, title FROM notes",
        "SELECT * FROM notes ORDER BY 1",
        "SELECT * FROM notes ORDER BY stars + 1",
        "SELECT * FROM notes LIMIT 1 + 1",
        "SELECT COUNT(*) FROM notes LIMIT 1",
        "SELECT * FROM notes WHERE at > '2026-01-01' || ''",
        "SELECT DISTINCT title FROM notes WHERE id = 1",
        "SELECT title, stars + 1 FROM notes WHERE id = 1",
        "SELECT * FROM notes, tags WHERE id = 1",
        "SELECT * FROM notes JOIN tags ON note = id WHERE id = 1",
        "SELECT nothing FROM notes WHERE id = 1",
        "SELECT * FROM nowhere WHERE id = 1",
        "SELECT * FROM system.users WHERE user_id = 'a'",
        "SELECT * FROM notes WHERE id = 1 UNION SELECT * FROM notes WHERE id = 2",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "(SELECT 1)",
        "VALUES (1)",
        "SELECT this is not sql",
    ],
)
def test_every_other_query_is_left_to_the_query_engine(sql: str, catalog: Catalog) -> None:
    assert bound(sql, catalog) == Select(sql, None)


def test_commands(catalog: Catalog, notes: Table) -> None:
    expected: dict[str, Statement] = {
        "CREATE NAMESPACE IF NOT EXISTS Shop": CreateNamespace("shop", True),
        "CREATE NAMESPACE a1;": CreateNamespace("a1", False),
        "ALTER NAMESPACE Shop SET OPTIONS (a = 'x', b=42, c=true)": AlterNamespace(
            "shop", (("a", "x"), ("b", 42), ("c", True))
        ),
        "SHOW STATS FOR TABLE notes": ShowStats(notes),
        "DROP NAMESPACE IF EXISTS shop CASCADE": DropNamespace("shop", True),
        "drop shared table if exists x.Y": DropTable("x", "y", True),
        "DROP TABLE notes": DropTable("app", "notes", False),
        "STORAGE FLUSH TABLE app.notes": FlushTable(notes),
        "STORAGE COMPACT TABLE app.notes": CompactTable(notes),
        "storage compact all in namespace app": CompactAll("app"),
        "STORAGE COMPACT ALL": CompactAll(None),
        "kill live query 'ann-c1-it''s';": KillLive("ann-c1-it's"),
        "USE shop": UseNamespace("shop"),
        "USE NAMESPACE shop": UseNamespace("shop"),
        "SET NAMESPACE shop": UseNamespace("shop"),
        "SET datafusion.execution.batch_size = 1;": SetOption("datafusion.execution.batch_size"),
        "SUBSCRIBE TO a.B": SubscribeTo("SELECT * FROM a.B", None),
        "subscribe to a.b where options > 'OPTIONS (' ;": SubscribeTo(
            "SELECT * FROM a.b where options > 'OPTIONS ('", None
        ),
        "SUBSCRIBE TO a.b OPTIONS ()": SubscribeTo("SELECT * FROM a.b", SubscriptionOptions()),
        "SUBSCRIBE TO a.b WHERE n IN (1) OPTIONS (last_rows=10, batch_size = 50,)": SubscribeTo(
            "SELECT * FROM a.b WHERE n IN (1)", SubscriptionOptions(last_rows=10, batch_size=50)
        ),
        "SUBSCRIBE TO SELECT id FROM a.b OPTIONS (from='9007199254740993', view=true)": SubscribeTo(
            "SELECT id FROM a.b", SubscriptionOptions(from_seq=9007199254740993, view=True)
        ),
        "CREATE USER Ann WITH PASSWORD 'p''w' ROLE developer EMAIL 'a@b'": CreateUser(
            "Ann", "p'w", Role.SERVICE, "a@b"
        ),
        "CREATE USER 'x y' WITH INTERNAL ROLE 'dba'": CreateUser("x y", None, Role.DBA, None, "internal"),
        "SHOW NAMESPACES": Select("SELECT * FROM system.namespaces ORDER BY namespace_id", None, True),
        "SHOW TABLES IN shop": Select(
            "SELECT * FROM system.schemas WHERE is_latest AND namespace_id = 'shop' "
            "ORDER BY namespace_id, table_name",
            None,
            True,
        ),
    }
    assert {sql: bound(sql, catalog) for sql in expected} == expected


def test_describe_reads_the_columns_of_one_table(catalog: Catalog) -> None:
    for sql in ("DESCRIBE TABLE app.notes", "DESC TABLE notes", "describe notes", "SHOW COLUMNS FROM notes"):
        statement = bound(sql, catalog)
        assert isinstance(statement, Select)
        assert statement.is_open == ("TABLE" in sql)
        assert "WHERE namespace_id = 'app' AND table_name = 'notes'" in statement.text


def test_execute_as(catalog: Catalog, notes: Table) -> None:
    inner = Delete(notes, Scalar("1", Literal(1)), "id = 1")
    assert bound("EXECUTE AS USER 'O''Hara' (DELETE FROM notes WHERE id = 1;)", catalog) == ExecuteAs(
        "O'Hara", inner
    )
    sql = "EXECUTE AS USER bob (SELECT 1 FROM notes)"
    assert bound(sql, catalog) == ExecuteAs("bob", Select("SELECT 1 FROM notes", None))
    with pytest.raises(InvalidInput, match="single SQL statement"):
        bound("EXECUTE AS USER 'a' (SELECT 1; SELECT 2)", catalog)


FAILURES = [
    ("ALTER TABLE notes TRUNCATE x", "Invalid SQL: Unsupported statement type: ALTER TABLE … TRUNCATE"),
    ("ALTER TOPIC n ADD SOURCE m", "Invalid SQL: Unsupported statement type: ALTER TOPIC"),
    ("CREATE TRIGGER v AS SELECT 1", "Invalid SQL: Unsupported statement type: CREATE TRIGGER"),

    ("KILL FLUSH 'FL-1'", "Invalid SQL: Unsupported statement type: KILL FLUSH"),
    ("SUBSCRIBE notes", "Invalid SQL: expected SUBSCRIBE TO namespace.table, or SUBSCRIBE TO SELECT"),
    ("SUBSCRIBE TO a.b LIMIT 3", "Invalid SQL: expected WHERE or OPTIONS (…), found LIMIT"),
    ("SUBSCRIBE TO a.b OPTIONS (limit=3)", "Invalid SQL: unknown option 'limit'; there are batch_size"),
    ("SUBSCRIBE TO a.b OPTIONS (last_rows=-3)", "Invalid SQL: option last_rows needs a whole number"),
    ("SUBSCRIBE TO a.b OPTIONS (view=3)", "Invalid SQL: these OPTIONS can't be: Expected `bool`"),
    ("SUBSCRIBE TO a.b OPTIONS (from=9999999999999999999)", "Invalid SQL: these OPTIONS can't be: Expected"),
    ("SUBSCRIBE TO a.b OPTIONS (from=1) OPTIONS (from=2)", "Invalid SQL: expected the end of the statement"),
    ("SUBSCRIBE TO", "Invalid SQL: expected a table name, found the end of the statement"),
    ("SET", "Invalid SQL: expected the name of a setting, found the end of the statement"),
    ("KILL LIVE QUERY x", "Invalid SQL: expected the live query's id, as system.live shows it, in quotes"),
    ("STORAGE REBUILD TABLE a.b", "Invalid SQL: Unsupported statement type: STORAGE REBUILD"),
    ("EXPLAIN DELETE FROM notes", "Invalid SQL: expected a query after EXPLAIN"),
    ("SELEC 1", "Invalid SQL: Unsupported statement type: SELEC"),
    ("STORAGE COMPACT TABLE notes", "Invalid SQL: STORAGE COMPACT TABLE needs a qualified name"),
    ("STORAGE FLUSH TABLE notes", "Invalid SQL: STORAGE FLUSH TABLE needs a qualified name"),
    ("CREATE NAMESPACE \"a-b\"", "Invalid SQL: namespace name 'a-b' may only have letters, digits and _"),
    ("CREATE USER a WITH PASSWORD 'p'", "Invalid SQL: expected ROLE, found the end of the statement"),
    ("CREATE USER a WITH PASSWORD 'p' ROLE king", "Invalid SQL: Invalid role 'king'"),
    ("INSERT INTO nowhere VALUES (1)", "Table not found: app.nowhere"),
    ("INSERT INTO tags (name, x) VALUES ('a', 1)",
     "Invalid operation: column 'x' does not exist in app.tags"),
    ("INSERT INTO tags (name, name) VALUES ('a', 'b')",
     "Invalid operation: column 'name' is named more than once"),
    ("INSERT INTO tags (name, _seq) VALUES ('a', 1)", "System column violation: column '_seq' of app.tags"),
    ("INSERT INTO tags VALUES ('a')",
     "Invalid operation: INSERT INTO app.tags names 2 columns, but row 0 has 1"),
    ("INSERT INTO tags VALUES (a, 1)", "Invalid operation: 'a' names a column, and VALUES has none"),
    ("INSERT INTO tags VALUES ('a', )(", "Invalid SQL: expected the end of the statement"),
    ("INSERT INTO tags VALUES ('a', 1 +)", "Invalid SQL: cannot read the expression 1 +"),
    ("INSERT INTO tags VALUES (, 1)", "Invalid SQL: expected an expression, found ,"),
    ("INSERT INTO tags VALUES ('a', 1) RETURNING", "Invalid SQL: expected an expression"),
    ("INSERT INTO tags VALUES ('a', 1) RETURNING nope", "column 'nope' does not exist"),
    ("INSERT INTO tags VALUES ('a', 1) RETURNING _seq", "Invalid operation: RETURNING can't give _seq"),
    ("INSERT INTO tags VALUES ('a', 1) RETURNING (SELECT 1)", "Invalid SQL: RETURNING has no subqueries"),
    ("INSERT INTO tags VALUES ('a', 1) ON CONFLICT", "Invalid SQL: expected DO"),
    ("INSERT INTO tags VALUES ('a', 1) ON CONFLICT (note) DO NOTHING", "only the key 'name' is unique"),
    ("INSERT INTO tags VALUES ('a', 1) ON CONFLICT DO UPDATE SET nope = 1", "column 'nope' does not exist"),
    ("INSERT INTO tags VALUES ('a', 1) ON CONFLICT DO UPDATE SET note = excluded.nope", "column 'nope' does"),
    ("INSERT INTO tags VALUES ('a', 1) ON CONFLICT DO UPDATE SET note = _seq", "can't read _seq"),
    ("INSERT INTO tags VALUES ('a', 1) ON CONFLICT DO UPDATE SET note = (SELECT 1)", "has no subqueries"),
    ("INSERT INTO tags SELECT 'a', 1 ON CONFLICT DO SOMETHING", "Invalid SQL: expected UPDATE"),
    ("INSERT INTO system.users VALUES (1)", "Invalid operation: Cannot insert system table 'system.users'"),
    ("UPDATE system.users SET a = 1", "Invalid operation: Cannot update system table 'system.users'"),
    ("DELETE FROM system.users", "Invalid operation: Cannot delete system table 'system.users'"),
    ("UPDATE notes SET _deleted = TRUE", "System column violation: column '_deleted' of app.notes"),
    ("UPDATE notes SET x = 1", "Invalid operation: column 'x' does not exist in app.notes"),
    ("UPDATE notes SET title = x", "Execution error: column 'x' does not exist in app.notes"),
    ("UPDATE notes SET stars = 1 FROM tags", "Invalid SQL: UPDATE does not support FROM"),
    ("UPDATE notes SET stars = 1 WHERE id = 1 RETURNING id,", "Invalid SQL: expected an expression"),
    ("UPDATE notes SET stars = 1 WHERE id == ", "Invalid SQL: cannot read the expression id =="),
    ("DELETE FROM notes WHERE x = 1", "Execution error: column 'x' does not exist in app.notes"),
    ("DELETE FROM notes n WHERE notes.id = 1", "Execution error: 'notes.id' is not a column of app.notes"),
    ("DELETE FROM notes WHERE id = 1 LIMIT 1", "Invalid SQL: DELETE does not support LIMIT"),
    ("DELETE FROM notes WHERE id = 1 UNION SELECT 1", "Invalid SQL: DELETE does not support UNION"),
    ("DELETE FROM notes WHERE id = 1) OR (TRUE", "Invalid SQL: expected the end of the statement, found )"),
    ("DESCRIBE TABLE nowhere", "Table not found: app.nowhere"),
    ("EXECUTE AS USER a (DROP TABLE notes)",
     "Invalid SQL: EXECUTE AS USER takes SELECT, INSERT, UPDATE or DELETE"),
    ("EXECUTE AS USER a (DELETE FROM tags)",
     "Invalid operation: EXECUTE AS USER is not allowed on SHARED tables"),
    ("EXECUTE AS USER a (SELECT * FROM notes, Tags)",
     "Invalid operation: EXECUTE AS USER is not allowed on SHARED"),
    ("EXECUTE AS USER a (DELETE FROM notes WHERE id IN (SELECT note FROM tags))", "(table 'app.tags')"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "message"), FAILURES)
def test_failures(sql: str, message: str, catalog: Catalog) -> None:
    with pytest.raises(UpwellError) as caught:
        bound(sql, catalog)
    assert message in str(caught.value)


def test_nesting_without_end_is_left_or_refused(catalog: Catalog) -> None:
    deep = "(" * 3000 + "1" + ")" * 3000
    with pytest.raises(UpwellError):
        bound(f"DELETE FROM notes WHERE id = {deep}", catalog)
    long = " + ".join(["1"] * 20)
    statement = bound(f"INSERT INTO tags VALUES ('a', {long})", catalog)
    assert isinstance(statement, Insert)
    assert statement.rows[0][1].text == long
