"""Alterations: what ALTER TABLE makes of a table, as a pure function of its newest version.

Law: no row is touched. What a row had when it was written follows from its schema version
(`Table.columns_at`); ids of columns and their names in Parquet are never used again; types only widen,
so that every value that was written reads exactly in today's type.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from upwell.engine.catalog import Access, OnDelete, Reference, Table, TableKind
from upwell.errors import AlreadyExists, InvalidOperation, NotFound, SystemColumnViolation
from upwell.storage.arrow import DELETED, SEQ, physical_name
from upwell.storage.segments import SYSTEM_NAMES
from upwell.types import Column, Default, SqlType, TableId, fitted, type_text, widens


@dataclass(frozen=True, slots=True)
class AddColumn:
    """`column` has neither id nor physical name yet."""

    column: Column
    if_not_exists: bool = False


@dataclass(frozen=True, slots=True)
class DropColumn:
    name: str
    if_exists: bool = False


@dataclass(frozen=True, slots=True)
class RenameColumn:
    name: str
    to: str


@dataclass(frozen=True, slots=True)
class ModifyColumn:
    """Another type, and with `nullable` also whether it may be NULL."""

    name: str
    type: SqlType
    nullable: bool | None = None
    precision: int = 0
    scale: int = 0

    def applied(self, column: Column) -> Column:
        """Return the column with the type alone."""
        return replace(column, type=self.type, precision=self.precision, scale=self.scale)


@dataclass(frozen=True, slots=True)
class SetNullable:
    name: str
    nullable: bool


@dataclass(frozen=True, slots=True)
class SetDefault:
    """`default` None takes it away; `text` is as it was written."""

    name: str
    default: Default | None
    text: str = ""


@dataclass(frozen=True, slots=True)
class SetAccess:
    access: Access


@dataclass(frozen=True, slots=True)
class SetOptions:
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AddReference:
    """Column `name` is to refer to the primary key of `parent`; the id of that is found when it happens."""

    name: str
    parent: tuple[str, str]
    target: str | None
    on_delete: OnDelete
    parent_id: TableId | None = None


@dataclass(frozen=True, slots=True)
class DropReference:
    name: str


Alteration = (
    AddColumn
    | DropColumn
    | RenameColumn
    | ModifyColumn
    | SetNullable
    | SetDefault
    | SetAccess
    | SetOptions
    | AddReference
    | DropReference
)


@dataclass(frozen=True, slots=True)
class Need:
    """What each row has to have before an alteration: a value in the column, or (`is_value` False) none."""

    column: Column
    is_value: bool = True


_LASTING = frozenset({"flush_policy", "deleted_retention_hours"})


def title(alteration: Alteration) -> str:
    """Return the operation as messages show it."""
    match alteration:
        case AddColumn(column):
            return f"ADD COLUMN {column.name} {type_text(column)}"
        case DropColumn(name):
            return f"DROP COLUMN {name}"
        case RenameColumn(name, to):
            return f"RENAME COLUMN {name} TO {to}"
        case ModifyColumn(name, sql_type):
            return f"MODIFY COLUMN {name} {type_text(alteration.applied(Column(0, name, sql_type)))}"
        case SetNullable(name, nullable):
            return f"ALTER COLUMN {name} {'DROP' if nullable else 'SET'} NOT NULL"
        case SetDefault(name, None):
            return f"ALTER COLUMN {name} DROP DEFAULT"
        case SetDefault(name, _, text):
            return f"ALTER COLUMN {name} SET DEFAULT {text}"
        case SetAccess(access):
            return f"SET ACCESS LEVEL {access.value.capitalize()}"
        case SetOptions(options):
            return (
                "SET TBLPROPERTIES (" + ", ".join(f"{key.upper()}='{value}'" for key, value in options) + ")"
            )
        case AddReference(name, parent):
            return f"ADD FOREIGN KEY ({name}) REFERENCES {'.'.join(parent)}"
        case DropReference(name):
            return f"DROP FOREIGN KEY ({name})"


def needs_values(table: Table, alteration: Alteration) -> Need | None:
    """Return what rows have to have before the alteration; None if they don't matter.

    Of a column that is to be added, NOT NULL and without DEFAULT, no row has a value. Values that are to be
    references were checked by nobody.
    """
    match alteration:
        case AddColumn(column) if not column.nullable and column.initial is None:
            return None if column.name in table.index_of else Need(column)
        case SetNullable(name, False) | ModifyColumn(name, _, False):
            column = _column(table, name, "modify")
            return Need(column) if column.nullable else None
        case AddReference(name):
            column = _column(table, name, "modify")
            is_one = _refers(table, table.index_of[name])
            return None if is_one else Need(column, is_value=False)
        case _:
            return None


def altered(
    table: Table, alteration: Alteration, children: Sequence[tuple[Table, Reference]]
) -> Table | None:
    """Return the table's next version, None if it is so already; raise what it can't become.

    `children` are the references of other tables to it.
    """
    match alteration:
        case AddColumn(column, if_not_exists):
            return _added(table, column, if_not_exists=if_not_exists)
        case DropColumn(name, if_exists):
            if if_exists and name not in table.index_of:
                return None
            return _dropped(table, _column(table, name, "drop"), children)
        case RenameColumn(name, to):
            return _renamed(table, _column(table, name, "rename"), to)
        case ModifyColumn(name, _, nullable):
            column = _column(table, name, "modify")
            return _modified(table, _retyped(table, column, alteration.applied(column), children), nullable)
        case SetNullable(name, nullable):
            return _modified(table, _column(table, name, "modify"), nullable)
        case SetDefault(name, default):
            column = _column(table, name, "modify")
            default = None if default is None else fitted(default, column)
            if default is None and not column.nullable and column.primary_key is False and column.added:
                # Older apps don't name a column that was added: without a DEFAULT their rows had no value.
                _refuse_synced(table, f"column '{name}' is NOT NULL and needs its DEFAULT")
            return _with_column(table, replace(column, default=default))
        case SetAccess(access):
            if table.kind is not TableKind.SHARED:
                raise InvalidOperation("ACCESS LEVEL can only be set on SHARED tables")
            return (
                None if table.access is access else replace(table, access=access, version=table.version + 1)
            )
        case SetOptions(options):
            return _with_options(table, dict(options))
        case AddReference():
            return _referring(table, alteration)
        case DropReference(name):
            return _unreferring(table, name)


def without_index(reference: Reference, *, own: int | None, parents: int | None) -> Reference:
    """Return the reference after a column of the child (`own`), or of the parent, was dropped."""
    column = _shifted(reference.column, own)
    others = tuple((_shifted(child, own), _shifted(at, parents)) for child, at in reference.others)
    return replace(reference, column=column, others=others)


def physical(column: Column, others: Iterable[Column]) -> str:
    """Return the name in Parquet: the column's own, unless something else there has or had it."""
    is_taken = column.name in SYSTEM_NAMES or column.name in map(physical_name, others)
    return f"{column.name}__{column.id}" if is_taken else column.name


