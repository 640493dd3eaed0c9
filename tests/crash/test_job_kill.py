"""A server killed at a point of a job's life goes on with the job: none stays running, nothing is doubled.

One data directory, one start after the other; each start is checked and is the next one's victim. Kills
inside of a flush are `test_kill`'s.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.client import Client, ConnectionLost, connect
from upwell.effects import CRASH_POINT
from upwell.testing import ServerFailed, ServerProcess, TableModel, cold, wait_until

WAIT_S = 60.0
ENDED = {"completed", "skipped", "failed", "cancelled"}
# A start that goes on with what the last one left passes a point once itself.
FLUSH_POINTS = ["job:queued#2", "job:started#2", "job:worked#2"]
DROP_POINTS = ["cleanup:partition-removed", "cleanup:rows-removed"]


class Store:
    """The server under fire, its table and the model of it."""

    def __init__(self, directory: Path) -> None:
        self.server = ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "0"})
        self.model = TableModel("id", ("id", "v"))
        self.keys = itertools.count()
        self.token = ""

    @property
    def root_dir(self) -> Path:
        return self.server.data_dir / "storage"

    def client(self) -> Client:
        if not self.token:
            with connect(self.server.url, user="root", password=self.server.root_password) as client:
                self.token = client.login()
        return connect(self.server.url, token=self.token)

    def write(self, client: Client) -> None:
        """Insert three rows, change one and delete one, each acknowledged."""
        keys = [next(self.keys) for _ in range(3)]
        for key in keys:
            client.execute("INSERT INTO app.t (id, v) VALUES ($1, 'new')", [key])
            self.model.insert("root", {"id": key, "v": "new"})
        client.execute("UPDATE app.t SET v = 'changed' WHERE id = $1", [keys[0]])
        self.model.update("root", {"v": "changed"}, {"id": keys[0]})
        client.execute("DELETE FROM app.t WHERE id = $1", [keys[1]])
        self.model.delete("root", {"id": keys[1]})

    def flush_until_killed(self) -> None:
        with self.client() as client:
            try:
                while True:
                    self.write(client)
                    client.execute("STORAGE FLUSH TABLE app.t")
                    self.ended_jobs(client)
            except ConnectionLost:
                pass
        assert self.server.wait_exit() == -9

    def ended_jobs(self, client: Client) -> list[dict[str, object]]:
        """Return all jobs, when none is open any more."""

        jobs: list[dict[str, object]] = []

        def look() -> bool:
            jobs[:] = client.query("SELECT job_id, job_type, status, retry_count, message FROM system.jobs")
            return {job["status"] for job in jobs} <= ENDED

        wait_until(look, timeout_s=WAIT_S, what="all jobs to end")
        return jobs

    def rows(self, client: Client) -> list[dict[str, object]]:
        return client.query("SELECT id, v FROM app.t ORDER BY id")

    def check(self) -> None:
        """What was acknowledged is there, before and after the interrupted jobs have ended."""
        with self.client() as client:
            assert self.rows(client) == self.model.rows("root")
            jobs = self.ended_jobs(client)
            assert {job["status"] for job in jobs} <= {"completed", "skipped"}, jobs
            assert self.rows(client) == self.model.rows("root")


@pytest.fixture
def store(data_dir: Path) -> Iterator[Store]:
    store = Store(data_dir)
    try:
        yield store
    finally:
        store.server.close()


def test_a_kill_at_each_point_of_a_jobs_life(store: Store) -> None:
    store.server.start(env={CRASH_POINT: FLUSH_POINTS[0]})
    with store.client() as client:
        client.execute("CREATE NAMESPACE app")
        client.execute("CREATE TABLE app.t (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'USER')")
    for following in [*FLUSH_POINTS[1:], "flush:before-commit#3"]:
        store.flush_until_killed()
        store.server.start(env={CRASH_POINT: following})
        store.check()
    store.flush_until_killed()
    for _ in range(2):  # dies twice more at the same point, in the attempts that go on
        try:
            store.server.start(env={CRASH_POINT: "flush:before-commit"})
        except ServerFailed:
            continue
        assert store.server.wait_exit() == -9
    store.server.start()
    store.check()
    with store.client() as client:
        assert max(int(str(job["retry_count"])) for job in store.ended_jobs(client)) == 3
        store.write(client)
        client.execute("STORAGE FLUSH TABLE app.t")
        store.ended_jobs(client)
    partition = cold.find_partition(store.root_dir, "app.t", "root")
    assert partition is not None
    assert cold.rows(partition, "id") == store.model.rows("root")
    assert cold.audit_hidden(partition, "id") == []
    # What compaction replaced stays a moment for readers from outside.
    wait_until(lambda: cold.audit(store.root_dir) == [], timeout_s=WAIT_S, what="the collection")


def test_a_kill_at_each_point_of_a_cleanup_leaves_nothing_in_the_end(store: Store) -> None:
    store.server.start(env={CRASH_POINT: DROP_POINTS[0]})
    with store.client() as client:
        client.execute("CREATE NAMESPACE app")
    for number, following in enumerate([*DROP_POINTS[1:], None]):
        name = f"app.t{number}"
        with store.client() as client:
            client.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
            client.execute(f"INSERT INTO {name} VALUES (1)")
            client.execute(f"STORAGE FLUSH TABLE {name}")
            store.ended_jobs(client)
            client.execute(f"INSERT INTO {name} VALUES (2)")
            message = client.execute(f"DROP TABLE {name}").message
            assert f"Table {name} dropped successfully. Cleanup job: CL-" in str(message)
        assert store.server.wait_exit() == -9
        store.server.start(env=None if following is None else {CRASH_POINT: f"{following}#2"})
        with store.client() as client:
            cleanups = [job for job in store.ended_jobs(client) if job["job_type"] == "cleanup"]
            assert [job["status"] for job in cleanups] == ["completed"] * (number + 1)
        assert [path for path in store.root_dir.rglob("*") if path.is_file()] == []
