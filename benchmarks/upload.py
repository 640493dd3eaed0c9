"""Uploads of devices: the literal scenario, one upload of 180 changes, changes a second; one JSON line.

literal scenario   60 users and 120 posts made, 120 updates, 30 deletions, one upload, reinstall, hydration
upload_180_ms      an upload of 180 new rows over plain HTTP, median: the server and one connection
changes_per_s      the SDK sends what is pending in batches of 200: device and server together
server_changes_per_s   the same batches over plain HTTP, made beforehand: the server's side

.venv/bin/python benchmarks/upload.py [--changes 8000] [--requests 50]
"""

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import httpx
import jwt

from upwell.client import connect
from upwell.device import Device
from upwell.testing import ServerProcess

SQLITE = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, created_at INTEGER);
CREATE TABLE posts (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL, created_at INTEGER,
    author_id TEXT NOT NULL REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED);
"""
TABLES = (
    "users (id UUID PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, created_at BIGINT)",
    "posts (id UUID PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL, created_at BIGINT,"
    " author_id UUID NOT NULL REFERENCES bench.users(id))",
)
BATCH = 200
CREATED_AT = 1_760_000_000


class Bench:
    """A server with two synced tables, and devices on it."""

    content = "content"
    """Of each post of the literal scenario."""

    def __init__(self, server: ServerProcess, directory: Path) -> None:
        self.server = server
        self.directory = directory
        with connect(server.url, user="root", password=server.root_password) as root:
            root.execute("CREATE NAMESPACE bench")
            for table in TABLES:
                root.execute(f"CREATE TABLE bench.{table} WITH (TYPE = 'USER', SYNC = TRUE)")

    def token(self, user: str, source: str) -> str:
        return jwt.encode({"sub": user, "did": source}, self.server.jwt_secret, "HS256")

    def device(self, user: str, source: str, name: str) -> Device:
        """Install the app in the file `name`."""
        device = Device.open(self.directory / name, schema="bench", tables=["users", "posts"], source=source)
        device.sign_in(self.server.url, user, token=self.token(user, source))
        return device

    def create(self, name: str) -> None:
        """Make the app's file `name`."""
        with sqlite3.connect(self.directory / name) as file:
            file.executescript(SQLITE)
        file.close()


def users(count: int) -> list[tuple[str, str, str, int]]:
    return [
        (str(uuid.uuid4()), f"Complex User {n}", f"user{n}@example.com", CREATED_AT) for n in range(count)
    ]


def literal(bench: Bench) -> float:
    """Return the seconds of the whole scenario, device and server together."""
    began = time.perf_counter()
    for name in ("first.sqlite", "again.sqlite"):
        bench.create(name)
    with bench.device("user-complex-multi-batch", "device-complex-001", "first.sqlite") as phone:
        app = phone.connection
        people = users(60)
        for person in people:
            app.execute("INSERT INTO users VALUES (?, ?, ?, ?)", person)
            for number in (1, 2):
                post = (str(uuid.uuid4()), f"Post {number}", bench.content, CREATED_AT, person[0])
                app.execute("INSERT INTO posts VALUES (?, ?, ?, ?, ?)", post)
        for update in range(1, 5):
            for number, person in enumerate(people[:30], 1):
                text = f"Updated User {number} (Update #{update})"
                app.execute("UPDATE users SET name = ? WHERE id = ?", (text, person[0]))
        for person in people[50:]:
            app.execute("DELETE FROM posts WHERE author_id = ?", (person[0],))
            app.execute("DELETE FROM users WHERE id = ?", (person[0],))
        assert phone.status().pending == 180
        report = phone.upload()
        assert (report.applied, report.pending) == (180, 0), report
        expected = contents(phone)
    with bench.device("user-complex-multi-batch", "device-complex-001", "again.sqlite") as again:
        again.hydrate()
        assert contents(again) == expected
    return time.perf_counter() - began


def contents(device: Device) -> list[list[tuple[object, ...]]]:
    tables = ("users", "posts")
    return [device.connection.execute(f"SELECT * FROM {t} ORDER BY id").fetchall() for t in tables]


def body(first: int, count: int) -> bytes:
    changes = [
        {
            "source_change_id": first + number, "schema": "bench", "table": "users", "op": "INSERT",
            "pk": person[0], "server_version": 0,
            "payload": dict(zip(("id", "name", "email", "created_at"), person, strict=True)),
        }
        for number, person in enumerate(users(count))
    ]  # fmt: skip
    return json.dumps({"last_server_seq_seen": 0, "changes": changes}).encode()


def uploads_ms(bench: Bench, user: str, size: int, requests: int) -> list[float]:
    """Return the milliseconds of each of `requests` uploads of `size` new rows over plain HTTP."""
    bodies = [body(1 + number * size, size) for number in range(requests)]
    headers = {"authorization": f"Bearer {bench.token(user, 'plain')}"}
    times = []
    with httpx.Client(base_url=bench.server.url, headers=headers, timeout=60) as http:
        http.get("/sync/schema-version").raise_for_status()
        for content in bodies:
            began = time.perf_counter()
            answer = http.post("/sync/upload", content=content)
            times.append((time.perf_counter() - began) * 1000)
            assert b'"applied"' in answer.content, answer.text[:300]
    return times


def sdk_changes_per_s(bench: Bench, changes: int) -> float:
    bench.create("many.sqlite")
    with bench.device("many", "many", "many.sqlite") as device:
        device.sync()
        device.connection.execute("BEGIN")
        device.connection.executemany("INSERT INTO users VALUES (?, ?, ?, ?)", users(changes))
        device.connection.execute("COMMIT")
        began = time.perf_counter()
        report = device.upload()
        elapsed = time.perf_counter() - began
        assert (report.applied, report.pending, report.requests) == (changes, 0, -(-changes // BATCH))
    return changes / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--changes", type=int, default=8_000)
    parser.add_argument("--requests", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ServerProcess(Path(name) / "data") as server:
        bench = Bench(server, Path(name))
        uploads_ms(bench, "warm", 180, 3)
        results = {
            "literal_s": round(literal(bench), 2),
            "upload_180_ms": round(statistics.median(uploads_ms(bench, "plain", 180, options.requests)), 1),
            "changes_per_s": round(sdk_changes_per_s(bench, options.changes)),
        }
        times = uploads_ms(bench, "batches", BATCH, options.requests)
        results["server_changes_per_s"] = round(BATCH * len(times) / sum(times) * 1000)
    print(json.dumps({"benchmark": "upload", "changes": options.changes, **results}))


if __name__ == "__main__":
    main()
