"""ALTER TABLE: what it can say, and a clear refusal of everything that can't be kept."""

import pytest

from upwell.engine.alter import (
    AddColumn,
    Alteration,
    DropColumn,
    ModifyColumn,
    RenameColumn,
    SetAccess,
    SetDefault,
    SetNullable,
    SetOptions,
)
from upwell.engine.catalog import Access, Catalog
from upwell.errors import InvalidOperation, InvalidSql, UpwellError
from upwell.sql.bind import Binder
from upwell.sql.parse import parse
from upwell.sql.statements import AlterTable
from upwell.types import Column, Default, SqlType


def alter(sql: str, catalog: Catalog) -> AlterTable:
    statement = Binder(catalog, "app").bind(parse(sql))
    assert isinstance(statement, AlterTable)
    return statement


def column(name: str, sql_type: SqlType, *, nullable: bool = True, default: object = None) -> Column:
    held = None if default is None else Default(None, default)  # type: ignore[arg-type]
    return Column(0, name, sql_type, nullable, default=held)


@pytest.mark.parametrize(
    ("sql", "table", "added", "if_not_exists"),
    [
        ("ALTER TABLE notes ADD x INT", ("app", "notes"), column("x", SqlType.INT), False),
        ("alter table App.Notes add column X text null", ("app", "notes"), column("x", SqlType.TEXT), False),
        (
            "ALTER USER TABLE b.t ADD COLUMN IF NOT EXISTS n BIGINT NOT NULL DEFAULT -7",
            ("b", "t"),
            column("n", SqlType.BIGINT, nullable=False, default=-7),
            True,
        ),
        (
            "ALTER SHARED TABLE t ADD IF NOT EXISTS d DOUBLE PRECISION DEFAULT 1 NOT NULL",
            ("app", "t"),
            column("d", SqlType.DOUBLE, nullable=False, default=1.0),
            True,
        ),
        (
            "ALTER TABLE t ADD b BYTES DEFAULT '0a'",
            ("app", "t"),
            column("b", SqlType.BYTES, default="0a"),
            False,
        ),
        ("ALTER TABLE t ADD c INT DEFAULT NULL", ("app", "t"), column("c", SqlType.INT), False),
        ("ALTER TABLE t ADD column", ("app", "t"), None, False),
    ],
)
def test_what_it_says(
    catalog: Catalog, sql: str, table: tuple[str, str], added: Column | None, if_not_exists: bool
) -> None:
    if added is None:
        with pytest.raises(InvalidSql, match="expected a column name"):
            parse(sql)
    else:
        assert alter(sql, catalog) == AlterTable(*table, AddColumn(added, if_not_exists))


