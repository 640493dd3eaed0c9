"""Live queries: how soon, how many, how much memory; prints one JSON line.

    insert → subscriber · 1 change → 1,000 sockets · deliveries per second (equal and distinct ids)
    subscribe to 1,000 rows · 10,000 changes to 10 subscribers, each exactly once
    100,000 subscriptions on 1,000 sockets: memory, and what they cost a commit to another table
    one socket that isn't read for 30 s beside 100 that are: their times, memory, and that it has no gap then

    .venv/bin/python benchmarks/live.py [--sockets 1000] [--per-socket 100] [--stall-s 30] [--only NAME …]

Server and client share the machine. Times are milliseconds at the client, medians and 99th percentiles;
`cpu` is processor time of the server, which other programs on the machine change less.
"""

import argparse
import asyncio
import json
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from upwell.client import connect
from upwell.testing import ServerProcess

CHANGES = 100
TURNS, TURN_COMMITS = 81, 50
SETTINGS = {
    "UPWELL_BCRYPT_COST": "4",
    "UPWELL_WS_SUBSCRIPTIONS_PER_USER_MAX": "1000000",
    "UPWELL_WS_CLIENT_TIMEOUT_S": "3600",
    "UPWELL_QUERIES_PER_S_MAX": "1000000",
}
_MASK = b"\x00\x00\x00\x00"


