"""The workloads of a realtime SQL server's public benchmark, against a running server; prints one JSON line.

DDL, inserts, selects, updates, deletes, concurrency, subscriptions, Parquet, load: 35 of the 38 that
KalamDB's `benchv2` (workspace 0.4.3-rc.4) runs, with its statements and sizes; its fixed sleeps are left out,
and `subscriber_scale` is measured by live.py, at scale. Without its topics (concurrent_publishers,
concurrent_consumers): Upwell has none.
Its server cuts each SELECT without LIMIT to 50 rows, ours returns all of them.

    .venv/bin/python benchmarks/suite.py [--iterations 100] [--only NAME,…] [--url URL --user U --password P]

Without --url a server of its own is started on a fresh directory. Times are medians and 99th percentiles in
milliseconds at the client, which shares the machine with the server.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

from upwell.testing import ServerProcess

CONCURRENCY = 10
IN_FLIGHT_MAX = 128
WARMUP = 5
WARMUP_FROM = 10_000
NS = "bench"


class Wire:
    """Keep-alive HTTP connections that send SQL; as many as are asked for at once."""

    def __init__(self, url: str, user: str, password: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.user, self.password, self.token = user, password, ""
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def login(self) -> None:
        body = {"user": self.user, "password": self.password}
        self.token = (await self.post("/v1/api/auth/login", body))["access_token"]

    async def sql(self, text: str) -> list[dict[str, Any]]:
        """Run SQL and return its results; raise if it fails."""
        results: list[dict[str, Any]] = (await self.post("/v1/api/sql", {"sql": text}))["results"]
        return results

    async def rows(self, text: str) -> list[list[Any]]:
        found: list[list[Any]] = (await self.sql(text))[0]["rows"]
        return found

    async def all(self, texts: Iterable[str]) -> list[list[dict[str, Any]]]:
        """Run them at once, each on a connection."""
        return await asyncio.gather(*map(self.sql, texts))

    async def post(self, path: str, body: object) -> dict[str, Any]:
        connection = await self._connection()
        reader, writer = connection
        content = json.dumps(body).encode()
        token = f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n{token}"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(answered.split(" ", 2)[1])
        headers = dict(line.lower().split(": ", 1) for line in answered.split("\r\n")[1:] if line)
        answer: dict[str, Any] = json.loads(await reader.readexactly(int(headers["content-length"])))
        self._free.append(connection)
        if status != 200:
            raise SystemExit(f"{status}: {answer}")
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():  # the server closes what was idle for long
                return reader, writer
        return await asyncio.open_connection(self.host, self.port)

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[ClientConnection]:
        """Open a WebSocket that is signed in by header."""
        headers = {"Authorization": f"Bearer {self.token}"}
        uri = f"ws://{self.host}:{self.port}/v1/ws?compress=false"
        async with connect(uri, additional_headers=headers, max_size=None) as socket:
            yield socket

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def subscribe(socket: ClientConnection, name: str, sql: str) -> int:
    """Subscribe, read the snapshot to its end, return how many rows it had."""
    await socket.send(
        json.dumps({"type": "subscribe", "subscription": {"id": name, "sql": sql, "options": {}}})
    )
    count = 0
    while True:
        message = json.loads(await socket.recv())
        if message["type"] == "error":
            raise SystemExit(message)
        if message["type"] != "initial_data_batch":
            continue
        count += len(message["rows"])
        control = message["batch_control"]
        if control["status"] == "ready" and not control["has_more"]:
            return count
        step = {"type": "next_batch", "subscription_id": name, "last_seq_id": control["last_seq_id"]}
        await socket.send(json.dumps(step))


Operation = Callable[[Wire, int], Awaitable[Any]]


@dataclass(frozen=True)
class Workload:
    """`setup` is run once, `run` per iteration; `prepare` has what needs all iterations' numbers."""

    name: str
    run: Operation
    setup: Sequence[str] = ()
    prepare: Callable[[Wire, Sequence[int]], Awaitable[Any]] | None = None
    tables: Sequence[str] = field(default=())
    iterations_max: int = 1_000_000


