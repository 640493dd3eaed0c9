"""Storage 4 and scenario 04: one SELECT over both tiers, compaction by command, and files that get lost.

Black box: SQL over HTTP, files on disk, an independent reader of them. Expected numbers follow from the rows.
"""

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import pytest

from upwell.testing import ServerProcess, cold, wait_until
from upwell.testing.wire import Site

WAIT_S = 60.0
FLUSHES = 4
COLUMNS = (
    "id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(), device_id TEXT NOT NULL, ts TIMESTAMP DEFAULT "
    "CURRENT_TIMESTAMP, temp DOUBLE NOT NULL, humidity DOUBLE, pressure DOUBLE, battery DOUBLE, "
    "is_charging BOOLEAN DEFAULT FALSE, firmware TEXT, payload TEXT"
)
QUERIES = {
    "SELECT COUNT(*) FROM {}": [(5000,)],
    "SELECT COUNT(*) FROM {} WHERE device_id = 'device_001'": [(50,)],
    "SELECT COUNT(*) FROM {} WHERE temp > 40": [(1494,)],
    "SELECT COUNT(*) FROM {} WHERE battery < 20": [(950,)],
    "SELECT COUNT(*) FROM {} WHERE is_charging": [(1000,)],
    # Seconds 900 to 2100 lie in three segments, 4990 to 4999 in one, or in what is hot.
    "SELECT COUNT(*), MIN(id), MAX(id) FROM {} WHERE ts BETWEEN '2026-01-01T00:15:00Z' AND "
    "'2026-01-01T00:35:00Z'": [(1201, 900, 2100)],
    "SELECT id FROM {} WHERE ts > '2026-01-01T01:23:10Z' ORDER BY id": [(n,) for n in range(4991, 5000)],
    "SELECT device_id, AVG(temp), MIN(temp), MAX(temp), COUNT(*) FROM {} GROUP BY device_id ORDER BY "
    "device_id LIMIT 2": None,
    "SELECT id, ts, temp, payload, firmware FROM {} ORDER BY pressure DESC, id LIMIT 7": None,
    "SELECT id, device_id, ts, pressure, is_charging FROM {} WHERE id = 2345": None,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "0.2"}
    with ServerProcess(tmp_path_factory.mktemp("cold") / "data", env=env) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


class Board:
    """A namespace, its files, and the jobs that its statements start."""

    def __init__(self, site: Site) -> None:
        self.site, self.root = site, site.root
        self.namespace = site.namespace()
        self.storage = site.server.data_dir / "storage"

    def run(self, sql: str) -> list[tuple[object, ...]]:
        result = self.root.run(sql.format(ns=self.namespace)).result
        return [tuple(row) for row in result.get("rows", ())]

    def job(self, sql: str) -> str:
        """Run a statement that starts a job; wait for its end and return its message."""
        message = self.root.run(sql.format(ns=self.namespace)).message
        assert "Job ID: " in message, message
        name = message.split("Job ID: ")[1]

        def ended() -> list[tuple[object, ...]]:
            rows = self.run(f"SELECT status, message FROM system.jobs WHERE job_id = '{name}'")
            return [row for row in rows if row[0] not in ("new", "queued", "running", "retrying")]

        [(status, told)] = wait_until(ended, timeout_s=WAIT_S, what=f"job {name} to end")
        assert status in ("completed", "skipped"), told
        return str(told)

    def open_jobs(self) -> list[tuple[object, ...]]:
        return self.run(
            "SELECT job_id FROM system.jobs WHERE status IN ('new', 'queued', 'running', 'retrying')"
        )

    def partition(self, table: str, user: str | None = None) -> cold.Partition:
        found = cold.find_partition(self.storage, f"{self.namespace}.{table}", user)
        assert found is not None
        return found

    def files(self, table: str) -> list[Path]:
        directory = self.storage / self.namespace / table
        return sorted(path for path in directory.rglob("batch-*.parquet") if ".links" not in path.parts)


@pytest.fixture
def board(site: Site) -> Board:
    return Board(site)


def telemetry(n: int) -> str:
    return (
        f"({n}, 'device_{n % 100:03d}', '2026-01-01T{n // 3600:02d}:{n // 60 % 60:02d}:{n % 60:02d}Z', "
        f"{20 + n % 30}, {40 + n % 40}, {1000 + n % 50}, {100 - n % 100}, {str(n % 5 == 0).upper()}, "
        f"'v1.{n // 1000}.{n % 100}', NULL)"
    )


