"""SQL over HTTP: medians of requests of one client on one connection; prints one JSON line.

    point select by primary key · select of 200 rows
    insert of one row, of 50 in one statement, of 50 by `rows`, of 50 statements in a transaction
    update and delete by key · delete of 100 rows by another column out of 25,000 · create and drop a table
    inserts a second of 64 connections at once

beside them the raw `write + fdatasync` of the disk that holds the data, and the server's memory at rest.

    .venv/bin/python benchmarks/sql.py [--requests 1000] [--async] [--url URL --user U --password P]

Without --url a server of its own is started on a fresh directory. Times are milliseconds at the client.
"""

import argparse
import asyncio
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from upwell.testing import ServerProcess

COLUMNS = (
    "id BIGINT PRIMARY KEY, name TEXT NOT NULL, email TEXT, age INT, score DOUBLE, active BOOLEAN, "
    "city TEXT, note TEXT, visits BIGINT, created_at TIMESTAMP DEFAULT NOW()"
)
INSERT = "INSERT INTO bench.items (id, name, email, age, score, active, city, note, visits) VALUES "
SELECT_ROWS = 200
BULK_ROWS = 25_000
CONNECTIONS = 64


class Connection:
    """One keep-alive connection that sends SQL as root."""

    def __init__(self, url: str, user: str, password: str) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80)
        answer = self._post("/v1/api/auth/login", {"user": user, "password": password}, {})
        self.token = answer["access_token"]
        self._headers = {"Authorization": f"Bearer {answer['access_token']}"}

    def sql(self, text: str, **body: object) -> dict[str, object]:
        return self._post("/v1/api/sql", {"sql": text, **body}, self._headers)

    def _post(self, path: str, body: object, headers: dict[str, str]) -> dict[str, object]:
        self._http.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
        response = self._http.getresponse()
        content = response.read()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {content.decode()[:300]}")
        answer: dict[str, object] = json.loads(content)
        return answer


def values(row: int) -> str:
    return (
        f"({row}, 'Name {row}', 'user{row}@example.com', {row % 90}, {row * 0.5}, TRUE, "
        f"'City {row % 50}', 'a note of some words, number {row}', {row * 1000})"
    )


def median_ms(call: Callable[[int], object], requests: int) -> float:
    """Return the median time of `call(0) … call(requests - 1)` in milliseconds."""
    times = []
    for number in range(requests):
        began = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1000, 3)


def raw_sync_ms(directory: Path, requests: int) -> float:
    """Return the median of appending 200 bytes and `fdatasync` on the same disk."""
    with tempfile.TemporaryFile(dir=directory) as file:

        def append(number: int) -> None:
            os.write(file.fileno(), b"x" * 200)
            os.fdatasync(file.fileno())

        return median_ms(append, requests)


