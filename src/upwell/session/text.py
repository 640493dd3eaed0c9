"""The texts of a request: its statements, checked as a whole before the first one runs.

Law: a statement that is none, or that the role may not issue, lets nothing of its request run. A long text
is read in a query thread, so that the event loop serves others too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from upwell.engine.catalog import Catalog
from upwell.engine.query import QueryEngine
from upwell.errors import InvalidInput, InvalidSql, RequestRefused, UpwellError
from upwell.session.outcome import StatementFailed
from upwell.session.policy import Principal, require_statement
from upwell.session.request import Asked
from upwell.session.threads import QueryThreads
from upwell.sql.advice import advised
from upwell.sql.prepare import Preparer, query_in
from upwell.sql.shape import Lifted
from upwell.sql.statements import Insert, Statement
from upwell.types import Value

KNOWN_CHARS_MAX = 64 * 1024
"""Whether a text was seen before is found out at once up to here, by one scan."""
ALIKE_MIN, ALIKE_MAX = 3, 200
"""How many inserts that differ in their values only are run as one."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Reads the texts of requests."""

    preparer: Preparer
    query: QueryEngine
    threads: QueryThreads

    async def split(self, sql: str) -> list[tuple[str, Lifted | None]]:
        """Return the statements of a text, with their shapes."""
        return await self.threads.read(len(sql), partial(self._statements, sql))

    def find(
        self, sql: str, params: Sequence[Value], catalog: Catalog, namespace: str
    ) -> tuple[Statement, Sequence[Value]] | None:
        """Return the only statement of a short text and its values if it was seen before, else None."""
        return self.preparer.find(sql, catalog, namespace, params) if len(sql) <= KNOWN_CHARS_MAX else None

    async def single(self, sql: str) -> str:
        """Return the text of one statement; raise `InvalidInput` for none or several."""
        texts = await self.split(sql)
        if len(texts) != 1:
            found = "none" if not texts else "several"
            raise InvalidInput(f"each text is one statement, and this has {found}: {sql[:60]}")
        return texts[0][0]

    async def check(self, principal: Principal, asked: Sequence[Asked]) -> None:
        """Raise if one of several statements is none, or if the role may not issue it."""
        chars = sum(len(one.sql) for one in asked)
        await self.threads.read(chars, partial(self._check, principal, asked))

    async def prepare(
        self, asked: Asked, catalog: Catalog, namespace: str
    ) -> tuple[Statement, Sequence[Value]]:
        """Return a statement and its values."""
        prepare = partial(
            self.preparer.prepare, asked.sql, catalog, namespace, asked.params, asked.rows, asked.lifted
        )
        return await self.threads.read(len(asked.sql), prepare)

    def alike(
        self, asked: Sequence[Asked], done: int, catalog: Catalog, namespace: str
    ) -> tuple[Insert, list[list[Value]]] | None:
        """Return the INSERT that is next, with its values and those of the next ones that are like it."""
        first = asked[done].lifted
        statement = None if first is None else self.preparer.prepare_insert(first, catalog, namespace)
        if first is None or statement is None:
            return None
        rows: list[list[Value]] = []
        types = [type(value) for value in first[1]]
        for one in asked[done : done + ALIKE_MAX]:
            lifted = one.lifted
            if lifted is None or lifted[0] != first[0] or [type(value) for value in lifted[1]] != types:
                break
            rows.append(lifted[1])
        return (statement, rows) if len(rows) >= ALIKE_MIN else None

    def _statements(self, sql: str) -> list[tuple[str, Lifted | None]]:
        try:
            return self.preparer.statements(sql)
        except InvalidSql as error:
            raise RequestRefused("BATCH_PARSE_ERROR", f"Failed to parse SQL batch: {error}") from error

    def _check(self, principal: Principal, asked: Sequence[Asked]) -> None:
        for number, one in enumerate(asked, 1):
            try:
                tree = self.preparer.check(one.sql, one.lifted)
                if tree is not None:
                    query = query_in(tree)
                    if query is not None:
                        self.query.scout.refuse_bad_grammar(query)
                    require_statement(principal, tree)
                    self.preparer.note_checked(one.lifted)
            except InvalidSql as error:
                told = advised(str(error), one.sql, is_grammar=True)
                raise RequestRefused("BATCH_PARSE_ERROR", f"Failed to parse SQL batch: {told}") from error
            except UpwellError as error:
                raise StatementFailed(number, one.sql, error) from error
