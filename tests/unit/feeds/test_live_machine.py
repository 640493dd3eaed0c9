"""The oracle of live queries: whatever happens, what a client holds is the SELECT, as SQLite evaluates it.

A machine plays random statements of several users on USER, SHARED and STREAM tables, with transactions,
flushes, compaction, time, ALTER and DROP, while clients subscribe with random predicates, stall, and come
back from any cursor. After each step each client's fold is compared.
"""

import asyncio
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from upwell.clock import ManualClock
from upwell.engine.changelog import TAIL_CHANGES_MAX
from upwell.engine.commit import Durability
from upwell.feeds import behind, live, snapshot
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded
from upwell.testing.fleet import memory_directory
from upwell.testing.inprocess import OneThread
from upwell.testing.live import Subscriber
from upwell.testing.live_oracle import (
    COLUMNS,
    KINDS,
    SIZES,
    Oracle,
    Row,
    a_predicate,
    derived,
    literal,
    some_rows,
)  # fmt: skip

USERS = ("ann", "ben")
TTL_S = 10
OPTIONS = {
    "mine": "TYPE = 'USER'",
    "ours": "TYPE = 'SHARED', ACCESS_LEVEL = 'PUBLIC'",
    "brief": f"TYPE = 'STREAM', TTL_SECONDS = {TTL_S}",
}
CLIENTS_MAX = 3
FLUSHES_MAX = 1

T = TypeVar("T")

kinds, sizes, ids = st.sampled_from(KINDS), st.sampled_from(SIZES), st.sampled_from(range(1, 7))
tables, users = st.sampled_from(list(OPTIONS)), st.sampled_from(USERS)
lasting = st.sampled_from(["mine", "ours"])


# Made beforehand: one draw each.
_CHANCE = random.Random(0)
predicates = st.sampled_from([a_predicate(_CHANCE) for _ in range(400)])
row_lists = st.sampled_from([some_rows(_CHANCE) for _ in range(400)])


@dataclass
class Client:
    """A subscriber, and what its fold has to be."""

    subscriber: Subscriber
    table: str
    owner: str
    columns: list[str]
    where: str


