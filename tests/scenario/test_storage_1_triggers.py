"""Storage 1A and 1B: rows become cold by a table's policy or by command, through the server's own schedule.

Black box: SQL over HTTP and an independent reader of the files. The schedule looks every 50 ms.
"""

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from upwell.testing import ServerProcess, cold, wait_until
from upwell.testing.wire import Site, Wire

CHECK_S = 0.05
WAIT_S = 30.0
OPEN = {"new", "queued", "running", "retrying"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("triggers") / "data"
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_FLUSH_CHECK_INTERVAL_S": str(CHECK_S)}
    with ServerProcess(directory, env=env) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


class Board:
    """One table in a namespace of its own, its jobs and its files."""

    def __init__(self, site: Site, kind: str, policy: str | None) -> None:
        self.root, self.server = site.root, site.server
        self.namespace = site.namespace()
        self.table = f"{self.namespace}.t"
        option = "" if policy is None else f", FLUSH_POLICY='{policy}'"
        self.root.run(
            f"CREATE TABLE {self.table} (id BIGINT PRIMARY KEY, payload TEXT) WITH (TYPE='{kind}'{option})"
        )

    @property
    def directory(self) -> Path:
        return self.server.data_dir / "storage" / self.namespace / "t"

    def insert(self, *keys: int, wire: Wire | None = None) -> None:
        rows = ", ".join(f"({key}, 'p{key}')" for key in keys)
        assert (wire or self.root).run(f"INSERT INTO {self.table} VALUES {rows}").count == len(keys)

    def jobs(self) -> list[dict[str, Any]]:
        """Return the table's flush jobs, oldest first."""
        answer = self.root.run(
            "SELECT job_id, status, message, parameters, idempotency_key, created_at, started_at, "
            "finished_at FROM system.jobs WHERE job_type = 'flush' ORDER BY created_at, job_id"
        )
        names = [name for name, _ in answer.columns]
        found = [dict(zip(names, row, strict=True)) for row in answer.rows]
        return [job for job in found if json.loads(job["parameters"])["table_id"] == self.table]

    def settled(self, count: int) -> list[dict[str, Any]]:
        """Wait until there are so many jobs, all of them over, and return them; there must not be more."""

        def look() -> list[dict[str, Any]]:
            jobs = self.jobs()
            assert len(jobs) <= count, jobs
            return jobs if len(jobs) == count and not OPEN & {job["status"] for job in jobs} else []

        return wait_until(look, timeout_s=WAIT_S, what=f"{count} flush job(s) of {self.table} to end")

    def let_the_schedule_look(self) -> None:
        """Wait until the schedule has certainly looked at everything: it flushed another table meanwhile."""
        beacon = Board.__new__(Board)
        beacon.root, beacon.server = self.root, self.server
        beacon.namespace, beacon.table = self.namespace, f"{self.namespace}.beacon_{next(_beacons)}"
        self.root.run(
            f"CREATE TABLE {beacon.table} (id BIGINT PRIMARY KEY, payload TEXT) "
            "WITH (TYPE='SHARED', FLUSH_POLICY='rows:1')"
        )
        beacon.insert(1)
        beacon.settled(1)

    def cold(self, user: str | None = None) -> list[int]:
        """Return the keys that the independent reader finds."""
        partition = cold.find_partition(self.server.data_dir / "storage", self.table, user)
        return [] if partition is None else [row["id"] for row in cold.rows(partition, "id")]

    def files(self) -> list[str]:
        found = [path for path in self.directory.rglob("batch-*.parquet") if ".links" not in path.parts]
        return sorted(str(path.relative_to(self.directory)) for path in found)

    def count(self, wire: Wire | None = None) -> int:
        return int((wire or self.root).run(f"SELECT COUNT(*) FROM {self.table}").cell)


_beacons = itertools.count()


def test_the_row_that_reaches_the_threshold_starts_exactly_one_flush(site: Site) -> None:
    board = Board(site, "USER", "rows:50")
    for key in range(49):
        board.insert(key)
    board.let_the_schedule_look()
    assert (board.jobs(), board.files()) == ([], [])
    board.insert(49)
    [job] = board.settled(1)
    assert (job["status"], job["message"]) == ("completed", "50 row(s) of 1 partition(s) are in Parquet now")
    assert board.cold("root") == list(range(50))
    assert len(board.files()) == 1
    assert cold.audit(board.directory) == []
    assert board.count() == 50
    parameters = json.loads(job["parameters"])
    assert parameters["flush_threshold"] == 50
    assert parameters["table_type"] == "user"
    assert job["idempotency_key"].startswith(f"FL:{board.namespace}:t:20")
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_only_the_partition_over_the_line_moves_and_its_count_begins_anew(site: Site) -> None:
    board = Board(site, "USER", "rows:5")
    ann, ann_wire = site.account()
    bob, bob_wire = site.account()
    board.insert(0, 1, 2, 3, wire=ann_wire)
    board.insert(0, 1, 2, wire=bob_wire)
    board.let_the_schedule_look()
    assert (board.jobs(), board.files()) == ([], [])
    board.insert(4, wire=ann_wire)
    board.settled(1)
    assert (board.cold(ann), board.cold(bob)) == ([0, 1, 2, 3, 4], [])
    board.insert(100, 101, 102, 103, wire=ann_wire)
    board.let_the_schedule_look()
    board.settled(1)
    assert len(board.files()) == 1
    assert (board.count(ann_wire), board.count(bob_wire)) == (9, 3)


def test_one_statement_may_jump_over_the_line(site: Site) -> None:
    board = Board(site, "SHARED", "rows:40")
    board.insert(*range(200))
    board.settled(1)
    assert board.cold() == list(range(200))


def test_concurrent_writers_that_cross_the_line_make_one_job(site: Site) -> None:
    board = Board(site, "SHARED", "rows:60")
    ready = threading.Barrier(6)

    def write(writer: int) -> None:
        wire = site.wire(site.root.token)
        ready.wait(30)
        for number in range(10):
            board.insert(writer * 10 + number, wire=wire)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    [job] = board.settled(1)
    assert job["message"] == "60 row(s) of 1 partition(s) are in Parquet now"
    assert board.cold() == list(range(60))


def test_an_interval_flushes_a_single_row(site: Site) -> None:
    board = Board(site, "SHARED", "interval:1")
    board.let_the_schedule_look()
    assert board.jobs() == [], "nothing is written, nothing is due"
    board.insert(1)
    board.settled(1)
    assert board.cold() == [1]


def test_both_rules_hold_and_the_first_decides(site: Site) -> None:
    board = Board(site, "SHARED", "rows:3,interval:1")
    board.insert(1, 2, 3)
    board.settled(1)
    board.insert(4)
    board.settled(2)
    assert (board.cold(), len(board.files())) == ([1, 2, 3, 4], 2)


def test_a_policy_can_be_changed(site: Site) -> None:
    board = Board(site, "SHARED", "rows:1000")
    board.insert(*range(30))
    board.let_the_schedule_look()
    assert board.jobs() == []
    board.root.run(f"ALTER TABLE {board.table} SET TBLPROPERTIES (FLUSH_POLICY='rows:30')")
    board.settled(1)
    assert board.cold() == list(range(30))
    message = board.root.sql(f"ALTER TABLE {board.table} SET TBLPROPERTIES (FLUSH_POLICY='rows:0')").refused(
        400, "INVALID_SQL"
    )
    assert "rows:N" in message


def test_rows_count_on_after_a_restart(site: Site) -> None:
    board = Board(site, "SHARED", "rows:20")
    Board(site, "USER", "rows:" + "9" * 5_000).insert(1)  # a number that Python reads from no text
    board.insert(*range(19))
    site.server.restart(env={"UPWELL_FLUSH_CHECK_INTERVAL_S": str(CHECK_S)})
    board.let_the_schedule_look()
    assert board.jobs() == []
    board.insert(19)
    board.settled(1)
    assert board.cold() == list(range(20))


def test_a_command_flushes_at_once_and_answers_as_the_contract_says(site: Site) -> None:
    board = Board(site, "USER", "rows:1000")
    skipped = f"Storage flush skipped: no pending writes for table '{board.table}'"
    assert board.root.run(f"STORAGE FLUSH TABLE {board.table}").message == skipped
    for round_ in range(3):
        board.insert(*range(round_ * 100, round_ * 100 + 10))
        message = board.root.run(f"STORAGE FLUSH TABLE {board.table}").message
        jobs = board.settled(round_ + 1)
        job_id = jobs[-1]["job_id"]
        assert message == f"Storage flush started for table '{board.table}'. Job ID: {job_id}"
        assert job_id.startswith("FL-")
        assert jobs[-1]["status"] == "completed"
        assert jobs[-1]["idempotency_key"] == f"flush-{board.namespace}-t"
        assert len(board.files()) == round_ + 1
        assert board.root.run(f"STORAGE FLUSH TABLE {board.table}").message == skipped
    partition = cold.load_partition(board.directory / "root")
    bounds = [(segment.min_seq, segment.max_seq) for segment in partition.segments]
    assert bounds == sorted(bounds)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(bounds))
    assert board.count() == 30
    assert cold.audit(board.directory) == []


