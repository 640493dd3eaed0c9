"""Outcomes: what a statement gave, before any wire has a say in how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from upwell.engine.flow import Flow, Given
from upwell.engine.result import ResultColumn
from upwell.types import Value


@dataclass(frozen=True, slots=True)
class Message:
    """A statement that did something else than change rows."""

    text: str


@dataclass(frozen=True, slots=True)
class Changed:
    """`verb` is Inserted, Updated or Deleted."""

    verb: str
    count: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query."""

    table: pa.Table


@dataclass(frozen=True, slots=True)
class Streamed:
    """The rows of a query that are made as they are asked for, in any thread that may block."""

    schema: pa.Schema
    flow: Flow | Given


@dataclass(frozen=True, slots=True)
class PointAnswer:
    """The row of a read by key, or none; or the rows that a change gave back."""

    columns: tuple[ResultColumn, ...]
    rows: Sequence[Sequence[Value]]


Result = Message | Changed | Answer | PointAnswer | Streamed


@dataclass(frozen=True, slots=True)
class Outcome:
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