def memory_mb(pid: int) -> float | None:
    """Return the resident memory of a process in MiB, None where /proc has no say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def measure(connection: Connection, directory: Path, requests: int) -> dict[str, object]:
    connection.sql("CREATE NAMESPACE IF NOT EXISTS bench")
    connection.sql("DROP TABLE IF EXISTS bench.items")
    connection.sql(f"CREATE TABLE bench.items ({COLUMNS}) WITH (TYPE='USER')")
    for start in range(0, SELECT_ROWS, 50):
        connection.sql(INSERT + ", ".join(values(row) for row in range(start, start + 50)))
    select = f"SELECT * FROM bench.items WHERE id < {SELECT_ROWS}"
    assert len(connection.sql(select)["results"][0]["rows"]) == SELECT_ROWS  # type: ignore[index]
    results: dict[str, object] = {"raw_fdatasync_ms": raw_sync_ms(directory, requests)}
    results["point_select_ms"] = median_ms(
        lambda n: connection.sql(f"SELECT * FROM bench.items WHERE id = {n % SELECT_ROWS}"), requests
    )
    results["select_200_rows_ms"] = median_ms(lambda n: connection.sql(select), requests)
    results["single_insert_ms"] = median_ms(
        lambda n: connection.sql(INSERT + values(1_000_000 + n)), requests
    )
    results["insert_50_rows_ms"] = median_ms(
        lambda n: connection.sql(INSERT + ", ".join(values(2_000_000 + 50 * n + row) for row in range(50))),
        requests,
    )
    results |= measure_writes(connection, requests)
    results["raw_fdatasync_after_ms"] = raw_sync_ms(directory, requests)
    return results


def measure_writes(connection: Connection, requests: int) -> dict[str, object]:
    sql = connection.sql
    connection.sql("DROP TABLE IF EXISTS bench.bulk")
    connection.sql("CREATE TABLE bench.bulk (id INT PRIMARY KEY, bucket INT, payload TEXT)")
    fill = "INSERT INTO bench.bulk (id, bucket, payload) VALUES ($1, $2, $3)"
    for start in range(0, BULK_ROWS, 5_000):
        sql(fill, rows=[[n, n // 100, f"payload {n}"] for n in range(start, start + 5_000)])
    few = min(requests, BULK_ROWS // 100)
    one = "INSERT INTO bench.bulk (id, bucket, payload) VALUES ({}, -1, 'x');"
    made = [f"bench.made_{n}" for n in range(few)]
    return {
        "insert_50_by_rows_ms": median_ms(
            lambda n: sql(fill, rows=[[1_000_000 + 50 * n + k, -2, "x"] for k in range(50)]), few
        ),
        "transaction_of_50_inserts_ms": median_ms(
            lambda n: sql(
                "BEGIN;" + "".join(one.format(2_000_000 + 50 * n + k) for k in range(50)) + "COMMIT;"
            ),
            few,
        ),
        "update_by_key_ms": median_ms(
            lambda n: sql(f"UPDATE bench.bulk SET payload = 'p{n}' WHERE id = {n % BULK_ROWS}"), requests
        ),
        "delete_by_key_ms": median_ms(
            lambda n: sql(f"DELETE FROM bench.bulk WHERE id = {1_000_000 + n}"), requests
        ),
        "delete_100_of_25000_ms": median_ms(
            lambda n: sql(f"DELETE FROM bench.bulk WHERE bucket = {n}"), few // 2
        ),
        "create_table_ms": median_ms(
            lambda n: sql(f"CREATE TABLE {made[n]} (id INT PRIMARY KEY, name TEXT, value DOUBLE)"), few
        ),
        "drop_table_ms": median_ms(lambda n: sql(f"DROP TABLE {made[n]}"), few),
    }


def inserts_per_second(url: str, user: str, password: str, inserts: int) -> float:
    """Return how many inserts a second 64 connections get done, each waiting for its answers."""

    async def insert(port: int, head: bytes, worker: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(inserts // CONNECTIONS):
            key = 10_000_000 + worker * 1_000_000 + number
            body = json.dumps({"sql": f"INSERT INTO bench.bulk VALUES ({key}, -3, 'x')"}).encode()
            writer.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    async def all_insert() -> float:
        port = urlsplit(url).port or 80
        token = Connection(url, user, password).token
        head = (
            f"POST /v1/api/sql HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        began = time.perf_counter()
        await asyncio.gather(*(insert(port, head, worker) for worker in range(CONNECTIONS)))
        return inserts / (time.perf_counter() - began)

    return round(asyncio.run(all_insert()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--async", action="store_true", dest="is_async", help="durability `async`")
    parser.add_argument("--url")
    parser.add_argument("--user", default="root")
    parser.add_argument("--password", default=os.environ.get("UPWELL_ROOT_PASSWORD", ""))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.url:
            connection = Connection(options.url, options.user, options.password)
            results = measure(connection, directory, options.requests)
        else:
            durability = "async" if options.is_async else "group"
            with ServerProcess(directory / "data", env={"UPWELL_DURABILITY": durability}) as server:
                idle = memory_mb(server.pid)
                connection = Connection(server.url, "root", server.root_password)
                results = measure(connection, directory, options.requests)
                rate = inserts_per_second(server.url, "root", server.root_password, 20 * options.requests)
                results["inserts_per_second_64"] = rate
                results |= {"idle_memory_mb": idle, "memory_after_mb": memory_mb(server.pid)}
    print(json.dumps({"benchmark": "sql", "requests": options.requests, **results}))


if __name__ == "__main__":
    main()
