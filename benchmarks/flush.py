"""Flush speed over HTTP: rows of 10 columns from RocksDB to Parquet, end to end; prints one JSON line.

    restart     after a SIGKILL with all rows hot: seconds until ready, and resident memory then in MB
    rows_s      rows of one SHARED partition, from the command to the completed job
    owners_s    partitions of a USER table with a row each
    insert      single inserts into the flushed table, quiet and while it is flushed: p50 and p99 in ms

    .venv/bin/python benchmarks/flush.py [--rows 1000000] [--owners 10000]

A server of its own is started on a fresh directory.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

from sql import COLUMNS, Connection, values
from upwell.testing import ServerProcess

BATCH_ROWS = 1_000
QUIET_INSERTS = 500
TABLE, USERS = "bench.items", "bench.owned"
NAMES = "(id, name, email, age, score, active, city, note, visits)"


class Inserter:
    """Inserts single rows one after the other and keeps their latencies in ms."""

    def __init__(self, connection: Connection, first: int) -> None:
        self._connection = connection
        self._next = first
        self.latencies: list[float] = []

    def insert(self) -> None:
        start = time.perf_counter()
        self._connection.sql(f"INSERT INTO {TABLE} {NAMES} VALUES {values(self._next)}")
        self.latencies.append((time.perf_counter() - start) * 1000)
        self._next += 1

    def quantiles(self) -> dict[str, float]:
        """Return p50 and p99 of what was measured, and begin anew."""
        found, self.latencies = sorted(self.latencies), []
        return {"p50": round(statistics.median(found), 2), "p99": round(found[int(len(found) * 0.99)], 2)}


def load(connection: Connection, rows: int) -> None:
    for start in range(0, rows, BATCH_ROWS):
        batch = ", ".join(values(row) for row in range(start, min(rows, start + BATCH_ROWS)))
        connection.sql(f"INSERT INTO {TABLE} {NAMES} VALUES {batch}")


def load_owners(connection: Connection, owners: int) -> None:
    for number in range(owners):
        connection.sql(f"EXECUTE AS USER 'u{number:06d}' (INSERT INTO {USERS} {NAMES} VALUES {values(1)})")


def flush(connection: Connection, table: str) -> float:
    """Flush a table; return the seconds from the command to the completed job."""
    start = time.perf_counter()
    answer = json.dumps(connection.sql(f"STORAGE FLUSH TABLE {table}"))
    job = answer.split("Job ID: ")[1].split('"')[0]
    while True:
        found = json.dumps(connection.sql(f"SELECT status, message FROM system.jobs WHERE job_id = '{job}'"))
        if '"completed"' in found:
            return time.perf_counter() - start
        if '"failed"' in found:
            raise SystemExit(found)
        time.sleep(0.05)


def restart(server: ServerProcess) -> dict[str, object]:
    server.kill()
    start = time.perf_counter()
    server.start()
    seconds = time.perf_counter() - start
    return {"restart_s": round(seconds, 2), "restart_mb": server.memory_bytes() >> 20}


def measure_rows(connection: Connection, inserter: Inserter, rows: int) -> dict[str, object]:
    for _ in range(QUIET_INSERTS):
        inserter.insert()
    quiet = inserter.quantiles()
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            inserter.insert()

    writer = threading.Thread(target=go_on)
    writer.start()
    seconds = flush(connection, TABLE)
    done.set()
    writer.join()
    return {
        "rows": rows,
        "rows_s": round(rows / seconds),
        "insert_quiet_ms": quiet,
        "insert_during_ms": inserter.quantiles(),
    }


def measure_owners(connection: Connection, owners: int) -> dict[str, object]:
    if not owners:
        return {}
    load_owners(connection, owners)
    return {"owners": owners, "owners_s": round(owners / flush(connection, USERS))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--owners", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, ServerProcess(Path(directory) / "data") as server:
        root = Connection(server.url, "root", server.root_password)
        root.sql("CREATE NAMESPACE bench")
        for table, kind in ((TABLE, "SHARED"), (USERS, "USER")):
            root.sql(f"CREATE TABLE {table} ({COLUMNS}) WITH (TYPE='{kind}', FLUSH_POLICY='rows:100000000')")
        load(root, options.rows)
        found = restart(server)
        root, other = (Connection(server.url, "root", server.root_password) for _ in range(2))
        found |= measure_rows(root, Inserter(other, options.rows), options.rows)
        found |= measure_owners(root, options.owners)
    print(json.dumps({"benchmark": "flush", "cores": os.cpu_count(), **found}))


if __name__ == "__main__":
    main()