def test_the_same_queries_hot_mixed_cold_and_compacted(board: Board) -> None:
    """Scenario 04: 5,000 wide rows; every answer is that of the rows, wherever they lie."""
    table = f"{board.namespace}.telemetry"
    board.run(f"CREATE TABLE {table} ({COLUMNS}) WITH (TYPE = 'SHARED')")
    first: dict[str, list[tuple[object, ...]]] = {}

    def check() -> None:
        for query, expected in QUERIES.items():
            found = board.run(query.format(table))
            if expected is not None:
                assert [tuple(map(int, row)) for row in found] == expected, query  # type: ignore[arg-type]
            assert found == first.setdefault(query, found), query

    for start in range(0, 5000, 1000):
        board.run(f"INSERT INTO {table} VALUES " + ", ".join(map(telemetry, range(start, start + 1000))))
        if start < 4000:
            board.job(f"STORAGE FLUSH TABLE {table}")
    check()  # 4,000 cold, 1,000 hot
    assert len(board.partition("telemetry").segments) == 4
    board.run(f"UPDATE {table} SET payload = 'x' WHERE id < 10")
    board.run(f"UPDATE {table} SET payload = NULL WHERE id < 10")
    board.job(f"STORAGE FLUSH TABLE {table}")
    check()
    told = board.job(f"STORAGE COMPACT TABLE {table}")
    assert told == "5 segment(s) of 1 partition(s) are 1 now, 10 row(s) dropped"
    check()
    [segment] = board.partition("telemetry").segments
    assert segment.row_count == 5000
    with flushing(board, "telemetry") as rounds:
        while len(rounds) < FLUSHES:
            check()
    check()
    hot = f"{board.namespace}.hot"
    board.run(f"CREATE TABLE {hot} ({COLUMNS}) WITH (TYPE = 'SHARED')")
    for start in range(0, 5000, 1000):
        board.run(f"INSERT INTO {hot} VALUES " + ", ".join(map(telemetry, range(start, start + 1000))))
    for query, expected in first.items():
        assert board.run(query.format(hot)) == expected, query


@contextmanager
def flushing(board: Board, table: str) -> Iterator[list[int]]:
    """Change rows, flush and compact them, over and over beside the block; yields the rounds so far.

    What is changed is in no query's answer.
    """
    writer, name, rounds, stop = copy(board), f"{board.namespace}.{table}", list[int](), threading.Event()

    def go() -> None:
        with board.site.wire(board.root.token) as writer.root:
            while not stop.is_set():
                writer.run(f"UPDATE {name} SET humidity = {len(rounds)} WHERE id % 7 = {len(rounds) % 7}")
                writer.job(f"STORAGE FLUSH TABLE {name}")
                rounds.append(len(rounds))
                if len(rounds) % 3 == 0:
                    writer.job(f"STORAGE COMPACT TABLE {name}")

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(go)
        try:
            yield rounds
        finally:
            stop.set()
        done.result()


