"""Definition: CREATE, ALTER and DROP of namespaces and tables, with their rights and messages."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from upwell.clock import Clock
from upwell.engine.alter import AddColumn, AddReference, needs_values, title
from upwell.engine.catalog import Catalog, Reference, Table
from upwell.engine.commit import Committer
from upwell.engine.schema import RefuseRows, Schema
from upwell.errors import NotFound
from upwell.feeds.cursor import Growth
from upwell.ids import Seq
from upwell.jobs.queue import JobQueue
from upwell.session.audit import AuditLog, audited
from upwell.session.call import Call
from upwell.session.outcome import Message
from upwell.session.policy import (
    Action,
    Principal,
    default_kind,
    require_admin,
    require_alter,
    require_create,
    require_table,
)
from upwell.session.threads import SlowThreads
from upwell.sql.statements import (
    AlterNamespace,
    AlterTable,
    ColumnDefinition,
    CompositeReference,
    CreateNamespace,
    CreateTable,
    DropNamespace,
    DropTable,
)
from upwell.types import Column, Default, TableId

SELF = TableId(0)
"""The parent of a self-reference until the table has an id."""


@dataclass(frozen=True, slots=True)
class Defined:
    """What a definition did: its message, the seq to wait for, and tables whose rows have to go."""

    text: str
    seq: Seq | None
    dropped: list[Table] = field(default_factory=list)


Definition = AlterNamespace | CreateNamespace | DropNamespace | CreateTable | DropTable


@dataclass(frozen=True, slots=True)
class Definer:
    """Runs definitions."""

    schema: Schema
    refuse_rows: RefuseRows
    committer: Committer
    jobs: JobQueue
    audit: AuditLog
    growth: Growth
    slow: SlowThreads
    clock: Clock

    async def define(self, call: Call, statement: Definition | AlterTable) -> Message:
        """Run a definition; return when it is durable and visible."""
        schema = self.schema.noted(self.audit.note(call.principal.user, *audited(statement)))
        if isinstance(statement, AlterTable):
            defined = await self._alter(call, statement, schema)
        else:
            defined = define(statement, call.principal, schema, self.growth.view.catalog)
        text = defined.text
        for table in defined.dropped:
            job = self.jobs.submit_cleanup(table)
            text += f". Cleanup job: {job.job_id}" if job and isinstance(statement, DropTable) else ""
            if len(defined.dropped) > 1:
                await asyncio.sleep(0)
        # Also for the job; and nothing to do is an answer about the newest state.
        await self.growth.reached(self.committer.last_seq)
        if defined.dropped:
            self.jobs.wake()
        return Message(text)

    async def _alter(self, call: Call, statement: AlterTable, schema: Schema) -> Defined:
        namespace, name, alteration = statement.namespace, statement.name, statement.alteration
        # Rights and rows are judged by the table as it is: what was committed before is waited for.
        view = await self.growth.reached(self.committer.last_seq)
        table = view.catalog.tables.get((namespace, name))
        if table is None:
            view.catalog.refuse_query(namespace, name)
            raise NotFound(f"Table '{name}' not found in namespace '{namespace}'")
        if isinstance(alteration, AddColumn):
            alteration = replace(alteration, column=_begun(alteration.column, self.clock.now_us()))
        require_alter(call.principal, table, alteration)
        if isinstance(alteration, AddReference):
            # Whether a reference holds tells which keys its parent has.
            require_table(call.principal, Action.READ, view.catalog.get_table(*alteration.parent))
        needs = needs_values(table, alteration)
        alter = partial(schema.alter_table, namespace, name, alteration, refuse_rows=self.refuse_rows)
        # Only looking at rows takes long.
        seq, altered = await self.slow.run(alter) if needs else alter()
        done = "unchanged" if seq is None else "altered successfully"
        version = f"version {altered.version}{' - no changes needed' if seq is None else ''}"
        return Defined(f"Table {altered.full_name} {done}: {title(alteration)} ({version})", seq)


def _begun(column: Column, now_us: int) -> Column:
    """Return a new column with what existing rows read in it: its DEFAULT, if that is one value for all."""
    match column.default:
        case Default(None, value):
            return replace(column, initial=value)
        case Default("NOW"):
            return replace(column, initial=now_us)
        case _:
            return column


def define(
    statement: Definition,
    principal: Principal,
    schema: Schema,
    catalog: Catalog,
) -> Defined:
    """Run a definition; raise `PermissionDenied` or what the schema refuses."""
    match statement:
        case CreateNamespace(name, if_not_exists):
            require_admin(principal, "namespace management")
            seq = schema.create_namespace(name, if_not_exists=if_not_exists)
            done = "created successfully" if seq else "already exists"
            return Defined(f"Namespace '{name}' {done}", seq)
        case AlterNamespace(name, options):
            require_admin(principal, "namespace management")
            return Defined(f"Namespace '{name}' altered successfully", schema.alter_namespace(name, options))
        case DropNamespace(name, if_exists):
            require_admin(principal, "namespace management")
            seq, tables = schema.drop_namespace(name, if_exists=if_exists)
            done = "dropped successfully" if seq else "does not exist"
            return Defined(f"Namespace '{name}' {done}", seq, tables)
        case CreateTable():
            return _create_table(statement, principal, schema, catalog)
        case DropTable(namespace, name, if_exists):
            require_admin(principal, "dropping tables")
            seq, table = schema.drop_table(namespace, name, if_exists=if_exists)
            if table is None:
                return Defined(f"Table {namespace}.{name} does not exist (skipped)", None)
            return Defined(f"Table {namespace}.{name} dropped successfully", seq, [table])


def _create_table(statement: CreateTable, principal: Principal, schema: Schema, catalog: Catalog) -> Defined:
    kind = statement.kind or default_kind(principal, statement.namespace)
    require_create(principal, kind)
    for parent in _parents(statement, catalog):
        # Whether a reference holds tells which keys its parent has.
        require_table(principal, Action.READ, parent)
    table = Table(
        id=SELF,
        namespace=statement.namespace,
        name=statement.name,
        kind=kind,
        columns=tuple(column.column(number) for number, column in enumerate(statement.columns, 1)),
        synced=statement.synced,
        references=tuple(_references(statement, catalog)),
        access=statement.access,
        options=dict(statement.options),
    )
    seq, existing = schema.create_table(table, if_not_exists=statement.if_not_exists)
    if seq is None:
        return Defined(f"Table {existing.full_name} already exists", None)
    text = f"CREATE TABLE via Raft consensus: {kind.value} table {table.full_name} created successfully"
    return Defined(text, seq)


def _parents(statement: CreateTable, catalog: Catalog) -> list[Table]:
    """Return the other tables that are referred to."""
    names = [column.references for column in statement.columns if column.references is not None]
    found = [
        _parent(statement, name, catalog)
        for name in [*names, *(each.parent for each in statement.composites)]
    ]
    return [table for table in found if table is not None]


def _references(statement: CreateTable, catalog: Catalog) -> list[Reference]:
    found = []
    for index, column in enumerate(statement.columns):
        if column.references is not None:
            parent = _parent(statement, column.references, catalog)
            found.append(Reference(index, SELF if parent is None else parent.id, column.on_delete))
    return found + [_composite(statement, each, catalog) for each in statement.composites]


def _composite(statement: CreateTable, reference: CompositeReference, catalog: Catalog) -> Reference:
    parent = _parent(statement, reference.parent, catalog)
    own = {column.name: index for index, column in enumerate(statement.columns)}
    columns: Sequence[Column | ColumnDefinition] = statement.columns if parent is None else parent.columns
    theirs = {column.name: index for index, column in enumerate(columns)}
    pairs = [
        (own[name], theirs[target]) for name, target in zip(reference.columns, reference.targets, strict=True)
    ]
    (key,) = [child for child, at in pairs if columns[at].primary_key]
    others = tuple((child, at) for child, at in pairs if not columns[at].primary_key)
    return Reference(key, SELF if parent is None else parent.id, reference.on_delete, others)


def _parent(statement: CreateTable, name: tuple[str, str], catalog: Catalog) -> Table | None:
    """Return the table that is referred to; None if it is the one that is made."""
    return None if name == (statement.namespace, statement.name) else catalog.get_table(*name)
