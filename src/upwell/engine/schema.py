"""Schema changes: namespaces, tables and users come and go by commits of their records.

Law: a schema change is judged against the newest catalog under the write lock, so that of two equal
statements exactly one succeeds. The default namespace and the first accounts exist from the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from upwell.clock import Clock
from upwell.engine.alter import AddReference, Alteration, Need, altered, needs_values, physical, without_index
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
    load_versions,
    namespace_record,
    query_record,
    table_record,
    user_record,
    version_record,
)
from upwell.engine.commit import Committer, Note, no_note
from upwell.engine.query_schema import refuse_read, refuse_used
from upwell.engine.siting import require_site
from upwell.engine.view import View
from upwell.errors import AlreadyExists, ConstraintViolation, InvalidOperation, NotFound
from upwell.ids import Seq
from upwell.storage.hot import Batch, Kind, RecordIs, RecordWrite
from upwell.types import TableId, Value

RESERVED_NAMESPACES = frozenset(
    {
        "system", "sys", "root", "upwell", "kalamdb", "kalam", "main", "default", "sql", "admin",
        "internal", "information_schema", "pg_catalog", "datafusion",
    }
)  # fmt: skip


RefuseRows = Callable[[View, Table, Need], None]
"""Raises `ConstraintViolation` if a row of the table has not what is needed; a new column is always NULL."""

CHECK_CHANGES = 1_000


@dataclass(frozen=True, slots=True)
class _Checked:
    """Each row of `table` at `seq` has what is needed."""

    seq: int
    table: Table
    need: Need


class Schema:
    """All schema changes; each returns the seq to wait for, None if there was nothing to do."""

    def __init__(self, committer: Committer, clock: Clock, note: Note = no_note) -> None:
        self._committer = committer
        self._clock = clock
        self._note = note

    def noted(self, note: Note) -> "Schema":
        """Return the schema for one change, with which `note` is committed."""
        return Schema(self._committer, self._clock, note)

    def create_namespace(self, name: str, *, if_not_exists: bool) -> Seq | None:
        with self._committer.lock:
            if name in RESERVED_NAMESPACES and name not in self._catalog.namespaces:
                raise InvalidOperation(f"Namespace name '{name}' is reserved; choose another")
            if name in self._catalog.namespaces:
                if if_not_exists:
                    return None
                raise AlreadyExists(f"Namespace '{name}' already exists")
            record = namespace_record(Namespace(name, self._clock.now_us()))
            return self._apply(Batch([], [record], [RecordIs(Kind.NAMESPACE, name, None)]))

    def alter_namespace(self, name: str, options: Sequence[tuple[str, bool | int | float | str]]) -> Seq:
        """Set options of a namespace; the others stay."""
        with self._committer.lock:
            space = self._catalog.namespaces.get(name)
            if space is None:
                raise NotFound(f"Namespace '{name}' not found")
            space = replace(space, options={**space.options, **dict(options)})
            return self._apply(Batch(records=[namespace_record(space)]))

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
            queries = [query for query in self._catalog.queries.values() if query.namespace == name]
            places = [(name, table.name) for table in tables] + [query.place for query in queries]
            refuse_read(self._catalog, places)
            records = [record for table in tables for record in self._drop(table)]
            records += [query_record(query, dropped=True) for query in queries]
            records.append(namespace_record(space, dropped=True))
            return self._apply(Batch(records=records)), tables

    def create_table(self, table: Table, *, if_not_exists: bool) -> tuple[Seq | None, Table]:
        """Create `table`; its id is given here. Returns what exists now."""
        with self._committer.lock:
            existing = self._catalog.tables.get((table.namespace, table.name))
            if existing is not None:
                if if_not_exists:
                    return None, existing
                raise AlreadyExists(f"Table {table.full_name} already exists")
            if (table.namespace, table.name) in self._catalog.queries:
                raise AlreadyExists(f"View {table.full_name} already exists")
            if table.namespace not in self._catalog.namespaces:
                raise NotFound(
                    f"Namespace '{table.namespace}' does not exist. "
                    f"Create it first with CREATE NAMESPACE {table.namespace}"
                )
            require_site(self._catalog, table)
            made = self._tables_made() + 1
            columns = tuple(replace(each, physical=physical(each, ())) for each in table.columns)
            table = replace(table, id=TableId(made), columns=columns, created_at_us=self._clock.now_us())
            table = replace(table, references=tuple(self._own(table, made)))
            self._check_references(table)
            return self._apply(Batch(records=[table_record(table), self._made_record(made)])), table

    def drop_table(self, namespace: str, name: str, *, if_exists: bool) -> tuple[Seq | None, Table | None]:
        with self._committer.lock:
            table = self._catalog.tables.get((namespace, name))
            if table is None:
                self._catalog.refuse_query(namespace, name)
                if if_exists:
                    return None, None
                raise NotFound(f"Table '{name}' not found in namespace '{namespace}'")
            self._refuse_referenced([table])
            refuse_read(self._catalog, [(namespace, name)])
            return self._apply(Batch(records=self._drop(table))), table

    def alter_table(
        self, namespace: str, name: str, alteration: Alteration, *, refuse_rows: RefuseRows
    ) -> tuple[Seq | None, Table]:
        """Alter a table, touching no row; returns it as it is now.

        `refuse_rows` is asked before if rows matter, and looks at what is published; what came since is
        looked at here, under the lock.
        """
        while True:
            checked = self._check_values(namespace, name, alteration, refuse_rows)
            with self._committer.lock:
                table = self._find_table(namespace, name)
                if needs_values(table, alteration) is not None and not self._holds(checked, table):
                    continue
                found = self._with_parent(alteration)
                new = altered(table, found, self._catalog.children.get(table.id, ()))
                if new is None:
                    return None, table
                refuse_used(self._catalog, table, alteration)
                if new.storage != table.storage:
                    require_site(self._catalog, new)
                new = replace(new, updated_at_us=self._clock.now_us())
                records = [table_record(new), version_record(table), *self._moved_children(table, new)]
                if isinstance(found, AddReference):
                    self._check_references(new)
                    records.append(self._made_record(self._tables_made() + 1))
                return self._apply(Batch(records=records)), new

    def create_user(self, user: User) -> Seq:
        """Create an account; one that was dropped may begin anew under its name."""
        with self._committer.lock:
            if user.name in self._catalog.users:
                raise AlreadyExists(f"User '{user.name}' already exists")
            twin = self._catalog.by_identity.get(user.auth_data) if user.auth_data is not None else None
            if twin is not None:
                raise AlreadyExists(f"User '{twin.name}' already has this provider and subject")
            before = self._catalog.dropped_users.get(user.name)
            if before is not None:
                # Tokens name both, and clocks may be set back: neither is ever one of before.
                now = max(user.created_at_us, before.anew_at_us + 1)
                user = replace(user, anew_at_us=now, era=before.era + 1, era_began_us=now)
            return self._apply(Batch(records=[user_record(user)]))

    def provision_user(self, user: User) -> User:
        """Create an account unless its name is taken, also by a dropped one; return the one there is.

        Nobody waits for the commit: should it be lost, the same token makes it again.
        """
        with self._committer.lock:
            found = self._catalog.users.get(user.name) or self._catalog.dropped_users.get(user.name)
            if found is None:
                self._apply(Batch(records=[user_record(user)]))
            return found or user

    def alter_user(self, name: str, change: Callable[[User], User]) -> Seq:
        """Replace an account by what `change` makes of its newest state."""
        with self._committer.lock:
            user = self._catalog.users.get(name)
            if user is None:
                raise NotFound(f"User '{name}' not found")
            return self._apply(Batch(records=[user_record(change(user))]))

    def set_up(self, user: User, set_root: Callable[[User], User]) -> Seq:
        """Create the first account and change root, unless that has happened."""
        with self._committer.lock:
            root = self._catalog.users["root"]
            if root.password_hash is not None:
                raise InvalidOperation("the server is set up already")
            if user.name in self._catalog.users:
                raise AlreadyExists(f"User '{user.name}' already exists")
            return self._apply(Batch(records=[user_record(set_root(root)), user_record(user)]))

    def find_user(self, name: str) -> User | None:
        """Return an account as it is now, published or not."""
        return self._catalog.users.get(name)

    @property
    def last_seq(self) -> Seq:
        """The end of the newest commit, published or not."""
        return self._committer.last_seq

    def put_user(self, user: User) -> Seq:
        """Create or replace an account."""
        return self._apply(Batch(records=[user_record(user)]))

    def ensure_default_namespace(self) -> None:
        with self._committer.lock:
            if DEFAULT_NAMESPACE not in self._catalog.namespaces:
                record = namespace_record(Namespace(DEFAULT_NAMESPACE, self._clock.now_us()))
                self._apply(Batch(records=[record]))

    def _find_table(self, namespace: str, name: str) -> Table:
        table = self._catalog.tables.get((namespace, name))
        if table is None:
            raise NotFound(f"Table '{name}' not found in namespace '{namespace}'")
        return table

    def _check_values(
        self, namespace: str, name: str, alteration: Alteration, refuse_rows: RefuseRows
    ) -> "_Checked | None":
        newest = self._catalog.tables.get((namespace, name))
        if newest is None or needs_values(newest, alteration) is None:
            return None
        view = self._committer.publication.wait(self._committer.last_seq)
        table = view.catalog.tables.get((namespace, name))
        need = None if table is None else needs_values(table, alteration)
        if table is None or need is None:
            return None
        refuse_rows(view, table, need)
        return _Checked(view.seq, table, need)

    def _holds(self, checked: "_Checked | None", table: Table) -> bool:
        """Whether each row that was written since the check has what is needed; raise if one has not."""
        if checked is None or checked.table != table:
            return False
        index, after = table.index_of.get(checked.need.column.name), checked.seq
        while changes := self._committer.newest.read_log(table.id, None, after, None, CHECK_CHANGES):
            for change in changes:
                if change.after is not None:
                    row = table.shaped(change.after, change.schema)
                    refuse_value(table, checked.need, None if index is None else row[index])
            after = changes[-1].seq
        return True

    def _moved_children(self, old: Table, new: Table) -> list[RecordWrite]:
        """Children refer to columns by their place: those of a composite reference follow a drop."""
        gone = [index for index, column in enumerate(old.columns) if column.name not in new.index_of]
        if len(old.columns) == len(new.columns) or not gone:
            return []
        records = []
        for child in {child.id: child for child, _ in self._catalog.children.get(old.id, ())}.values():
            if child.id == old.id or not any(
                each.others and each.parent == old.id for each in child.references
            ):
                continue
            references = tuple(
                without_index(each, own=None, parents=gone[0]) if each.parent == old.id else each
                for each in child.references
            )
            moved = replace(child, references=references, version=child.version + 1)
            records += [table_record(moved), version_record(child)]
        return records

    def _with_parent(self, alteration: Alteration) -> Alteration:
        """Return a new reference with the id that its parent has now."""
        if not isinstance(alteration, AddReference):
            return alteration
        parent = self._catalog.tables.get(alteration.parent)
        return replace(alteration, parent_id=None if parent is None else parent.id)

    @staticmethod
    def _made_record(made: int) -> RecordWrite:
        """Who deletes parents expects it to be as it was: no table, and no reference, came meanwhile."""
        return RecordWrite(Kind.META, TABLES_MADE, msgspec.msgpack.encode(made))

    def _apply(self, batch: Batch) -> Seq:
        batch.records = [*batch.records, *self._note()]
        return self._committer.apply(batch)

    @property
    def _catalog(self) -> Catalog:
        return self._committer.newest_catalog

    def _drop(self, table: Table) -> list[RecordWrite]:
        """The name goes, and with the same commit the duty to remove what is left is written down."""
        older = load_versions(self._committer.newest, table.id)
        forgotten = [version_record(each, forgotten=True) for each in older]
        return [table_record(table, dropped=True), dropped_record(table.id, table), *forgotten]

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
            refuse_ephemeral_parent(table.full_name, parent)
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
                        f"table {table.full_name} is referenced by {child.full_name}; drop that table first, "
                        f"or ALTER TABLE {child.full_name} DROP FOREIGN KEY"
                    )


def refuse_value(table: Table, need: Need, value: Value) -> None:
    """Raise for NULL in a column that is to be NOT NULL, for a value in one that is to be a reference."""
    name = need.column.name
    if need.is_value and value is None:
        raise ConstraintViolation(
            f"column '{name}' cannot be NOT NULL: {table.full_name} has rows without a value there; "
            "UPDATE them first, or give the new column a DEFAULT"
        )
    if not need.is_value and value is not None:
        raise ConstraintViolation(
            f"column '{name}' cannot become a reference: {table.full_name} has rows with a value there, "
            "which may refer to nothing; ADD a column, make that the reference, and UPDATE it"
        )


def refuse_ephemeral_parent(child: str, parent: Table) -> None:
    """Raise for a reference to a table whose rows go by themselves."""
    if parent.is_ephemeral:
        raise InvalidOperation(f"{child} cannot reference STREAM table {parent.full_name}: its rows expire")
