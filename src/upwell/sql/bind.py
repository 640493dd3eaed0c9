"""The binder: tree + catalog + namespace → bound Statement.

Law: after it no name is left to look up but inside text for the query engine, whose parameters still
stand as `$n` and whose alias is the table's own name. Unknown tables and columns fail here.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from upwell.engine.alter import AddReference, Alteration, SetOptions
from upwell.engine.catalog import SYSTEM_NAMESPACE, Catalog, Table, TableKind
from upwell.engine.expression import And, Parameter
from upwell.engine.named_query import QueryName
from upwell.engine.schema import refuse_ephemeral_parent
from upwell.errors import InvalidOperation, InvalidSql
from upwell.sql.alter import AlterRefused
from upwell.sql.clause import (
    ExcludedScope,
    bind_conflict,
    bind_returning,
    bind_scalar,
    distinct,
    own_names,
    writable,
)
from upwell.sql.column import Refused
from upwell.sql.command import quoted
from upwell.sql.lex import Fragment, Tokens, tokenize
from upwell.sql.maintenance import (
    AlterStorage,
    BackupDatabase,
    CheckStorage,
    ClusterAction,
    CompactAll,
    CompactTable,
    CreateStorage,
    DropStorage,
    FlushAll,
    FlushTable,
    KillJob,
    KillLive,
    RestoreDatabase,
    RetryJob,
    ShowStats,
)
from upwell.sql.owners import name_all_owners
from upwell.sql.parse import judge
from upwell.sql.read import bind_read, key_scalar, keys_read
from upwell.sql.scalar import Scope, parse_condition
from upwell.sql.statements import (
    AlterNamespace,
    AlterTable,
    AlterUser,
    Begin,
    ColumnDefinition,
    Commit,
    CompositeReference,
    CreateNamespace,
    CreateTable,
    CreateUser,
    CreateView,
    Delete,
    DirectRead,
    DropNamespace,
    DropTable,
    DropUser,
    DropView,
    ExecuteAs,
    Insert,
    OnConflict,
    Returning,
    Rollback,
    Scalar,
    Select,
    SetJobStatus,
    SetOption,
    Statement,
    Update,
    UseNamespace,
)
from upwell.sql.subscribe import SubscribeTo
from upwell.sql.tree import (
    AlterTableTree,
    CompactTree,
    ConflictTree,
    CreateTableTree,
    CreateViewTree,
    DeleteTree,
    DescribeTree,
    DropTableTree,
    DropViewTree,
    ExecuteAsTree,
    FlushTree,
    InsertTree,
    ReturnedItem,
    SelectTree,
    StatsTree,
    TableName,
    Tree,
    UpdateTree,
)
from upwell.storage.place import LOCAL
from upwell.types import Column, SqlType, TableId

SYSTEM_NAMESPACES = frozenset({SYSTEM_NAMESPACE, "information_schema", "pg_catalog", "datafusion"})
_DESCRIBED = (
    "SELECT column_name, ordinal_position, column_id, data_type, is_nullable, is_primary_key, "
    "column_default, column_comment, schema_version FROM system.describe "
    "WHERE namespace_id = {} AND table_name = {} AND {} ORDER BY schema_version, ordinal_position"
)

_JOBS_NAME = (SYSTEM_NAMESPACE, "jobs")
# What an UPDATE may name of that system table.
_JOBS = Table(
    TableId(-1), *_JOBS_NAME, TableKind.SHARED,
    (Column(1, "job_id", SqlType.TEXT, False, True), Column(2, "status", SqlType.TEXT)),
)  # fmt: skip


class Binder:
    """Binds trees against one catalog and default namespace.

    `parameter_types` are the Python types of the values of `$1…`; `used_types` tells afterwards
    whether a Statement depends on them.
    """

    def __init__(self, catalog: Catalog, namespace: str, parameter_types: Sequence[type] = ()) -> None:
        self._catalog = catalog
        self._namespace = namespace
        self._parameter_types = parameter_types
        self._scopes: list[Scope] = []

    @property
    def used_types(self) -> bool:
        return any(scope.used_types for scope in self._scopes)

    def bind(self, tree: Tree) -> Statement:
        """Return the Statement; raise an `SqlFailure` for what isn't there, `InvalidSql` for bad grammar."""
        match tree:
            case InsertTree():
                return self._insert(tree)
            case UpdateTree(table) if self._name(table) == _JOBS_NAME:
                return self._set_job_status(tree)
            case UpdateTree():
                return self._update(tree, _lasting(self._target(tree.table, "update"), "UPDATE"))
            case DeleteTree():
                return self._delete(tree)
            case SelectTree():
                return self._select(tree)
            case CreateTableTree():
                return self._create_table(tree)
            case DropTableTree(table, if_exists):
                return DropTable(*self._ddl_name(table, "drop"), if_exists)
            case AlterTableTree(table, alteration):
                place = self._ddl_name(table, "alter")
                return AlterTable(*place, self._altered(place[0], alteration))
            case CreateViewTree(name, labels, text, replaces, if_not_exists):
                home, place = self._namespace, self._ddl_name(name, "create")
                return CreateView(*place, text, home, labels, replaces, if_not_exists)
            case DropViewTree(name, if_exists):
                return DropView(*self._ddl_name(name, "drop"), if_exists)
            case FlushTree(table, users):
                return self._flush(_lasting(self._target(table, "flush"), "STORAGE FLUSH"), users)
            case DescribeTree():
                return self._describe(tree)
            case StatsTree(table):
                return ShowStats(self._target(table, "count"))
            case CompactTree(table):
                return CompactTable(_lasting(self._target(table, "compact"), "STORAGE COMPACT"))
            case ExecuteAsTree():
                return self._execute_as(tree)
            case ClusterAction() | UseNamespace() | Select():
                return tree
            case CreateNamespace() | AlterNamespace() | DropNamespace():
                return tree
            case KillLive() | KillJob() | RetryJob() | FlushAll() | CompactAll():
                return tree
            case SubscribeTo() | SetOption() | BackupDatabase() | RestoreDatabase():
                return tree
            case CreateUser() | AlterUser() | DropUser() | Begin() | Commit() | Rollback():
                return tree
            case CreateStorage() | AlterStorage() | DropStorage() | CheckStorage():
                return tree

    def _name(self, name: TableName) -> tuple[str, str]:
        return (self._namespace if name[0] is None else name[0], name[1])

    def _target(self, name: TableName, action: str) -> Table:
        namespace, table = self._name(name)
        if namespace in SYSTEM_NAMESPACES:
            raise InvalidOperation(f"Cannot {action} system table '{namespace}.{table}'")
        return self._catalog.get_table(namespace, table)

    def _ddl_name(self, name: TableName, action: str) -> tuple[str, str]:
        namespace, table = self._name(name)
        if namespace in SYSTEM_NAMESPACES:
            raise InvalidOperation(
                f"Cannot {action} system table '{namespace}.{table}'. System tables are managed internally."
            )
        return namespace, table

    def _scope(self, table: Table | None, alias: str | None = None) -> Scope:
        scope = Scope(table, alias, self._parameter_types)
        self._scopes.append(scope)
        return scope

    def _insert(self, tree: InsertTree) -> Insert:
        table = self._target(tree.table, "insert")
        if tree.columns is None:
            columns = tuple(range(len(table.columns)))
        else:
            columns = distinct([writable(table, name) for name in tree.columns], table)
        scope = self._scope(None)
        rows = tuple(_values(table, columns, row, at, scope) for at, row in enumerate(tree.rows))
        conflict = None if tree.conflict is None else self._conflict(table, tree.alias, tree.conflict)
        returning = self._returning(table, tree.alias, tree.returning)
        scalars = [scalar.node for row in rows for scalar in row]
        is_plain = bool(scalars) and scalars == [Parameter(index) for index in range(len(scalars))]
        return Insert(table, columns, rows, tree.query, conflict, returning, is_plain)

    def _conflict(self, table: Table, alias: str | None, tree: ConflictTree) -> OnConflict:
        scope = ExcludedScope(table, alias, self._parameter_types)
        self._scopes.append(scope)
        return bind_conflict(tree, scope)

    def _returning(self, table: Table, alias: str | None, items: Sequence[ReturnedItem]) -> Returning | None:
        return bind_returning(items, self._scope(table, alias)) if items else None

    def _update(self, tree: UpdateTree, table: Table) -> Update:
        scope = self._scope(table, tree.alias)
        indexes = distinct([writable(table, name) for name, _ in tree.assignments], table)
        scalars = [
            bind_scalar(fragment, table.columns[index], scope)
            for index, (_, fragment) in zip(indexes, tree.assignments, strict=True)
        ]
        key, where, matching = _condition(tree.where, scope)
        returning = self._returning(table, tree.alias, tree.returning)
        return Update(table, tuple(zip(indexes, scalars, strict=True)), key, where, returning, matching)

    @staticmethod
    def _flush(table: Table, users: tuple[str, ...] | None) -> FlushTable:
        if users is not None and table.kind is TableKind.SHARED:
            raise InvalidOperation(f"{table.full_name} is a SHARED table; its rows are of no user")
        return FlushTable(table, users)

    def _set_job_status(self, tree: UpdateTree) -> SetJobStatus:
        """Read the one way to change a system table."""
        match self._update(tree, _JOBS):
            case Update(_, ((1, status),), Scalar() as job_id) if None not in (status.node, job_id.node):
                return SetJobStatus(job_id, status)
            case _:
                raise InvalidOperation(
                    "system.jobs takes UPDATE system.jobs SET status = 'queued' WHERE job_id = '…', "
                    "which is RETRY JOB, and nothing else"
                )

    def _delete(self, tree: DeleteTree) -> Delete:
        table = self._target(tree.table, "delete")
        key, where, matching = _condition(tree.where, self._scope(table, tree.alias))
        returning = self._returning(table, tree.alias, tree.returning)
        return Delete(table, key, where, returning, matching)

    def _select(self, tree: SelectTree) -> Select:
        plain = tree.plain
        table = None if plain is None else self._catalog.tables.get(self._name(plain.table))
        if plain is not None and table is not None:
            point, direct = bind_read(plain, self._scope(table, plain.alias))
            if point is not None or direct is not None:
                return Select(tree.text, point, direct=direct)
        text, others = name_all_owners(tree.text, self._namespace)
        return Select(text, None, others=others, explains=tree.explains)

    def _create_table(self, tree: CreateTableTree) -> CreateTable:
        namespace, _ = self._ddl_name((tree.namespace, tree.table.name), "create")
        columns = tuple(_with_parent(column, namespace) for column in tree.table.columns)
        composites = tuple(
            replace(each, parent=(each.parent[0] or namespace, each.parent[1]))
            for each in tree.table.composites
        )
        options = self._options(tree.table.options)
        table = replace(
            tree.table, namespace=namespace, columns=columns, composites=composites, options=options
        )
        for composite in composites:
            self._check_composite(table, composite)
        for child, wanted in tree.parents:
            column = next(column for column in columns if column.name == child)
            self._check_parent(table, column, wanted)
        return table

    def _altered(self, namespace: str, alteration: Alteration) -> Alteration:
        if isinstance(alteration, AddReference):
            parent = (alteration.parent[0] or namespace, alteration.parent[1])
            key = next(each for each in self._catalog.get_table(*parent).columns if each.primary_key)
            _check_target(parent, key, alteration.target)
            return replace(alteration, parent=parent)
        if not isinstance(alteration, SetOptions):
            return alteration
        try:
            return SetOptions(self._options(alteration.options))
        except Refused as refusal:
            raise AlterRefused(refusal.args[0]) from refusal

    def _options(self, options: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        return tuple((key, self._storage(value) if key == "storage_id" else value) for key, value in options)

    def _storage(self, written: str) -> str:
        name = written.lower()
        if name != LOCAL and name not in self._catalog.storages:
            raise Refused(f"Storage '{written}' does not exist; SHOW STORAGES lists what there is")
        return name

    def _check_parent(self, table: CreateTable, column: ColumnDefinition, wanted: str | None) -> None:
        """A reference leads to a primary key of the same type; a table may refer to itself."""
        assert column.references is not None, "asked only for references"
        key = next(each for each in self._columns_of(table, column.references) if each.primary_key)
        _check_target(column.references, key, wanted)
        _check_types(column, key, ".".join(column.references))

    def _check_composite(self, table: CreateTable, reference: CompositeReference) -> None:
        """One of several columns leads to the primary key, and so to one row; the others have to agree."""
        full_name = ".".join(reference.parent)
        parent = {column.name: column for column in self._columns_of(table, reference.parent)}
        own = {column.name: column for column in table.columns}
        for name, target in zip(reference.columns, reference.targets, strict=True):
            if target not in parent:
                raise InvalidSql(f"REFERENCES {full_name}: it has no column '{target}'")
            _check_types(own[name], parent[target], full_name)
        if not any(parent[target].primary_key for target in reference.targets):
            key = next(column.name for column in parent.values() if column.primary_key)
            raise InvalidSql(
                f"REFERENCES {full_name}({', '.join(reference.targets)}) leaves out its primary key "
                f"'{key}'; only with it these columns are unique"
            )

    def _columns_of(
        self, table: CreateTable, parent: tuple[str, str]
    ) -> Sequence[Column] | Sequence[ColumnDefinition]:
        itself = parent == (table.namespace, table.name)
        if itself:
            return table.columns
        found = self._catalog.get_table(*parent)
        refuse_ephemeral_parent(f"{table.namespace}.{table.name}", found)
        return found.columns

    def _describe(self, tree: DescribeTree) -> Select:
        namespace, table = self._name(tree.table)
        if namespace not in SYSTEM_NAMESPACES and (namespace, table) not in self._catalog.queries:
            self._catalog.get_table(namespace, table)
        versions = "TRUE" if tree.history else "is_latest"
        text = _DESCRIBED.format(quoted(namespace), quoted(table), versions)
        return Select(text, None, is_open=tree.is_open)

    def _execute_as(self, tree: ExecuteAsTree) -> ExecuteAs:
        inner = self.bind(tree.inner)
        assert isinstance(inner, (Insert, Update, Delete, Select)), "the parser lets nothing else in"
        target = [] if isinstance(inner, Select) else [inner.table]
        for table in target + self._named_tables(tree.text):
            if table.kind is TableKind.SHARED:
                raise InvalidOperation(
                    f"EXECUTE AS USER is not allowed on SHARED tables (table '{table.full_name}'). "
                    "AS USER impersonation is only supported for USER and STREAM tables."
                )
        return ExecuteAs(tree.user, inner)

    def _named_tables(self, query: str) -> list[Table]:
        """Return the catalog's tables that the text of a query names after FROM, JOIN or a comma."""
        tokens = tokenize(query)
        found: list[Table] = []
        for at, (before, token) in enumerate(pairwise(tokens), 1):
            if before.word in ("FROM", "JOIN", ",", "(") and token.kind in ("word", "quoted"):
                rest = Tokens(query, tokens)
                rest.index = at
                found += self._tables_behind(self._name(rest.qualified()))
        return found

    def _tables_behind(self, name: QueryName) -> list[Table]:
        """Return the table of that name, or those that the named query reads."""
        query = self._catalog.queries.get(name)
        if query is not None:
            return [table for each in query.reads for table in self._tables_behind(each)]
        table = self._catalog.tables.get(name)
        return [] if table is None else [table]


def _values(
    table: Table, columns: tuple[int, ...], row: tuple[Fragment, ...], at: int, scope: Scope
) -> tuple[Scalar, ...]:
    if len(row) != len(columns):
        raise InvalidOperation(
            f"INSERT INTO {table.full_name} names {len(columns)} columns, but row {at} has {len(row)} values"
        )
    return tuple(
        bind_scalar(fragment, table.columns[index], scope)
        for index, fragment in zip(columns, row, strict=True)
    )


def _condition(where: Fragment | None, scope: Scope) -> tuple[Scalar | None, str | None, DirectRead | None]:
    """Return the key, if `where` is exactly primary key = scalar, the text, and a read of the keys."""
    assert scope.table is not None, "a WHERE has a table"
    if where is None:
        return None, None, keys_read(And(()), scope.table)
    condition = parse_condition(where, scope)
    if condition is None:
        judge(where)
    key = key_scalar(condition, where, scope.table)
    return key, own_names(where, scope), None if key is not None else keys_read(condition, scope.table)


def _lasting(table: Table, what: str) -> Table:
    """Return a table whose rows stay until they are deleted; raise for one whose rows expire."""
    if table.is_ephemeral:
        raise InvalidOperation(f"{what} is not supported for STREAM tables")
    return table


def _check_target(parent: tuple[str, str], key: Column | ColumnDefinition, wanted: str | None) -> None:
    if wanted not in (None, key.name):
        raise InvalidSql(f"REFERENCES {'.'.join(parent)}({wanted}): the primary key is '{key.name}'")


def _check_types(column: ColumnDefinition, target: Column | ColumnDefinition, full_name: str) -> None:
    if target.type is not column.type:
        raise InvalidSql(
            f"column '{column.name}' ({column.type.name}) cannot reference "
            f"{full_name}({target.name}), which is {target.type.name}"
        )


def _with_parent(column: ColumnDefinition, namespace: str) -> ColumnDefinition:
    """An unqualified parent is a table of the child's namespace."""
    if column.references is None or column.references[0]:
        return column
    return replace(column, references=(namespace, column.references[1]))
