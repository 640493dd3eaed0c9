"""A call: what one statement runs with."""

from collections.abc import Callable, Sequence

import msgspec

from upwell.engine.expression import Context
from upwell.session.policy import Principal
from upwell.session.transaction import Transaction
from upwell.types import Value


class Call(msgspec.Struct, frozen=True):
    """Who runs the statement, with which parameters, in which namespace, and what it knows of its session.

    `context` reads the clock anew each time.
    """

    principal: Principal
    values: Sequence[Value]
    namespace: str
    context: Callable[[], Context]
    transaction: Transaction | None = None
    """The open one that the statement is part of."""
    rows: Sequence[Sequence[Value]] | None = None
    """Runs an INSERT, UPDATE or DELETE once for each of these lists of values; `values` count for nothing."""

    streams: bool = False
    """A query's rows are wanted as a stream."""

    @property
    def values_each(self) -> Sequence[Sequence[Value]]:
        """The lists of values to run the statement with."""
        return [self.values] if self.rows is None else self.rows