class Interrupted(OneThread):
    """Does something else before each thing that is to be done in a thread."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before = before

    def run_in_executor(
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        self._before()
        return super().run_in_executor(executor, func, *args)


class Engine:
    """One engine for all examples; each has a namespace of its own."""

    def __init__(self, tail_changes_max: int = TAIL_CHANGES_MAX) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="live-machine-", dir=memory_directory()))
        self.clock = ManualClock()
        self.examples = 0
        self.before_call: Callable[[], None] = tuple
        # Published at once and in this thread: nothing here is about syncs or threads.
        store = MemoryStore(clock=self.clock)
        self.db = Embedded(
            self.directory,
            clock=self.clock,
            store=store,
            durability=Durability.ASYNC,
            tail_changes_max=tail_changes_max,
        )
        self.db.runner.close()
        self.db.runner = asyncio.Runner(loop_factory=partial(Interrupted, lambda: self.before_call()))
        self.db.sessions = self.db.session(self.db.runner.get_loop())
        self.feed = self.db.sessions.feed
        self._pump = self.db.runner.get_loop().create_task(self.feed.run())

    def close(self) -> None:
        async def end() -> None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
            await self.feed.close()

        self.db.runner.run(end())
        self.db.close()
        shutil.rmtree(self.directory)


class LiveMachine(RuleBasedStateMachine):
    """Each rule ends when every client that reads holds what SQLite says."""

    engine: ClassVar[Engine]

    def __init__(self) -> None:
        super().__init__()
        self.engine.examples += 1
        self.space = f"n{self.engine.examples}"
        self.clock, self.db, self.feed = self.engine.clock, self.engine.db, self.engine.feed
        self.oracle = Oracle(OPTIONS)
        self.clients: list[Client] = []
        self.past: list[Client] = []
        self.added = dict.fromkeys(OPTIONS, 0)
        self.flushes = 0
        self.db.run(";".join([f"CREATE NAMESPACE {self.space}", *map(self.made, OPTIONS)]))

    def teardown(self) -> None:
        for client in self.clients:
            self.close(client)

    def close(self, client: Client) -> None:
        async def close() -> None:
            client.subscriber.close()

        self.db.runner.run(close())

    def made(self, table: str) -> str:
        """Return the statement that makes a table."""
        columns = "id BIGINT PRIMARY KEY, kind TEXT, size INT, doc JSON, price DECIMAL(8, 2)"
        return f"CREATE TABLE {self.space}.{table} ({columns}) WITH ({OPTIONS[table]})"

    # What happens to the rows

    @rule(table=tables, user=users, new=row_lists)
    def insert(self, table: str, user: str, new: list[Row]) -> None:
        self.play(self.inserted(table, user, new), user)

    @rule(user=users, key=ids, kind=kinds, size=sizes)
    def renew(self, user: str, key: int, kind: str | None, size: int | None) -> None:
        """A row that lives for a while is written, over another or not, and lives from then on."""
        cells = (key, kind, size, *derived(kind, size))
        sql = f"INSERT OR REPLACE INTO brief (owner, {COLUMNS}, made_ms) VALUES (?, ?, ?, ?, ?, ?, ?)"
        self.oracle.change(sql, user, *cells, self.now_ms())
        new = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS.split(", ")[1:])
        values = ", ".join(map(literal, cells))
        insert = f"INSERT INTO {self.space}.brief ({COLUMNS}) VALUES ({values})"
        self.play(f"{insert} ON CONFLICT (id) DO UPDATE SET {new}", user)

    @rule(table=lasting, user=users, key=ids, kind=kinds, size=sizes)
    def update(self, table: str, user: str, key: int, kind: str | None, size: int | None) -> None:
        self.play(self.updated(table, user, f"id = {key}", kind, size), user)

    @rule(table=tables, user=users, key=ids)
    def delete(self, table: str, user: str, key: int) -> None:
        self.play(self.deleted(table, user, f"id = {key}"), user)

    @rule(table=lasting, user=users, where=predicates, kind=kinds, goes=st.booleans())
    def sweep(self, table: str, user: str, where: str, kind: str | None, goes: bool) -> None:
        """Many rows change or go at once."""
        statement = self.deleted(table, user, where) if goes else self.updated(table, user, where, kind, 1)
        self.play(statement, user)

    @rule(table=lasting, user=users, old=ids, new=ids)
    def move(self, table: str, user: str, old: int, new: int) -> None:
        """A row gets another primary key, if that one is free."""
        owner = self.owner(table, user)
        if self.oracle.change(f"UPDATE {table} SET id = ? WHERE owner = ? AND id = ?", new, owner, old) > 0:
            self.play(f"UPDATE {self.space}.{table} SET id = {new} WHERE id = {old}", user)

    @rule(table=lasting, user=users, new=row_lists, gone=ids, keep=st.booleans())
    def transaction(self, table: str, user: str, new: list[Row], gone: int, keep: bool) -> None:
        """Several statements as one commit, or as none."""
        self.oracle.change("BEGIN")
        statements = [
            self.inserted(table, user, new),
            self.deleted(table, user, f"id = {gone}"),
            self.updated(table, user, "id = 3", "b", 1),
        ]
        end = "COMMIT" if keep else "ROLLBACK"
        self.oracle.change(end)
        self.play("; ".join(["BEGIN", *filter(None, statements), end]), user)

    @rule(seconds=st.sampled_from([0.001, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.let_pass(seconds)
        self.settle()

    def let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)
        oldest_ms = self.now_ms() - TTL_S * 1000
        self.oracle.change("DELETE FROM brief WHERE made_ms < ?", oldest_ms)
        self.db.expiry.run()

    # What happens to the tables

    @precondition(lambda self: self.flushes < FLUSHES_MAX)
    @rule(table=lasting, is_compacted=st.booleans())
    def flush(self, table: str, is_compacted: bool) -> None:
        self.flushes += 1
        self.db.flush(f"{self.space}.{table}")
        if is_compacted:
            self.db.compact(f"{self.space}.{table}")
        self.settle()

    @rule(table=tables)
    def add_column(self, table: str) -> None:
        if self.added[table] < 2:
            self.added[table] += 1
            column = f"more{self.added[table]}"
            self.oracle.add_column(table, column)
            self.play(f"ALTER TABLE {self.space}.{table} ADD COLUMN {column} TEXT DEFAULT 'm'", "root")

    @precondition(lambda self: len(self.clients) >= 2)
    @rule(table=tables)
    def drop(self, table: str) -> None:
        """Its clients are told; a table of the same name is another one."""
        self.db.run(f"DROP TABLE {self.space}.{table}")
        for client in [client for client in self.clients if client.table == table]:
            client.subscriber.release()
            self.db.runner.run(client.subscriber.until(lambda c=client: c.subscriber.errors))
            [(code, _)] = client.subscriber.errors
            assert code == "NOT_FOUND"
            self.clients.remove(client)
        self.past = [client for client in self.past if client.table != table]
        self.oracle.make(table)
        self.added[table] = 0
        self.play(self.made(table), "root")

    # What clients do

    @precondition(lambda self: len(self.clients) < CLIENTS_MAX)
    @rule(
        table=tables,
        user=users,
        where=predicates,
        batch=st.sampled_from([1, 2, 4]),
        cut=st.booleans(),
    )
    def subscribe(self, table: str, user: str, where: str, batch: int, cut: bool) -> None:
        columns = ["id", "size"] if cut else self.columns(table)
        sql = f"SELECT {', '.join(columns)} FROM {self.space}.{table} WHERE {where}"
        subscriber = Subscriber(self.db, self.feed, user, sql)
        self.clients.append(Client(subscriber, table, self.owner(table, user), columns, where))
        busy, writer = self.inserted(table, user, [(6, "a", 2)]), "root" if table == "ours" else user

        async def between() -> None:
            nonlocal busy
            statement, busy = busy, ""
            if statement:
                await self.db.outcomes(statement, user=writer)

        self.db.runner.run(subscriber.open(between, view=True, batch_size=batch))
        self.play(busy, user)

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.clients)).subscriber.is_stalled = True

    @precondition(lambda self: self.clients)
    @rule()
    def read_on(self) -> None:
        for client in self.clients:
            client.subscriber.release()
        self.settle()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A client goes; what it holds may come back later."""
        client = data.draw(st.sampled_from(self.clients))
        self.close(client)
        self.clients.remove(client)

    @precondition(lambda self: self.past and len(self.clients) < CLIENTS_MAX)
    @rule(data=st.data(), batch=st.sampled_from([1, 2, 4]))
    def come_back(self, data: st.DataObject, batch: int) -> None:
        """Somebody resumes from what it, or another, held at some time."""
        before = data.draw(st.sampled_from(self.past))
        subscriber = before.subscriber.copy()
        if subscriber.told:
            self.db.runner.run(self.resume(subscriber, batch))
            client = Client(subscriber, before.table, before.owner, before.columns, before.where)
            self.clients.append(client)
            self.settle()

    async def resume(self, subscriber: Subscriber, batch: int) -> None:
        await subscriber.resume(view=True, batch_size=batch)

    # How it is played and judged

    def inserted(self, table: str, user: str, new: list[Row]) -> str:
        """Return the INSERT of the rows whose keys are free, and do it in SQLite."""
        owner, free = self.owner(table, user), []
        for row in new:
            cells = (*row, *derived(*row[1:]))
            sql = f"INSERT INTO {table} (owner, {COLUMNS}, made_ms) VALUES (?, ?, ?, ?, ?, ?, ?)"
            if self.oracle.change(sql, owner, *cells, self.now_ms()) > 0:
                free.append(f"({', '.join(map(literal, cells))})")
        return f"INSERT INTO {self.space}.{table} ({COLUMNS}) VALUES {', '.join(free)}" if free else ""

    def updated(self, table: str, user: str, where: str, kind: str | None, size: int | None) -> str:
        cells = (kind, size, *derived(kind, size))
        sql = f"UPDATE {table} SET kind = ?, size = ?, doc = ?, price = ? WHERE owner = ? AND ({where})"
        self.oracle.change(sql, *cells, self.owner(table, user))
        settings = zip(COLUMNS.split(", ")[1:], map(literal, cells), strict=True)
        assignments = ", ".join(f"{name} = {value}" for name, value in settings)
        return f"UPDATE {self.space}.{table} SET {assignments} WHERE {where}"

    def deleted(self, table: str, user: str, where: str) -> str:
        self.oracle.change(f"DELETE FROM {table} WHERE owner = ? AND ({where})", self.owner(table, user))
        return f"DELETE FROM {self.space}.{table} WHERE {where}"

    def play(self, sql: str, user: str) -> None:
        if sql:
            self.db.run(sql, user="root" if user == "root" or ".ours" in sql else user)
        self.settle()

    def settle(self) -> None:
        self.db.runner.run(self.judge())

    async def judge(self) -> None:
        for client in self.clients:
            if not client.subscriber.is_stalled and not self.agrees(client):
                await self.agree(client)
                self.past = [*self.past[-4:], self.remembered(client)]

    async def agree(self, client: Client) -> None:
        subscriber = client.subscriber
        with suppress(TimeoutError):
            await subscriber.until(lambda: self.agrees(client) or subscriber.errors)
        assert subscriber.errors == []
        assert self.agrees(client), f"{subscriber.user}: {subscriber.sql}"

    def agrees(self, client: Client) -> bool:
        expected = self.oracle.select(client.table, client.owner, client.columns, client.where)
        return client.subscriber.shown(client.columns) == expected

    def remembered(self, client: Client) -> Client:
        return Client(client.subscriber.copy(), client.table, client.owner, client.columns, client.where)

    def owner(self, table: str, user: str) -> str:
        return "" if table == "ours" else user

    def columns(self, table: str) -> list[str]:
        return ["id", "kind", "size", *(f"more{n}" for n in range(1, self.added[table] + 1))]

    def now_ms(self) -> int:
        return self.clock.now_us() // 1000


