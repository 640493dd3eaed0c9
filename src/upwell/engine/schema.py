"""Schema changes: namespaces, tables and users come and go by commits of their records.

Law: a schema change is judged against the newest catalog under the write lock, so that of two equal
statements exactly one succeeds. The default namespace and the first accounts exist from the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from upwell.clock import Clock
from upwell.engine.catalog import (
    DEFAULT_NAMESPACE,
    SYSTEM_NAMESPACE,
    TABLES_MADE,
    Catalog,
    Namespace,
    Reference,
    Table,
    TableKind,
    User,
    dropped_record,
    namespace_record,
    table_record,
    user_record,
)
from upwell.engine.commit import Committer
from upwell.errors import AlreadyExists, InvalidOperation, NotFound
from upwell.ids import Seq
from upwell.storage.arrow import physical_name
from upwell.storage.hot import Batch, Kind, RecordIs, RecordWrite
from upwell.storage.segments import SYSTEM_NAMES
from upwell.types import Column, TableId

RESERVED_NAMESPACES = frozenset(
    {
        "system", "sys", "root", "upwell", "kalamdb", "kalam", "main", "default", "sql", "admin",
        "internal", "information_schema", "pg_catalog", "datafusion",
    }
)  # fmt: skip


class Schema:
    """All schema changes; each returns the seq to wait for, None if there was nothing to do."""

    def __init__(self, committer: Committer, clock: Clock) -> None:
        self._committer = committer
        self._clock = clock

    def create_namespace(self, name: str, *, if_not_exists: bool) -> Seq | None:
        if name in RESERVED_NAMESPACES:
            raise InvalidOperation(f"namespace name '{name}' is reserved; choose another")
        with self._committer.lock:
            if name in self._catalog.namespaces:
                if if_not_exists:
                    return None
                raise AlreadyExists(f"Namespace '{name}' already exists")
            record = namespace_record(Namespace(name, self._clock.now_us()))
            return self._committer.apply(Batch([], [record], [RecordIs(Kind.NAMESPACE, name, None)]))

    def drop_namespace(self, name: str, *, if_exists: bool) -> tuple[Seq | None, list[Table]]:
        """Drop a namespace and its tables; returns the tables, for their cleanup."""
        if name in (DEFAULT_NAMESPACE, SYSTEM_NAMESPACE):
            raise InvalidOperation(f"namespace '{name}' belongs to the server and stays")
        with self._committer.lock:
            space = self._catalog.namespaces.get(name)
            if space is None:
                if if_exists:
                    return None, []
                raise NotFound(f"Namespace '{name}' not found")
            tables = self._catalog.in_namespace(name)
            self._refuse_referenced(tables)
            records = [record for table in tables for record in _drop(table)]
            records.append(namespace_record(space, dropped=True))
            return self._committer.apply(Batch(records=records)), tables

    def create_table(self, table: Table, *, if_not_exists: bool) -> tuple[Seq | None, Table]:
        """Create `table`; its id is given here. Returns what exists now."""
        with self._committer.lock:
            existing = self._catalog.tables.get((table.namespace, table.name))
            if existing is not None:
                if if_not_exists:
                    return None, existing
                raise AlreadyExists(f"Table {table.full_name} already exists")
            if table.namespace not in self._catalog.namespaces:
                raise NotFound(
                    f"Namespace '{table.namespace}' does not exist. "
                    f"Create it first with CREATE NAMESPACE {table.namespace}"
                )
            made = self._tables_made() + 1
            columns = tuple(replace(each, physical=_physical(each, ())) for each in table.columns)
            table = replace(table, id=TableId(made), columns=columns, created_at_us=self._clock.now_us())
            table = replace(table, references=tuple(self._own(table, made)))
            self._check_references(table)
            counter = RecordWrite(Kind.META, TABLES_MADE, msgspec.msgpack.encode(made))
            return self._committer.apply(Batch(records=[table_record(table), counter])), table

    def drop_table(self, namespace: str, name: str, *, if_exists: bool) -> tuple[Seq | None, Table | None]:
        with self._committer.lock:
            table = self._catalog.tables.get((namespace, name))
            if table is None:
                if if_exists:
                    return None, None
                raise NotFound(f"Table '{name}' not found in namespace '{namespace}'")
            self._refuse_referenced([table])
            return self._committer.apply(Batch(records=_drop(table))), table

    def add_column(
        self, namespace: str, name: str, column: Column, *, if_not_exists: bool
    ) -> tuple[Seq | None, Table]:
        """Add `column` as the last one; its id and its name in Parquet are given here. Touches no row.

        Returns the table as it is now.
        """
        with self._committer.lock:
            table = self._catalog.tables.get((namespace, name))
            if table is None:
                raise NotFound(f"Table '{name}' not found in namespace '{namespace}'")
            if column.name in table.index_of:
                if if_not_exists:
                    return None, table
                raise AlreadyExists(f"Column '{column.name}' already exists in {table.full_name}")
            table = _with_column(table, column)
            return self._committer.apply(Batch(records=[table_record(table)])), table

    def create_user(self, user: User) -> Seq:
        """Create an account; one that was dropped may begin anew under its name."""
        with self._committer.lock:
            if user.name in self._catalog.users:
                raise AlreadyExists(f"User '{user.name}' already exists")
            if user.name in self._catalog.dropped_users:
                user = replace(user, anew_at_us=user.created_at_us)
            return self._committer.apply(Batch(records=[user_record(user)]))

    def alter_user(self, name: str, change: Callable[[User], User]) -> Seq:
        """Replace an account by what `change` makes of its newest state."""
        with self._committer.lock:
            user = self._catalog.users.get(name)
            if user is None:
                raise NotFound(f"User '{name}' not found")
            return self._committer.apply(Batch(records=[user_record(change(user))]))

    def set_up(self, user: User, set_root: Callable[[User], User]) -> Seq:
        """Create the first account and change root, unless that has happened."""
        with self._committer.lock:
            root = self._catalog.users["root"]
            if root.password_hash is not None:
                raise InvalidOperation("the server is set up already")
            if user.name in self._catalog.users:
                raise AlreadyExists(f"User '{user.name}' already exists")
            return self._committer.apply(Batch(records=[user_record(set_root(root)), user_record(user)]))

    def find_user(self, name: str) -> User | None:
        """Return an account as it is now, published or not."""
        return self._catalog.users.get(name)

    @property
    def last_seq(self) -> Seq:
        """The end of the newest commit, published or not."""
        return self._committer.last_seq

    def put_user(self, user: User) -> Seq:
        """Create or replace an account."""
        return self._committer.apply(Batch(records=[user_record(user)]))

    def ensure_default_namespace(self) -> None:
        with self._committer.lock:
            if DEFAULT_NAMESPACE not in self._catalog.namespaces:
                record = namespace_record(Namespace(DEFAULT_NAMESPACE, self._clock.now_us()))
                self._committer.apply(Batch(records=[record]))

    @property
    def _catalog(self) -> Catalog:
        return self._committer.newest_catalog

    def _tables_made(self) -> int:
        record = self._committer.newest.find_record(Kind.META, TABLES_MADE)
        return msgspec.msgpack.decode(record, type=int) if record else 0

    @staticmethod
    def _own(table: Table, made: int) -> list[Reference]:
        """Point self-references, which stand as parent 0 until the table has an id, at the table."""
        return [ref if ref.parent else replace(ref, parent=TableId(made)) for ref in table.references]

    def _check_references(self, table: Table) -> None:
        for reference in table.references:
            parent = table if reference.parent == table.id else self._catalog.by_id.get(reference.parent)
            if parent is None:
                raise NotFound("the referenced table was dropped meanwhile; create it first")
            if parent.kind is TableKind.USER and table.kind is TableKind.SHARED:
                raise InvalidOperation(
                    f"SHARED table {table.full_name} cannot reference USER table {parent.full_name}: "
                    "whose row would it be?"
                )
            column, key = table.columns[reference.column], parent.columns[parent.key_index]
            if column.type is not key.type:
                raise InvalidOperation(
                    f"column '{column.name}' ({column.type.name}) cannot reference "
                    f"{parent.full_name}.{key.name} ({key.type.name}); give both the same type"
                )

    def _refuse_referenced(self, tables: Sequence[Table]) -> None:
        dropped = {table.id for table in tables}
        for table in tables:
            for child, _ in self._catalog.children.get(table.id, ()):
                if child.id not in dropped:
                    raise InvalidOperation(
                        f"table {table.full_name} is referenced by {child.full_name}; drop that table first"
                    )


def _with_column(table: Table, column: Column) -> Table:
    number, version = max(each.id for each in table.columns) + 1, table.version + 1
    initial = column.default.value if column.default else None
    column = replace(column, id=number, added=version, initial=initial)
    column = replace(column, physical=_physical(column, table.columns))
    return replace(table, columns=(*table.columns, column), version=version)


def _physical(column: Column, others: Sequence[Column]) -> str:
    """Return the name in Parquet: the column's own, unless something else there has it."""
    is_taken = column.name in SYSTEM_NAMES or column.name in map(physical_name, others)
    return f"{column.name}__{column.id}" if is_taken else column.name


def _drop(table: Table) -> list[RecordWrite]:
    """The name goes, and with the same commit the duty to remove what is left is written down."""
    return [table_record(table, dropped=True), dropped_record(table.id, table)]