def _column(table: Table, name: str, action: str) -> Column:
    if name in (SEQ, DELETED):
        raise SystemColumnViolation(f"Cannot {action} column '{name}': system column cannot be modified")
    if name not in table.index_of:
        raise InvalidOperation(f"Column '{name}' does not exist in {table.full_name}")
    return table.columns[table.index_of[name]]


def _with_column(table: Table, column: Column) -> Table | None:
    """Return the table with the column of that id replaced."""
    columns = tuple(column if each.id == column.id else each for each in table.columns)
    return None if columns == table.columns else replace(table, columns=columns, version=table.version + 1)


def _added(table: Table, column: Column, *, if_not_exists: bool) -> Table | None:
    if column.name in table.index_of:
        if if_not_exists:
            return None
        raise AlreadyExists(f"Column '{column.name}' already exists in {table.full_name}")
    if any(each.name == column.name for each in table.dropped):
        _refuse_synced(
            table, f"a column '{column.name}' was dropped, and devices may still have values of that name"
        )
    if not column.nullable and column.default is None:
        _refuse_synced(
            table, f"apps that don't know column '{column.name}' yet leave it NULL; give it a DEFAULT"
        )
    every = (*table.columns, *table.dropped)
    version = table.version + 1
    column = replace(column, id=max(each.id for each in every) + 1, added=version)
    column = replace(column, physical=physical(column, every))
    return replace(table, columns=(*table.columns, column), version=version)


def _dropped(table: Table, column: Column, children: Sequence[tuple[Table, Reference]]) -> Table:
    index = table.index_of[column.name]
    if column.primary_key:
        raise InvalidOperation(f"Cannot drop column '{column.name}': it is the PRIMARY KEY")
    _refuse_referring(table, index, "drop", children)
    version = table.version + 1
    return replace(
        table,
        columns=tuple(each for each in table.columns if each.id != column.id),
        dropped=(*table.dropped, replace(column, dropped=version)),
        references=tuple(
            without_index(each, own=index, parents=index if each.parent == table.id else None)
            for each in table.references
        ),
        version=version,
    )


