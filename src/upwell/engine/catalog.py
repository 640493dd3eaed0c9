"""The catalog: namespaces, tables and users as one immutable value, kept as named records.

Law: a catalog never changes; a schema change is a commit of records, and the next View has the next
catalog. Table ids are never used twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TypeVar

import msgspec

from upwell.decodable import decodable
from upwell.engine.named_query import NamedQuery, QueryName
from upwell.errors import InvalidOperation, TableNotFound
from upwell.ids import snowflake_floor
from upwell.storage.definition import Storage
from upwell.storage.hot import ExpectationFailed, HotReader, Kind, RecordWrite
from upwell.storage.place import LOCAL
from upwell.types import SHARED, Column, Key, Owner, Row, TableId, Value, binder, coerce, user_owner

DEFAULT_NAMESPACE = "default"
SYSTEM_NAMESPACE = "system"
TTL_OPTION = "ttl_seconds"
TABLES_MADE = "tables_made"
"""The META record that counts tables: the newest id, and a sign that one was made."""


class TableKind(Enum):
    """Whose rows a table holds, and for how long: each user's own, everybody's, each user's for a while."""

    USER = "user"
    SHARED = "shared"
    STREAM = "stream"


class Access(Enum):
    """Who may read a SHARED table."""

    PUBLIC = "public"
    PRIVATE = "private"
    RESTRICTED = "restricted"
    DBA = "dba"


class OnDelete(Enum):
    """What happens to the children of a deleted row."""

    RESTRICT = "RESTRICT"
    CASCADE = "CASCADE"
    SET_NULL = "SET NULL"


class Role(Enum):
    """What an account may do; `rank` orders them."""

    __hash__ = object.__hash__  # a member is one object; the hash of its name costs a call

    USER = "user"
    SERVICE = "service"
    DBA = "dba"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key: column `column` (index) of the child holds the primary key of table `parent`.

    A composite one has `others`: pairs of a column of the child and one of the parent, which are equal.
    """

    column: int
    parent: TableId
    on_delete: OnDelete = OnDelete.RESTRICT
    others: tuple[tuple[int, int], ...] = ()

    @property
    def columns(self) -> tuple[int, ...]:
        """Indexes of the child's columns, that of the key first."""
        return (self.column, *(child for child, _ in self.others))

    def key_in(self, row: Row) -> Key | None:
        """Return the key of the parent that a row of the child refers to; None if any column is NULL."""
        return None if any(row[child] is None for child, _ in self.others) else row[self.column]

    def agrees(self, row: Row, parent: Row) -> bool:
        """Whether the parent's row has what the child's row says of it besides its key."""
        return all(row[child] == parent[at] for child, at in self.others)