def test_a_command_may_name_users(site: Site) -> None:
    board = Board(site, "USER", None)
    people = [site.account() for _ in range(3)]
    for _, wire in people:
        board.insert(1, 2, wire=wire)
    (ann, _), (bob, _), (eve, _) = people
    started = board.root.run(f"STORAGE FLUSH TABLE {board.table} FOR USER '{ann}', '{bob}'").message
    assert started.startswith(f"Storage flush started for table '{board.table}'. Job ID: FL-")
    board.settled(1)
    assert (board.cold(ann), board.cold(bob), board.cold(eve)) == ([1, 2], [1, 2], [])
    again = board.root.run(f"STORAGE FLUSH TABLE {board.table} FOR USER '{ann}', 'nobody'").message
    assert again == f"Storage flush skipped: no pending writes for table '{board.table}'"
    board.root.run(f"STORAGE FLUSH TABLE {board.table}")
    board.settled(2)
    assert board.cold(eve) == [1, 2]
    shared = Board(site, "SHARED", None)
    shared.root.sql(f"STORAGE FLUSH TABLE {shared.table} FOR USER 'x'").refused(400, "SQL_EXECUTION_ERROR")
    board.root.sql(f"STORAGE FLUSH TABLE {board.table} FOR USER").refused(400, "INVALID_SQL")


