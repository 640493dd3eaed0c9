"""The session: runs the statements of one request in order, each as one call into the engine.

Law: nothing is answered before it is durable and visible: a write waits until the publication has
reached its commit, and so does an error that may rest on somebody else's unpublished one.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial

import pyarrow as pa
from msgspec import structs

from upwell.engine.catalog import DEFAULT_NAMESPACE, Role
from upwell.engine.expression import Context
from upwell.engine.rows import WouldBlock
from upwell.engine.view import View
from upwell.errors import (
    Conflict,
    InvalidInput,
    InvalidOperation,
    PermissionDenied,
    ReadOnly,
    RequestRefused,
    UpwellError,
)
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.ids import ulid, uuid7
from upwell.session.auth import Authenticator
from upwell.session.call import Call
from upwell.session.dispatch import Dispatch
from upwell.session.engine import Engine
from upwell.session.limit import NO_LIMITS, RowLimits
from upwell.session.outcome import Answer, Outcome, Result, StatementFailed, Streamed
from upwell.session.policy import Principal, require_admin, require_impersonation
from upwell.session.request import Asked, Request
from upwell.session.text import Texts
from upwell.session.threads import QueryThreads
from upwell.session.transaction import Transaction, Transactions
from upwell.session.write import Altered
from upwell.sql.prepare import Preparer
from upwell.sql.statements import (
    Begin,
    Commit,
    Delete,
    ExecuteAs,
    Insert,
    Rollback,
    Select,
    Statement,
    Update,
    UseNamespace,
)
from upwell.storage.hot import ExpectationFailed
from upwell.types import Value

ATTEMPTS_MAX = 100
STATEMENTS_A_TURN = 100
"""After so many of a transaction the event loop serves others too."""


class Sessions:
    """Runs requests. `threads` runs queries and long writes, `slow` what is slow on purpose or waits."""

    def __init__(
        self,
        engine: Engine,
        growth: Growth,
        preparer: Preparer,
        authenticator: Authenticator,
        threads: QueryThreads,
        slow: Executor,
        registry: Registry,
        feed: LiveFeed,
        limits: RowLimits = NO_LIMITS,
    ) -> None:
        self.engine = engine
        self._limits = limits
        self._next_uuid = partial(uuid7, engine.clock)
        self._next_ulid = partial(ulid, engine.clock)
        self.growth = growth
        self.threads = threads
        self.feed = feed
        self.transactions = Transactions(engine.rows, engine.query, engine.clock)
        self._texts = Texts(preparer, engine.query, threads)
        self._dispatch = Dispatch(
            engine, growth, authenticator, threads, slow, registry, feed, self.transactions, limits, self.look
        )

    async def resume(self) -> None:
        """Finish what statements of an earlier run of the server have left half done."""
        await self._dispatch.resume()

    async def execute(
        self, principal: Principal, sql: str, params: Sequence[Value], namespace: str | None
    ) -> list[Outcome]:
        """Run the statements of a text in order; raise `StatementFailed` at the first that fails."""
        known = await self._run_known(principal, sql, params, (namespace or DEFAULT_NAMESPACE).lower())
        if known is not None:
            return [known]
        texts = await self._texts.split(sql)
        if params and len(texts) > 1:
            raise RequestRefused("PARAMS_WITH_BATCH", "parameters go with one statement, not with several")
        asked = [Asked(text, params, lifted=lifted) for text, lifted in texts]
        return await self.run(principal, asked, namespace)

    async def _run_known(
        self, principal: Principal, sql: str, params: Sequence[Value], namespace: str
    ) -> Outcome | None:
        """Do what `run` does, if the text is one plain statement that was seen before; else None.

        What takes several statements, other names or a transaction is left out: most requests need none.
        """
        view = self.growth.view
        try:
            known = self._texts.find(sql, params, view.catalog, namespace)
            if known is None:
                return None
            statement, values = known
            call = Call(principal, values, namespace, partial(self.context, principal))
            if isinstance(statement, (Insert, Update, Delete)):
                return Outcome(await self._dispatch.writer.write(call, statement), principal.user)
            if isinstance(statement, Select) and not statement.explains:
                found = self._dispatch.reader.find_at_once(call, statement, view)
                if isinstance(found, Answer):
                    found = self._limits.cut(found, statement.text)
                return None if found is None else Outcome(found, principal.user)
        except (Altered, ExpectationFailed, WouldBlock):
            pass
        except UpwellError as error:
            raise StatementFailed(1, sql, await self._settled(error)) from error
        return None

    async def stream(
        self, principal: Principal, sql: str, params: Sequence[Value], namespace: str | None
    ) -> Streamed:
        """Run one query and return its rows as a stream; raise `StatementFailed` if it is none, or fails."""
        text = await self._texts.single(sql)
        (outcome,) = await self.run(principal, [Asked(text, params, streams=True)], namespace)
        assert isinstance(outcome.result, Streamed), "a query was asked to stream"
        return outcome.result

    async def run_each(
        self, principal: Principal, asked: Sequence[Asked], namespace: str | None, *, atomic: bool
    ) -> list[Outcome]:
        """Run statements that come one by one, each with its own values; see `run`."""
        single = [structs.replace(one, sql=await self._texts.single(one.sql)) for one in asked]
        return await self.run(principal, single, namespace, atomic=atomic)

    async def run(
        self, principal: Principal, asked: Sequence[Asked], namespace: str | None, *, atomic: bool = False
    ) -> list[Outcome]:
        """Run statements in order, `atomic` all or none; raise `StatementFailed` at the first that fails."""
        if len(asked) > 1:
            await self._texts.check(principal, asked)
        request = Request(
            principal,
            (namespace or DEFAULT_NAMESPACE).lower(),
            self._next_uuid,
            self.transactions,
            self._dispatch.writer,
            self.growth,
        )
        try:
            if atomic:
                request.open(is_explicit=False)
            done = turn = 0
            while done < len(asked):
                done += await self._run_next(request, asked, done)
                if done >= turn + STATEMENTS_A_TURN:
                    turn = done
                    await asyncio.sleep(0)
            await request.finish()
        finally:
            request.close()
        return request.outcomes

    async def look(self, principal: Principal, text: str) -> pa.Table:
        """Run a query that reads system tables; only administrators may."""
        require_admin(principal, "live queries of system tables")
        call = Call(principal, (), DEFAULT_NAMESPACE, partial(self.context, principal))
        answer = await self._dispatch.reader.select(call, Select(text, None))
        assert isinstance(answer, Answer), "no point read was asked for"
        return answer.table

    def context(self, principal: Principal) -> Context:
        """Return what a statement knows of its session, now."""
        clock = self.engine.clock
        return Context(
            user=principal.user,
            role=principal.role.value,
            now_us=clock.now_us(),
            next_id=self.engine.defaults.next_id,
            next_uuid=self._next_uuid,
            next_ulid=self._next_ulid,
        )

    async def _settled(self, error: UpwellError) -> UpwellError:
        """Return the error when what it may rest on is durable, `ReadOnly` if that never will be."""
        try:
            await self.growth.reached(self.engine.committer.last_seq)
        except ReadOnly as failure:
            return failure
        return error

    async def _run_next(self, request: Request, asked: Sequence[Asked], done: int) -> int:
        """Run the statement after those that are done, or a run of inserts at once; return how many."""
        transaction = request.transaction
        if transaction is not None and request.may_join:
            alike = self._texts.alike(asked, done, transaction.view.catalog, request.namespace)
            outcome = None if alike is None else await self._run_alike(request, transaction, *alike)
            if alike is not None and outcome is not None:
                request.outcomes.append(outcome)
                return len(alike[1])
        try:
            request.outcomes.append(await self._run(request, asked[done]))
        except UpwellError as error:
            raise StatementFailed(done + 1, asked[done].sql, await self._settled(error)) from error
        return 1

    async def _run_alike(
        self, request: Request, transaction: Transaction, statement: Insert, rows: Sequence[Sequence[Value]]
    ) -> Outcome | None:
        """Run inserts that differ in their values only; None, with nothing staged, if one of them fails."""
        principal = request.principal
        context = partial(self.context, principal)
        call = Call(principal, (), request.namespace, context, transaction, rows)
        savepoint = transaction.write.savepoint()
        try:
            return Outcome(await self._run_staged(transaction, call, statement), principal.user)
        except UpwellError:
            # One by one they show which of them fails.
            transaction.write.roll_back(savepoint)
            request.may_join = False
            return None

    async def _run(self, request: Request, asked: Asked) -> Outcome:
        for _ in range(ATTEMPTS_MAX):
            # The names of the statement mean the table of before: they are looked up again.
            with suppress(Altered, ExpectationFailed):
                return await self._run_bound(request, asked)
        raise Conflict("the table of this statement keeps changing; run it again")

    async def _run_bound(self, request: Request, asked: Asked) -> Outcome:
        view, principal = request.view, request.principal
        statement, values = await self._texts.prepare(asked, view.catalog, request.namespace)
        noted = 0
        match statement:
            case UseNamespace(name):
                return Outcome(request.use(name), principal.user)
            case Begin():
                return Outcome(request.begin(), principal.user)
            case Commit():
                return Outcome(await request.commit(), principal.user)
            case Rollback():
                return Outcome(request.roll_back(), principal.user)
            case ExecuteAs(user, inner):
                statement = inner
                principal, noted = self._impersonated(principal, user, view, type(inner).__name__.upper())
            case _:
                pass
        context = partial(self.context, principal)
        if asked.streams and not isinstance(statement, Select):
            raise InvalidInput("only a query gives a stream; ask for the rest by Accept: application/json")
        call = Call(
            principal, values, request.namespace, context, request.transaction, asked.rows, asked.streams
        )
        if request.transaction is not None:
            result = await self._run_staged(request.transaction, call, statement)
        else:
            result = await self._dispatch.run(call, statement)
        # What somebody did for somebody else isn't answered before the audit log has it.
        await self.growth.reached(noted)
        return Outcome(result, principal.user)

    async def _run_staged(self, transaction: Transaction, call: Call, statement: Statement) -> Result:
        if not isinstance(statement, (Select, Insert, Update, Delete)):
            raise InvalidOperation(
                "a transaction takes SELECT, INSERT, UPDATE and DELETE; run what else there is outside of it"
            )
        transaction.begin_statement()
        result = await self._dispatch.run(call, statement)
        transaction.end_statement()
        return result

    def _impersonated(
        self, principal: Principal, target: str, view: View, statement: str
    ) -> tuple[Principal, int]:
        """Return whom the statement runs as, and the seq of the audit log's entry, also if it is refused."""
        if target == principal.user:
            return Principal(target, Role.USER), 0
        user = view.catalog.users.get(target)
        audit = partial(self.engine.audit.append, principal.user, subject=target)
        try:
            require_impersonation(principal, target, user.role if user else Role.USER)
        except PermissionDenied:
            details = {"statement": statement, "reason": "role_not_allowed"}
            audit("EXECUTE_AS_USER_DENIED", target, details=details)
            raise
        return Principal(target, Role.USER), audit(
            "EXECUTE_AS_USER", target, details={"statement": statement}
        )
