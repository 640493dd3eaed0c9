"""CREATE TABLE: everything it can say, and a clear refusal of everything that can't be kept."""

import pytest

from upwell.engine.catalog import Access, Catalog, OnDelete, TableKind
from upwell.errors import InvalidOperation, InvalidSql, TableNotFound, UpwellError
from upwell.sql.bind import Binder
from upwell.sql.parse import parse
from upwell.sql.statements import ColumnDefinition, CompositeReference, CreateTable
from upwell.types import Default, SqlType


def create(sql: str, catalog: Catalog) -> CreateTable:
    statement = Binder(catalog, "app").bind(parse(sql))
    assert isinstance(statement, CreateTable)
    return statement


def column(name: str, sql_type: SqlType, **other: object) -> ColumnDefinition:
    given = {"nullable": True, "primary_key": False, "default": None, "references": None} | other
    on_delete = given.pop("on_delete", OnDelete.RESTRICT)
    return ColumnDefinition(name, sql_type, **given, on_delete=on_delete)  # type: ignore[arg-type]


def test_the_whole_statement(catalog: Catalog) -> None:
    sql = """CREATE USER TABLE IF NOT EXISTS App."Posts" (
        Id UUID PRIMARY KEY DEFAULT UUID_V7(), note BIGINT NOT NULL REFERENCES notes(id) ON DELETE CASCADE,
        body VARCHAR(20) DEFAULT 'it''s', at TIMESTAMP(6) WITH TIME ZONE DEFAULT CURRENT_TIMESTAMP, /* c */
        n BIGSERIAL, who TEXT NOT NULL DEFAULT CURRENT_USER(), score DOUBLE PRECISION DEFAULT -1,
        parent UUID, -- to itself
        FOREIGN KEY (parent) REFERENCES app.posts (id) ON DELETE SET NULL ON UPDATE NO ACTION,
    ) WITH (TYPE = 'user', SYNC=TRUE, STORAGE_ID='local', flush_policy = 'rows:1000,interval:60')"""
    assert create(sql, catalog) == CreateTable(
        "app",
        "posts",
        TableKind.USER,
        (
            column("id", SqlType.UUID, nullable=False, primary_key=True, default=Default("UUID_V7")),
            column(
                "note",
                SqlType.BIGINT,
                nullable=False,
                references=("app", "notes"),
                on_delete=OnDelete.CASCADE,
            ),
            column("body", SqlType.TEXT, default=Default(None, "it's")),
            column("at", SqlType.DATETIME, default=Default("NOW")),
            column("n", SqlType.BIGINT, default=Default("SNOWFLAKE_ID")),
            column("who", SqlType.TEXT, nullable=False, default=Default("CURRENT_USER")),
            column("score", SqlType.DOUBLE, default=Default(None, -1.0)),
            column("parent", SqlType.UUID, references=("app", "posts"), on_delete=OnDelete.SET_NULL),
        ),
        True,
        Access.PRIVATE,
        (("storage_id", "local"), ("flush_policy", "rows:1000,interval:60")),
        True,
    )


@pytest.mark.parametrize(
    ("word", "sql_type"),
    [
        ("BOOLEAN", SqlType.BOOLEAN), ("bool", SqlType.BOOLEAN), ("SMALLINT", SqlType.SMALLINT),
        ("INT2", SqlType.SMALLINT), ("INT", SqlType.INT), ("INTEGER", SqlType.INT), ("INT4", SqlType.INT),
        ("BIGINT", SqlType.BIGINT), ("INT8", SqlType.BIGINT), ("DOUBLE", SqlType.DOUBLE),
        ("DOUBLE PRECISION", SqlType.DOUBLE), ("FLOAT8", SqlType.DOUBLE), ("TEXT", SqlType.TEXT),
        ("VARCHAR(255)", SqlType.TEXT), ("CHAR(2)", SqlType.TEXT), ("STRING", SqlType.TEXT),
        ("TIMESTAMP", SqlType.TIMESTAMP), ("UUID", SqlType.UUID), ("JSON", SqlType.JSON),
        ("JSONB", SqlType.JSON), ("BYTES", SqlType.BYTES), ("BYTEA", SqlType.BYTES), ("BLOB", SqlType.BYTES),
    ],
)  # fmt: skip
def test_types(word: str, sql_type: SqlType, catalog: Catalog) -> None:
    table = create(f"CREATE TABLE t (id INT PRIMARY KEY, x {word})", catalog)
    assert table.columns[1].type is sql_type
    assert table.kind is None


