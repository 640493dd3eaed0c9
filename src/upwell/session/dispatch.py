"""Which part of the session runs a statement: one match over all of them."""

from concurrent.futures import Executor
from functools import partial
from typing import assert_never

from upwell.engine.query_schema import QuerySchema
from upwell.engine.storages import StorageSchema
from upwell.engine.values import RowCheck
from upwell.errors import InvalidSql
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.session.accounts import Accounts
from upwell.session.auth import Authenticator
from upwell.session.call import Call
from upwell.session.definition import Definer
from upwell.session.engine import Engine
from upwell.session.limit import RowLimits
from upwell.session.live import kill_live
from upwell.session.maintenance import Maintenance
from upwell.session.named import QueryDefiner
from upwell.session.outcome import Answer, Message, Result
from upwell.session.policy import Principal, require_admin
from upwell.session.read import Reader
from upwell.session.server import Server
from upwell.session.stats import TableStats
from upwell.session.storages import StorageDefiner
from upwell.session.subscribe import Invitation
from upwell.session.system import made
from upwell.session.threads import QueryThreads, SlowThreads
from upwell.session.transaction import Transactions
from upwell.session.watch import Look
from upwell.session.write import Writer
from upwell.sql.maintenance import (
    AlterStorage,
    BackupDatabase,
    CheckStorage,
    ClusterAction,
    CompactAll,
    CompactTable,
    CreateStorage,
    DropStorage,
    FlushAll,
    FlushTable,
    KillJob,
    KillLive,
    RestoreDatabase,
    RetryJob,
    ShowStats,
)
from upwell.sql.owners import PREFIX
from upwell.sql.statements import (
    AlterNamespace,
    AlterTable,
    AlterUser,
    Begin,
    Commit,
    CreateNamespace,
    CreateTable,
    CreateUser,
    CreateView,
    Delete,
    DropNamespace,
    DropTable,
    DropUser,
    DropView,
    ExecuteAs,
    Insert,
    Rollback,
    Select,
    SetJobStatus,
    SetOption,
    Statement,
    Update,
    UseNamespace,
)
from upwell.sql.subscribe import SubscribeTo


class Dispatch:
    """Runs statements. `threads` runs queries and long writes, `slow` what is slow on purpose or waits."""

    def __init__(
        self,
        engine: Engine,
        growth: Growth,
        authenticator: Authenticator,
        threads: QueryThreads,
        slow: Executor,
        registry: Registry,
        feed: LiveFeed,
        transactions: Transactions,
        limits: RowLimits,
        look: Look,
    ) -> None:
        audit, clock, committer = engine.audit, engine.clock, engine.committer
        self._audit = audit
        self._growth = growth
        self._threads = threads
        self._feed = feed
        self._limits = limits
        slow_threads = SlowThreads(slow)
        self._server = Server(engine.facts, clock, feed, registry, engine.rows)
        self.reader = Reader(
            engine.rows, engine.query, growth, threads, registry, feed, transactions, self._server
        )
        self.writer = Writer(
            committer, engine.rows, engine.query, engine.defaults, growth, threads, self.reader
        )
        nulls = RowCheck(engine.rows, engine.query)
        self._definer = Definer(
            engine.schema, nulls, committer, engine.jobs, audit, growth, slow_threads, clock
        )
        self._queries = QueryDefiner(QuerySchema(committer, clock), self.reader, audit, growth, threads)
        self._accounts = Accounts(
            engine.schema, authenticator, audit, engine.sign_ins, growth, slow_threads, clock
        )
        self._invitation = Invitation(feed, growth, threads, look, engine.facts.api_address)
        self._stats = TableStats(engine.rows, engine.query, feed)
        self._storages = StorageDefiner(
            StorageSchema(committer, clock), engine.storages, audit, growth, slow_threads, clock
        )
        self._maintenance = Maintenance(
            engine.flush, engine.jobs, growth, slow_threads, engine.storages.root.parent
        )

    async def resume(self) -> None:
        """Finish what statements of an earlier run of the server have left half done."""
        await self._storages.vacate()

    async def run(self, call: Call, statement: Statement) -> Result:
        """Run a statement, as whom and with what `call` says."""
        match statement:
            case Select():
                return await self._select(call, statement)
            case Insert() | Update() | Delete():
                return await self.writer.write(call, statement)
            case CreateNamespace() | AlterNamespace() | DropNamespace():
                return await self._definer.define(call, statement)
            case CreateTable() | AlterTable() | DropTable():
                return await self._definer.define(call, statement)
            case CreateView() | DropView():
                return await self._queries.define(call, statement)
            case ClusterAction(action, target, refusal):
                require_admin(call.principal, "cluster management")
                if refusal is not None:
                    raise InvalidSql(refusal)
                return Answer(made(*self._server.cluster_done(self._growth.view, action, target)))
            case ShowStats(table):
                show = partial(self._stats.show, self._growth.view, call.principal, table)
                return Answer(await self._threads.run(show))
            case CreateUser() | AlterUser() | DropUser():
                return await self._accounts.run(call, statement)
            case FlushTable() | FlushAll():
                return await self._maintenance.flush(call, statement)
            case BackupDatabase() | RestoreDatabase():
                return await self._archive(call, statement)
            case CompactTable() | CompactAll():
                return await self._maintenance.compact(call, statement)
            case KillJob() | RetryJob() | SetJobStatus():
                return await self._maintenance.steer(call, statement)
            case CreateStorage() | AlterStorage() | DropStorage() | CheckStorage():
                return await self._storages.run(call, statement)
            case KillLive(live_id):
                return await self._kill_live(call, live_id)
            case SubscribeTo():
                return await self._invitation.tell(call, statement)
            case SetOption(name):
                require_admin(call.principal, "SET statements")
                raise InvalidSql(f"SET {name[:100]} would have no effect")
            case UseNamespace() | ExecuteAs() | Begin() | Commit() | Rollback():
                raise AssertionError("unwrapped before")
            case _:
                assert_never(statement)

    async def _select(self, call: Call, statement: Select) -> Result:
        if statement.explains:
            require_admin(call.principal, "EXPLAIN statements")
        noted = self._note_reading(call.principal, statement.others)
        found = await self.reader.select(call, statement)
        await self._growth.reached(noted)
        if isinstance(found, Answer) and not (statement.is_open or statement.explains):
            return self._limits.cut(found, statement.text)
        return found

    async def _archive(self, call: Call, statement: BackupDatabase | RestoreDatabase) -> Result:
        told = await self._maintenance.archive(call, statement)
        action = "BACKUP_DATABASE" if isinstance(statement, BackupDatabase) else "RESTORE_DATABASE"
        noted = self._audit.append(call.principal.user, action, statement.path)
        await self._growth.reached(noted)
        return told

    async def _kill_live(self, call: Call, live_id: str) -> Result:
        text = kill_live(call.principal, self._feed, live_id)
        await self._growth.reached(self._audit.append(call.principal.user, "KILL_LIVE_QUERY", live_id))
        return Message(text)

    def _note_reading(self, principal: Principal, names: frozenset[str]) -> int:
        """Write down that the rows of all users are read; return the seq that the answer has to wait for."""
        seq = 0
        for name in sorted(names):
            require_admin(principal, "the rows of all users")
            seq = self._audit.append(principal.user, "READ_ALL_OWNERS", name.removeprefix(PREFIX))
        return seq
