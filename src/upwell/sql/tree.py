"""What a statement's text says before its names are looked up.

Law: a tree depends on the text alone, so that a batch can be checked as a whole before its first
statement runs. Commands that name nothing but themselves are bound Statements already (`statements`).
"""

from dataclasses import dataclass

from upwell.engine.alter import Alteration
from upwell.sql.lex import Fragment, Token
from upwell.sql.maintenance import (
    AlterStorage,
    BackupDatabase,
    CheckStorage,
    ClusterAction,
    CompactAll,
    CreateStorage,
    DropStorage,
    FlushAll,
    KillJob,
    KillLive,
    RestoreDatabase,
    RetryJob,
)
from upwell.sql.statements import (
    AlterNamespace,
    AlterUser,
    Begin,
    Commit,
    CreateNamespace,
    CreateTable,
    CreateUser,
    DropNamespace,
    DropUser,
    Rollback,
    Select,
    SetOption,
    UseNamespace,
)
from upwell.sql.subscribe import SubscribeTo

TableName = tuple[str | None, str]
"""Namespace, None if the text didn't say, and name."""


@dataclass(frozen=True, slots=True)
class ReturnedItem:
    """One item of RETURNING; without `fragment` it is `*`."""

    fragment: Fragment | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ConflictTree:
    """ON CONFLICT [(target)] DO NOTHING, or DO UPDATE with `assignments`."""

    target: tuple[str, ...] | None
    assignments: tuple[tuple[str, Fragment], ...] = ()
    where: Fragment | None = None


@dataclass(frozen=True, slots=True)
class InsertTree:
    """INSERT of `rows`, or of the rows of `query`; no `columns`: all in their order."""

    table: TableName
    columns: tuple[str, ...] | None
    rows: tuple[tuple[Fragment, ...], ...]
    query: str | None
    conflict: ConflictTree | None = None
    returning: tuple[ReturnedItem, ...] = ()
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateTree:
    table: TableName
    alias: str | None
    assignments: tuple[tuple[str, Fragment], ...]
    where: Fragment | None
    returning: tuple[ReturnedItem, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteTree:
    table: TableName
    alias: str | None
    where: Fragment | None
    returning: tuple[ReturnedItem, ...] = ()


@dataclass(frozen=True, slots=True)
class Projection:
    """`qualifier.column AS name`; a column of `*` stands for all."""

    qualifier: str | None
    column: str
    name: str


@dataclass(frozen=True, slots=True)
class OrderTree:
    """`[qualifier.]column [ASC | DESC] [NULLS FIRST | LAST]`."""

    qualifier: str | None
    column: str
    descending: bool
    nulls_first: bool


@dataclass(frozen=True, slots=True)
class PlainSelect:
    """`SELECT columns FROM table [alias] [WHERE …] [ORDER BY …] [LIMIT …] [OFFSET …]` and nothing else.

    With `count` it is COUNT(*) by that name, and there are no columns.
    """

    table: TableName
    alias: str | None
    columns: tuple[Projection, ...]
    where: Fragment | None
    count: str | None = None
    order: tuple[OrderTree, ...] = ()
    limit: Token | None = None
    offset: Token | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all rows are wanted, in no order of the query's own."""
        return self.count is None and self._is_unsorted

    @property
    def is_bare_count(self) -> bool:
        """Whether it is COUNT(*) of what WHERE leaves, and no more."""
        return self.count is not None and self._is_unsorted

    @property
    def _is_unsorted(self) -> bool:
        return not self.order and self.limit is None and self.offset is None


@dataclass(frozen=True, slots=True)
class SelectTree:
    """A query; `explains`: its plan is asked for."""

    text: str
    plain: PlainSelect | None
    explains: bool = False


@dataclass(frozen=True, slots=True)
class CreateTableTree:
    """`namespace` None: the session's; `parents` are (column, parent's column or None) of the references."""

    namespace: str | None
    table: CreateTable
    parents: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class DropTableTree:
    table: TableName
    if_exists: bool


@dataclass(frozen=True, slots=True)
class CreateViewTree:
    name: TableName
    labels: tuple[str, ...]
    text: str
    replaces: bool
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropViewTree:
    name: TableName
    if_exists: bool


@dataclass(frozen=True, slots=True)
class AlterTableTree:
    table: TableName
    alteration: Alteration


@dataclass(frozen=True, slots=True)
class FlushTree:
    table: TableName
    users: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class CompactTree:
    table: TableName


@dataclass(frozen=True, slots=True)
class DescribeTree:
    """DESCRIBE; `history`: all schema versions. Not `is_open`: only administrators may ask."""

    table: TableName
    history: bool = False
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class StatsTree:
    """SHOW STATS FOR TABLE."""

    table: TableName


@dataclass(frozen=True, slots=True)
class ExecuteAsTree:
    user: str
    inner: InsertTree | UpdateTree | DeleteTree | SelectTree
    text: str
    """Of the inner statement."""


Tree = (
    InsertTree
    | UpdateTree
    | DeleteTree
    | SelectTree
    | CreateTableTree
    | DropTableTree
    | AlterTableTree
    | CreateViewTree
    | DropViewTree
    | FlushTree
    | FlushAll
    | CompactTree
    | CompactAll
    | BackupDatabase
    | RestoreDatabase
    | CreateStorage
    | AlterStorage
    | DropStorage
    | CheckStorage
    | DescribeTree
    | StatsTree
    | ExecuteAsTree
    | AlterNamespace
    | ClusterAction
    | CreateNamespace
    | DropNamespace
    | CreateUser
    | AlterUser
    | DropUser
    | KillLive
    | SubscribeTo
    | SetOption
    | KillJob
    | RetryJob
    | UseNamespace
    | Begin
    | Commit
    | Rollback
    | Select
)
