"""ALTER TABLE: what ADD COLUMN can say, and a clear refusal of everything that can't be kept."""

import pytest

from upwell.engine.catalog import Catalog, OnDelete
from upwell.errors import InvalidOperation, InvalidSql, UpwellError
from upwell.sql.bind import Binder
from upwell.sql.parse import parse
from upwell.sql.statements import AddColumn, ColumnDefinition
from upwell.types import Default, SqlType


def alter(sql: str, catalog: Catalog) -> AddColumn:
    statement = Binder(catalog, "app").bind(parse(sql))
    assert isinstance(statement, AddColumn)
    return statement


def column(
    name: str, sql_type: SqlType, *, nullable: bool = True, default: object = None
) -> ColumnDefinition:
    held = None if default is None else Default(None, default)  # type: ignore[arg-type]
    return ColumnDefinition(name, sql_type, nullable, False, held, None, OnDelete.RESTRICT)


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
    catalog: Catalog, sql: str, table: tuple[str, str], added: ColumnDefinition | None, if_not_exists: bool
) -> None:
    if added is None:
        with pytest.raises(InvalidSql, match="expected a column name"):
            parse(sql)
    else:
        assert alter(sql, catalog) == AddColumn(*table, added, if_not_exists)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("", "expected ADD COLUMN"),
        ("ADD", "expected a column name"),
        ("ADD x", "expected the type of column 'x'"),
        ("ADD x INT, ADD y INT", "expected the end of the statement"),
        ("ADD x INT extra", "expected a constraint of column 'x'"),
        ("ADD x DECIMAL(3, 2)", "type DECIMAL of column 'x' is not supported"),
        ("ADD x INT NOT NULL", "needs a DEFAULT for the rows that exist"),
        ("ADD x INT NOT NULL DEFAULT NULL", "needs a DEFAULT for the rows that exist"),
        ("ADD x TIMESTAMP DEFAULT NOW()", "must be a literal, which existing rows show too"),
        ("ADD x BIGSERIAL", "must be a literal, which existing rows show too"),
        ("ADD x BIGINT AUTO_INCREMENT", "must be a literal, which existing rows show too"),
        ("ADD x INT DEFAULT 1 + 1", "expected a constraint of column 'x'"),
        ("ADD x INT DEFAULT 'a'", "DEFAULT does not fit"),
        ("ADD x INT PRIMARY KEY", "cannot become the PRIMARY KEY"),
        ("ADD x INT REFERENCES notes (id)", "cannot have REFERENCES"),
        ("ADD x INT UNIQUE", "UNIQUE is not supported"),
        ("ADD _deleted INT", "reserved for system columns"),
        ('ADD "a b" INT', "may only have letters, digits and _"),
        ("DROP COLUMN x", "Unsupported statement type: ALTER TABLE … DROP"),
        ("ALTER COLUMN x SET NOT NULL", "Unsupported statement type: ALTER TABLE … ALTER"),
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
    for sql in ("ALTER USER ada SET PASSWORD 'p'", "ALTER STORAGE s SET NAME 'n'", "ALTER"):
        with pytest.raises(UpwellError, match="Unsupported statement type: ALTER"):
            parse(sql)