class Socket(asyncio.Protocol):
    """A WebSocket that counts frames; `keep` keeps what they hold."""

    def __init__(self, token: str) -> None:
        self.count = 0
        self.kept: list[bytes] | None = []
        self.wanted: tuple[int, asyncio.Future[float]] | None = None
        self._token = token
        self._data = b""
        self._is_open = False

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        lines = [
            "GET /v1/ws?compress=false HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: YSBrZXkgb2YgMTYgYnl0ZQ==", "Sec-WebSocket-Version: 13",
            f"Authorization: Bearer {self._token}", "", "",
        ]  # fmt: skip
        transport.write("\r\n".join(lines).encode())

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        at, size = 0, len(data)
        if not self._is_open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._data = data
                return
            self._is_open, at = True, end + 4
        while size - at >= 2:
            length, head = data[at + 1] & 127, 2
            if length == 126 and size - at >= 4:
                length, head = int.from_bytes(data[at + 2 : at + 4]), 4
            elif length == 127 and size - at >= 10:
                length, head = int.from_bytes(data[at + 2 : at + 10]), 10
            elif length > 125:
                break
            if size - at < head + length:
                break
            if self.kept is not None:
                self.kept.append(data[at + head : at + head + length])
            self.count += 1
            at += head + length
        self._data = data[at:]
        if self.wanted is not None and self.count >= self.wanted[0]:
            if not self.wanted[1].done():
                self.wanted[1].set_result(time.perf_counter())
            self.wanted = None

    def say(self, **message: Any) -> None:
        payload = json.dumps(message).encode()
        if len(payload) < 126:
            head = struct.pack("!BB", 0x81, 0x80 | len(payload))
        else:
            head = struct.pack("!BBH", 0x81, 0xFE, len(payload))
        self.transport.write(head + _MASK + payload)

    def reached(self, count: int) -> "asyncio.Future[float]":
        """Return when so many frames have come, and the time of the last."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if self.count >= count:
            future.set_result(time.perf_counter())
        else:
            self.wanted = (count, future)
        return future


class Bench:
    """One server, one user, and what is measured."""

    def __init__(self, server: ServerProcess, sockets: int, per_socket: int, stall_s: float) -> None:
        self.server = server
        self.sockets = sockets
        self.per_socket = per_socket
        self.stall_s = stall_s
        self.client = connect(server.url, user="root", password=server.root_password)
        self.client.execute("CREATE NAMESPACE bench")
        for name, access in (("shared", "SHARED"), ("other", "USER"), ("mine", "USER")):
            columns = "id BIGINT PRIMARY KEY, room INT NOT NULL, body TEXT NOT NULL"
            self.client.execute(f"CREATE TABLE bench.{name} ({columns}) WITH (TYPE = '{access}')")
        self.token = _token(server)
        self._next = 0

    async def open(self, count: int) -> list[Socket]:
        loop = asyncio.get_running_loop()
        opened = []
        for _ in range(count):
            _, socket = await loop.create_connection(
                lambda: Socket(self.token), "127.0.0.1", self.server.port
            )
            opened.append(socket)
        await asyncio.gather(*(socket.reached(1) for socket in opened))
        return opened

    async def subscribe(self, socket: Socket, sql: str, id: str = "s", options: Any = None) -> None:  # noqa: A002
        before = socket.count
        socket.say(type="subscribe", subscription={"id": id, "sql": sql, "options": options})
        await socket.reached(before + (1 if options is None else 2))

    def values(self, count: int, room: int = 1) -> str:
        self._next += count
        ids = range(self._next - count, self._next)
        return ", ".join(f"({n}, {room}, 'a message of some twenty words, {n:040d}')" for n in ids)

    async def insert(self, table: str, count: int = 1, room: int = 1) -> float:
        """Insert rows; return when the request was sent."""
        sql = f"INSERT INTO bench.{table} VALUES {self.values(count, room)}"
        began = time.perf_counter()
        await asyncio.to_thread(self.client.execute, sql)
        return began

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.server.pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)

    def cpu_s(self) -> float:
        """Return the processor time that the server's threads have used, exactly."""
        threads = Path(f"/proc/{self.server.pid}/task").iterdir()
        return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9

    # What is measured

    async def latency(self) -> dict[str, float]:
        [socket] = await self.open(1)
        await self.subscribe(socket, "SELECT * FROM bench.mine")
        times = []
        for _ in range(1_000):
            arrival = socket.reached(socket.count + 1)
            began = await self.insert("mine")
            times.append((await arrival - began) * 1000)
        return _spread(times[100:])

    async def fan_out(self) -> dict[str, float]:
        sockets = await self.open(self.sockets)
        for socket in sockets:
            await self.subscribe(socket, "SELECT * FROM bench.shared")
        times = []
        for _ in range(20):
            arrivals = [socket.reached(socket.count + 1) for socket in sockets]
            began = await self.insert("shared")
            times.append((max(await asyncio.gather(*arrivals)) - began) * 1000)
        _close(sockets)
        return _spread(times[2:])

    async def deliveries(self) -> dict[str, float]:
        found = {}
        for kind in ("equal", "distinct"):
            sockets = await self.open(self.sockets)
            for number, socket in enumerate(sockets):
                socket.kept = None
                name = "s" if kind == "equal" else f"subscription-{number}"
                await self.subscribe(socket, "SELECT * FROM bench.shared", name)
            rates, cpu_s = [], self.cpu_s()
            for _ in range(3):
                arrivals = [socket.reached(socket.count + CHANGES) for socket in sockets]
                began = await self.insert("shared", CHANGES)
                took = max(await asyncio.gather(*arrivals)) - began
                rates.append(CHANGES * len(sockets) / took)
            found[f"{kind}_ids_per_s"] = round(statistics.median(rates))
            used_us = (self.cpu_s() - cpu_s) * 1e6
            found[f"{kind}_ids_cpu_us"] = round(used_us / (3 * CHANGES * len(sockets)), 1)
            _close(sockets)
        return found

    async def snapshot(self) -> dict[str, float]:
        await self.insert("other", 1_000)
        [socket] = await self.open(1)
        times = []
        for number in range(50):
            began, before = time.perf_counter(), socket.count
            options = {"batch_size": 1_000}
            subscription = {"id": f"s{number}", "sql": "SELECT * FROM bench.other", "options": options}
            socket.say(type="subscribe", subscription=subscription)
            times.append((await socket.reached(before + 2) - began) * 1000)
        return _spread(times[5:])

    async def exactly_once(self) -> dict[str, float]:
        sockets = await self.open(10)
        for socket in sockets:
            await self.subscribe(socket, "SELECT id FROM bench.mine WHERE room = 77")
            socket.kept = []
        arrivals = [socket.reached(socket.count + 10_000) for socket in sockets]
        first, began = self._next, time.perf_counter()
        for _ in range(500):
            await self.insert("mine", 20, room=77)
        took = max(await asyncio.gather(*arrivals)) - began
        wanted = list(range(first, first + 10_000))
        for socket in sockets:
            assert socket.kept is not None
            seen = [int(json.loads(frame)["rows"][0]["id"]) for frame in socket.kept]
            assert seen == wanted, "each once and in order"
        return {"changes_per_s": round(10_000 / took)}

    async def many(self) -> dict[str, float]:
        """Subscriptions of one row each, of a table that nobody writes to.

        Commits go by turns to this server and to one that has none, so that what else the machine does meets
        both; compared is processor time.
        """
        sockets = await self.open(self.sockets)
        before_mb = self.rss_mb()
        began = time.perf_counter()
        for number, socket in enumerate(sockets):
            socket.kept = None
            for at in range(self.per_socket):
                key = number * self.per_socket + at
                sql = f"SELECT * FROM bench.shared WHERE id = {key}"
                socket.say(type="subscribe", subscription={"id": f"s{at}", "sql": sql, "options": None})
            await socket.reached(1 + self.per_socket)
        took = time.perf_counter() - began
        count = len(sockets) * self.per_socket
        mb = round(self.rss_mb() - before_mb, 1)
        with tempfile.TemporaryDirectory() as directory, started(Path(directory)) as server:
            turns = await self._turns(Bench(server, 0, 0, 0))
        _close(sockets)
        return {"subscriptions": count, "mb": mb, "subscribed_per_s": round(count / took), **turns}

    async def _turns(self, without: "Bench") -> dict[str, float]:
        spent: dict[Bench, list[float]] = {without: [], self: []}
        for turn in range(TURNS):
            # Each is the first as often as the other.
            for bench, times in list(spent.items())[:: 1 if turn % 2 else -1]:
                before_s = bench.cpu_s()
                for _ in range(TURN_COMMITS):
                    await bench.insert("other")
                if turn:
                    times.append((bench.cpu_s() - before_s) * 1000 / TURN_COMMITS)
        before, after = (statistics.median(times) for times in spent.values())
        ratios = [with_them / alone for alone, with_them in zip(*spent.values(), strict=True)]
        return {
            "commit_cpu_ms_without": round(before, 3),
            "commit_cpu_ms_with": round(after, 3),
            "commit_cpu_ratio": round(statistics.median(ratios), 3),
        }

    async def stall(self) -> dict[str, float]:
        """One socket isn't read for a while beside 100 that are; then it reads on."""
        healthy = await self.open(100)
        [stalled] = await self.open(1)
        for socket in [*healthy, stalled]:
            await self.subscribe(socket, "SELECT id, body FROM bench.shared WHERE room = 9")
        for socket in healthy:
            socket.kept = None
        quiet = [await self._last_ms(healthy, 20) for _ in range(20)]
        stalled.kept, seen_before = [], self._next - 400
        stalled.transport.pause_reading()
        before_mb, until = self.rss_mb(), time.perf_counter() + self.stall_s
        busy = []
        while time.perf_counter() < until:
            busy.append(await self._last_ms(healthy, 20))
        grown_mb = round(self.rss_mb() - before_mb, 1)
        wanted = list(range(seen_before, self._next))
        stalled.transport.resume_reading()
        await stalled.reached(2 + len(wanted))
        seen = [int(json.loads(frame)["rows"][0]["id"]) for frame in stalled.kept]
        assert seen == wanted[-len(seen) :], "no gap, none twice"
        assert len(seen) >= 20 * len(busy), "all that came while it stalled"
        _close([*healthy, stalled])
        return {
            "changes": 20 * len(busy),
            **{f"beside_{name}": value for name, value in _spread(quiet).items()},
            **{f"stalled_{name}": value for name, value in _spread(busy).items()},
            "grown_mb": grown_mb,
        }

    async def _last_ms(self, sockets: list[Socket], count: int) -> float:
        """Insert rows of room 9; return when the last socket had the last of them."""
        arrivals = [socket.reached(socket.count + count) for socket in sockets]
        began = await self.insert("shared", count, room=9)
        return (max(await asyncio.gather(*arrivals)) - began) * 1000


