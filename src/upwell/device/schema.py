"""The shape of the app's tables, read from SQLite, and the SQL expressions that follow from it.

Law: only built-in SQLite functions appear in expressions, so that any connection can fire the triggers;
a row's key is its text primary key, or the lower hex of a BLOB one.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from upwell.device.failures import TableRefused

SqlValue: TypeAlias = int | float | str | bytes | None
Row: TypeAlias = dict[str, SqlValue]
_Part: TypeAlias = tuple[str, str, str | None, str]
"""One column of a foreign key: parent table, column, parent's column if it is named, ON DELETE."""

BLOB_ELSEWHERE = "$blob"
"""Key of the object that stands for a BLOB in a column which isn't declared as one."""

# json_object takes 127 arguments at most; wider tables get their JSON joined from quoted values.
JSON_OBJECT_COLUMNS_MAX = 60
# What `PRAGMA table_xinfo` calls the virtual and the stored ones.
_GENERATED = (2, 3)


@dataclass(frozen=True, slots=True)
class Column:
    """A stored column; `wire` is its lower-case name in payloads, `default` an SQL expression."""

    name: str
    wire: str
    is_blob: bool
    is_text: bool
    declared: str = ""
    is_required: bool = False
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key of a child table; `parent` is lower-case."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str = "NO ACTION"

    @property
    def join(self) -> str:
        """SQL that is true of a row `child` and the row `parent` that it refers to."""
        pairs = zip(self.parent_columns, self.columns, strict=True)
        return " AND ".join(f"parent.{quoted(to)} = child.{quoted(column)}" for to, column in pairs)


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table with one text or BLOB primary key; `wire` is its lower-case name."""

    name: str
    wire: str
    columns: tuple[Column, ...]
    primary_key: Column
    references: tuple[Reference, ...]
    has_other_unique: bool
    generated: tuple[str, ...] = ()

    def column(self, wire: str) -> Column | None:
        """Find a column by its name in payloads."""
        return next((column for column in self.columns if column.wire == wire), None)


class Tables:
    """The registered tables, with their order: parents before children, cycles in alphabetical order."""

    def __init__(self, shapes: Iterable[TableShape]) -> None:
        self._shapes = {shape.wire: shape for shape in shapes}
        self.rank = {wire: index for index, wire in enumerate(_parents_first(self._shapes))}

    def __iter__(self) -> Iterator[TableShape]:
        return iter(self._shapes.values())

    def find(self, wire: str) -> TableShape | None:
        """Find a table by its name on the wire."""
        return self._shapes.get(wire.lower())

    def get(self, wire: str) -> TableShape:
        """Get a registered table."""
        return self._shapes[wire]

    def references_to(self, parent: str) -> list[tuple[TableShape, Reference]]:
        """List the (child, reference) pairs that point at `parent`."""
        return [(s, r) for s in self for r in s.references if r.parent == parent]


def _parents_first(shapes: dict[str, TableShape]) -> list[str]:
    open_parents = {
        wire: {r.parent for r in shape.references if r.parent in shapes and r.parent != wire}
        for wire, shape in shapes.items()
    }
    order: list[str] = []
    while open_parents:
        ready = sorted(w for w, parents in open_parents.items() if not parents & open_parents.keys())
        step = ready or [min(open_parents)]
        order.extend(step)
        for wire in step:
            del open_parents[wire]
    return order


def read_shape(connection: sqlite3.Connection, table: str) -> TableShape:
    """Read the shape of `table`; raise `TableRefused` when it can't be synced."""
    name = _find_name(connection, table)
    info = connection.execute(f"PRAGMA table_xinfo({quoted(name)})").fetchall()
    columns = tuple(_column(*row[1:5]) for row in info if row[6] == 0)
    return TableShape(
        name=name,
        wire=name.lower(),
        columns=columns,
        primary_key=_primary_key(name, info, columns),
        references=_references(connection, name),
        has_other_unique=any(
            row[2] and row[3] != "pk" for row in connection.execute(f"PRAGMA index_list({quoted(name)})")
        ),
        generated=tuple(row[1] for row in info if row[6] in _GENERATED),
    )


def _find_name(connection: sqlite3.Connection, table: str) -> str:
    if table.lower().startswith(("_sync_", "sqlite_")):
        raise TableRefused(f"table {table!r} isn't the app's: register tables of your own")
    # Not by lower() of SQLite, which knows ASCII only.
    for name, kind in connection.execute(
        "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"
    ):
        if name.lower() == table.lower():
            if kind == "view":
                raise TableRefused(f"{table!r} is a view: register the tables that it reads")
            return str(name)
    raise TableRefused(f"table {table!r} does not exist: create it before registering it")


