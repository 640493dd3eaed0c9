"""What a session can be asked to do: a closed set of frozen values with names already resolved.

Law: a Statement holds no SQL text but for the parts that only the query engine evaluates
(`Scalar.text`, `Select.text`, `where`), and there parameters still stand as `$n`.
"""

from dataclasses import dataclass, field
from functools import cached_property

from upwell.engine.alter import Alteration
from upwell.engine.catalog import Access, OnDelete, Role, Table, TableKind
from upwell.engine.direct import OrderKey
from upwell.engine.expression import Literal, Node, Parameter
from upwell.engine.operation import CompareOp
from upwell.engine.result import ResultColumn, plain_columns
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
from upwell.sql.subscribe import SubscribeTo
from upwell.types import Column, Default, SqlType


@dataclass(frozen=True, slots=True)
class Scalar:
    """An expression in both forms; `node` is None if only the query engine can evaluate it."""

    text: str
    node: Node | None


@dataclass(frozen=True, slots=True)
class ColumnDefinition:
    name: str
    type: SqlType
    nullable: bool
    primary_key: bool
    default: Default | None
    references: tuple[str, str] | None
    """Namespace and name of the parent table."""
    on_delete: OnDelete
    precision: int = 0
    scale: int = 0
    """Of a DECIMAL."""

    def column(self, number: int) -> Column:
        """Return the column of a table that begins with it."""
        return Column(
            number,
            self.name,
            self.type,
            self.nullable,
            self.primary_key,
            self.default,
            self.name,
            precision=self.precision,
            scale=self.scale,
        )


@dataclass(frozen=True, slots=True)
class CompositeReference:
    """FOREIGN KEY of several columns; `targets` are the parent's, in the order of `columns`."""

    columns: tuple[str, ...]
    parent: tuple[str, str]
    """Its namespace and name."""
    targets: tuple[str, ...]
    on_delete: OnDelete


@dataclass(frozen=True, slots=True)
class CreateNamespace:
    name: str
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropNamespace:
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class AlterNamespace:
    """ALTER NAMESPACE … SET OPTIONS: those named are set, the others stay."""

    name: str
    options: tuple[tuple[str, bool | int | float | str], ...]


@dataclass(frozen=True, slots=True)
class CreateTable:
    namespace: str
    name: str
    kind: TableKind | None
    """None: the statement didn't say."""
    columns: tuple[ColumnDefinition, ...]
    synced: bool
    access: Access
    options: tuple[tuple[str, str], ...]
    if_not_exists: bool
    composites: tuple[CompositeReference, ...] = ()


@dataclass(frozen=True, slots=True)
class DropTable:
    namespace: str
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class CreateView:
    """CREATE VIEW; no `labels`: the columns have the query's names. `home` is where it looks for tables."""

    namespace: str
    name: str
    text: str
    home: str
    labels: tuple[str, ...]
    replaces: bool
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropView:
    namespace: str
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class AlterTable:
    namespace: str
    name: str
    alteration: Alteration


@dataclass(frozen=True, slots=True)
class CreateUser:
    name: str
    password: str | None
    role: Role
    email: str | None
    auth_type: str = "password"
    auth_data: str | None = None


@dataclass(frozen=True, slots=True)
class AlterUser:
    """ALTER USER … SET: the one that isn't None is what changes."""

    name: str
    password: str | None = None
    role: Role | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class DropUser:
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class Returning:
    """What a change gives back of each row: `columns` are (index, output name), None: `text` is asked.

    `text` is a query over a table of the changed rows that has the table's name.
    """

    columns: tuple[tuple[int, str], ...] | None
    text: str


@dataclass(frozen=True, slots=True)
class OnConflict:
    """What becomes of a row whose key is there: nothing, or `assignments` to it if `where` is true.

    Their columns are those of the row, and behind them those of the row that was to be inserted.
    """

    assignments: tuple[tuple[int, Scalar], ...]
    where: Scalar | None

    @property
    def is_foreign(self) -> bool:
        """Whether only the query engine can tell what to do."""
        foreign = any(scalar.node is None for _, scalar in self.assignments)
        return foreign or (self.where is not None and self.where.node is None)


