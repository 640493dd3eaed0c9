"""A server killed at any moment comes back with every acknowledged write, once, and no job running.

Real processes on one directory, cycle after cycle: clients write over HTTP while flushes run, SIGKILL comes
at a named point or at a moment of chance, the next start is checked and is the next one's victim.
"""

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from upwell.client import Client, ClientError, ConnectionLost, connect
from upwell.effects import CRASH_POINT, POINTS
from upwell.testing import ABSENT, AckLog, ServerProcess, cold, wait_until

OURS, MINE = "app.ours", "app.mine"
PASSWORD = "a-password-of-a-test"
# (table, account, writer): two clients share a partition, two have one of their own.
WRITERS = [(OURS, "root", 0), (OURS, "root", 1), (MINE, "ann", 2), (MINE, "bob", 3)]
PARTITIONS = [(OURS, "root", None), (MINE, "ann", "ann"), (MINE, "bob", "bob")]
# A start that goes on with an interrupted flush passes each point a few times itself.
COMMITS_BEFORE, FLUSHES_BEFORE, COMPACTIONS_BEFORE = 80, 5, 4
COMPACTION_POINTS = (
    "compact:segment-published",
    "compact:before-commit",
    "compact:after-commit",
    "collect:removed",
)
CHANCE_KILLS = 5
SEED = 20_260_101
WAIT_S = 60.0
State = dict[tuple[str, str, str], object]


@dataclass
class Writer:
    """One client: inserts, changes and deletes keys of its own, old ones and new ones."""

    table: str
    user: str
    number: int
    acks: AckLog
    alive: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def run(self, client: Client, cycle: int) -> None:
        """Write until the server is gone."""
        try:
            for serial in itertools.count():
                self._round(client, f"{cycle:02d}-{serial:05d}", serial)
        except ConnectionLost:
            pass
        except (ClientError, AssertionError) as error:
            self.problems.append(repr(error))

    def _round(self, client: Client, name: str, serial: int) -> None:
        key = f"w{self.number}-{name}"
        self._write(client, key, "new", f"INSERT INTO {self.table} (id, v) VALUES ($1, $2)", [key, "new"])
        self.alive.append(key)
        old = self.alive[serial * 7 % len(self.alive)]
        self._write(client, old, name, f"UPDATE {self.table} SET v = $1 WHERE id = $2", [name, old])
        if serial % 3 == 0:
            gone = self.alive.pop(serial * 5 % len(self.alive))
            self._write(client, gone, ABSENT, f"DELETE FROM {self.table} WHERE id = $1", [gone])

    def _write(self, client: Client, key: str, state: object, sql: str, values: list[str]) -> None:
        place = (self.table, self.user, key)
        self.acks.attempt(place, state, writer=self.number)
        result = client.execute(sql, values)
        assert result.row_count == 1, f"{sql} {values}: {result.message}"
        self.acks.acknowledge(place, state)


