"""The grammar of ALTER TABLE: one operation on a table.

Law: what can't be done to a table that has rows, in both tiers and on devices, is refused by name with
what to use instead.
"""

from collections.abc import Callable
from dataclasses import replace

from upwell.engine.alter import (
    AddColumn,
    AddReference,
    Alteration,
    DropColumn,
    DropReference,
    ModifyColumn,
    RenameColumn,
    SetAccess,
    SetDefault,
    SetNullable,
    SetOptions,
)
from upwell.errors import InvalidSql
from upwell.sql.column import (
    Draft,
    Refused,
    not_enforced,
    read_column,
    read_default,
    read_name,
    read_reference,
    read_type,
)
from upwell.sql.lex import Tokens
from upwell.sql.option import access_of, read_property
from upwell.sql.tree import AlterTableTree


class AlterRefused(InvalidSql):
    """No alteration, or one that this release can't make."""

    prefix = "Invalid SQL: Invalid ALTER TABLE statement: "


_OPERATIONS = "ADD, DROP, RENAME, MODIFY or ALTER COLUMN, SET ACCESS LEVEL or SET TBLPROPERTIES"


def parse_alter_table(tokens: Tokens) -> AlterTableTree:
    """Read ALTER [USER|SHARED|STREAM] TABLE t and one operation."""
    tokens.expect("ALTER")
    if not tokens.sees("TABLE"):
        tokens.take()
    tokens.expect("TABLE")
    table = tokens.qualified()
    step = _STEPS.get(tokens.peek().word)
    if step is None:
        if tokens.at_end:
            raise tokens.unexpected(_OPERATIONS)
        operation = tokens.peek().text.upper()[:60]
        raise InvalidSql(f"Unsupported statement type: ALTER TABLE … {operation}; there are {_OPERATIONS}")
    tokens.take()
    try:
        alteration = step(tokens)
    except Refused as refusal:
        raise AlterRefused(refusal.args[0]) from refusal
    if tokens.sees(","):
        raise AlterRefused("one operation a statement; write another ALTER TABLE for the next")
    return AlterTableTree(table, alteration)


def _add(tokens: Tokens) -> AddColumn | AddReference:
    if tokens.sees("CONSTRAINT") and tokens.peek(2).word == "FOREIGN":
        tokens.take()
        tokens.name("a constraint's name")
    if tokens.accept("FOREIGN", "KEY"):
        return _reference(tokens)
    constraint = tokens.peek(2 if tokens.sees("CONSTRAINT") else 0).word
    if constraint in ("UNIQUE", "CHECK"):
        raise not_enforced(constraint)
    if constraint == "PRIMARY":
        raise Refused("a table keeps the PRIMARY KEY that it was made with")
    if tokens.peek().word in ("CONSTRAINT", "FOREIGN"):
        raise Refused("FOREIGN KEY can be added; NOT NULL is said by ALTER COLUMN … SET NOT NULL")
    tokens.accept("COLUMN")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    draft = Draft()
    read_column(tokens, draft)
    (column,) = draft.columns
    if column.primary_key:
        raise Refused(f"column '{column.name}' cannot become the PRIMARY KEY; a table keeps the one it has")
    if draft.parents:
        raise Refused(
            f"column '{column.name}' cannot have REFERENCES yet; add it without, then "
            f"ADD FOREIGN KEY ({column.name}) REFERENCES …"
        )
    if column.default is not None and column.default.function not in (None, "NOW"):
        raise Refused(
            f"DEFAULT of column '{column.name}' must be a literal or NOW(), which existing rows show too; "
            "add the column without it, UPDATE the rows and SET DEFAULT"
        )
    return AddColumn(replace(column.column(0), physical=""), if_not_exists)


def _reference(tokens: Tokens) -> AddReference:
    name = _one_column(tokens)
    tokens.expect("REFERENCES")
    draft = Draft()
    read_reference(tokens, draft, name)
    (parent, target, on_delete) = draft.parents[name]
    return AddReference(name, (parent[0] or "", parent[1]), target, on_delete)


def _one_column(tokens: Tokens) -> str:
    names = tokens.listed(lambda: tokens.name("a column"))
    if len(names) != 1:
        raise Refused("a FOREIGN KEY of several columns can only be declared by CREATE TABLE, and stays")
    return names[0]


def _drop(tokens: Tokens) -> DropColumn | DropReference:
    if tokens.accept("FOREIGN", "KEY"):
        return DropReference(_one_column(tokens))
    if tokens.peek().word in ("CONSTRAINT", "PRIMARY", "INDEX", "VECTOR"):
        raise Refused(
            f"DROP {tokens.peek().word} is not supported; columns can be dropped, and FOREIGN KEY (…)"
        )
    tokens.accept("COLUMN")
    if_exists = tokens.accept("IF", "EXISTS")
    return DropColumn(tokens.name("a column"), if_exists)


def _rename(tokens: Tokens) -> RenameColumn:
    if tokens.sees("TO"):
        raise Refused("a table keeps its name: its files and its devices are found by it")
    tokens.accept("COLUMN")
    name = tokens.name("a column")
    tokens.expect("TO")
    return RenameColumn(name, read_name(tokens))


def _modify(tokens: Tokens) -> ModifyColumn:
    tokens.accept("COLUMN")
    name = tokens.name("a column")
    return _typed(tokens, name)


def _typed(tokens: Tokens, name: str) -> ModifyColumn:
    declared = read_type(tokens, name)
    if declared.is_serial:
        raise Refused(f"column '{name}' cannot become a serial; SET DEFAULT SNOWFLAKE_ID() instead")
    nullable = None
    if tokens.accept("NOT", "NULL"):
        nullable = False
    elif tokens.accept("NULL"):
        nullable = True
    return ModifyColumn(name, declared.type, nullable, declared.precision, declared.scale)


def _alter(tokens: Tokens) -> Alteration:
    tokens.accept("COLUMN")
    name = tokens.name("a column")
    if tokens.accept("TYPE") or tokens.accept("SET", "DATA", "TYPE"):
        return _typed(tokens, name)
    if tokens.accept("SET", "NOT", "NULL"):
        return SetNullable(name, nullable=False)
    if tokens.accept("DROP", "NOT", "NULL"):
        return SetNullable(name, nullable=True)
    if tokens.accept("DROP", "DEFAULT"):
        return SetDefault(name, None)
    if tokens.accept("SET", "DEFAULT"):
        start = tokens.peek().start
        default = read_default(tokens, name)
        text = tokens.sql[start : tokens.peek(-1).end]
        return SetDefault(name, default, text)
    raise tokens.unexpected("TYPE, SET NOT NULL, DROP NOT NULL, SET DEFAULT or DROP DEFAULT")


def _set(tokens: Tokens) -> Alteration:
    if tokens.accept("ACCESS"):
        tokens.expect("LEVEL")
        token = tokens.take()
        return SetAccess(access_of(token.text.strip("'\""), None))
    tokens.expect("TBLPROPERTIES")
    draft = Draft()
    tokens.listed(lambda: read_property(tokens, draft))
    access = draft.options.pop("ACCESS_LEVEL", None)
    if access is not None:
        if draft.options:
            raise Refused("ACCESS_LEVEL is set by a statement of its own")
        return SetAccess(access_of(access, None))
    return SetOptions(tuple((key.lower(), value) for key, value in draft.options.items()))


_STEPS: dict[str, Callable[[Tokens], Alteration]] = {
    "ADD": _add,
    "DROP": _drop,
    "RENAME": _rename,
    "MODIFY": _modify,
    "ALTER": _alter,
    "SET": _set,
}
