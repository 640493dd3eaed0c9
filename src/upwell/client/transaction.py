"""Requests for SQL: one statement, one with many rows, or the statements of a transaction.

Law: a transaction is sent whole when its block ends, and not at all if the block raises; so its results are
there after it, all or none.
"""

from collections.abc import Iterable, Mapping, Sequence

from upwell.client.values import Argument, Result, encode_argument, read_each
from upwell.protocol.messages import Param, SqlRequest, SqlResponse, SqlStatement


class Pending:
    """A statement of a transaction; `result` is there when the transaction is committed."""

    def __init__(self) -> None:
        self._result: Result | None = None

    @property
    def result(self) -> Result:
        if self._result is None:
            raise RuntimeError("the transaction is not committed: its results are there after its block")
        return self._result

    def settle(self, result: Result) -> None:
        self._result = result


class Transaction:
    """Statements to be run together: all of them, or none. `results` are theirs, in their order.

    It reads and writes one state of the database. If another commit changes a row that it has read or
    written by then, the server answers with `Conflict: …` (`ServerError`) and nothing was done: run it again.
    """

    def __init__(self, user: str | None) -> None:
        self._user = user
        self._statements: list[SqlStatement] = []
        self._pending: list[Pending] = []

    def execute(self, sql: str, params: Sequence[Argument] = ()) -> Pending:
        """Add a statement; a SELECT sees what the statements before it do."""
        return self._add(SqlStatement(acting(sql, self._user), _values(params) or None))

    def executemany(self, sql: str, rows: Sequence[Sequence[Argument]]) -> Pending:
        """Add an INSERT, UPDATE or DELETE that runs once for each list of parameters."""
        return self._add(SqlStatement(acting(sql, self._user), rows=[_values(row) for row in rows]))

    @property
    def results(self) -> list[Result]:
        """What each statement gave."""
        return [pending.result for pending in self._pending]

    def __len__(self) -> int:
        return len(self._statements)

    def request(self, namespace: str | None) -> SqlRequest:
        """Return the request to send."""
        return SqlRequest(namespace_id=namespace, statements=self._statements, atomic=True)

    def settle(self, response: SqlResponse) -> None:
        """Take the results over: the transaction is committed."""
        for pending, result in zip(self._pending, read_each(response), strict=True):
            pending.settle(result)

    def _add(self, statement: SqlStatement) -> Pending:
        pending = Pending()
        self._statements.append(statement)
        self._pending.append(pending)
        return pending


def one(sql: str, params: Sequence[Argument], namespace: str | None, user: str | None) -> SqlRequest:
    """Return the request for one SQL text."""
    return SqlRequest(acting(sql, user), _values(params) or None, namespace)


def many(sql: str, rows: Sequence[Sequence[Argument]], namespace: str | None, user: str | None) -> SqlRequest:
    """Return the request to run one statement for each of `rows`."""
    return SqlRequest(acting(sql, user), namespace_id=namespace, rows=[_values(row) for row in rows])


def acting(sql: str, user: str | None) -> str:
    """Return a statement as `user` would run it; None: as it is."""
    if user is None:
        return sql
    quoted = user.replace("'", "''")
    # A line break: the statement may end in a comment.
    return f"EXECUTE AS USER '{quoted}' ({sql.rstrip().removesuffix(';')}\n)"


def _values(params: Sequence[Argument]) -> list[Param]:
    # A text would be taken for its letters, a dict for its keys.
    if isinstance(params, (str, bytes, Mapping)) or not isinstance(params, Iterable):
        raise TypeError(
            f"parameters are a list of the values of $1, $2, …, not a {type(params).__name__}: write [value]"
        )
    return [encode_argument(value) for value in params]