def _renamed(table: Table, column: Column, name: str) -> Table | None:
    if name == column.name:
        return None
    if name in table.index_of:
        raise AlreadyExists(f"Column '{name}' already exists in {table.full_name}")
    _refuse_synced(table, "devices know its columns by their names; ADD a column and UPDATE it instead")
    return _with_column(table, replace(column, name=name, physical=physical_name(column)))


def _retyped(
    table: Table, column: Column, wider: Column, children: Sequence[tuple[Table, Reference]]
) -> Column:
    if column == wider:
        return column
    if not widens(column, wider):
        raise InvalidOperation(
            f"column '{column.name}' cannot become {type_text(wider)}: a type can only be widened, and not "
            f"every {type_text(column)} is a {type_text(wider)}; ADD a column and UPDATE it instead"
        )
    if column.primary_key:
        raise InvalidOperation(f"column '{column.name}' is the PRIMARY KEY and keeps its type")
    if wider.type is SqlType.TEXT or SqlType.DECIMAL in (column.type, wider.type):
        _refuse_synced(table, f"devices write '{column.name}' as {type_text(column)}")
    _refuse_referring(table, table.index_of[column.name], "modify", children)
    return replace(wider, retyped=table.version + 1)


def _modified(table: Table, column: Column, nullable: bool | None) -> Table | None:
    if nullable is not None and nullable != column.nullable:
        _check_nullable(table, column, nullable=nullable)
        column = replace(column, nullable=nullable)
    elif nullable and column.primary_key:
        raise InvalidOperation(f"Column '{column.name}' is a PRIMARY KEY and cannot be nullable")
    return _with_column(table, column)


def _check_nullable(table: Table, column: Column, *, nullable: bool) -> None:
    if nullable and column.primary_key:
        raise InvalidOperation(f"Column '{column.name}' is a PRIMARY KEY and cannot be nullable")
    if nullable:
        return
    if column.added and column.default is None:
        _refuse_synced(
            table, f"apps that don't know column '{column.name}' yet leave it NULL; SET DEFAULT first"
        )
    index = table.index_of[column.name]
    if any(each.on_delete is OnDelete.SET_NULL and index in each.columns for each in table.references):
        raise InvalidOperation(f"ON DELETE SET NULL needs column '{column.name}' to be nullable")


def _referring(table: Table, wanted: AddReference) -> Table | None:
    column = _column(table, wanted.name, "modify")
    index = table.index_of[wanted.name]
    if wanted.parent_id is None:
        raise NotFound(f"table {'.'.join(wanted.parent)} does not exist; SHOW TABLES lists what there is")
    reference = Reference(index, wanted.parent_id, wanted.on_delete)
    if reference in table.references:
        return None
    if _refers(table, index):
        raise InvalidOperation(
            f"column '{column.name}' REFERENCES already: DROP FOREIGN KEY ({column.name}) first"
        )
    if wanted.on_delete is OnDelete.SET_NULL and not column.nullable:
        raise InvalidOperation(f"ON DELETE SET NULL needs column '{column.name}' to be nullable")
    return replace(table, references=(*table.references, reference), version=table.version + 1)


def _unreferring(table: Table, name: str) -> Table:
    index = table.index_of[_column(table, name, "modify").name]
    kept = tuple(each for each in table.references if each.columns != (index,))
    if kept == table.references:
        raise InvalidOperation(f"column '{name}' of {table.full_name} REFERENCES nothing by itself")
    return replace(table, references=kept, version=table.version + 1)


def _with_options(table: Table, options: Mapping[str, str]) -> Table | None:
    unfit = _LASTING.intersection(options) if table.is_ephemeral else ()
    if unfit:
        raise InvalidOperation(
            f"{', '.join(sorted(unfit)).upper()} is not supported for STREAM tables: their rows "
            "expire and are never flushed"
        )
    merged = {**table.options, **options}
    return None if merged == table.options else replace(table, options=merged, version=table.version + 1)


def _refers(table: Table, index: int) -> bool:
    return any(index in reference.columns for reference in table.references)


def _refuse_referring(
    table: Table, index: int, action: str, children: Sequence[tuple[Table, Reference]]
) -> None:
    name = table.columns[index].name
    if _refers(table, index):
        raise InvalidOperation(f"Cannot {action} column '{name}': it REFERENCES another table")
    for child, reference in children:
        if any(at == index for _, at in reference.others):
            raise InvalidOperation(f"Cannot {action} column '{name}': {child.full_name} REFERENCES it")


def _refuse_synced(table: Table, reason: str) -> None:
    if table.synced:
        raise InvalidOperation(f"{table.full_name} is synced with devices (SYNC = TRUE): {reason}")


def _shifted(index: int, gone: int | None) -> int:
    return index - 1 if gone is not None and index > gone else index