@pytest.mark.parametrize(
    ("rest", "meant"),
    [
        ("DROP x", DropColumn("x")),
        ("drop column if exists X", DropColumn("x", if_exists=True)),
        ("RENAME a TO b", RenameColumn("a", "b")),
        ("RENAME COLUMN A TO B", RenameColumn("a", "b")),
        ("MODIFY COLUMN x BIGINT", ModifyColumn("x", SqlType.BIGINT)),
        ("MODIFY x INT NOT NULL", ModifyColumn("x", SqlType.INT, nullable=False)),
        ("ALTER x TYPE DOUBLE PRECISION", ModifyColumn("x", SqlType.DOUBLE)),
        ("ALTER COLUMN x SET DATA TYPE TEXT NULL", ModifyColumn("x", SqlType.TEXT, nullable=True)),
        ("ALTER COLUMN x SET NOT NULL", SetNullable("x", nullable=False)),
        ("ALTER COLUMN x DROP NOT NULL", SetNullable("x", nullable=True)),
        ("ALTER COLUMN x SET DEFAULT -1.5", SetDefault("x", Default(None, -1.5), "-1.5")),
        ("ALTER COLUMN x SET DEFAULT NOW ()", SetDefault("x", Default("NOW"), "NOW ()")),
        ("ALTER COLUMN x DROP DEFAULT", SetDefault("x", None)),
        ("SET ACCESS LEVEL public", SetAccess(Access.PUBLIC)),
        ("SET TBLPROPERTIES (ACCESS_LEVEL = 'RESTRICTED')", SetAccess(Access.RESTRICTED)),
        ("SET TBLPROPERTIES (flush_policy = 'rows:5')", SetOptions((("flush_policy", "rows:5"),))),
    ],
)
def test_what_else_it_says(catalog: Catalog, rest: str, meant: Alteration) -> None:
    assert alter(f"ALTER TABLE notes {rest}", catalog) == AlterTable("app", "notes", meant)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", "expected ADD, DROP, RENAME, MODIFY or ALTER COLUMN, SET ACCESS LEVEL or SET TBLPROPERTIES"),
        ("ADD", "expected a column name"),
        ("ADD x", "expected the type of column 'x'"),
        ("ADD x INT, ADD y INT", "one operation a statement"),
        ("ADD x INT extra", "expected a constraint of column 'x'"),
        ("ADD x FILE", "type FILE of column 'x' is not supported yet"),
        ("ADD x BIGSERIAL", "must be a literal or NOW(), which existing rows show too"),
        ("ADD x BIGINT AUTO_INCREMENT", "must be a literal or NOW(), which existing rows show too"),
        ("ADD x INT DEFAULT 1 + 1", "expected a constraint of column 'x'"),
        ("ADD x INT DEFAULT 'a'", "DEFAULT does not fit"),
        ("ADD x INT PRIMARY KEY", "cannot become the PRIMARY KEY"),
        ("ADD x INT REFERENCES notes (id)", "cannot have REFERENCES"),
        ("ADD x INT UNIQUE", "UNIQUE is not supported"),
        ("ADD _deleted INT", "reserved for system columns"),
        ('ADD "a b" INT', "may only have letters, digits and _"),
        ("ADD CONSTRAINT c UNIQUE (x)", "UNIQUE is not supported yet"),
        ("ADD UNIQUE (x)", "UNIQUE is not supported yet"),
        ("ADD CONSTRAINT c CHECK (x > 0)", "CHECK is not supported yet"),
        ("ADD PRIMARY KEY (x)", "a table keeps the PRIMARY KEY"),
        ("DROP", "expected a column"),
        ("DROP PRIMARY KEY", "DROP PRIMARY is not supported"),
        ("DROP x CASCADE", "expected the end of the statement"),
        ("RENAME TO y", "a table keeps its name"),
        ("RENAME COLUMN x y", "expected TO"),
        ("RENAME COLUMN x TO _seq", "reserved for system columns"),
        ("MODIFY x", "expected the type of column 'x'"),
        ("MODIFY x BIGSERIAL", "cannot become a serial"),
        ("ALTER COLUMN x", "expected TYPE, SET NOT NULL"),
        ("ALTER COLUMN x SET DEFAULT y", "must be a literal"),
        ("SET ACCESS LEVEL secret", "ACCESS_LEVEL must be PUBLIC"),
        ("SET TBLPROPERTIES (TYPE = 'USER')", "TYPE is chosen by CREATE TABLE and stays"),
        ("SET TBLPROPERTIES (x = 1)", "Unknown table option 'X'"),
        ("SET TBLPROPERTIES (FLUSH_POLICY = 'rows:0')", "FLUSH_POLICY must be"),
        ("TRUNCATE", "Unsupported statement type: ALTER TABLE … TRUNCATE"),
    ],
)
def test_what_is_refused(rest: str, said: str) -> None:
    with pytest.raises(InvalidSql) as caught:
        parse(f"ALTER TABLE notes {rest}")
    assert said in str(caught.value)
    assert "CREATE TABLE statement" not in str(caught.value)


def test_system_tables_stay_as_they_are(catalog: Catalog) -> None:
    with pytest.raises(InvalidOperation, match=r"Cannot alter system table 'system\.jobs'"):
        alter("ALTER TABLE system.jobs ADD x INT", catalog)


def test_other_things_are_not_altered() -> None:
    for sql in ("ALTER VIEW v SET x", "ALTER"):
        with pytest.raises(UpwellError, match="Unsupported statement type: ALTER"):
            parse(sql)
