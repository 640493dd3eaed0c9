"""The session: runs the statements of one request, each as one call into the engine.

Law: nothing is answered before it is durable and visible: a write waits until the publication has
reached its commit, and so does an error that may rest on somebody else's unpublished one. Short writes
are evaluated and applied at once under the write lock; long ones on a View in a worker thread, again if
somebody was faster.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, assert_never

import pyarrow as pa

from upwell.clock import Clock
from upwell.engine.catalog import DEFAULT_NAMESPACE, Reference, Role, Table, User
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.expression import Context, find_key
from upwell.engine.flush import Flush
from upwell.engine.query import QueryEngine, Resolve, Source
from upwell.engine.references import Children
from upwell.engine.result import refuse_not_finite, result_rows
from upwell.engine.rows import Rows, WouldBlock
from upwell.engine.schema import Schema
from upwell.engine.stop import Stop
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.errors import Conflict, InvalidOperation, InvalidSql, ReadOnly, RequestRefused, UpwellError
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.ids import ulid, uuid7
from upwell.jobs.queue import JobQueue, JobType
from upwell.session import definition
from upwell.session.auth import Authenticator, refuse_password
from upwell.session.depth import refuse_deep
from upwell.session.dml import Evaluation, Foreign, RunQuery, evaluate
from upwell.session.live import kill_live
from upwell.session.order import ordered
from upwell.session.outcome import Answer, Changed, Message, Outcome, PointAnswer, StatementFailed
from upwell.session.point import point_answer
from upwell.session.policy import (
    Action,
    Principal,
    require_admin,
    require_flush,
    require_impersonation,
    require_statement,
    require_table,
)
from upwell.session.source import resolve
from upwell.session.threads import QueryThreads
from upwell.sql.parse import parse
from upwell.sql.prepare import Preparer
from upwell.sql.render import render
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
    PointRead,
    Select,
    Statement,
    Update,
    UseNamespace,
)
from upwell.storage.hot import ExpectationFailed
from upwell.types import Key, Owner, Value

T = TypeVar("T")

INLINE_ROWS_MAX = 300
INLINE_CHARS_MAX = 64 * 1024
LOCK_WAIT_S_MAX = 0.002
ATTEMPTS_MAX = 100
_VERBS = {Insert: "Inserted", Update: "Updated", Delete: "Deleted"}


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


class _Altered(Exception):
    """The statement's table isn't what it was bound to any more; nothing has been done."""


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
        self.authenticator = authenticator
        self.threads = threads
        self.slow = slow
        self.registry = registry
        self.feed = feed
        self._preparer = preparer

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
            with suppress(_Altered):  # its names mean the table of before: they are looked up again
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
        run = _Run(self, as_user, values, namespace)
        return Outcome(await run.run(statement), as_user.user), namespace

    @staticmethod
    def _impersonated(principal: Principal, target: str, view: View) -> Principal:
        user = view.catalog.users.get(target)
        require_impersonation(principal, target, user.role if user else Role.USER)
        return Principal(target, Role.USER)


class _Run:
    """One statement of one request."""

    def __init__(
        self, sessions: Sessions, principal: Principal, values: Sequence[Value], namespace: str
    ) -> None:
        self._sessions = sessions
        self._engine = sessions.engine
        self._growth = sessions.growth
        self._principal = principal
        self._values = values
        self._namespace = namespace

    async def run(self, statement: Statement) -> Message | Changed | Answer | PointAnswer:
        match statement:
            case Select():
                return await self._select(statement)
            case Insert() | Update() | Delete():
                return await self._write(statement)
            case ExecuteAs():
                return await self.run(statement.statement)
            case CreateNamespace() | DropNamespace() | CreateTable() | DropTable() | AddColumn():
                return await self._define(statement)
            case CreateUser():
                return await self._create_user(statement)
            case FlushTable():
                return await self._flush_table(statement)
            case KillLive(live_id):
                return Message(kill_live(self._principal, self._sessions.feed, live_id))
            case UseNamespace():
                raise AssertionError("handled by the request")
            case _:
                assert_never(statement)

    async def _select(self, statement: Select) -> Answer | PointAnswer:
        view = self._growth.view
        if statement.point is not None and statement.point.key.node is not None:
            table = statement.point.table
            require_table(self._principal, Action.READ, table)
            try:
                return self._point(statement.point, view, may_block=False)
            except WouldBlock:
                point = partial(self._point, statement.point, view, may_block=True)
                return await self._sessions.threads.run(lambda stop: point())
        table = await self._sessions.threads.run(partial(self._query, view, statement))
        refuse_not_finite(table)
        return Answer(table)

    def _point(self, point: PointRead, view: View, *, may_block: bool) -> PointAnswer:
        owner = point.table.owner_for(self._principal.user)
        key_column = point.table.columns[point.table.key_index]
        key = find_key(evaluate(point.key.node, [], self._values, self._context()), key_column)
        if key is None:
            return point_answer(point, None)
        found = self._engine.rows.find(view.hot, point.table, owner, key, may_block=may_block)
        return point_answer(point, found.live)

    def _query(self, view: View, statement: Select, stop: Stop) -> pa.Table:
        text = render(statement.text, self._values, self._context())
        refuse_deep(text)
        resolver = self._resolver(view, is_open=statement.is_open)
        tables = self._engine.query.tables_in(text, self._namespace, resolver)
        return ordered(
            text,
            [resolver(*name) for name in tables],
            lambda final: self._engine.query.run(view, final, self._namespace, tables, resolver, stop=stop),
            cold_rows=lambda source: self._cold_rows(view, source),
        )

    def _cold_rows(self, view: View, source: Source) -> int:
        partition = self._engine.rows.cold_partition(view.hot, source.table, source.owner)
        return 0 if partition is None else partition.row_count_max

    def _resolver(self, view: View, *, is_open: bool = False) -> Resolve:
        return partial(resolve, view, self._principal, self._sessions.registry, self._sessions.feed, is_open)

    async def _write(self, statement: Insert | Update | Delete) -> Changed:
        require_table(self._principal, Action.WRITE, statement.table)
        done = None
        if not self._must_defer(statement):
            done = self._write_inline(statement)
        if done is None:
            done = await self._write_deferred(statement)
        seq, count = done
        await self._growth.reached(seq)
        return Changed(_VERBS[type(statement)], count)

    def _must_defer(self, statement: Insert | Update | Delete) -> bool:
        """Whether the statement is long or looks at other rows than those that it names."""
        match statement:
            case Insert(_, _, rows, query):
                return query is not None or len(rows) > INLINE_ROWS_MAX
            case Update(table, assignments):
                key_index = table.key_index
                moves = any(index == key_index for index, _ in assignments)
                return moves and table.id in self._growth.view.catalog.children
            case Delete(table):
                return table.id in self._growth.view.catalog.children

    def _write_inline(self, statement: Insert | Update | Delete) -> tuple[int, int] | None:
        """Evaluate on the newest state and apply, all under the lock; None if that would take too long."""
        committer = self._engine.committer
        if not committer.lock.acquire(timeout=LOCK_WAIT_S_MAX):
            return None  # a worker thread commits many rows
        try:
            write = Write(
                self._engine.rows,
                committer.newest,
                committer.newest_catalog,
                may_block=False,
                find_children=_no_children,
                view_seq=0,
            )
            count = self._evaluate(statement, write, None)
            # Nothing to write is also an answer about the newest state: it waits for that one's sync.
            batch = write.batch
            seq = committer.apply(batch) if batch.rows else committer.last_seq
        except (WouldBlock, Foreign, ExpectationFailed):
            return None
        finally:
            committer.lock.release()
        return seq, count

    async def _write_deferred(self, statement: Insert | Update | Delete) -> tuple[int, int]:
        committer = self._engine.committer
        for _ in range(ATTEMPTS_MAX):
            view = await self._growth.reached(committer.last_seq)
            try:
                return await self._sessions.threads.run(partial(self._write_on, view, statement))
            except ExpectationFailed:
                self._refuse_stale(statement.table)
        raise Conflict("the rows of this statement keep changing; run it again")

    def _refuse_stale(self, table: Table) -> None:
        """Names were resolved with a table that was changed, dropped or made anew since."""
        if self._engine.committer.newest_catalog.tables.get((table.namespace, table.name)) != table:
            raise _Altered

    def _write_on(self, view: View, statement: Insert | Update | Delete, stop: Stop) -> tuple[int, int]:
        write = Write(
            self._engine.rows,
            view.hot,
            view.catalog,
            may_block=True,
            find_children=Children(self._engine.query, view),
            view_seq=view.seq,
        )
        count = self._evaluate(statement, write, partial(self._rows_of, view, stop))
        stop.take_effect()
        batch = write.batch
        return (self._engine.committer.apply(batch) if batch.rows else view.seq), count

    def _evaluate(self, statement: Insert | Update | Delete, write: Write, run_query: RunQuery | None) -> int:
        owner = statement.table.owner_for(self._principal.user)
        evaluation = Evaluation(write, owner, self._values, self._context(), self._engine.defaults, run_query)
        match statement:
            case Insert():
                return evaluation.insert(statement)
            case Update():
                return evaluation.update(statement)
            case Delete():
                return evaluation.delete(statement)

    def _rows_of(self, view: View, stop: Stop, text: str) -> list[tuple[Value, ...]]:
        text = render(text, self._values, self._context())
        refuse_deep(text)
        resolver = self._resolver(view)
        tables = self._engine.query.tables_in(text, self._namespace, resolver)
        found = self._engine.query.run(view, text, self._namespace, tables, resolver, stop=stop)
        return list(result_rows(found))

    async def _define(self, statement: definition.Definition) -> Message:
        defined = definition.define(
            statement, self._principal, self._engine.schema, self._growth.view.catalog
        )
        # Nothing to do is also an answer about the newest state: it waits for that one's sync.
        await self._growth.reached(defined.seq or self._engine.committer.last_seq)
        text = defined.text
        for table in defined.dropped:
            job = await self._in_slow_thread(partial(self._engine.jobs.submit_cleanup, table))
            text += f". Cleanup job: {job.job_id}" if job and isinstance(statement, DropTable) else ""
        return Message(text)

    async def _create_user(self, statement: CreateUser) -> Message:
        require_admin(self._principal, "user management")
        if statement.role is Role.SYSTEM and self._principal.role is not Role.SYSTEM:
            raise InvalidOperation("only role system can create users of role system")
        password_hash = None
        if statement.password is not None:
            refuse_password(statement.password)
            password_hash = await self._in_slow_thread(
                partial(self._sessions.authenticator.hash_password, statement.password)
            )
        now = self._engine.clock.now_us()
        user = User(statement.name, statement.role, password_hash, statement.email, "password", now, now)
        await self._growth.reached(self._engine.schema.create_user(user))
        return Message(f"User '{statement.name}' created")

    async def _flush_table(self, statement: FlushTable) -> Message:
        require_flush(self._principal)
        table, name = statement.table, statement.table.full_name
        # A barrier: what was acknowledged before this statement is in the View that the job flushes.
        if not self._engine.flush.is_pending(self._growth.view, table):
            return Message(f"Storage flush skipped: no pending writes for table '{name}'")
        parameters: dict[str, str | int] = {
            "table_id": name,
            "table_number": table.id,
            "table_type": table.kind.value,
        }
        key = f"flush-{table.namespace}-{table.name}"
        job = await self._in_slow_thread(partial(self._engine.jobs.submit, JobType.FLUSH, parameters, key))
        if job is None:
            return Message(f"Storage flush skipped: a flush is already queued or running for table '{name}'")
        return Message(f"Storage flush started for table '{name}'. Job ID: {job.job_id}")

    def _context(self) -> Context:
        return self._sessions.context(self._principal)

    async def _in_slow_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._sessions.slow, call)


def _no_children(
    child: Table, owner: Owner, reference: Reference, keys: Sequence[Key]
) -> Iterable[tuple[Key, Key]]:
    raise Foreign  # a table that refers to this one was made since the View