def table(name: str, columns: str, kind: str = "TABLE") -> list[str]:
    return [f"DROP TABLE IF EXISTS {NS}.{name}", f"CREATE {kind} {NS}.{name} ({columns})"]


def seed(name: str, columns: str, rows: Iterable[str], step: int = 50) -> list[str]:
    listed = list(rows)
    return [
        f"INSERT INTO {NS}.{name} ({columns}) VALUES " + ", ".join(listed[at : at + step])
        for at in range(0, len(listed), step)
    ]


def people(name: str, count: int) -> list[str]:
    rows = (f"({n}, 'user_{n}', {n * 1.5}, {n % 2 == 0})" for n in range(count))
    columns = "id INT PRIMARY KEY, name TEXT, score DOUBLE, active BOOLEAN"
    return table(name, columns) + seed(name, "id, name, score, active", rows)


def one(text: Callable[[int], str]) -> Operation:
    """An iteration is one request."""
    return lambda wire, i: wire.sql(text(i))


def many(texts: Callable[[int], Iterable[str]]) -> Operation:
    """An iteration is several requests at once."""
    return lambda wire, i: wire.all(texts(i))


def insert(name: str, row: str, columns: str) -> str:
    return f"INSERT INTO {NS}.{name} ({columns}) VALUES {row}"


async def _point_lookup(wire: Wire, i: int) -> None:
    rows = await wire.rows(f"SELECT * FROM {NS}.point_lookup WHERE id = {(i * 997) % 10_000}")
    assert len(rows) == 1


async def _crud(wire: Wire, i: int) -> None:
    key = 800_000 + i
    await wire.sql(insert("crud_cycle", f"({key}, 'created', 1)", "id, value, version"))
    await wire.sql(f"UPDATE {NS}.crud_cycle SET value = 'updated', version = 2 WHERE id = {key}")
    assert await wire.rows(f"SELECT * FROM {NS}.crud_cycle WHERE id = {key}")
    await wire.sql(f"DELETE FROM {NS}.crud_cycle WHERE id = {key}")


async def _alter(wire: Wire, i: int) -> None:
    await wire.sql(f"ALTER TABLE {NS}.alter_bench ADD COLUMN extra_col_{i} TEXT")
    await wire.sql(f"SELECT id, extra_col_{i} FROM {NS}.alter_bench LIMIT 1")
    await wire.sql(f"ALTER TABLE {NS}.alter_bench DROP COLUMN extra_col_{i}")


def _mixed_dml(i: int) -> list[str]:
    def statement(k: int) -> str:
        match k % 3:
            case 0:
                return insert("mixed_dml", f"({i * 100 + k}, {k}, 'new')", "id, value, label")
            case 1:
                return f"UPDATE {NS}.mixed_dml SET value = {i} WHERE id = {100_000 + (i + k) % 500}"
            case _:
                return f"SELECT * FROM {NS}.mixed_dml WHERE id >= 100000 LIMIT 10"

    return [statement(k) for k in range(CONCURRENCY)]


