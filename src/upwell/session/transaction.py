"""Transactions: statements of one request, evaluated on one View and staged into one `Write`.

Law: what a statement staged is seen by the statements after it and by nobody else. A commit applies all of
it as one batch, or nothing if somebody else was faster (`Conflict`); whatever ends otherwise leaves nothing.
"""

from collections.abc import Iterator

from upwell.clock import Clock
from upwell.engine.catalog import Table, TableKind
from upwell.engine.operation import size_bytes
from upwell.engine.query import QueryEngine
from upwell.engine.references import Children
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.errors import Conflict, InvalidOperation
from upwell.ids import uuid7

AGE_S_MAX = 300
STAGED_BYTES_MAX = 100 * 1024 * 1024
ROW_BYTES = 200
"""About what a staged row costs besides its texts."""


class Transaction:
    """One open transaction of the request `owner`; `is_explicit` if BEGIN began it."""

    def __init__(
        self, owner: str, view: View, write: Write, clock: Clock, *, number: str, is_explicit: bool
    ) -> None:
        self.id = number
        self.owner = owner
        self.view = view
        self.write = write
        self.is_explicit = is_explicit
        self._clock = clock
        self._began_us = self._used_us = clock.now_us()
        self._counted = 0
        self._bytes = 0
        self._kinds: set[TableKind] = set()

    @property
    def age_ms(self) -> int:
        return (self._clock.now_us() - self._began_us) // 1000

    @property
    def idle_ms(self) -> int:
        """Since its last statement ended."""
        return (self._clock.now_us() - self._used_us) // 1000

    @property
    def size_bytes(self) -> int:
        """About what its staged rows need in memory."""
        return self._bytes

    def begin_statement(self) -> None:
        """Raise `Conflict` if the transaction is too old to go on."""
        if self.age_ms > AGE_S_MAX * 1000:
            raise Conflict(f"the transaction is open for more than {AGE_S_MAX} s; do less in one")
        self.write.begin_statement()

    def require(self, table: Table) -> None:
        """Raise `InvalidOperation` if the transaction can't write to `table` beside what it has written."""
        if table.is_ephemeral:
            raise InvalidOperation(
                f"stream tables are not supported inside explicit transactions: '{table.full_name}'"
            )
        self._kinds.add(table.kind)
        if self.is_explicit and len(self._kinds) > 1:
            raise InvalidOperation(
                f"transaction '{self.id}' cannot access table '{table.full_name}': one between BEGIN and "
                "COMMIT writes to USER or to SHARED tables, not to both"
            )

    def end_statement(self) -> None:
        """Raise `InvalidOperation` if too much is staged by now."""
        rows = list(self.write.rows_staged(after=self._counted))
        self._counted += len(rows)
        self._bytes += sum(ROW_BYTES + size_bytes(row or ()) for row in rows)
        self._used_us = self._clock.now_us()
        if self._bytes > STAGED_BYTES_MAX:
            raise InvalidOperation(f"a transaction can change at most {STAGED_BYTES_MAX >> 20} MiB of rows")


class Transactions:
    """The open transactions of all requests."""

    def __init__(self, rows: Rows, query: QueryEngine, clock: Clock) -> None:
        self._rows = rows
        self._query = query
        self._clock = clock
        self._open: dict[str, Transaction] = {}

    def __iter__(self) -> Iterator[Transaction]:
        return iter(list(self._open.values()))

    def begin(self, owner: str, view: View, *, is_explicit: bool) -> Transaction:
        """Open a transaction that sees `view` and what it writes itself."""
        write = Write(
            self._rows,
            view.hot,
            view.catalog,
            may_block=False,
            find_children=Children(self._query, view),
            view_seq=view.seq,
            now_us=self._clock.now_us(),
        )
        number = uuid7(self._clock)
        transaction = Transaction(owner, view, write, self._clock, number=number, is_explicit=is_explicit)
        self._open[number] = transaction
        return transaction

    def end(self, transaction: Transaction) -> None:
        """Forget a transaction; what wasn't committed is gone."""
        self._open.pop(transaction.id, None)
