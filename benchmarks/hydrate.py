"""A fresh device: rows a second from a server process to a device's SQLite file; prints one JSON line.

    hydration by the SDK over /sync/hydrate · the log over /sync/download, stock pages of 1,000, decoded

with the growth of the device's memory, and what SQLite alone does with the same rows.

    .venv/bin/python benchmarks/hydrate.py [--rows 100000] [--page-rows 5000] [--cold]

Server and device share the machine; --cold moves the rows to Parquet first.
"""

import argparse
import json
import multiprocessing
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path
from random import Random

import httpx

from upwell.device import Device
from upwell.protocol import sync
from upwell.testing import ServerProcess
from upwell.testing.sync_world import World

USER, SOURCE = "ada", "phone"
STOCK_PAGE_ROWS = 1_000
STATEMENT_ROWS = 1_000
SERVER_COLUMNS = "id UUID PRIMARY KEY, name TEXT, email TEXT, age INT, score DOUBLE, visits BIGINT"
DEVICE_COLUMNS = "id TEXT PRIMARY KEY, name TEXT, email TEXT, age INTEGER, score REAL, visits INTEGER"


def fill(world: World, rows: int, *, is_cold: bool) -> None:
    """Write the rows of one user, as a back end does."""
    chance = Random(1)
    for start in range(0, rows, STATEMENT_ROWS):
        values = ", ".join(
            f"('{uuid.UUID(int=chance.getrandbits(128))}', 'Name {n}', 'user{n}@example.com', {n % 90},"
            f" {n * 0.5}, {n * 1000})"
            for n in range(start, min(rows, start + STATEMENT_ROWS))
        )
        world.sql(USER, f"INSERT INTO {{ns}}.items VALUES {values}")
    if is_cold:
        world.flush("items")


def memory_mb(name: str) -> float:
    """Return a number of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def hydrate(path: Path, url: str, namespace: str, token: str, page_rows: int) -> dict[str, object]:
    """Hydrate a fresh file in this process, which does nothing else."""
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE items ({DEVICE_COLUMNS})")
    connection.close()
    with Device.open(path, schema=namespace, tables=["items"], new_source=lambda: SOURCE) as device:
        device.sign_in(url, USER, token=token)
        before_mb, began = memory_mb("VmRSS"), time.perf_counter()
        report = device.hydrate(page_rows)
        took_s = time.perf_counter() - began
        count = device.connection.execute("SELECT count(*) FROM items").fetchone()[0]
        assert count == report.rows, (count, report)
    return {
        "hydrate_rows_per_s": round(report.rows / took_s),
        "device_memory_growth_mb": round(memory_mb("VmHWM") - before_mb, 1),
        "hydrate_requests": report.requests,
    }


def download(url: str, token: str, rows: int) -> dict[str, object]:
    """Read the whole log as a stock device asks for it, and only decode it."""
    after, until, received, began = 0, 0, 0, time.perf_counter()
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=60.0) as client:
        while True:
            query = {"after": after, "until": until, "limit": STOCK_PAGE_ROWS, "include_self": "true"}
            answer = client.get(sync.DOWNLOAD_PATH, params=query).raise_for_status()
            page = sync.decode_download_response(answer.content)
            after, until, received = page.next_after, page.window_until, received + len(page.changes)
            if not page.has_more:
                break
    assert received == rows, received
    return {"download_rows_per_s": round(rows / (time.perf_counter() - began))}


def file_rows_per_s(path: Path, synced: Path) -> int:
    """Copy the rows of a synced file into a plain one: what SQLite alone can do."""
    with sqlite3.connect(synced) as source:
        found = source.execute("SELECT * FROM items").fetchall()
    source.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"CREATE TABLE items ({DEVICE_COLUMNS})")
    began = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", found)
    connection.execute("COMMIT")
    took_s = time.perf_counter() - began
    connection.close()
    return round(len(found) / took_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--page-rows", type=int, default=5_000)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        table = f"items ({SERVER_COLUMNS})"
        with ServerProcess(directory / "data") as server, World(server, tables=[table]) as world:
            fill(world, options.rows, is_cold=options.cold)
            token, synced = world.token(USER, SOURCE), directory / "phone.sqlite"
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results = pool.apply(hydrate, (synced, server.url, world.ns, token, options.page_rows))
            results |= download(server.url, token, options.rows)
            results["plain_file_rows_per_s"] = file_rows_per_s(directory / "plain.sqlite", synced)
    print(
        json.dumps({"benchmark": "hydrate", "rows": options.rows, "page_rows": options.page_rows, **results})
    )


if __name__ == "__main__":
    main()