_REGIONS = ("us-east", "us-west", "eu", "asia")
_AGGREGATES = (
    "SELECT region, COUNT(*) AS n, SUM(price) AS total, AVG(price) AS mean FROM bench.agg_bench"
    " GROUP BY region ORDER BY total DESC",
    "SELECT product, region, SUM(quantity * price) AS revenue FROM bench.agg_bench"
    " GROUP BY product, region ORDER BY revenue DESC LIMIT 10",
    "SELECT product, SUM(price) AS s, MIN(price) AS low, MAX(price) AS high FROM bench.agg_bench"
    " WHERE region = 'us-east' GROUP BY product",
    "SELECT region, COUNT(*) AS cnt FROM bench.agg_bench GROUP BY region HAVING COUNT(*) > 1000"
    " ORDER BY cnt DESC",
)
_JOINS = (
    "SELECT * FROM bench.join_orders o WHERE o.customer_id IN"
    " (SELECT c.id FROM bench.join_customers c WHERE c.tier = 'gold')",
    "SELECT c.tier, SUM(o.amount) AS total FROM bench.join_orders o JOIN bench.join_customers c"
    " ON o.customer_id = c.id GROUP BY c.tier ORDER BY total DESC",
    "SELECT o.id, c.name, o.amount FROM bench.join_orders o JOIN bench.join_customers c"
    " ON o.customer_id = c.id WHERE o.status = 'shipped' ORDER BY o.amount DESC LIMIT 20",
)
_PARQUET = (
    "SELECT COUNT(*) AS cnt FROM bench.parquet_bench",
    "SELECT * FROM bench.parquet_bench WHERE category = 'cat_42'",
    "SELECT category, SUM(amount) AS total FROM bench.parquet_bench GROUP BY category"
    " ORDER BY total DESC LIMIT 10",
    "SELECT * FROM bench.parquet_bench WHERE id = 99999",
    "SELECT * FROM bench.parquet_bench WHERE amount > 5000 ORDER BY amount DESC LIMIT 100",
)


async def _fill_parquet(wire: Wire, _: Sequence[int]) -> None:
    total = 0
    for _ in range(20):
        rows = (
            f"({n}, 'cat_{n % 100}', {n % 10_000}, 'description of row {n}')"
            for n in range(total, total + 10_000)
        )
        for text in seed("parquet_bench", "id, category, amount, description", rows):
            await wire.sql(text)
        total += 10_000
        await wire.sql(f"STORAGE FLUSH TABLE {NS}.parquet_bench")
        await _flushed(wire)


async def _flushed(wire: Wire) -> None:
    open_jobs = "SELECT COUNT(*) FROM system.jobs WHERE status IN ('new', 'queued', 'running', 'retrying')"
    deadline = time.monotonic() + 120
    while int((await wire.rows(open_jobs))[0][0]):
        assert time.monotonic() < deadline, "the flush takes too long"
        await asyncio.sleep(0.05)


async def _create_dropped(wire: Wire, numbers: Sequence[int]) -> None:
    for n in numbers:
        await wire.sql(f"DROP TABLE IF EXISTS {NS}.dt_bench_{n}")
        await wire.sql(f"CREATE TABLE {NS}.dt_bench_{n} (id INT PRIMARY KEY, name TEXT)")


async def _create_users(wire: Wire, numbers: Sequence[int]) -> None:
    for n in numbers:
        await wire.sql(f"CREATE USER bdu_{n}_{RUN} WITH PASSWORD 'BenchP@ss1234' ROLE 'user'")


RUN = time.time_ns()


async def _initial_load(wire: Wire, i: int) -> None:
    async with wire.socket() as socket:
        assert await subscribe(socket, f"load_{i}", f"SELECT * FROM {NS}.sub_init_load") == 1000


async def _change_latency(wire: Wire, i: int) -> None:
    await wire.sql(f"CREATE USER TABLE IF NOT EXISTS {NS}.change_latency (id INT PRIMARY KEY, ts TEXT)")
    async with wire.socket() as socket:
        await subscribe(socket, f"lat_{i}", f"SELECT * FROM {NS}.change_latency")
        await wire.sql(insert("change_latency", f"({500_000 + i}, 'now')", "id, ts"))
        message = json.loads(await asyncio.wait_for(socket.recv(), 5))
        assert message["change_type"] == "insert"


async def _reconnect(wire: Wire, i: int) -> None:
    for turn in "ab":
        async with wire.socket() as socket:
            assert await subscribe(socket, f"reconn_{turn}_{i}", f"SELECT * FROM {NS}.reconnect_sub") == 100


