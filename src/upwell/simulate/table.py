"""The app's tables, once: their DDL for the server and for SQLite, and their values on both sides.

Law: a row is a dict of the values that the device's SQLite holds; what SQL over HTTP shows of them follows
from the kind of the column alone.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = Any
Cells: TypeAlias = tuple[Any, ...]

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A type on the server and in SQLite; `to_sql` makes the cell of the SQL wire from the device's value."""

    server: str
    sqlite: str
    to_sql: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `parent` is the table that it refers to."""

    name: str
    kind: Kind
    parent: str | None = None
    is_cascading: bool = False
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column is its primary key."""

    name: str
    columns: tuple[Column, ...]

    @property
    def key(self) -> Column:
        """The primary key."""
        return self.columns[0]

    @property
    def references(self) -> tuple[Column, ...]:
        """The columns that refer to a parent."""
        return tuple(column for column in self.columns if column.parent is not None)

    def device_cells(self, row: Row) -> Cells:
        """The row as SQLite has it."""
        return tuple(row[column.name] for column in self.columns)

    def sql_cells(self, row: Row) -> Cells:
        """The row as the SQL wire has it."""
        values = ((column.kind, row[column.name]) for column in self.columns)
        return tuple(None if value is None else kind.to_sql(value) for kind, value in values)

    def sync_key(self, key: Key) -> str:
        """A key as the `_sync_` tables have it: a BLOB in hex."""
        return key.hex() if isinstance(key, bytes) else str(key)

    def sql_key(self, key: Key) -> str:
        """A key as the server has it: a BLOB as a UUID."""
        return str(self.key.kind.to_sql(key))

    def server_ddl(self, namespace: str) -> str:
        """CREATE TABLE for the server."""
        lines = [
            _declared(column, column.kind.server, f"{namespace}.{column.parent}", deferring="")
            for column in self.columns
        ]
        return f"CREATE TABLE {namespace}.{self.name} ({_listed(lines)}) WITH (TYPE='USER', SYNC=TRUE)"

    def sqlite_ddl(self) -> str:
        """CREATE TABLE for SQLite; references are checked at COMMIT, so children may be written first."""
        lines = [
            _declared(
                column, column.kind.sqlite, str(column.parent), deferring=" DEFERRABLE INITIALLY DEFERRED"
            )
            for column in self.columns
        ]
        return f"CREATE TABLE {self.name} ({_listed(lines)})"


def _declared(column: Column, kind: str, parent: str, *, deferring: str) -> str:
    required = " NOT NULL" if column.is_required else ""
    if column.parent is None:
        return f"{column.name} {kind}{required}"
    cascade = " ON DELETE CASCADE" if column.is_cascading else ""
    return f"{column.name} {kind}{required} REFERENCES {parent}(id){cascade}{deferring}"


def _listed(lines: list[str]) -> str:
    first, *others = lines
    return ", ".join([f"{first} PRIMARY KEY", *others])


def _same(value: Any) -> Any:
    return value


def _microseconds(seconds: int) -> int:
    return seconds * MICROSECONDS


def _dashed(data: bytes) -> str:
    return str(uuid.UUID(bytes=data))


TEXT = Kind("TEXT", "TEXT", _same)
UUID = Kind("UUID", "TEXT", _same)
TIME = Kind("TIMESTAMP", "INTEGER", _microseconds)
BIGINT = Kind("BIGINT", "INTEGER", str)
BYTES = Kind("BYTES", "BLOB", list)
BLOB_UUID = Kind("UUID", "BLOB", _dashed)

USERS = Table(
    "users",
    (
        Column("id", UUID),
        Column("name", TEXT, is_required=True),
        Column("email", TEXT, is_required=True),
        Column("created_at", TIME, is_required=True),
        Column("updated_at", TIME, is_required=True),
    ),
)
POSTS = Table(
    "posts",
    (
        Column("id", UUID),
        Column("title", TEXT, is_required=True),
        Column("content", TEXT, is_required=True),
        Column("author_id", UUID, parent="users", is_required=True),
        Column("created_at", TIME, is_required=True),
        Column("updated_at", TIME, is_required=True),
    ),
)
NODES = Table("nodes", (Column("id", UUID), Column("label", TEXT), Column("up", UUID, parent="nodes")))
FILES = Table(
    "files",
    (
        Column("id", BLOB_UUID),
        Column("name", TEXT, is_required=True),
        Column("size", BIGINT),
        Column("data", BYTES),
    ),
)
REVIEWS = Table(
    "file_reviews",
    (
        Column("id", BLOB_UUID),
        Column("review", TEXT, is_required=True),
        Column("file_id", BLOB_UUID, parent="files", is_cascading=True),
    ),
)

# Parents before their children.
TABLES = {table.name: table for table in (USERS, POSTS, NODES, FILES, REVIEWS)}