def test_shared_with_access_level(catalog: Catalog) -> None:
    table = create(
        "CREATE TABLE t (id INT, PRIMARY KEY (ID)) WITH (TYPE=SHARED, ACCESS_LEVEL='public')", catalog
    )
    assert (table.kind, table.access, table.options) == (TableKind.SHARED, Access.PUBLIC, ())
    assert table.columns == (column("id", SqlType.INT, nullable=False, primary_key=True),)


REFUSED = [
    ("(id INT)", "Shared tables require a PRIMARY KEY column"),
    ("(id INT) WITH (TYPE='USER')", "User tables require a PRIMARY KEY column"),
    ("(a INT, b INT, PRIMARY KEY (a, b))", "Composite PRIMARY KEYs are not supported yet"),
    ("(a INT PRIMARY KEY, b INT PRIMARY KEY)", "Composite PRIMARY KEYs are not supported yet"),
    ("(a INT PRIMARY KEY, A TEXT)", "Duplicate column name 'a'. Column names are case-insensitive."),
    ("(a INT PRIMARY KEY, _Seq INT)", "Column name '_seq' is reserved for system columns"),
    ("(a INT PRIMARY KEY, \"_deleted\" INT)", "Column name '_deleted' is reserved for system columns"),
    ("(a INT PRIMARY KEY, b DECIMAL(39, 2))", "DECIMAL(39,2) of column 'b' needs 1 to 38 digits"),
    ("(a INT PRIMARY KEY, b NUMERIC(3, 4))", "DECIMAL(3,4) of column 'b' needs 1 to 38 digits"),
    ("(a INT PRIMARY KEY, b FILE)", "type FILE of column 'b' is not supported yet"),
    ("(a INT PRIMARY KEY, b EMBEDDING(3))", "type EMBEDDING of column 'b' is not supported yet"),
    ("(a FLOAT PRIMARY KEY)", "PRIMARY KEY column 'a' cannot be FLOAT"),
    ("(a DECIMAL PRIMARY KEY)", "PRIMARY KEY column 'a' cannot be DECIMAL"),
    ("(a INT PRIMARY KEY, b MONEY)", "type MONEY of column 'b' is not supported; use BOOLEAN, SMALLINT"),
    ("(a INT PRIMARY KEY, b INT UNIQUE)", "UNIQUE is not supported yet"),
    ("(a INT PRIMARY KEY, CHECK (a > 0))", "CHECK is not supported yet"),
    ("(a INT AUTO_INCREMENT PRIMARY KEY)", "it fits BIGINT or TEXT"),
    ("(a INT PRIMARY KEY DEFAULT 'x')", "DEFAULT does not fit"),
    ("(a INT PRIMARY KEY, b TEXT DEFAULT random())", "DEFAULT of column 'b' must be a literal, NOW()"),
    ("(a INT PRIMARY KEY, b BIGINT NOT NULL REFERENCES notes ON DELETE SET NULL)", "to be nullable"),
    ("(a INT PRIMARY KEY, FOREIGN KEY (x) REFERENCES notes)", "'x' is not a column"),
    ("(a JSON PRIMARY KEY)", "PRIMARY KEY column 'a' cannot be JSON"),
    ("(a INT PRIMARY KEY) WITH (COLOUR='red')", "Unknown table option 'COLOUR'"),
    ("(a INT PRIMARY KEY) WITH (FLUSH_POLICY='rows:0')", "FLUSH_POLICY must be"),
    ("(a INT PRIMARY KEY) WITH (FLUSH_POLICY='rows:1,rows:2')", "FLUSH_POLICY must be"),
    ("(a INT PRIMARY KEY) WITH (TTL_SECONDS=5)", "TTL_SECONDS is only supported for STREAM tables"),
    ("(a INT PRIMARY KEY) WITH (TYPE='USER', ACCESS_LEVEL='PUBLIC')", "only supported for SHARED tables"),
    ("(a INT PRIMARY KEY) WITH (DELETED_RETENTION_HOURS='x')", "must be a whole number"),
    ("(a INT PRIMARY KEY) WITH (DELETED_RETENTION_HOURS=9999999999)", "must be a whole number"),
    (f"(a INT PRIMARY KEY, b VARCHAR({'9' * 5000}))", "a number of at most 9 digits"),
    (f"(a INT PRIMARY KEY, b DECIMAL({'9' * 5000}, 2))", "a number of at most 9 digits"),
    ("(a TEXT PRIMARY KEY) WITH (SYNC=TRUE)", "SYNC = TRUE is only supported for USER tables"),
    ("(a INT PRIMARY KEY) WITH (TYPE='USER', SYNC=TRUE)", "needs a primary key of type UUID or TEXT"),
    ("(a INT PRIMARY KEY, b INT REFERENCES notes(id))",
     "column 'b' (INT) cannot reference app.notes(id), which"),
    ("(a INT PRIMARY KEY, b BIGINT REFERENCES notes(stars))", "the primary key is 'id'"),
]  # fmt: skip