@dataclass(frozen=True, slots=True)
class Insert:
    """INSERT of rows of scalars, or of the rows of `query`; `columns` are indexes into the table's."""

    table: Table
    columns: tuple[int, ...]
    rows: tuple[tuple[Scalar, ...], ...]
    query: str | None
    conflict: OnConflict | None = None
    returning: Returning | None = None
    is_plain: bool = field(default=False, compare=False)
    """Whether the rows are known to be just `$1`, `$2`, … in their order."""


@dataclass(frozen=True, slots=True)
class Update:
    """UPDATE; `key` is set when WHERE is exactly `primary key = scalar`.

    `matching` may find the keys that meet `where` without a planner.
    """

    table: Table
    assignments: tuple[tuple[int, Scalar], ...]
    key: Scalar | None
    where: str | None
    returning: Returning | None = None
    matching: "DirectRead | None" = None


@dataclass(frozen=True, slots=True)
class Delete:
    table: Table
    key: Scalar | None
    where: str | None
    returning: Returning | None = None
    matching: "DirectRead | None" = None


@dataclass(frozen=True)
class PointRead:
    """SELECT of plain columns of one table by its primary key.

    `columns` are (index, output name); an index of -1 is `_seq`, -2 is `_deleted`.
    """

    table: Table
    key: Scalar
    columns: tuple[tuple[int, str], ...]

    @cached_property
    def result_columns(self) -> tuple[ResultColumn, ...]:
        """The columns as an answer shows them."""
        return plain_columns(self.table, self.columns)


@dataclass(frozen=True)
class DirectRead:
    """SELECT that may need no planner: of `columns`, or COUNT(*) by the name `count`.

    `where` are (column, operator, constant), all of which must hold; constants, `limit` and `offset` are
    Literals or Parameters. Columns are indexes as in `PointRead`.
    """

    table: Table
    columns: tuple[tuple[int, str], ...]
    count: str | None
    where: tuple[tuple[int, CompareOp, Literal | Parameter], ...]
    order: tuple[OrderKey, ...]
    limit: Literal | Parameter | None
    offset: Literal | Parameter | None

    @cached_property
    def result_columns(self) -> tuple[ResultColumn, ...]:
        """The columns as an answer shows them."""
        if self.count is not None:
            return (ResultColumn(self.count, SqlType.BIGINT),)
        return plain_columns(self.table, self.columns)


@dataclass(frozen=True, slots=True)
class Select:
    """Any query; the query engine finds its tables itself.

    `point` and `direct` are ways to do without it.
    `is_open`: made from SHOW or DESCRIBE, which everybody may ask although it reads system tables.
    """

    text: str
    point: PointRead | None
    is_open: bool = False
    direct: DirectRead | None = None
    explains: bool = False
    """It asks for a query's plan."""
    others: frozenset[str] = frozenset()
    """Names in the text that stand for the rows of all users (`owners`)."""


@dataclass(frozen=True, slots=True)
class SetJobStatus:
    """UPDATE system.jobs SET status = … WHERE job_id = …"""

    job_id: Scalar
    status: Scalar


@dataclass(frozen=True, slots=True)
class UseNamespace:
    name: str


@dataclass(frozen=True, slots=True)
class SetOption:
    """SET of anything else than the namespace."""

    name: str


@dataclass(frozen=True, slots=True)
class Begin:
    """BEGIN: what follows in the request takes effect at COMMIT, or not at all."""


@dataclass(frozen=True, slots=True)
class Commit:
    """COMMIT"""


@dataclass(frozen=True, slots=True)
class Rollback:
    pass


@dataclass(frozen=True, slots=True)
class ExecuteAs:
    """EXECUTE AS USER: the inner statement in the target's scope, with role user."""

    user: str
    statement: "Insert | Update | Delete | Select"


Statement = (
    AlterNamespace
    | CreateNamespace
    | DropNamespace
    | CreateTable
    | DropTable
    | AlterTable
    | CreateView
    | DropView
    | ShowStats
    | ClusterAction
    | CreateUser
    | AlterUser
    | DropUser
    | Insert
    | Update
    | Delete
    | Select
    | FlushTable
    | FlushAll
    | CompactTable
    | CompactAll
    | BackupDatabase
    | RestoreDatabase
    | CreateStorage
    | AlterStorage
    | DropStorage
    | CheckStorage
    | KillLive
    | SubscribeTo
    | SetOption
    | KillJob
    | RetryJob
    | SetJobStatus
    | UseNamespace
    | Begin
    | Commit
    | Rollback
    | ExecuteAs
)