def test_an_emptied_table_ends_without_segments_and_files(board: Board) -> None:
    """By itself after the flush of the deletions, within a few seconds."""
    board.run("CREATE TABLE {ns}.t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
    board.run("INSERT INTO {ns}.t VALUES (1), (2), (3), (4), (5), (6)")
    board.job("STORAGE FLUSH TABLE {ns}.t")
    board.run("DELETE FROM {ns}.t")
    board.job("STORAGE FLUSH TABLE {ns}.t")
    wait_until(lambda: not board.files("t"), timeout_s=WAIT_S, what="the segments to go")
    assert board.partition("t").segments == ()
    assert board.run("SELECT COUNT(*) FROM {ns}.t") == [("0",)]


def test_compaction_is_refused_to_users_and_of_streams(board: Board) -> None:
    board.run("CREATE TABLE {ns}.s (id TEXT PRIMARY KEY) WITH (TYPE = 'STREAM', TTL_SECONDS = 60)")
    board.run("CREATE TABLE {ns}.t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
    board.run("CREATE TABLE {ns}.u (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
    _, user = board.site.account()
    for sql in ("STORAGE COMPACT TABLE {ns}.t", "STORAGE COMPACT ALL IN {ns}"):
        assert user.sql(sql.format(ns=board.namespace)).status == 403
    stream = board.root.sql(f"STORAGE COMPACT TABLE {board.namespace}.s")
    assert "STREAM" in stream.refused(400, "SQL_EXECUTION_ERROR")
    board.root.sql("STORAGE COMPACT TABLE t").refused(400, "INVALID_SQL")
    missing = board.root.sql(f"STORAGE COMPACT TABLE {board.namespace}.t_none")
    assert "t_none" in missing.refused(400, "SQL_EXECUTION_ERROR")
    told = board.root.run(f"STORAGE COMPACT ALL IN {board.namespace}").message
    assert told.startswith(
        f"Storage compaction started for 2 table(s) in namespace '{board.namespace}'. Job IDs: [CO-"
    )
    service = board.site.account(role="service")[1]
    told = service.run(f"STORAGE COMPACT ALL IN NAMESPACE {board.namespace}").message
    assert "Storage compaction" in told
    wait_until(lambda: not board.open_jobs(), timeout_s=WAIT_S, what="the compactions to end")
    assert board.job("STORAGE COMPACT TABLE {ns}.u").startswith("0 segment(s)")


def test_manifests_are_a_system_table(board: Board) -> None:
    """A row a partition that was flushed, with the very text that is on disk."""
    user, wire = board.site.account()
    board.run("CREATE TABLE {ns}.t (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
    board.run("CREATE TABLE {ns}.u (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
    sql = (
        "SELECT cache_key, table_name, scope, sync_state, in_memory, manifest_json FROM system.manifest "
        "WHERE namespace_id = '{ns}' ORDER BY cache_key"
    )
    assert board.run(sql) == []
    board.run("INSERT INTO {ns}.t VALUES (1), (2)")
    wire.run(f"INSERT INTO {board.namespace}.u VALUES (1)")
    for table in ("t", "u"):
        board.job(f"STORAGE FLUSH TABLE {{ns}}.{table}")
    board.run("INSERT INTO {ns}.t VALUES (3)")
    ours, theirs = board.run(sql)
    assert ours[:5] == (f"{board.namespace}:t:shared", "t", "shared", "pending_write", True)
    assert theirs[:5] == (f"{board.namespace}:u:{user}", "u", user, "in_sync", True)
    for row, partition in ((ours, board.partition("t")), (theirs, board.partition("u", user))):
        manifest = json.loads((partition.directory / "manifest.json").read_bytes())
        del manifest["sha256"]
        assert json.loads(str(row[5])) == manifest
        assert manifest["version"] == 1
        assert [segment["row_count"] for segment in manifest["segments"]] == [2 if row is ours else 1]
    shown = [row[0] for row in board.root.run("SHOW MANIFEST").rows]
    assert {ours[0], theirs[0]} <= set(shown)
    assert wire.sql("SELECT * FROM system.manifest").status == 403


def test_a_lost_segment_stops_its_table_only(board: Board) -> None:
    """Never fewer rows: the error names the file, and what comes back is whole again."""
    for table in ("a", "b"):
        board.run(f"CREATE TABLE {{ns}}.{table} (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
        for start in (0, 10):
            board.run(f"INSERT INTO {{ns}}.{table} VALUES ({start}, 1), ({start + 1}, 2)")
            board.job(f"STORAGE FLUSH TABLE {{ns}}.{table}")
    board.site.server.restart()
    [path, _] = board.partition("a").files()
    away = path.rename(path.with_suffix(".away"))
    for sql in ("SELECT * FROM {}.a", "SELECT COUNT(*) FROM {}.a", "SELECT n FROM {}.a WHERE id = 0"):
        answer = board.root.sql(sql.format(board.namespace))
        assert answer.status == 500
        assert path.name in answer.body.decode()
    assert board.run("SELECT COUNT(*), SUM(n) FROM {ns}.b") == [("4", "6")]
    away.rename(path)
    assert board.run("SELECT COUNT(*), SUM(n) FROM {ns}.a") == [("4", "6")]


def test_lost_companions_are_made_again(board: Board) -> None:
    """A manifest comes back from its copy, a filter and a hidden set from the segments."""
    board.run("CREATE TABLE {ns}.t (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
    others = range(100, 250)  # the filter of fewer keys is no file
    board.run("INSERT INTO {ns}.t VALUES (1, 1), (2, 2), (3, 3), " + ", ".join(f"({n}, {n})" for n in others))
    board.job("STORAGE FLUSH TABLE {ns}.t")
    board.run("UPDATE {ns}.t SET n = 20 WHERE id = 2")
    board.job("STORAGE FLUSH TABLE {ns}.t")
    directory = board.partition("t").directory
    lost = [directory / name for name in (*board.partition("t").hidden, *board.partition("t").filters)]
    lost += [max(directory.glob("manifest-*.json"))]
    assert len(lost) == 3
    board.site.server.kill()
    for path in lost:
        os.truncate(path, path.stat().st_size // 2)
    board.site.server.start()
    assert board.run("SELECT id, n FROM {ns}.t WHERE n < 100 ORDER BY id") == [(1, 1), (2, 20), (3, 3)]
    assert board.run("SELECT n FROM {ns}.t WHERE id = 2") == [(20,)]
    board.job("STORAGE COMPACT TABLE {ns}.t")
    assert board.run("SELECT id, n FROM {ns}.t WHERE n < 100 ORDER BY id") == [(1, 1), (2, 20), (3, 3)]
    wait_until(lambda: len(board.files("t")) == 1, timeout_s=WAIT_S, what="replaced files to go")
    assert [row["n"] for row in cold.rows(board.partition("t"), "id")] == [1, 20, 3, *others]
    manifest = json.loads((directory / "manifest.json").read_bytes())
    assert manifest["hidden"] == []
