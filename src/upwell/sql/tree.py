"""What a statement's text says before its names are looked up.

Law: a tree depends on the text alone, so that a batch can be checked as a whole before its first
statement runs. Commands that name nothing but themselves are bound Statements already (`statements`).
"""

from dataclasses import dataclass

from upwell.engine.alter import Alteration
from upwell.sql.lex import Fragment
from upwell.sql.statements import (
    AlterUser,
    Begin,
    Commit,
    CreateNamespace,
    CreateTable,
    CreateUser,
    DropNamespace,
    DropUser,
    FlushAll,
    KillJob,
    KillLive,
    RetryJob,
    Rollback,
    Select,
    UseNamespace,
)

TableName = tuple[str | None, str]
"""Namespace, None if the text didn't say, and name."""


@dataclass(frozen=True, slots=True)
class InsertTree:
    """INSERT of `rows`, or of the rows of `query`; no `columns`: all in their order."""

    table: TableName
    columns: tuple[str, ...] | None
    rows: tuple[tuple[Fragment, ...], ...]
    query: str | None


@dataclass(frozen=True, slots=True)
class UpdateTree:
    table: TableName
    alias: str | None
    assignments: tuple[tuple[str, Fragment], ...]
    where: Fragment | None


@dataclass(frozen=True, slots=True)
class DeleteTree:
    table: TableName
    alias: str | None
    where: Fragment | None


@dataclass(frozen=True, slots=True)
class Projection:
    """`qualifier.column AS name`; a column of `*` stands for all."""

    qualifier: str | None
    column: str
    name: str


@dataclass(frozen=True, slots=True)
class PlainSelect:
    """`SELECT columns FROM table [alias] [WHERE …]` and nothing else."""

    table: TableName
    alias: str | None
    columns: tuple[Projection, ...]
    where: Fragment | None


@dataclass(frozen=True, slots=True)
class SelectTree:
    text: str
    plain: PlainSelect | None


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
class AlterTableTree:
    table: TableName
    alteration: Alteration


@dataclass(frozen=True, slots=True)
class FlushTree:
    table: TableName
    users: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class DescribeTree:
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
    | FlushTree
    | FlushAll
    | DescribeTree
    | ExecuteAsTree
    | CreateNamespace
    | DropNamespace
    | CreateUser
    | AlterUser
    | DropUser
    | KillLive
    | KillJob
    | RetryJob
    | UseNamespace
    | Begin
    | Commit
    | Rollback
    | Select
)
