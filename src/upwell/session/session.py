"""The session: runs the statements of one request, each as one call into the engine.

Law: nothing is answered before it is durable and visible: a write waits until the publication has
reached its commit, and so does an error that may rest on somebody else's unpublished one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, assert_never

from upwell.clock import Clock
from upwell.engine.catalog import DEFAULT_NAMESPACE, Role
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.expression import Context
from upwell.engine.flush import Flush
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.engine.view import View
from upwell.errors import Conflict, InvalidOperation, InvalidSql, ReadOnly, RequestRefused, UpwellError
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.ids import ulid, uuid7
from upwell.jobs.queue import JobQueue
from upwell.session.accounts import Accounts
from upwell.session.auth import Authenticator
from upwell.session.call import Call
from upwell.session.definition import Definer
from upwell.session.live import kill_live
from upwell.session.maintenance import Maintenance
from upwell.session.outcome import Answer, Changed, Message, Outcome, PointAnswer, StatementFailed
from upwell.session.policy import (
    Principal,
    require_impersonation,
    require_statement,
)
from upwell.session.read import Reader
from upwell.session.threads import QueryThreads, SlowThreads
from upwell.session.write import Altered, Writer
from upwell.sql.parse import parse
from upwell.sql.prepare import Preparer
from upwell.sql.statements import (
    AddColumn,
    CreateNamespace,
    CreateTable,
    CreateUser,
    Delete,
    DropNamespace,
    DropTable,
    ExecuteAs,
    FlushTable,
    Insert,
    KillLive,
    Select,
    Statement,
    Update,
    UseNamespace,
)
from upwell.types import Value

T = TypeVar("T")

INLINE_CHARS_MAX = 64 * 1024
ATTEMPTS_MAX = 100


@dataclass(frozen=True, slots=True)
class Engine:
    """What a session calls; each part is independent of the others' users."""

    committer: Committer
    rows: Rows
    query: QueryEngine
    schema: Schema
    flush: Flush
    jobs: JobQueue
    defaults: Defaults
    clock: Clock


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
    ) -> None:
        self.engine = engine
        self.growth = growth
        self.threads = threads
        self.feed = feed
        self._preparer = preparer
        slow_threads = SlowThreads(slow)
        self._reader = Reader(engine.rows, engine.query, growth, threads, registry, feed)
        self._writer = Writer(
            engine.committer, engine.rows, engine.query, engine.defaults, growth, threads, self._reader
        )
        self._definer = Definer(engine.schema, engine.committer, engine.jobs, growth, slow_threads)
        self._accounts = Accounts(engine.schema, authenticator, growth, slow_threads, engine.clock)
        self._maintenance = Maintenance(engine.flush, engine.jobs, growth, slow_threads)

    async def execute(
        self, principal: Principal, sql: str, params: Sequence[Value], namespace: str | None
    ) -> list[Outcome]:
        """Run a request's statements in order; raise `StatementFailed` at the first that fails."""
        texts = await self._read(sql, partial(self._statements, sql))
        if params and len(texts) > 1:
            raise RequestRefused("PARAMS_WITH_BATCH", "parameters go with one statement, not with several")
        if len(texts) > 1 and not principal.is_admin:
            await self._read(sql, partial(self._judge, principal, texts))
        space = (namespace or DEFAULT_NAMESPACE).lower()
        outcomes: list[Outcome] = []
        for number, text in enumerate(texts, 1):
            try:
                outcome, space = await self._run(principal, text, params, space)
            except UpwellError as error:
                raise StatementFailed(number, text, await self._settled(error)) from error
            outcomes.append(outcome)
        return outcomes

    def context(self, principal: Principal) -> Context:
        """Return what a statement knows of its session, now."""
        clock = self.engine.clock
        return Context(
            user=principal.user,
            role=principal.role.value,
            now_us=clock.now_us(),
            next_id=self.engine.defaults.next_id,
            next_uuid=partial(uuid7, clock),
            next_ulid=partial(ulid, clock),
        )

    def _statements(self, sql: str) -> list[str]:
        try:
            return self._preparer.statements(sql)
        except InvalidSql as error:
            raise RequestRefused("BATCH_PARSE_ERROR", f"Failed to parse SQL batch: {error}") from error

    @staticmethod
    def _judge(principal: Principal, texts: Sequence[str]) -> None:
        """Refuse a batch as a whole for a statement that the role may not issue."""
        for number, text in enumerate(texts, 1):
            try:
                require_statement(principal, parse(text))
            except UpwellError as error:
                raise StatementFailed(number, text, error) from error

    async def _read(self, text: str, call: Callable[[], T]) -> T:
        """Run what reads `text`; a long one takes long, and the event loop serves others too."""
        if len(text) <= INLINE_CHARS_MAX:
            return call()
        return await self.threads.run(lambda stop: call())

    async def _settled(self, error: UpwellError) -> UpwellError:
        """Return the error when what it may rest on is durable, `ReadOnly` if that never will be."""
        try:
            await self.growth.reached(self.engine.committer.last_seq)
        except ReadOnly as failure:
            return failure
        return error

    async def _run(
        self, principal: Principal, text: str, params: Sequence[Value], namespace: str
    ) -> tuple[Outcome, str]:
        for _ in range(ATTEMPTS_MAX):
            with suppress(Altered):  # its names mean the table of before: they are looked up again
                return await self._run_bound(principal, text, params, namespace)
        raise Conflict("the table of this statement keeps changing; run it again")

    async def _run_bound(
        self, principal: Principal, text: str, params: Sequence[Value], namespace: str
    ) -> tuple[Outcome, str]:
        view = self.growth.view
        prepare = partial(self._preparer.prepare, text, view.catalog, namespace, params)
        statement, values = await self._read(text, prepare)
        if isinstance(statement, UseNamespace):
            name = statement.name
            if name not in view.catalog.namespaces:
                raise InvalidOperation(f"namespace '{name}' does not exist; CREATE NAMESPACE makes it")
            return Outcome(Message(f"Namespace switched to '{name}'"), principal.user), name
        as_user = principal
        if isinstance(statement, ExecuteAs):
            as_user = self._impersonated(principal, statement.user, view)
            statement = statement.statement
        call = Call(as_user, values, namespace, partial(self.context, as_user))
        return Outcome(await self._dispatch(call, statement), as_user.user), namespace

    async def _dispatch(self, call: Call, statement: Statement) -> Message | Changed | Answer | PointAnswer:
        match statement:
            case Select():
                return await self._reader.select(call, statement)
            case Insert() | Update() | Delete():
                return await self._writer.write(call, statement)
            case CreateNamespace() | DropNamespace() | CreateTable() | DropTable() | AddColumn():
                return await self._definer.define(call, statement)
            case CreateUser():
                return await self._accounts.create(call, statement)
            case FlushTable():
                return await self._maintenance.flush_table(call, statement)
            case KillLive(live_id):
                return Message(kill_live(call.principal, self.feed, live_id))
            case UseNamespace() | ExecuteAs():
                raise AssertionError("unwrapped before")
            case _:
                assert_never(statement)

    @staticmethod
    def _impersonated(principal: Principal, target: str, view: View) -> Principal:
        user = view.catalog.users.get(target)
        require_impersonation(principal, target, user.role if user else Role.USER)
        return Principal(target, Role.USER)