class Site:
    """The server under fire, its clients, and the log of what they were told."""

    def __init__(self, directory: Path) -> None:
        self.server = ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "0"})
        self.acks = AckLog()
        self.writers = [Writer(*writer, self.acks) for writer in WRITERS]
        self.tokens: dict[str, str] = {}

    def client(self, user: str) -> Client:
        if user not in self.tokens:
            password = self.server.root_password if user == "root" else PASSWORD
            with connect(self.server.url, user=user, password=password) as client:
                self.tokens[user] = client.login()
        return connect(self.server.url, token=self.tokens[user])

    def prepare(self) -> None:
        with self.client("root") as root:
            root.execute("CREATE NAMESPACE app")
            for table, kind in ((OURS, "SHARED"), (MINE, "USER")):
                root.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, v TEXT) WITH (TYPE = '{kind}')")
            for user in ("ann", "bob"):
                root.execute(f"CREATE USER '{user}' WITH PASSWORD '{PASSWORD}' ROLE user")

    def state(self) -> list[tuple[tuple[str, str, str], object]]:
        """Return every row as pairs, so that a doubled one shows."""
        found = []
        for table, user, _ in PARTITIONS:
            with self.client(user) as client:
                rows = client.query(f"SELECT id, v FROM {table}")
            found += [((table, user, str(row["id"])), row["v"]) for row in rows]
        return found

    def check(self) -> None:
        """Acknowledged ⊆ recovered ⊆ attempted; by key as by scan; what was under way is ended."""
        recovered = self.state()
        assert self.acks.check(recovered) == []
        self.acks.settle(recovered)
        for writer in self.writers:
            mine = [
                place[2] for place, _ in recovered if place[0] == writer.table and place[1] == writer.user
            ]
            writer.alive = sorted(key for key in mine if key.startswith(f"w{writer.number}-"))
        jobs = self.ended_jobs()
        assert {job["status"] for job in jobs} <= {"completed", "skipped"}, jobs
        assert self.state() == recovered, "going on with a flush changes no answer"

    def ended_jobs(self) -> list[dict[str, object]]:
        """Return all jobs, when none of them is open any more."""
        with self.client("root") as root:

            def is_idle() -> bool:
                jobs = root.query("SELECT status FROM system.jobs")
                return all(job["status"] in ("completed", "skipped", "failed") for job in jobs)

            wait_until(is_idle, timeout_s=WAIT_S, what="all jobs to end")
            return root.query("SELECT job_id, status, retry_count, message FROM system.jobs")

    def write_until_killed(self, cycle: int, *, acks_max: int | None) -> None:
        """Let clients write and flush until the server dies: after so many answers, or at its crash point."""
        target = None if acks_max is None else self.acks.acknowledged_count + acks_max
        clients = [self.client(writer.user) for writer in self.writers]
        threads = [
            threading.Thread(target=writer.run, args=(client, cycle))
            for writer, client in zip(self.writers, clients, strict=True)
        ]
        for thread in threads:
            thread.start()
        with self.client("root") as root:
            self._flush_until_killed(root, target)
        for thread in threads:
            thread.join(WAIT_S)
        for client in clients:
            client.close()
        assert self.server.wait_exit() == -9
        assert [problem for writer in self.writers for problem in writer.problems] == []

    def _flush_until_killed(self, root: Client, target: int | None) -> None:
        try:
            for table in itertools.cycle((OURS, MINE)):
                root.execute(f"STORAGE FLUSH TABLE {table}")
                if target is not None and self.acks.acknowledged_count >= target:
                    self.server.kill()
        except ConnectionLost:
            pass


@pytest.fixture
def site(data_dir: Path) -> Iterator[Site]:
    site = Site(data_dir)
    try:
        yield site
    finally:
        site.server.close()


def plan(chance: random.Random) -> list[tuple[str | None, int | None]]:
    """Return 20 cycles in an order of chance: (crash point, None), or (None, answers before SIGKILL)."""
    points = [
        (f"{point}#{COMMITS_BEFORE if point.startswith('commit:') else FLUSHES_BEFORE}", None)
        for point in sorted(POINTS)
        if point.startswith(("commit:", "flush:"))
    ]
    points += [(f"{point}#{COMPACTIONS_BEFORE}", None) for point in COMPACTION_POINTS]
    kills = [(None, chance.randint(30, 300)) for _ in range(CHANCE_KILLS)]
    cycles: list[tuple[str | None, int | None]] = [*points, *kills]
    chance.shuffle(cycles)
    return cycles


def test_twenty_kills_lose_nothing_and_double_nothing(site: Site) -> None:
    cycles = plan(random.Random(SEED))
    assert len(cycles) >= 20
    site.server.start()
    site.prepare()
    site.server.kill()
    for number, (point, acks_max) in enumerate(cycles):
        told = f"in cycle {number}, {point or f'SIGKILL after {acks_max} answers'}, seed {SEED}"
        try:
            site.server.start(env={CRASH_POINT: point} if point else None)
            site.check()
            site.write_until_killed(number, acks_max=acks_max)
        except BaseException as error:
            error.add_note(told)
            raise
    site.server.start()
    site.check()
    check_cold(site)


def check_cold(site: Site) -> None:
    """After a last flush of each partition the independent reader sees what SELECT sees, and no leftovers."""
    for writer in site.writers:
        with site.client(writer.user) as client:
            writer._round(client, "last", 0)
    with site.client("root") as root:
        for table in (OURS, MINE):
            root.execute(f"STORAGE FLUSH TABLE {table}")
    jobs = site.ended_jobs()
    assert any(job["retry_count"] != 0 for job in jobs), "some kill came while a job ran"
    root_dir = site.server.data_dir / "storage"
    wait_until(lambda: cold.audit(root_dir) == [], timeout_s=WAIT_S, what="replaced files to go")
    by_select = sorted(site.state(), key=lambda pair: pair[0])
    by_reader = []
    for table, user, owner in PARTITIONS:
        partition = cold.find_partition(root_dir, table, owner)
        assert partition is not None
        assert cold.audit_hidden(partition, "id") == []
        by_reader += [((table, user, row["id"]), row["v"]) for row in cold.rows(partition, "id")]
    assert sorted(by_reader, key=lambda pair: pair[0]) == by_select
    assert site.acks.check(by_select) == []