async def _subscribers(wire: Wire, i: int) -> None:
    """Ten subscriptions on a socket, ten inserts, until each subscription has seen each of them."""
    async with wire.socket() as socket:
        for k in range(CONCURRENCY):
            await subscribe(socket, f"s{k}", f"SELECT * FROM {NS}.sub_bench WHERE id >= {i * CONCURRENCY}")
        await wire.all(
            insert("sub_bench", f"({i * CONCURRENCY + k}, 'x')", "id, payload") for k in range(CONCURRENCY)
        )
        seen = 0
        while seen < CONCURRENCY * CONCURRENCY:
            seen += len(json.loads(await asyncio.wait_for(socket.recv(), 5))["rows"])


async def _sql_1k(wire: Wire, i: int) -> None:
    texts = (
        lambda n: f"SELECT * FROM {NS}.load_1k WHERE id = {n % 500}",
        lambda n: f"SELECT COUNT(*) FROM {NS}.load_1k",
        lambda n: f"SELECT * FROM {NS}.load_1k WHERE score > {n % 700} ORDER BY score LIMIT 10",
        lambda n: f"SELECT name, score FROM {NS}.load_1k LIMIT 20",
    )
    queue = iter(range(1000))

    async def work() -> None:
        for n in queue:
            await wire.sql(texts[n % 4](n))

    await asyncio.gather(*(work() for _ in range(IN_FLIGHT_MAX)))


async def _storm(wire: Wire, i: int) -> None:
    async def client() -> None:
        fresh = Wire(f"http://{wire.host}:{wire.port}", wire.user, wire.password)
        await fresh.login()
        assert len(await fresh.rows(f"SELECT * FROM {NS}.storm_bench")) == 3
        fresh.close()

    await asyncio.gather(*(client() for _ in range(CONCURRENCY)))


def _mixed_read_write(i: int) -> list[str]:
    reads = ("WHERE id < 50", None, "ORDER BY id DESC LIMIT 20")

    def read(k: int) -> str:
        tail = reads[k % 3]
        return (
            f"SELECT COUNT(*) FROM {NS}.mixed_bench"
            if tail is None
            else f"SELECT * FROM {NS}.mixed_bench {tail}"
        )

    half = CONCURRENCY // 2
    writes = [
        insert("mixed_bench", f"({1000 + i * half + k}, {k}, 'new')", "id, counter, label")
        for k in range(half)
    ]
    return writes + [read(k) for k in range(half)]


_ISOLATED = [f"{NS}_iso_{k}" for k in range(5)]
_WIDE = ", ".join(f"col_{k} {'INT' if k % 3 == 0 else 'TEXT'}" for k in range(1, 20))
_WIDE_NAMES = ", ".join(["id", *(f"col_{k}" for k in range(1, 20))])
_FANOUT = (
    f"SELECT * FROM {NS}.fanout_bench",
    f"SELECT * FROM {NS}.fanout_bench WHERE col_c > 100.0 ORDER BY col_d DESC",
    f"SELECT * FROM {NS}.fanout_bench WHERE id > 200",
)


def _wide_row(key: int) -> str:
    cells = ", ".join(str(key + k) if k % 3 == 0 else f"'value {k} of {key}'" for k in range(1, 20))
    return f"({key}, {cells})"