@decodable
@dataclass(frozen=True)
class Table:
    """One table at one schema version."""

    id: TableId
    namespace: str
    name: str
    kind: TableKind
    columns: tuple[Column, ...]
    version: int = 1
    synced: bool = False
    references: tuple[Reference, ...] = ()
    access: Access = Access.PRIVATE
    options: Mapping[str, str] = field(default_factory=dict)
    created_at_us: int = 0
    updated_at_us: int = 0
    dropped: tuple[Column, ...] = ()
    """Columns that were dropped: their ids and names in Parquet are never used again."""

    @property
    def full_name(self) -> str:
        return f"{self.namespace}.{self.name}"

    @property
    def storage(self) -> str:
        """Id of the storage where new segments go."""
        return self.options.get("storage_id", LOCAL)

    @cached_property
    def has_key(self) -> bool:
        """Whether a column is the primary key; rows of a STREAM table may do without."""
        return any(column.primary_key for column in self.columns)

    @cached_property
    def key_index(self) -> int:
        """Index of the primary-key column; of a table that has none that of `_seq`, which is no column."""
        return next((i for i, column in enumerate(self.columns) if column.primary_key), -1)

    @cached_property
    def is_ephemeral(self) -> bool:
        """Whether rows expire: nothing of them becomes cold, and no transaction holds them back."""
        return self.kind is TableKind.STREAM

    @cached_property
    def ttl_ms(self) -> int:
        """How long a row of an ephemeral table lives."""
        return int(self.options[TTL_OPTION]) * 1000

    def alive_from(self, now_us: int) -> int:
        """Return the lowest `_seq` of a row that has not expired; 0 if rows of this table never do."""
        return snowflake_floor(now_us // 1000 - self.ttl_ms) if self.is_ephemeral else 0

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Index of a column by its name."""
        return {column.name: i for i, column in enumerate(self.columns)}

    def owner_for(self, user: str) -> Owner:
        """Return whose rows a session of `user` sees in this table."""
        return SHARED if self.kind is TableKind.SHARED else user_owner(user)

    @cached_property
    def binders(self) -> tuple[Callable[[Value], Value], ...]:
        """For each column what turns a value into what the column holds."""
        return tuple(binder(column) for column in self.columns)

    @cached_property
    def initial_row(self) -> tuple[Value, ...]:
        """For each column what a row reads that was written before the column was added."""
        return tuple(coerce(column.initial, column) for column in self.columns)

    def columns_at(self, version: int) -> list[Column]:
        """Return the columns that a row of schema version `version` has, as they are by now."""
        every = sorted((*self.columns, *self.dropped), key=lambda column: column.id)
        return [
            column
            for column in every
            if column.added <= version and (not column.dropped or column.dropped > version)
        ]

    def narrowed(self, row: Row, version: int) -> Row:
        """Return a row that was written at schema version `version` without what was dropped since.

        Columns that were added since are missing: it may be shorter than `columns`.
        """
        if version == self.version:
            return row
        if version > self.version:
            raise ExpectationFailed("the table was changed meanwhile")
        steps = self._steps.get(version, _UNKNOWN)
        if steps is _UNKNOWN:
            steps = self._steps[version] = self._narrowing(version)
        if steps is None:
            return row
        return [row[at] if bind is None else bind(row[at]) for at, bind in steps]

    def shaped(self, row: Row, version: int) -> Row:
        """Return a row that was written at schema version `version` with the columns of this one."""
        row = self.narrowed(row, version)
        return row if len(row) == len(self.columns) else [*row, *self.initial_row[len(row) :]]

    @cached_property
    def _steps(self) -> dict[int, "_Steps"]:
        return {}

    def _narrowing(self, version: int) -> "_Steps":
        found = self.columns_at(version)
        if not any(column.dropped or column.retyped > version for column in found):
            return None
        return [
            (at, binder(column) if column.retyped > version else None)
            for at, column in enumerate(found)
            if not column.dropped
        ]

    @cached_property
    def required(self) -> tuple[int, ...]:
        """Indexes of the columns that are never NULL."""
        return tuple(i for i, column in enumerate(self.columns) if not column.nullable)


_Steps = list[tuple[int, Callable[[Value], Value] | None]] | None
"""For each column that stays: where it is in the older row, and what widens it; None: nothing to do."""

_UNKNOWN: _Steps = []


@decodable
@dataclass(frozen=True)
class User:
    """An account. `password_hash` is bcrypt's text, None when no password opens it.

    `auth_type` is password, oauth or internal; `auth_data` the JSON that says who an oauth account is at
    its issuer. A dropped account keeps its record, with `deleted_at_us`.
    """

    name: str
    role: Role
    password_hash: str | None = None
    email: str | None = None
    auth_type: str = "password"
    created_at_us: int = 0
    updated_at_us: int = 0
    auth_data: str | None = None
    deleted_at_us: int | None = None
    anew_at_us: int = 0
    """When an account began anew under the name of a dropped one, whose tokens don't open it."""
    era: int = 0
    """How often its password was changed, or it began anew; tokens of another era don't open it."""
    era_began_us: int = 0

    @property
    def life(self) -> tuple[int, int]:
        """What tokens and sockets end with."""
        return self.anew_at_us, self.era


@decodable
@dataclass(frozen=True)
class Namespace:
    name: str
    created_at_us: int = 0
    options: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalog:
    """All names in force at one moment; dropped accounts are kept apart, and open nothing."""

    namespaces: Mapping[str, Namespace]
    tables: Mapping[tuple[str, str], Table]
    users: Mapping[str, User]
    dropped_users: Mapping[str, User] = field(default_factory=dict)
    storages: Mapping[str, Storage] = field(default_factory=dict)
    queries: Mapping[QueryName, NamedQuery] = field(default_factory=dict)

    @cached_property
    def by_identity(self) -> dict[str, User]:
        """Accounts that sign in elsewhere, by who they are there (`auth_data`)."""
        return {user.auth_data: user for user in self.users.values() if user.auth_data is not None}

    @cached_property
    def by_id(self) -> dict[int, Table]:
        return {table.id: table for table in self.tables.values()}

    @cached_property
    def children(self) -> dict[int, list[tuple[Table, Reference]]]:
        """For each table id the tables that reference it."""
        found: dict[int, list[tuple[Table, Reference]]] = {}
        for table in self.tables.values():
            for reference in table.references:
                found.setdefault(reference.parent, []).append((table, reference))
        return found

    def get_table(self, namespace: str, name: str) -> Table:
        table = self.tables.get((namespace, name))
        if table is None:
            self.refuse_query(namespace, name)
            raise TableNotFound(f"{namespace}.{name}; SHOW TABLES lists what there is")
        return table

    def refuse_query(self, namespace: str, name: str) -> None:
        """Raise if that is a named query where only a table will do."""
        if (namespace, name) in self.queries:
            raise InvalidOperation(
                f"{namespace}.{name} is a view, which SELECT reads and DROP VIEW drops; for anything "
                "else name the tables that it reads"
            )

    def in_namespace(self, namespace: str) -> list[Table]:
        return [table for table in self.tables.values() if table.namespace == namespace]

    def parents_first(self, tables: Iterable[Table]) -> list[Table]:
        """Order tables so that a referenced one stands before those that reference it.

        Kahn's algorithm with alphabetical ties; members of a cycle come last, alphabetically.
        """
        rest = {table.id: table for table in tables}
        ordered: list[Table] = []
        while rest:
            ready = [t for t in rest.values() if not self._waits_for(t, rest)]
            for table in sorted(ready or rest.values(), key=lambda t: t.full_name):
                ordered.append(rest.pop(table.id))
        return ordered

    def with_records(self, records: Sequence[RecordWrite]) -> "Catalog":
        """Return the catalog after a commit of these records."""
        namespaces, tables = dict(self.namespaces), dict(self.tables)
        users = {**self.dropped_users, **self.users}
        storages, queries = dict(self.storages), dict(self.queries)
        for record in records:
            match record.kind:
                case Kind.NAMESPACE:
                    _put(namespaces, record.name, record.value, Namespace)
                case Kind.USER:
                    _put(users, record.name, record.value, User)
                case Kind.STORAGE:
                    _put(storages, record.name, record.value, Storage)
                case Kind.QUERY:
                    place = (record.name.split(".")[0], record.name.split(".")[1])
                    _put(queries, place, record.value, NamedQuery)
                case Kind.TABLE:
                    old = self.by_id.get(int(record.name))
                    if old:
                        del tables[old.namespace, old.name]
                    if record.value is not None:
                        table = msgspec.json.decode(record.value, type=Table)
                        tables[table.namespace, table.name] = table
                case _:
                    pass
        # The same mapping as long as none of its kind changes: who follows them sees that at a glance.
        changed = {record.kind for record in records}
        accounts = (self.users, self.dropped_users)
        return Catalog(
            namespaces,
            tables if Kind.TABLE in changed else self.tables,
            *(_by_existence(users.values()) if Kind.USER in changed else accounts),
            storages,
            queries,
        )

    @staticmethod
    def _waits_for(table: Table, rest: Mapping[TableId, Table]) -> bool:
        return any(ref.parent in rest and ref.parent != table.id for ref in table.references)


Name = TypeVar("Name")
Entry = TypeVar("Entry")


def _put(entries: dict[Name, Entry], name: Name, value: bytes | None, kind: type[Entry]) -> None:
    if value is None:
        entries.pop(name, None)
    else:
        entries[name] = msgspec.json.decode(value, type=kind)


def _by_existence(users: Iterable[User]) -> tuple[dict[str, User], dict[str, User]]:
    """Return the accounts that exist, and those that were dropped."""
    found: tuple[dict[str, User], dict[str, User]] = ({}, {})
    for user in users:
        found[user.deleted_at_us is not None][user.name] = user
    return found


_json = msgspec.json.Encoder()
_DROPPED = "dropped/"


def table_record(table: Table, *, dropped: bool = False) -> RecordWrite:
    """Return the record that creates, changes or drops a table."""
    return RecordWrite(Kind.TABLE, f"{table.id:010d}", None if dropped else _json.encode(table))


def version_record(table: Table, *, forgotten: bool = False) -> RecordWrite:
    """Return the record that keeps a schema version which isn't the table's newest any more."""
    name = f"{_versions(table.id)}{table.version:010d}"
    return RecordWrite(Kind.META, name, None if forgotten else _json.encode(table))


def load_versions(reader: HotReader, table: TableId) -> list[Table]:
    """Read the older schema versions of a table, oldest first."""
    found = reader.scan_records(Kind.META, _versions(table))
    return [msgspec.json.decode(value, type=Table) for _, value in found]


def _versions(table: TableId) -> str:
    return f"schema/{table:010d}/"


def dropped_record(table: TableId, remains: Table | None) -> RecordWrite:
    """Return the record of a dropped table whose rows and files still have to go; None: they are gone."""
    value = None if remains is None else _json.encode(remains)
    return RecordWrite(Kind.META, f"{_DROPPED}{table:010d}", value)


def find_dropped(reader: HotReader, table: TableId) -> Table | None:
    """Return a table that was dropped and still has rows or files."""
    record = reader.find_record(Kind.META, f"{_DROPPED}{table:010d}")
    return None if record is None else msgspec.json.decode(record, type=Table)


def user_record(user: User) -> RecordWrite:
    return RecordWrite(Kind.USER, user.name, _json.encode(user))


def storage_record(storage: Storage, *, dropped: bool = False) -> RecordWrite:
    return RecordWrite(Kind.STORAGE, storage.id, None if dropped else _json.encode(storage))


def namespace_record(namespace: Namespace, *, dropped: bool = False) -> RecordWrite:
    return RecordWrite(Kind.NAMESPACE, namespace.name, None if dropped else _json.encode(namespace))


def query_record(query: NamedQuery, *, dropped: bool = False) -> RecordWrite:
    return RecordWrite(Kind.QUERY, query.full_name, None if dropped else _json.encode(query))


def load_catalog(reader: HotReader) -> Catalog:
    """Read the whole catalog from its records."""
    tables = [msgspec.json.decode(value, type=Table) for _, value in reader.scan_records(Kind.TABLE)]
    users = [msgspec.json.decode(value, type=User) for _, value in reader.scan_records(Kind.USER)]
    storages = [msgspec.json.decode(value, type=Storage) for _, value in reader.scan_records(Kind.STORAGE)]
    queries = [msgspec.json.decode(value, type=NamedQuery) for _, value in reader.scan_records(Kind.QUERY)]
    spaces = [msgspec.json.decode(value, type=Namespace) for _, value in reader.scan_records(Kind.NAMESPACE)]
    return Catalog(
        {space.name: space for space in spaces},
        {(table.namespace, table.name): table for table in tables},
        *_by_existence(users),
        {storage.id: storage for storage in storages},
        {query.place: query for query in queries},
    )


def load_dropped(reader: HotReader) -> list[Table]:
    """Read the tables that were dropped and still have rows or files."""
    return [msgspec.json.decode(value, type=Table) for _, value in reader.scan_records(Kind.META, _DROPPED)]
