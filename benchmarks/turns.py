"""Two versions of the server, asked in turns: what a request costs in each; one JSON line per workload.

    .venv/bin/python benchmarks/turns.py --old ../other/src [--only point_select,…] [--turns 200]

`--old` is the directory with the other version's package `upwell`; the new one is what this Python imports.
Both run at once on fresh directories and take turns after a few requests, so that whatever else the machine
does meets both alike. Medians in milliseconds per request: `cpu` of the server process, which other load
can't hide, and `wall` at the client; `hops` is how often one of its threads gave the processor up. `ratio`
is new / old.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import upwell
from queries import (
    CONNECTIONS,
    GROUPS,
    IN_FLIGHT,
    ROWS,
    SALES,
    crowd_s,
    fill,
    mixed,
    read_for_ever,
    sale,
)
from queries import row as plain_row
from sql import COLUMNS, INSERT, values
from upwell.testing import ServerProcess
from wire import Connection

BULK_ROWS = 25_000
CROWD = 2_000


class Asked:
    """One version of the server, and what it has been asked so far."""

    def __init__(self, server: ServerProcess) -> None:
        self.connection = Connection(server.url, "root", server.root_password)
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.hops: list[float] = []
        self._pid = server.pid
        self._began = (0.0, 0)
        self._numbers: dict[str, int] = {}

    def next(self, name: str) -> int:
        """Return 0, 1, 2, … for each name."""
        self._numbers[name] = self._numbers.get(name, -1) + 1
        return self._numbers[name]

    def cpu_s(self) -> float:
        return time.clock_gettime((~self._pid << 3) | 2)  # what clock_getcpuclockid(3) gives

    def switches(self) -> int:
        tasks = Path(f"/proc/{self._pid}/task").glob("*/status")
        lines = (line for task in tasks for line in task.read_text().splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    def begin(self) -> None:
        self._began = self.cpu_s(), self.switches()

    def end(self, requests: int) -> None:
        """Note what it cost since `begin`; by now it has done what came after the answers, too."""
        cpu_s, switches = self._began
        self.cpu_ms.append((self.cpu_s() - cpu_s) * 1000 / requests)
        self.hops.append((self.switches() - switches) / requests)

    def forget(self) -> None:
        self.wall_ms, self.cpu_ms, self.hops = [], [], []


@dataclass
class Workload:
    """`ask` runs `each` requests at once; so many times a turn."""

    ask: Callable[[Asked], object]
    times: int = 10
    each: int = 1
    before: Callable[[Asked], object] = lambda asked: None
    """Runs before a turn, unmeasured."""
    turns: int | None = None

    def turn(self, asked: Asked) -> None:
        for _ in range(self.times):
            began = time.perf_counter()
            self.ask(asked)
            asked.wall_ms.append((time.perf_counter() - began) * 1000 / self.each)


def one(name: str, text: Callable[[int], str]) -> Callable[[Asked], object]:
    """Return what sends the text of 0, 1, 2, …"""
    return lambda asked: asked.connection.send(asked.connection.request(text(asked.next(name))))


def many(name: str, text: Callable[[int], str], count: int, connections: int) -> Callable[[Asked], object]:
    """Return what sends so many of them at once."""
    return lambda asked: crowd_s(
        asked.connection, [text(asked.next(name)) for _ in range(count)], connections
    )


def rows_text(table: str, number: int, count: int) -> str:
    each = (f"({number * count + k},'user_{k}',{k * 1.5})" for k in range(count))
    return f"INSERT INTO bench.{table} (id, name, value) VALUES {', '.join(each)}"


def transaction_text(number: int) -> str:
    each = (
        f"INSERT INTO bench.moved (id, name, value) VALUES ({number * 50 + k},'u{k}',{k}.5);"
        for k in range(50)
    )
    return f"BEGIN;{''.join(each)}COMMIT;"


def beside_readers(asked: Asked) -> None:
    """Insert while others read without a pause; what these cost counts as well."""
    requests = [asked.connection.request("SELECT * FROM bench.rows")] * 200
    arguments = (asked.connection.address, requests)
    reader = multiprocessing.Process(target=read_for_ever, args=arguments, daemon=True)
    reader.start()
    insert = Workload(one("b", lambda n: f"INSERT INTO bench.beside VALUES {plain_row(n)}"), 50)
    try:
        insert.turn(asked)
    finally:
        reader.kill()
        reader.join()


def make(asked: Asked) -> None:
    asked.connection.sql(f"CREATE TABLE bench.gone_{asked.next('gone')} (id INT PRIMARY KEY, name TEXT)")


def crowd_of(name: str, text: Callable[[int], str]) -> Workload:
    return Workload(many(name, text, CROWD, CONNECTIONS), 1, CROWD, turns=8)


WORKLOADS = {
    "point_select": Workload(one("p", lambda n: f"SELECT * FROM bench.rows WHERE id = {n % 200}")),
    "select_200": Workload(one("s", lambda n: "SELECT * FROM bench.rows")),
    "count": Workload(one("c", lambda n: "SELECT COUNT(*) FROM bench.rows")),
    "order_limit": Workload(one("o", lambda n: "SELECT * FROM bench.rows ORDER BY score DESC LIMIT 10")),
    "group_10k": Workload(one("g", lambda n: GROUPS[n % 4]), 4),
    "insert": Workload(one("i", lambda n: f"INSERT INTO bench.written VALUES {plain_row(n)}")),
    "insert_9_columns": Workload(one("i9", lambda n: INSERT + values(1_000_000 + n))),
    "insert_50": Workload(one("i50", lambda n: rows_text("moved", n + 1_000_000, 50))),
    "insert_50_9_columns": Workload(
        one("i509", lambda n: INSERT + ", ".join(values(2_000_000 + 50 * n + k) for k in range(50)))
    ),
    "transaction_50": Workload(one("t", transaction_text)),
    "update_by_key": Workload(
        one("u", lambda n: f"UPDATE bench.bulk SET payload = 'p{n}' WHERE id = {n % BULK_ROWS}")
    ),
    "delete_by_key": Workload(one("d", lambda n: f"DELETE FROM bench.spent WHERE id = {n}")),
    "delete_100": Workload(one("d100", lambda n: f"DELETE FROM bench.bulk WHERE bucket = {n}"), 1),
    "create": Workload(
        one("ct", lambda n: f"CREATE TABLE bench.ct_{n} (id INT PRIMARY KEY, name TEXT, value DOUBLE)"), 1
    ),
    "drop": Workload(one("dt", lambda n: f"DROP TABLE bench.gone_{n}"), 1, before=make),
    "mixed_1000": Workload(many("m", mixed, 1_000, IN_FLIGHT), 1, 1_000, turns=8),
    "inserts_64": Workload(
        many("i64", lambda n: f"INSERT INTO bench.many VALUES {plain_row(n)}", CROWD, CONNECTIONS),
        1,
        CROWD,
        turns=8,
    ),
    "points_64": Workload(
        many("p64", lambda n: f"SELECT * FROM bench.rows WHERE id = {n % 200}", CROWD, CONNECTIONS),
        1,
        CROWD,
        turns=8,
    ),
    "insert_beside_readers": Workload(beside_readers, 1, 50, turns=8),
}


def prepare(asked: Asked) -> None:
    connection = asked.connection
    connection.sql("CREATE NAMESPACE bench")
    fill(connection, "rows", ROWS, plain_row, 200)
    fill(connection, "load", ROWS, plain_row, 500)
    fill(connection, "sales", SALES, sale, 10_000)
    fill(connection, "spent", ROWS, plain_row, 5_000)
    bulk = "id INT PRIMARY KEY, bucket INT, payload TEXT"
    fill(connection, "bulk", bulk, lambda n: f"({n},{n // 100},'payload {n}')", BULK_ROWS)
    for table in ("written", "many", "beside"):
        connection.sql(f"CREATE TABLE bench.{table} ({ROWS})")
    connection.sql("CREATE TABLE bench.moved (id INT PRIMARY KEY, name TEXT, value DOUBLE)")
    connection.sql(f"CREATE TABLE bench.items ({COLUMNS}) WITH (TYPE='USER')")


def told(asked: Asked) -> dict[str, float]:
    return {
        "cpu": round(statistics.median(asked.cpu_ms), 4),
        "wall": round(statistics.median(asked.wall_ms), 4),
        "hops": round(statistics.median(asked.hops), 2),
    }


def measure(name: str, old: Asked, new: Asked, turns: int) -> dict[str, object]:
    workload = WORKLOADS[name]
    for number in range((workload.turns or turns) + 2):
        # Who is first changes, too: the second finds caches and clocks of the processor warm.
        both = (old, new) if number % 2 else (new, old)
        for asked in both:
            workload.before(asked)
        for asked in both:
            asked.begin()
            workload.turn(asked)
        for asked in both:
            asked.end(workload.times * workload.each)
            if number < 2:
                asked.forget()
    found = {"old": told(old), "new": told(new)}
    ratio = {each: round(found["new"][each] / found["old"][each], 3) for each in ("cpu", "wall")}
    old.forget()
    new.forget()
    return {"benchmark": "turns", "workload": name, **found, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--only", default=",".join(WORKLOADS))
    parser.add_argument("--turns", type=int, default=60)
    options = parser.parse_args()
    new = Path(upwell.__file__).parent.parent
    with tempfile.TemporaryDirectory() as name:
        servers = [
            ServerProcess(Path(name) / version, env={"PYTHONPATH": str(source.resolve())})
            for version, source in (("old", options.old), ("new", new))
        ]
        with servers[0], servers[1]:
            asked = [Asked(server) for server in servers]
            for each in asked:
                prepare(each)
            for workload in options.only.split(","):
                found = measure(workload, asked[0], asked[1], options.turns)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