WORKLOADS = (
    Workload(
        "create_table",
        one(lambda i: f"CREATE TABLE {NS}.ct_bench_{i}_{RUN} (id INT PRIMARY KEY, name TEXT, value DOUBLE)"),
    ),
    Workload("drop_table", one(lambda i: f"DROP TABLE {NS}.dt_bench_{i}"), prepare=_create_dropped),
    Workload(
        "single_insert",
        one(
            lambda i: insert(
                "insert_bench", f"({i}, 'user_{i}', {i * 1.5}, {i % 2 == 0})", "id, name, score, active"
            )
        ),
        table("insert_bench", "id INT PRIMARY KEY, name TEXT, score DOUBLE, active BOOLEAN"),
    ),
    Workload(
        "bulk_insert",
        one(
            lambda i: seed(
                "bulk_insert_bench",
                "id, name, value",
                (f"({i * 50 + k}, 'bulk_{k}', {k * 0.1})" for k in range(50)),
            )[0]
        ),
        table("bulk_insert_bench", "id INT PRIMARY KEY, name TEXT, value DOUBLE"),
    ),
    Workload(
        "transaction_multi_insert",
        one(
            lambda i: (
                "BEGIN; "
                + "".join(
                    insert("txn_bench", f"({i * 50 + k}, 'txn_{k}', {k * 0.1}); ", "id, name, value")
                    for k in range(50)
                )
                + "COMMIT;"
            )
        ),
        table("txn_bench", "id INT PRIMARY KEY, name TEXT, value DOUBLE"),
    ),
    Workload("select_all", one(lambda i: f"SELECT * FROM {NS}.select_all"), people("select_all", 200)),
    Workload(
        "select_by_filter",
        one(lambda i: f"SELECT * FROM {NS}.select_filter WHERE id = {i % 200}"),
        people("select_filter", 200),
    ),
    Workload(
        "select_count", one(lambda i: f"SELECT COUNT(*) FROM {NS}.select_count"), people("select_count", 200)
    ),
    Workload(
        "select_order_by_limit",
        one(lambda i: f"SELECT * FROM {NS}.select_orderby ORDER BY score DESC LIMIT 10"),
        people("select_orderby", 200),
    ),
    Workload(
        "single_update",
        one(lambda i: f"UPDATE {NS}.update_bench SET score = {i * 1.37:.2f} WHERE id = {i % 200}"),
        people("update_bench", 200),
    ),
    Workload(
        "single_delete",
        one(lambda i: f"DELETE FROM {NS}.delete_bench WHERE id = {i}"),
        people("delete_bench", 500),
    ),
    Workload(
        "concurrent_insert",
        many(
            lambda i: (
                insert("conc_insert_bench", f"({i * CONCURRENCY + k}, 'c', {k})", "id, name, value")
                for k in range(CONCURRENCY)
            )
        ),
        table("conc_insert_bench", "id INT PRIMARY KEY, name TEXT, value DOUBLE"),
    ),
    Workload(
        "concurrent_select",
        many(lambda i: (f"SELECT * FROM {NS}.conc_select_bench WHERE id = {k}" for k in range(CONCURRENCY))),
        people("conc_select_bench", 200),
    ),
    Workload(
        "point_lookup",
        _point_lookup,
        table("point_lookup", "id INT PRIMARY KEY, name TEXT, value INT")
        + seed("point_lookup", "id, name, value", (f"({n}, 'p{n}', {n})" for n in range(10_000))),
    ),
    Workload(
        "aggregate_query",
        one(lambda i: _AGGREGATES[i % 4]),
        table("agg_bench", "id INT PRIMARY KEY, region TEXT, product TEXT, quantity INT, price INT")
        + seed(
            "agg_bench",
            "id, region, product, quantity, price",
            (f"({n}, '{_REGIONS[n % 4]}', 'product_{n % 20}', {n % 10}, {n % 100})" for n in range(10_000)),
        ),
    ),
    Workload(
        "multi_table_join",
        one(lambda i: _JOINS[i % 3]),
        table("join_customers", "id INT PRIMARY KEY, name TEXT, tier TEXT")
        + seed(
            "join_customers",
            "id, name, tier",
            (f"({n}, 'c{n}', '{('gold', 'silver', 'bronze')[n % 3]}')" for n in range(200)),
        )
        + table("join_orders", "id INT PRIMARY KEY, customer_id INT, amount INT, status TEXT")
        + seed(
            "join_orders",
            "id, customer_id, amount, status",
            (f"({n}, {n % 200}, {n % 500}, '{('shipped', 'open')[n % 2]}')" for n in range(1000)),
        ),
    ),
    Workload(
        "large_payload_insert",
        one(
            lambda i: seed(
                "large_payload",
                "id, body, metadata",
                (f"({i * 100 + k}, '{'X' * 4000}', '{'M' * 512}')" for k in range(10)),
            )[0]
        ),
        table("large_payload", "id INT PRIMARY KEY, body TEXT, metadata TEXT"),
    ),
    Workload(
        "wide_column_insert",
        one(lambda i: seed("wide_cols", _WIDE_NAMES, (_wide_row(i * 10 + k) for k in range(10)))[0]),
        table("wide_cols", f"id INT PRIMARY KEY, {_WIDE}"),
    ),
    Workload(
        "bulk_delete",
        one(lambda i: f"DELETE FROM {NS}.bulk_del WHERE bucket = {i}"),
        table("bulk_del", "id INT PRIMARY KEY, bucket INT, payload TEXT")
        + seed("bulk_del", "id, bucket, payload", (f"({n}, {n // 100}, 'p{n}')" for n in range(25_000))),
    ),
    Workload("sequential_crud", _crud, table("crud_cycle", "id INT PRIMARY KEY, value TEXT, version INT")),
    Workload(
        "alter_table",
        _alter,
        table("alter_bench", "id INT PRIMARY KEY, name TEXT")
        + seed("alter_bench", "id, name", (f"({n}, 'a{n}')" for n in range(100)), 100),
    ),
    Workload(
        "concurrent_update",
        many(
            lambda i: (
                f"UPDATE {NS}.conc_upd SET counter = {i}, label = 'l{i}' WHERE id = {k}"
                for k in range(CONCURRENCY)
            )
        ),
        table("conc_upd", "id INT PRIMARY KEY, counter INT, label TEXT")
        + seed("conc_upd", "id, counter, label", (f"({n}, 0, 'l')" for n in range(100))),
    ),
    Workload(
        "concurrent_mixed_dml",
        many(_mixed_dml),
        table("mixed_dml", "id INT PRIMARY KEY, value INT, label TEXT")
        + seed("mixed_dml", "id, value, label", (f"({100_000 + n}, {n}, 'l')" for n in range(500))),
    ),
    Workload(
        "namespace_isolation",
        many(
            lambda i: (
                text
                for k, space in enumerate(_ISOLATED)
                for text in (
                    f"SELECT * FROM {space}.iso_data WHERE ns_id = {k}",
                    f"SELECT COUNT(*) FROM {space}.iso_data",
                )
            )
        ),
        [
            text
            for k, space in enumerate(_ISOLATED)
            for text in (
                f"CREATE NAMESPACE IF NOT EXISTS {space}",
                f"DROP TABLE IF EXISTS {space}.iso_data",
                f"CREATE TABLE {space}.iso_data (id INT PRIMARY KEY, ns_id INT, payload TEXT)",
                *(
                    f"INSERT INTO {space}.iso_data (id, ns_id, payload) VALUES "
                    + ", ".join(f"({n}, {k}, 'p{n}')" for n in range(at, at + 50))
                    for at in range(0, 200, 50)
                ),
            )
        ],
    ),
    Workload(
        "subscribe_initial_load",
        _initial_load,
        table("sub_init_load", "id INT PRIMARY KEY, name TEXT, value INT", "USER TABLE")
        + seed("sub_init_load", "id, name, value", (f"({n}, 'n{n}', {n})" for n in range(1000))),
    ),
    Workload(
        "subscribe_change_latency",
        _change_latency,
        table("change_latency", "id INT PRIMARY KEY, ts TEXT", "USER TABLE"),
    ),
    Workload(
        "reconnect_subscribe",
        _reconnect,
        table("reconnect_sub", "id INT PRIMARY KEY, data TEXT", "USER TABLE")
        + seed("reconnect_sub", "id, data", (f"({n}, 'd{n}')" for n in range(100))),
    ),
    Workload(
        "flushed_parquet_query",
        one(lambda i: _PARQUET[i % 5]),
        table(
            "parquet_bench", "id INT PRIMARY KEY, category TEXT, amount INT, description TEXT", "SHARED TABLE"
        ),
        prepare=_fill_parquet,
    ),
    Workload(
        "concurrent_subscribers",
        _subscribers,
        table("sub_bench", "id INT PRIMARY KEY, payload TEXT", "USER TABLE"),
    ),
    Workload("sql_1k_concurrent", _sql_1k, people("load_1k", 500), iterations_max=20),
    Workload(
        "create_user",
        one(lambda i: f"CREATE USER bcu_{i}_{RUN} WITH PASSWORD 'BenchP@ss1234' ROLE 'user'"),
    ),
    Workload("drop_user", one(lambda i: f"DROP USER IF EXISTS bdu_{i}_{RUN}"), prepare=_create_users),
    Workload(
        "connection_storm",
        _storm,
        table("storm_bench", "id INT PRIMARY KEY, val TEXT")
        + seed("storm_bench", "id, val", (f"({n}, 'v')" for n in range(3))),
    ),
    Workload(
        "mixed_read_write",
        many(_mixed_read_write),
        table("mixed_bench", "id INT PRIMARY KEY, counter INT, label TEXT")
        + seed("mixed_bench", "id, counter, label", (f"({n}, 0, 'l{n}')" for n in range(200))),
    ),
    Workload(
        "wide_fanout_query",
        many(lambda i: (_FANOUT[k % 3] for k in range(CONCURRENCY))),
        table("fanout_bench", "id INT PRIMARY KEY, col_a TEXT, col_b TEXT, col_c DOUBLE, col_d BIGINT")
        + seed(
            "fanout_bench",
            "id, col_a, col_b, col_c, col_d",
            (f"({n}, 'a{n}', 'b{n}', {n * 0.7:.1f}, {n * 1000})" for n in range(1000)),
        ),
    ),
)