def _column(name: str, declared: str | None, is_required: int, default: str | None) -> Column:
    kind = (declared or "").upper()
    is_text = "INT" not in kind and any(word in kind for word in ("CHAR", "CLOB", "TEXT"))
    return Column(
        name=name,
        wire=name.lower(),
        is_blob="BLOB" in kind,
        is_text=is_text,
        declared=" ".join(kind.split()),
        is_required=bool(is_required),
        default=default,
    )


def _primary_key(table: str, info: list[tuple[object, ...]], columns: tuple[Column, ...]) -> Column:
    keys = [row for row in info if row[5]]
    recipe = f"declare one TEXT (a UUID) or BLOB (its 16 bytes) column of {table!r} as PRIMARY KEY"
    if len(keys) != 1:
        raise TableRefused(f"table {table!r} has {len(keys) or 'no'} primary key columns: {recipe}")
    declared = str(keys[0][2]).upper()
    if "INT" in declared:
        raise TableRefused(f"table {table!r} has an integer primary key, which devices would reuse: {recipe}")
    key = next(column for column in columns if column.name == keys[0][1])
    if not (key.is_text or key.is_blob or "UUID" in declared):
        # In such a column SQLite keeps numbers, which aren't the key's text any more.
        raise TableRefused(f"table {table!r} has a primary key of type {declared or 'none'}: {recipe}")
    return key


def _references(connection: sqlite3.Connection, table: str) -> tuple[Reference, ...]:
    grouped: dict[int, list[_Part]] = {}
    for row in connection.execute(f"PRAGMA foreign_key_list({quoted(table)})"):
        grouped.setdefault(row[0], []).append((row[2], row[3], row[4], row[6]))
    references = (_reference(connection, parts) for parts in grouped.values())
    return tuple(r for r in references if r is not None)


def _reference(connection: sqlite3.Connection, parts: list[_Part]) -> Reference | None:
    """A foreign key; None if it points at nothing that exists, which SQLite allows to declare."""
    parent, _, _, on_delete = parts[0]
    info = connection.execute(f"PRAGMA table_info({quoted(parent)})").fetchall()
    keys = [row[1] for row in sorted(info, key=lambda row: row[5]) if row[5]]
    targets = tuple(to or keys[index] for index, (_, _, to, _) in enumerate(parts) if to or index < len(keys))
    if len(targets) < len(parts) or not {t.lower() for t in targets} <= {row[1].lower() for row in info}:
        return None
    return Reference(tuple(part[1] for part in parts), parent.lower(), targets, on_delete.upper())


def quoted(name: str) -> str:
    """Quote an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text value."""
    return "'" + text.replace("'", "''") + "'"


def key_expression(shape: TableShape, alias: str) -> str:
    """SQL for the key of the row called `alias`."""
    value = f"{alias}.{quoted(shape.primary_key.name)}"
    return f"lower(hex({value}))" if shape.primary_key.is_blob else value


def payload_expression(shape: TableShape, alias: str) -> str:
    """SQL for the JSON object of all columns of the row called `alias`; BLOBs as lower hex, NULL as null."""
    pairs = [(literal(column.wire), _json_value(column, alias)) for column in shape.columns]
    if len(pairs) <= JSON_OBJECT_COLUMNS_MAX:
        return "json_object(" + ", ".join(f"{name}, {value}" for name, value in pairs) + ")"
    members = [f"json_quote({name}) || ':' || json_quote({value})" for name, value in pairs]
    return f"'{{' || {_joined(members)} || '}}'"


def _joined(members: list[str]) -> str:
    # In halves, because SQLite limits the depth of an expression.
    if len(members) == 1:
        return members[0]
    half = len(members) // 2
    return f"({_joined(members[:half])} || ',' || {_joined(members[half:])})"


def _json_value(column: Column, alias: str) -> str:
    value = f"{alias}.{quoted(column.name)}"
    if column.is_blob:
        return f"CASE WHEN {value} IS NULL THEN NULL ELSE lower(hex({value})) END"
    # Only a column that is declared BLOB goes up as one: the outbox sets such a row aside.
    blob = f"WHEN 'blob' THEN json_object('{BLOB_ELSEWHERE}', lower(hex({value})))"
    # 15 and 17 digits of SQLite's own printing don't always read back as the same number, 20 do.
    real = (
        f"WHEN 'real' THEN CASE WHEN abs({value}) > 1.7976931348623157e308 THEN NULL"
        f" ELSE json(printf('%!.20g', {value})) END"
    )
    return f"CASE typeof({value}) {blob} {'' if column.is_text else real} ELSE {value} END"