def started(directory: Path) -> ServerProcess:
    return ServerProcess(directory / "data", env=SETTINGS)


def _spread(times: list[float]) -> dict[str, float]:
    times.sort()
    p99 = times[min(len(times) - 1, round(len(times) * 0.99))]
    return {"median_ms": round(statistics.median(times), 2), "p99_ms": round(p99, 2)}


def _close(sockets: list[Socket]) -> None:
    for socket in sockets:
        socket.transport.abort()


def _token(server: ServerProcess) -> str:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    body = json.dumps({"user": "root", "password": server.root_password})
    connection.request("POST", "/v1/api/auth/login", body, {"Content-Type": "application/json"})
    token: str = json.loads(connection.getresponse().read())["access_token"]
    return token


async def _run(bench: Bench, only: list[str]) -> dict[str, Any]:
    parts: dict[str, Callable[[], Awaitable[dict[str, float]]]] = {
        "latency": bench.latency,
        "fan_out": bench.fan_out,
        "deliveries": bench.deliveries,
        "snapshot": bench.snapshot,
        "exactly_once": bench.exactly_once,
        "many": bench.many,
        "stall": bench.stall,
    }
    return {name: await part() for name, part in parts.items() if not only or name in only}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--per-socket", type=int, default=100)
    parser.add_argument("--stall-s", type=float, default=30)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        started(Path(directory)) as server,
    ):
        bench = Bench(server, options.sockets, options.per_socket, options.stall_s)
        found = uvloop.run(_run(bench, options.only))
        print(json.dumps({"sockets": options.sockets, **found, "rss_mb": bench.rss_mb()}))


if __name__ == "__main__":
    main()