async def measure(wire: Wire, workload: Workload, iterations: int) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds."""
    iterations = min(iterations, workload.iterations_max)
    warmup = [WARMUP_FROM + n for n in range(min(WARMUP, iterations))]
    for text in workload.setup:
        await wire.sql(text)
    if workload.prepare is not None:
        await workload.prepare(wire, [*warmup, *range(iterations)])
    for number in warmup:
        await workload.run(wire, number)
    times = []
    for number in range(iterations):
        began = time.perf_counter()
        await workload.run(wire, number)
        times.append((time.perf_counter() - began) * 1000)
    times.sort()
    return {
        "median": round(statistics.median(times), 3),
        "p99": round(times[min(len(times) - 1, int(len(times) * 0.99))], 3),
    }


async def run(url: str, user: str, password: str, options: argparse.Namespace) -> dict[str, Any]:
    wire = Wire(url, user, password)
    await wire.login()
    await wire.sql(f"CREATE NAMESPACE IF NOT EXISTS {NS}")
    only = set(options.only.split(",")) if options.only else {workload.name for workload in WORKLOADS}
    results = {w.name: await measure(wire, w, options.iterations) for w in WORKLOADS if w.name in only}
    for name in (NS, *_ISOLATED):
        await wire.sql(f"DROP NAMESPACE IF EXISTS {name}")
    wire.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--only", help="names of workloads, with commas between")
    parser.add_argument("--url")
    parser.add_argument("--user", default="root")
    parser.add_argument("--password", default=os.environ.get("UPWELL_ROOT_PASSWORD", ""))
    options = parser.parse_args()
    if options.url:
        results = asyncio.run(run(options.url, options.user, options.password, options))
    else:
        with tempfile.TemporaryDirectory() as name, ServerProcess(Path(name) / "data") as server:
            results = asyncio.run(run(server.url, "root", server.root_password, options))
    print(json.dumps({"benchmark": "suite", "iterations": options.iterations, "ms": results}))


if __name__ == "__main__":
    main()
