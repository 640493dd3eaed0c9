"""SELECTs over HTTP: medians of one client's requests, and what many clients get done; one JSON line.

    point select · 200 rows · COUNT(*) · ORDER BY … LIMIT 10 · GROUP BY over 10,000 rows
    64 connections of point selects · 1,000 mixed SELECTs, 128 in flight · inserts beside 4 readers

    .venv/bin/python benchmarks/queries.py [--requests 1000]

A server of its own is started on a fresh directory. Times are milliseconds at the client. Clients are
processes of their own beside the server, so that two cores are what both share.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from upwell.testing import ServerProcess
from wire import Connection, crowd

ROWS = "id INT PRIMARY KEY, name TEXT, score DOUBLE, active BOOLEAN"
SALES = "id INT PRIMARY KEY, region TEXT, product TEXT, quantity INT, price INT"
CONNECTIONS = 64
IN_FLIGHT = 128
READERS = 4


def row(number: int) -> str:
    return f"({number},'user_{number}',{number * 1.5},{'true' if number % 2 else 'false'})"


def sale(number: int) -> str:
    regions, products = ("us-east", "us-west", "eu", "asia"), ("a", "b", "c", "d", "e")
    return f"({number},'{regions[number % 4]}','{products[number % 5]}',{number % 50},{number % 997})"


def fill(connection: Connection, table: str, columns: str, value: Callable[[int], str], count: int) -> None:
    connection.sql(f"CREATE TABLE bench.{table} ({columns})")
    for start in range(0, count, 500):
        values = ", ".join(value(number) for number in range(start, min(start + 500, count)))
        connection.sql(f"INSERT INTO bench.{table} VALUES {values}")


def median_ms(connection: Connection, text: Callable[[int], str], count: int) -> float:
    times = []
    for number in range(-5, count):
        request = connection.request(text(number % 200))
        began = time.perf_counter()
        connection.send(request)
        if number >= 0:
            times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1000, 3)


def crowd_s(connection: Connection, texts: list[str], connections: int) -> float:
    """Return the seconds that all the texts take, sent by another process."""
    requests = [connection.request(text) for text in texts]
    with multiprocessing.Pool(1) as pool:
        return pool.apply(_crowd_s, (connection.address, requests, connections))


def _crowd_s(address: tuple[str, int], requests: list[bytes], connections: int) -> float:
    began = time.perf_counter()
    failures = uvloop.run(crowd(address, requests, connections))
    if failures:
        raise SystemExit(f"{failures} requests failed")
    return time.perf_counter() - began


def read_for_ever(address: tuple[str, int], requests: list[bytes]) -> None:
    async def read() -> None:
        while True:
            await crowd(address, requests, READERS)

    asyncio.run(read())


def inserts_beside_readers(connection: Connection, count: int) -> float:
    requests = [connection.request("SELECT * FROM bench.rows")] * 200
    reader = multiprocessing.Process(target=read_for_ever, args=(connection.address, requests), daemon=True)
    reader.start()
    try:
        numbers = iter(range(10_000_000))
        return median_ms(
            connection, lambda _: f"INSERT INTO bench.written VALUES {row(next(numbers))}", count
        )
    finally:
        reader.kill()
        reader.join()


def mixed(number: int) -> str:
    match number % 4:
        case 0:
            return f"SELECT * FROM bench.load WHERE id = {number % 500}"
        case 1:
            return "SELECT COUNT(*) FROM bench.load"
        case 2:
            return f"SELECT * FROM bench.load WHERE score > {number % 300} ORDER BY score LIMIT 10"
        case _:
            return "SELECT name, score FROM bench.load LIMIT 20"


GROUPS = (
    "SELECT region, COUNT(*) AS cnt, SUM(quantity) AS total, AVG(price) AS average FROM bench.sales "
    "GROUP BY region ORDER BY total DESC",
    "SELECT product, region, SUM(quantity * price) AS revenue FROM bench.sales "
    "GROUP BY product, region ORDER BY revenue DESC LIMIT 10",
    "SELECT product, SUM(price) AS s, MIN(price) AS low, MAX(price) AS high FROM bench.sales "
    "WHERE region = 'us-east' GROUP BY product ORDER BY s",
    "SELECT region, COUNT(*) AS cnt FROM bench.sales GROUP BY region HAVING COUNT(*) > 1000 ORDER BY cnt",
)


def measure(connection: Connection, count: int) -> dict[str, object]:
    connection.sql("CREATE NAMESPACE bench")
    fill(connection, "rows", ROWS, row, 200)
    fill(connection, "load", ROWS, row, 500)
    fill(connection, "sales", SALES, sale, 10_000)
    connection.sql(f"CREATE TABLE bench.written ({ROWS})")
    return {
        "point_select_ms": median_ms(
            connection, lambda n: f"SELECT * FROM bench.rows WHERE id = {n % 200}", count
        ),
        "select_200_rows_ms": median_ms(connection, lambda n: "SELECT * FROM bench.rows", count),
        "count_ms": median_ms(connection, lambda n: "SELECT COUNT(*) FROM bench.rows", count),
        "order_limit_ms": median_ms(
            connection, lambda n: "SELECT * FROM bench.rows ORDER BY score DESC LIMIT 10", count
        ),
        "group_10k_ms": median_ms(connection, lambda n: GROUPS[n % 4], count),
        "point_selects_per_s": round(
            20_000
            / crowd_s(
                connection,
                [f"SELECT * FROM bench.rows WHERE id = {n % 200}" for n in range(20_000)],
                CONNECTIONS,
            )
        ),
        "mixed_1000_ms": round(
            statistics.median(
                crowd_s(connection, [mixed(n) for n in range(1_000)], IN_FLIGHT) for _ in range(5)
            )
            * 1000
        ),
        "insert_beside_readers_ms": inserts_beside_readers(connection, count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--url", help="a server that runs already, with an empty directory")
    parser.add_argument("--password", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.url:
            results = measure(Connection(options.url, "root", options.password), options.requests)
        else:
            with ServerProcess(Path(name) / "data") as server:
                results = measure(Connection(server.url, "root", server.root_password), options.requests)
    print(json.dumps({"benchmark": "queries", "requests": options.requests, **results}))


if __name__ == "__main__":
    main()