class HastyMachine(LiveMachine):
    """The same where the log is read by a few changes at a time, of which memory keeps none, and time passes
    while one who lags or comes back reads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chance = random.Random(0)
        self.is_awaited = False
        self.engine.before_call = self.before_call

    @initialize(seed=st.integers(0, 1 << 16))
    def begin(self, seed: int) -> None:
        self.chance.seed(seed)

    def before_call(self) -> None:
        if self.is_awaited and self.chance.random() < 0.3:
            self.let_pass(self.chance.choice([0.5, 4.0, 11.0]))

    @precondition(lambda self: self.lookers())
    @rule(data=st.data(), kind=kinds, size=sizes, leaves=st.booleans())
    def look_away(self, data: st.DataObject, kind: str | None, size: int | None, leaves: bool) -> None:
        """A row that somebody holds changes and ends while they lag, or have left."""
        client = data.draw(st.sampled_from(self.lookers()))
        key = data.draw(st.sampled_from(sorted(client.subscriber.rows)))
        if leaves:
            self.close(client)
        client.subscriber.is_stalled = True
        self.renew(user=client.owner, key=int(key), kind=kind, size=size)
        self.let_pass(4.0)
        self.play(
            self.inserted("brief", client.owner, [(1, "a", 1), (2, "b", 2), (3, "ab", 5)]), client.owner
        )
        self.let_pass(7.0)
        client.subscriber.release()
        if leaves:
            self.db.runner.run(self.resume(client.subscriber, 1))
        self.settle()

    def lookers(self) -> list[Client]:
        return [
            client
            for client in self.clients
            if client.table == "brief" and client.subscriber.rows and not client.subscriber.is_stalled
        ]

    async def agree(self, client: Client) -> None:
        self.is_awaited = True
        await super().agree(client)
        self.is_awaited = False

    async def resume(self, subscriber: Subscriber, batch: int) -> None:
        self.is_awaited = True
        await super().resume(subscriber, batch)
        self.is_awaited = False


SETTINGS = settings(
    max_examples=200,
    stateful_step_count=50,
    phases=(Phase.generate,),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class TestLiveMachine(LiveMachine.TestCase):  # type: ignore[name-defined,misc]
    """Run by pytest, the same examples each time."""

    settings = SETTINGS

    @classmethod
    def setUpClass(cls) -> None:
        LiveMachine.engine = Engine()

    @classmethod
    def tearDownClass(cls) -> None:
        LiveMachine.engine.close()


class TestHastyMachine(HastyMachine.TestCase):  # type: ignore[name-defined,misc]
    """Fewer, since what they are about is rare in what the others do."""

    settings = settings(SETTINGS, max_examples=60)

    @classmethod
    def setUpClass(cls) -> None:
        cls.patch = pytest.MonkeyPatch()
        for module, name in ((behind, "PAGE_CHANGES"), (live, "PAGE_CHANGES"), (snapshot, "SCAN_CHANGES")):
            cls.patch.setattr(module, name, 3)
        HastyMachine.engine = Engine(tail_changes_max=2)

    @classmethod
    def tearDownClass(cls) -> None:
        HastyMachine.engine.close()
        cls.patch.undo()
