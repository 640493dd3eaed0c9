"""The oracle of live queries against a server in a process of its own: SQL over HTTP, rows over WebSockets.

A walk by chance through statements of several users, transactions, flushes, compaction, DDL, kill -9 and
restart, while clients subscribe, are cut off after any frame, and resume from the newest `_seq` that they
saw, whenever that was. After each step each client holds what SQLite says. `UPWELL_LIVE_SOAK_S=600` walks on
for so many seconds, from `UPWELL_LIVE_SEED`; a failure names the seed.

Rows of STREAM tables live for some seconds by the server's clock. What SQLite can say of them is which rows
surely live, because less time went by since they were sent, and which surely don't, because more went by
since they were acknowledged: everything else is a matter of milliseconds.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from upwell.testing import ServerProcess, wait_until
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
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

SEED = int(os.environ.get("UPWELL_LIVE_SEED", "1"))
SOAK_S = float(os.environ.get("UPWELL_LIVE_SOAK_S", "0"))
STEPS = 120
KILLS = (50, 100)
OUTLIVED = (STEPS - 20,)
GONE_S_MAX = 20.0
LASTING = {"mine": "TYPE = 'USER'", "ours": "TYPE = 'SHARED', ACCESS_LEVEL = 'PUBLIC'"}
BRIEF = ("typing", "presence")
TTLS_S = (1, 2, 5)
# A seq is a whole millisecond.
CLOCK_MS = 10
SETTINGS = {
    "UPWELL_BCRYPT_COST": "4",
    "UPWELL_WS_CLIENT_TIMEOUT_S": "600",
    "UPWELL_STREAM_EXPIRY_INTERVAL_S": "0.05",
    "UPWELL_STREAM_EVICTION_INTERVAL_S": "0.2",
    "UPWELL_STREAM_GRACE_S": "3600",
}
CLIENTS_MAX = 4
PAST_MAX = 8
STEPS_PER_KILL = 60

Rows = dict[str, dict[str, Any]]


@dataclass
class Client:
    """What somebody follows, and holds."""

    user: str
    table: str
    columns: list[str]
    where: str
    watched: Watched

    @property
    def shown(self) -> Rows:
        rows = self.watched.rows.items()
        return {key: {name: row.get(name) for name in self.columns} for key, row in rows}

    @property
    def is_ready(self) -> bool:
        batches = self.watched.batches
        return bool(batches) and not batches[-1]["batch_control"]["has_more"]

    def take(self) -> None:
        """Take the next message of the server."""
        if self.is_ready:
            self.watched.change()
        elif self.watched.batch()["batch_control"]["has_more"]:
            self.watched.ask()


class Walk:
    """A server, its oracle, and the clients that are connected; `past` may come back."""

    def __init__(self, server: ServerProcess, site: Site, chance: random.Random) -> None:
        self.server = server
        self.chance = chance
        self.site = site
        self.wires: dict[str, Wire] = {"root": site.root}
        for user in ("ann", "ben"):
            self.wires[user] = site.account(name=user)[1]
        self.oracle = Oracle([*LASTING, *BRIEF])
        self.ttls_s: dict[str, int] = {}
        self.clients: list[Client] = []
        self.past: list[Client] = []
        self.added = dict.fromkeys([*LASTING, *BRIEF], 0)
        site.root.run("CREATE NAMESPACE walk")
        for table in self.added:
            self.make(table)

    def close(self) -> None:
        for client in self.clients:
            client.watched.socket.close()

    def make(self, table: str) -> None:
        columns = "id BIGINT PRIMARY KEY, kind TEXT, size INT, doc JSON, price DECIMAL(8, 2)"
        if table in BRIEF:
            self.ttls_s[table] = self.chance.choice(TTLS_S)
            options = f"TYPE = 'STREAM', TTL_SECONDS = {self.ttls_s[table]}"
        else:
            options = LASTING[table]
        self.site.root.run(f"CREATE TABLE walk.{table} ({columns}) WITH ({options})")

    def step(self) -> None:
        """Do something by chance; then everybody who is connected holds what SQLite says."""
        happenings = [
            *[self.write] * 10, *[self.transact] * 2, *[self.flush] * 2, self.compact, self.add_column,
            *[self.subscribe] * 4, *[self.resume] * 4, *[self.leave] * 2,
        ]  # fmt: skip
        if self.chance.random() < 0.03:
            happenings = [self.drop]
        self.chance.choice(happenings)()
        self.judge()

    def judge(self) -> None:
        for client in self.clients:
            if client.table in BRIEF:
                self.check_select(client)
            while not (client.is_ready and self.agrees(client)):
                self.take(client)
        self.past = [*self.past, *map(self.remembered, self.clients[-1:])][-PAST_MAX:]

    def take(self, client: Client) -> None:
        """Take the next message, which has to come."""
        try:
            client.take()
        except TimeoutError as error:
            owner = self.owner(client.table, client.user)
            there = self.oracle.select(client.table, owner, client.columns, client.where)
            raise AssertionError(f"{client} shows {client.shown}; there was {there}") from error

    def agrees(self, client: Client) -> bool:
        """Whether it shows what SQLite says; of rows whose end is due it may show some."""
        return self.is_told(client, client.shown, self.now_ms(), self.now_ms())

    def is_told(self, client: Client, shown: Rows, begun_ms: int, ended_ms: int) -> bool:
        """Whether these rows are those that there were at some time between the two."""
        select = partial(
            self.oracle.select, client.table, self.owner(client.table, client.user), client.columns
        )
        if client.table not in BRIEF:
            return shown == select(client.where)
        ttl_ms = self.ttls_s[client.table] * 1000
        surely = select(f"({client.where}) AND sent_ms > {ended_ms - ttl_ms + CLOCK_MS}")
        perhaps = select(f"({client.where}) AND made_ms > {begun_ms - ttl_ms - CLOCK_MS}")
        return surely.items() <= shown.items() <= perhaps.items()

    def check_select(self, client: Client) -> None:
        """Ask the server itself for the rows of a live query."""
        begun_ms = self.now_ms()
        sql = f"SELECT {', '.join(client.columns)} FROM walk.{client.table} WHERE {client.where}"
        rows = self.wires[client.user].run(sql).by_key
        assert self.is_told(client, rows, begun_ms, self.now_ms()), (sql, rows)

    def outlive(self) -> None:
        """When the time of all rows is over nobody is shown any, whether it was there to be told or not."""
        client = self.watching(Client("ann", BRIEF[0], ["id", "kind"], "TRUE", None), None)  # type: ignore[arg-type]
        self.clients.append(client)
        self.run(BRIEF[0], "ann", self.put_brief(BRIEF[0], "ann"))
        self.judge()
        self.cut(self.remembered(client))
        for table in BRIEF:
            count = f"EXECUTE AS USER '{{}}' (SELECT COUNT(*) FROM walk.{table})"
            for user in ("ann", "ben"):
                is_over = partial(self.is_empty, count.format(user))
                wait_until(is_over, timeout_s=max(TTLS_S) + GONE_S_MAX, what=f"the end of {table}")
        self.judge()
        for client in self.clients:
            while client.table in BRIEF and client.shown:
                self.take(client)

    def is_empty(self, count: str) -> bool:
        return self.site.root.run(count).cell == "0"

    # What happens to rows and tables

    def write(self) -> None:
        table, user = self.place()
        self.run(table, user, self.statement(table, user))

    def transact(self) -> None:
        """Several statements as one commit, or as none."""
        table, user = self.place()
        if table in BRIEF:
            table = self.lasting()
        self.oracle.change("BEGIN")
        statements = [self.statement(table, user) for _ in range(3)]
        end = self.chance.choice(["COMMIT", "ROLLBACK"])
        self.oracle.change(end)
        self.run(table, user, "; ".join(["BEGIN", *filter(None, statements), end]))

    def flush(self) -> None:
        self.site.flush(f"walk.{self.lasting()}")

    def compact(self) -> None:
        self.site.root.run(f"STORAGE COMPACT TABLE walk.{self.lasting()}")

    def add_column(self) -> None:
        table = self.table()
        if self.added[table] < 2:
            self.added[table] += 1
            column = f"more{self.added[table]}"
            self.oracle.add_column(table, column)
            self.site.root.run(f"ALTER TABLE walk.{table} ADD COLUMN {column} TEXT DEFAULT 'm'")

    def drop(self) -> None:
        """Its clients are told; a table of the same name is another one."""
        table = self.table()
        self.site.root.run(f"DROP TABLE walk.{table}")
        for client in [client for client in self.clients if client.table == table]:
            # Deletes that it may have missed come before it, though it has them; and rows that are over.
            while (last := client.watched.socket.message_for("s"))["type"] != "error":
                assert last["change_type"] == "delete" or table in BRIEF, last
            assert (last["code"], "was dropped" in last["message"]) == ("NOT_FOUND", True)
            self.hang_up(client)
        self.past = [client for client in self.past if client.table != table]
        self.oracle.make(table)
        self.added[table] = 0
        self.make(table)

    def kill(self) -> None:
        """Power cut, with resumes under way; everybody comes back from the newest seq that it saw."""
        for client in self.past[-2:]:
            self.cut(client)
        self.server.kill()
        left, self.clients = self.clients, []
        for client in left:
            client.watched.socket.close()
        self.server.start()
        for client in left:
            self.clients.append(self.resumed(client))
        self.judge()

    # What clients do

    def subscribe(self) -> None:
        """Somebody new, while rows change between the batches of the snapshot."""
        if len(self.clients) < CLIENTS_MAX:
            table, user = self.table(), self.user()
            is_cut = self.chance.random() < 0.5
            columns = ["id", "size"] if is_cut else self.columns(table)
            where = a_predicate(self.chance)
            client = self.watching(Client(user, table, columns, where, None), None)  # type: ignore[arg-type]
            client.take()
            self.write()
            self.clients.append(client)

    def resume(self) -> None:
        """Somebody comes back from any cursor, is perhaps cut off twice, and goes on."""
        if self.past and len(self.clients) < CLIENTS_MAX:
            client = self.chance.choice(self.past)
            for _ in range(self.chance.randrange(3)):
                client = self.cut(client)
                self.write()
            self.clients.append(self.resumed(client))

    def leave(self) -> None:
        if self.clients:
            self.hang_up(self.chance.choice(self.clients))

    def hang_up(self, client: Client) -> None:
        client.watched.socket.reset()
        self.clients.remove(client)

    def cut(self, client: Client) -> Client:
        """Resume and be gone after some messages; return what is held then."""
        client = self.resumed(client)
        left = self.chance.randrange(6)
        while left and not (client.is_ready and self.agrees(client)):
            client.take()
            left -= 1
        client.watched.socket.reset()
        return client

    def resumed(self, client: Client) -> Client:
        return self.watching(client, client.watched)

    def watching(self, client: Client, held: Watched | None) -> Client:
        options: dict[str, Any] = {"batch_size": self.chance.choice([1, 2, 50]), "view": True}
        if held is not None and held.cursor:
            options["from"] = held.cursor
        wire = self.wires[client.user]
        sql = f"SELECT {', '.join(client.columns)} FROM walk.{client.table} WHERE {client.where}"
        socket = Socket(wire.port, wire.token)
        return replace(client, watched=Watched(socket, sql, options=options, held=held))

    def remembered(self, client: Client) -> Client:
        return replace(client, watched=client.watched.copy())

    # Statements, in SQLite first

    def run(self, table: str, user: str, sql: str) -> None:
        if sql:
            answer = self.wires["root" if table == "ours" else user].sql(sql)
            assert answer.status == 200, (sql, answer.body)
            if table in BRIEF:
                self.oracle.change(f"UPDATE {table} SET made_ms = ? WHERE made_ms IS NULL", self.now_ms())

    def statement(self, table: str, user: str) -> str:
        """Change SQLite; return what does the same in the server, empty if there is nothing to do."""
        owner = self.owner(table, user)
        condition = self.chance.choice([a_predicate(self.chance), f"id = {self.chance.randint(1, 6)}"])
        kind, size = self.chance.choice(KINDS), self.chance.choice(SIZES)
        match self.chance.choice(["insert", "insert", "insert", "update", "delete"]):
            case "insert" | "update" if table in BRIEF:
                return self.put_brief(table, owner)
            case "insert":
                free = [row for row in some_rows(self.chance) if self.inserted(table, owner, row)]
                rows = ", ".join(f"({', '.join(map(literal, cells(row)))})" for row in free)
                return f"INSERT INTO walk.{table} ({COLUMNS}) VALUES {rows}" if free else ""
            case "update":
                new = (kind, size, *derived(kind, size))
                setting = "kind = ?, size = ?, doc = ?, price = ?"
                self.oracle.change(
                    f"UPDATE {table} SET {setting} WHERE owner = ? AND ({condition})", *new, owner
                )
                for value in map(literal, new):
                    setting = setting.replace("?", value, 1)
                return f"UPDATE walk.{table} SET {setting} WHERE {condition}"
            case _:
                self.oracle.change(f"DELETE FROM {table} WHERE owner = ? AND ({condition})", owner)
                return f"DELETE FROM walk.{table} WHERE {condition}"

    def put_brief(self, table: str, owner: str) -> str:
        """Write rows, over those that are there or not: who knows whether they still are."""
        rows, sent_ms = some_rows(self.chance), self.now_ms()
        for row in rows:
            self.oracle.change(f"DELETE FROM {table} WHERE owner = ? AND id = ?", owner, row[0])
            sql = f"INSERT INTO {table} (owner, {COLUMNS}, sent_ms) VALUES (?, ?, ?, ?, ?, ?, ?)"
            self.oracle.change(sql, owner, *cells(row), sent_ms)
        values = ", ".join(f"({', '.join(map(literal, cells(row)))})" for row in rows)
        if self.chance.random() < 0.3:
            keys = ", ".join(str(row[0]) for row in rows)
            self.wires[owner].run(f"DELETE FROM walk.{table} WHERE id IN ({keys})")
            return f"INSERT INTO walk.{table} ({COLUMNS}) VALUES {values}"
        new = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS.split(", ")[1:])
        return f"INSERT INTO walk.{table} ({COLUMNS}) VALUES {values} ON CONFLICT (id) DO UPDATE SET {new}"

    def inserted(self, table: str, owner: str, row: Row) -> bool:
        sql = f"INSERT INTO {table} (owner, {COLUMNS}, made_ms) VALUES (?, ?, ?, ?, ?, ?, 0)"
        return self.oracle.change(sql, owner, *cells(row)) > 0

    def owner(self, table: str, user: str) -> str:
        return "" if table == "ours" else user

    def place(self) -> tuple[str, str]:
        """Return table and user of what somebody follows, or of anything."""
        if self.clients and self.chance.random() < 0.7:
            client = self.chance.choice(self.clients)
            return client.table, client.user
        return self.table(), self.user()

    def table(self) -> str:
        return self.chance.choice(list(self.added))

    def lasting(self) -> str:
        return self.chance.choice(list(LASTING))

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def user(self) -> str:
        return self.chance.choice(["ann", "ben"])

    def columns(self, table: str) -> list[str]:
        return ["id", "kind", "size", *(f"more{n}" for n in range(1, self.added[table] + 1))]


def cells(row: Row) -> tuple[object, ...]:
    return (*row, *derived(*row[1:]))


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    with ServerProcess(tmp_path / "data", env=SETTINGS) as server:
        site = Site(server)
        walk = Walk(server, site, random.Random(SEED))
        yield walk
        walk.close()
        site.close()
        assert "Traceback" not in server.log_text(), server.log_tail()


def test_whatever_happens_everybody_holds_the_select(walk: Walk) -> None:
    print(f"UPWELL_LIVE_SEED={SEED}")
    end, steps = time.monotonic() + SOAK_S, 0
    while steps < STEPS or time.monotonic() < end:
        steps += 1
        if steps in KILLS or (steps > STEPS and steps % STEPS_PER_KILL == 0):
            walk.kill()
        if steps in OUTLIVED or (steps > STEPS and steps % STEPS_PER_KILL == 30):
            walk.outlive()
        walk.step()
    print(f"{steps} steps")
