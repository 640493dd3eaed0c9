"""Definition: CREATE and DROP of namespaces and tables, with their rights and messages."""

from dataclasses import dataclass, field

from upwell.engine.catalog import Catalog, Reference, Table, TableKind
from upwell.engine.schema import Schema
from upwell.ids import Seq
from upwell.session.policy import Principal, require_admin, require_create
from upwell.sql.statements import ColumnDefinition, CreateNamespace, CreateTable, DropNamespace, DropTable
from upwell.types import Column, TableId

SELF = TableId(0)
"""The parent of a self-reference until the table has an id."""


@dataclass(frozen=True, slots=True)
class Defined:
    """What a definition did: its message, the seq to wait for, and tables whose rows have to go."""

    text: str
    seq: Seq | None
    dropped: list[Table] = field(default_factory=list)


def define(
    statement: CreateNamespace | DropNamespace | CreateTable | DropTable,
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
    kind = statement.kind or TableKind.SHARED
    require_create(principal, kind)
    table = Table(
        id=SELF,
        namespace=statement.namespace,
        name=statement.name,
        kind=kind,
        columns=tuple(_column(number, column) for number, column in enumerate(statement.columns, 1)),
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


def _column(number: int, column: ColumnDefinition) -> Column:
    return Column(
        number, column.name, column.type, column.nullable, column.primary_key, column.default, column.name
    )


def _references(statement: CreateTable, catalog: Catalog) -> list[Reference]:
    found = []
    for index, column in enumerate(statement.columns):
        if column.references is not None:
            itself = column.references == (statement.namespace, statement.name)
            parent = SELF if itself else catalog.get_table(*column.references).id
            found.append(Reference(index, parent, column.on_delete))
    return found