def test_a_command_flushes_all_tables_of_a_namespace(site: Site) -> None:
    one = Board(site, "SHARED", None)
    space = one.namespace
    one.root.run(f"CREATE TABLE {space}.other (id BIGINT PRIMARY KEY, payload TEXT) WITH (TYPE='USER')")
    one.root.run(f"CREATE TABLE {space}.empty (id BIGINT PRIMARY KEY) WITH (TYPE='SHARED')")
    nothing = f"Storage flush skipped: no pending writes in namespace '{space}'"
    assert one.root.run(f"STORAGE FLUSH ALL IN {space}").message == nothing
    one.insert(1, 2, 3)
    one.root.run(f"INSERT INTO {space}.other VALUES (7, 'x')")
    message = one.root.run(f"STORAGE FLUSH ALL IN NAMESPACE {space}").message
    opening = f"Storage flush started for 2 table(s) in namespace '{space}'. Job IDs: ["
    assert message.startswith(opening)
    ids = message.removeprefix(opening).removesuffix("]").split(", ")
    assert [job["job_id"] for job in one.settled(1)] == [ids[1]]
    wait_until(
        lambda: one.root.run(f"SELECT status FROM system.jobs WHERE job_id = '{ids[0]}'").cell == "completed",
        timeout_s=WAIT_S,
        what="the other table's flush",
    )
    assert one.root.sql("STORAGE FLUSH ALL", namespace=space).message == nothing
    assert "does not exist" in one.root.sql("STORAGE FLUSH ALL IN nowhere").refused(
        400, "SQL_EXECUTION_ERROR"
    )


def test_who_may_flush(site: Site) -> None:
    board = Board(site, "SHARED", None)
    board.insert(1)
    for role, may in (("user", False), ("service", True), ("dba", True)):
        _, wire = site.account(role)
        for statement in (f"STORAGE FLUSH TABLE {board.table}", f"STORAGE FLUSH ALL IN {board.namespace}"):
            answer = wire.sql(statement)
            if may:
                assert answer.message.startswith("Storage flush s")
            else:
                answer.refused(403, "PERMISSION_DENIED")
    board.settled(1)