@pytest.mark.parametrize(("rest", "message"), REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(rest: str, message: str, catalog: Catalog) -> None:
    with pytest.raises(InvalidSql) as caught:
        create(f"CREATE TABLE t {rest}", catalog)
    assert message in str(caught.value)
    assert str(caught.value).startswith("Invalid SQL: ")


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("CREATE STREAM TABLE t (id INT)", InvalidSql, "STREAM tables must specify 'TTL_SECONDS'"),
        ("CREATE TABLE t (id INT) WITH (TYPE='stream')", InvalidSql, "must specify 'TTL_SECONDS'"),
        ("CREATE STREAM TABLE t (id INT) TTL 0", InvalidSql, "a whole number of seconds, 1 to"),
        ("CREATE STREAM TABLE t (id INT) WITH (TTL_SECONDS='1.5')", InvalidSql, "a whole number of seconds"),
        ("CREATE STREAM TABLE t (id INT) WITH (TTL_SECONDS=1) TTL 1", InvalidSql, "write one of them"),
        ("CREATE USER TABLE t (id INT PRIMARY KEY) TTL 5", InvalidSql, "only supported for STREAM tables"),
        ("CREATE STREAM TABLE t (id INT) WITH (TTL_SECONDS=1, ACCESS_LEVEL='PUBLIC')", InvalidSql, "SHARED"),
        ("CREATE STREAM TABLE t (id INT) WITH (TTL_SECONDS=1, FLUSH_POLICY='rows:1')", InvalidSql,
         "FLUSH_POLICY is not supported for STREAM tables"),
        ("CREATE STREAM TABLE t (id INT) WITH (TTL_SECONDS=1, SYNC=TRUE)", InvalidSql, "for USER tables"),
        ("CREATE STREAM TABLE t (id BIGINT REFERENCES notes) TTL 5", InvalidSql, "cannot have REFERENCES"),
        ("CREATE STREAM TABLE t (a INT PRIMARY KEY, b INT PRIMARY KEY) TTL 5", InvalidSql, "Composite"),
        ("CREATE USER TABLE t (id INT PRIMARY KEY) WITH (TYPE='SHARED')", InvalidSql, "Conflicting"),
        ("CREATE TABLE system.x (id INT PRIMARY KEY)", InvalidOperation, "Cannot create system table"),
        ("CREATE TABLE t (id BIGINT PRIMARY KEY REFERENCES none)", TableNotFound, "app.none"),
        ("CREATE TABLE \"a b\" (id INT PRIMARY KEY)", InvalidSql, "letters, digits and _"),
        ("CREATE TABLE t (id INT PRIMARY KEY", InvalidSql, "expected )"),
        ("CREATE TABLE t (id INT PRIMARY KEY) x", InvalidSql, "expected the end of the statement, found x"),
    ],
)  # fmt: skip
def test_other_refusals(sql: str, error: type[UpwellError], message: str, catalog: Catalog) -> None:
    with pytest.raises(error) as caught:
        create(sql, catalog)
    assert message in str(caught.value)


def test_a_foreign_key_of_several_columns(catalog: Catalog) -> None:
    sql = """CREATE USER TABLE c (id INT PRIMARY KEY, x BIGINT, y TEXT,
        CONSTRAINT fk FOREIGN KEY (y, x) REFERENCES notes (title, id) ON DELETE CASCADE)"""
    expected = CompositeReference(("y", "x"), ("app", "notes"), ("title", "id"), OnDelete.CASCADE)
    assert create(sql, catalog).composites == (expected,)
