"""A request: statements that run one after the other, each on its own or in a transaction.

Law: the first statement that fails ends the request and rolls back what its open transaction staged; what
statements before it committed stays. A transaction never outlives its request.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import msgspec

from upwell.engine.view import View
from upwell.errors import Conflict, InvalidOperation, RequestRefused
from upwell.feeds.cursor import Growth
from upwell.session.outcome import Changed, Message, Outcome
from upwell.session.policy import Principal
from upwell.session.transaction import Transaction, Transactions
from upwell.session.write import Writer
from upwell.sql.shape import Lifted
from upwell.types import Value


class Asked(msgspec.Struct, frozen=True):
    """One statement: its text and the values of `$1`, `$2`, …; or `rows`, to run it once for each.

    With `streams` it has to be a query, whose rows are given as a stream.
    """

    sql: str
    params: Sequence[Value] = ()
    rows: Sequence[Sequence[Value]] | None = None
    streams: bool = False
    lifted: Lifted | None = None
    """Its shape, if that is known by now."""


class Request:
    """What the statements of one request share."""

    def __init__(
        self,
        principal: Principal,
        namespace: str,
        next_number: Callable[[], str],
        transactions: Transactions,
        writer: Writer,
        growth: Growth,
    ) -> None:
        self.principal = principal
        self.namespace = namespace
        self.transaction: Transaction | None = None
        self.outcomes: list[Outcome] = []
        self.may_join = True
        """Whether statements that are alike may run as one; they mean the same as one by one."""
        self._next_number = next_number
        self._transactions = transactions
        self._writer = writer
        self._growth = growth
        self._outcomes_before = 0

    @cached_property
    def _owner(self) -> str:
        return f"sql-req-{self._next_number()}"

    @property
    def view(self) -> View:
        """What the next statement sees."""
        return self._growth.view if self.transaction is None else self.transaction.view

    def use(self, name: str) -> Message:
        """Change the namespace of unqualified names."""
        if name not in self.view.catalog.namespaces:
            raise InvalidOperation(f"namespace '{name}' does not exist; CREATE NAMESPACE makes it")
        self.namespace = name
        return Message(f"Namespace switched to '{name}'")

    def open(self, *, is_explicit: bool) -> Transaction:
        """Open a transaction that sees what is acknowledged by now."""
        self.transaction = self._transactions.begin(self._owner, self.view, is_explicit=is_explicit)
        self._outcomes_before = len(self.outcomes)
        return self.transaction

    def begin(self) -> Message:
        """Do as BEGIN says; raise `Conflict` inside of a transaction."""
        if self.transaction is not None:
            raise Conflict(
                f"request owner '{self._owner}' already has an active transaction '{self.transaction.id}'"
            )
        return Message(f"Transaction started ({self.open(is_explicit=True).id})")

    async def commit(self) -> Message:
        """Return when all that was staged is durable and visible; raise `Conflict` if none of it can be."""
        transaction = self._active("COMMIT")
        await self._writer.commit(transaction)
        self.close()
        return Message(f"Transaction committed ({transaction.id})")

    def roll_back(self) -> Message:
        """Forget what was staged, and that it was counted."""
        transaction = self._active("ROLLBACK")
        kept = [
            each for each in self.outcomes[self._outcomes_before :] if not isinstance(each.result, Changed)
        ]
        self.outcomes[self._outcomes_before :] = kept
        self.close()
        return Message(f"Transaction rolled back ({transaction.id})")

    async def finish(self) -> None:
        """Commit what is atomic as a whole; refuse to end with what BEGIN left open."""
        if self.transaction is None:
            return
        if self.transaction.is_explicit:
            raise RequestRefused(
                "SQL_EXECUTION_ERROR",
                "Request completed with an open explicit transaction; rolled back automatically",
            )
        await self._writer.commit(self.transaction)

    def close(self) -> None:
        """Forget the open transaction, however it ended."""
        if self.transaction is not None:
            self._transactions.end(self.transaction)
            self.transaction = None

    def _active(self, what: str) -> Transaction:
        if self.transaction is None:
            raise InvalidOperation(f"{what} requires an active explicit SQL transaction")
        if not self.transaction.is_explicit:
            raise InvalidOperation(f"{what} can't stand among statements that are atomic as a whole")
        return self.transaction
