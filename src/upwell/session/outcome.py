"""Outcomes: what a statement gave, before any wire has a say in how it looks."""

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from upwell.engine.flow import Flow, Given
from upwell.engine.result import ResultColumn
from upwell.protocol.messages import Cell


class Message(msgspec.Struct, frozen=True):
    """A statement that did something else than change rows."""

    text: str


class Changed(msgspec.Struct, frozen=True):
    """`verb` is Inserted, Updated or Deleted."""

    verb: str
    count: int


class Answer(msgspec.Struct, frozen=True):
    """The rows of a query; `columns` are those of its schema, if the statement tells them."""

    table: pa.Table
    columns: tuple[ResultColumn, ...] | None = None


class Streamed(msgspec.Struct, frozen=True):
    """The rows of a query that are made as they are asked for, in any thread that may block."""

    schema: pa.Schema
    flow: Flow | Given


class PointAnswer(msgspec.Struct, frozen=True):
    """The row of a read by key, or none; or the rows that a change gave back, or a statement makes up."""

    columns: tuple[ResultColumn, ...]
    rows: Sequence[Sequence[Cell]]


Result = Message | Changed | Answer | PointAnswer | Streamed


class Outcome(msgspec.Struct, frozen=True):
    """What one statement gave, and as whom it ran."""

    result: Result
    as_user: str


class StatementFailed(Exception):
    """Statement `number` (from 1) of a request failed; `cause` is the error, `sql` its text."""

    def __init__(self, number: int, sql: str, cause: Exception) -> None:
        super().__init__(f"Statement {number} failed")
        self.number = number
        self.sql = sql
        self.cause = cause
