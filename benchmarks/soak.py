"""Soak: a mixed load against a model, with flush, compaction, ALTER and kill -9 under way.

    make soak MINUTES=10 SEED=1
    python benchmarks/soak.py --minutes 10 --leak 5    (a server that leaks: the soak has to fail)

Each user writes rows of their own and knows what must be there; what was under way when the server was killed
may be either way, and is looked up. A live query of each user, and one of their STREAM table, follow from the
first round to the last, through each kill. After each round every row is compared with SELECT and with what
was followed, and the rows of the STREAM table have to end. It prints one JSON line a round, and at the end
the slopes of memory, descriptors, segments and job backlog; exit code 1 if a row is wrong or something grows.

What is bounded has to be full before a slope means anything. The server's larger bounds (RocksDB's write
buffers and block cache, the newest changes of the log) are tight here: by themselves they fill in minutes
or hours, by the machine's speed, and meanwhile they hide what has no bound. Memory is the server's own
(`own_mb`): pages of files and libraries come and go as the system likes. Two things are judged:

- within one life: the last one is long, and its first two minutes are its warm-up: smaller caches and the
  allocator fill meanwhile. What it gains after them is what a server gains that stays up.
- from life to life: what a server has right after it was killed and started again, from when the tables have
  the rows and columns that they keep. This is what grows with all that a store has gone through.

With less than five minutes of either it says "too short to judge", and the exit code is about the rows
alone. Ten minutes are enough for both.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upwell.client import Client, ClientError, ConnectionLost, connect
from upwell.client.table import LiveRows
from upwell.testing import ServerProcess, cold, wait_until
from upwell.testing.trend import Sample, Trend, trend

USERS = ("ann", "bob", "eve")
PASSWORD = "a-password-of-a-soak"
ROWS_KEPT = 300
COLUMNS_KEPT = 6
ROUND_S = 5.0
ROUNDS_A_LIFE = 3
ROUNDS_AN_ALTER = 8
TTL_S = 2
FOLLOWED_S = 60.0
WARM_UP_MINUTES = 2.0
JUDGED_MINUTES_MIN = 5.0
LONG_SHARE = 0.6
"""Part of the time of the last life; it has what it needs to be judged, at least."""
JUDGED_FROM_MINUTES = 10.0
# What the server may gain per minute, from life to life or within the long one, and still be called flat.
FLAT = {"own_mb": 3.0, "descriptors": 2.0, "segments": 2.0, "backlog": 1.0}

TIGHT = """
import sys, threading, time
from upwell.engine.changelog import Changelog
from upwell.storage import rocks
rocks.WRITE_BUFFER_BYTES = rocks.BLOCK_CACHE_BYTES = 1024 * 1024
Changelog.__init__.__kwdefaults__["tail_changes_max"] = 512
kept, each = [], round(float(sys.argv.pop(1)) * 1024 * 1024 / 60)
def leak():
    while each:
        kept.append(bytes([1]) * each)
        time.sleep(1)
threading.Thread(target=leak, daemon=True).start()
from upwell.cli import main
sys.exit(main())
"""
SERVE = ("serve", "--data-dir", "{data_dir}", "--host", "127.0.0.1", "--port", "{port}")

Row = tuple[float, str]


@dataclass
class Writer:
    """One user: 60 % inserts, 20 % updates of the newest, 20 % counts; old rows are deleted."""

    user: str
    chance: random.Random
    rows: dict[int, Row] = field(default_factory=dict)
    serial: int = 0
    operations: int = 0
    in_doubt: dict[int, Row | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def run(self, client: Client, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self.step(client)
                self.operations += 1
        except ConnectionLost:
            pass
        except ClientError as error:
            self.problems.append(f"{self.user}: {error!r}")

    def step(self, client: Client) -> None:
        choice = self.chance.random()
        if choice < 0.6 or not self.rows:
            self.serial += 1
            row = (float(self.serial), "pending")
            sql = "INSERT INTO app.orders (id, amount, status) VALUES ($1, $2, $3)"
            self.write(client, self.serial, row, sql, [self.serial, *row])
            client.execute("INSERT INTO app.typing (id) VALUES ($1)", [self.serial])
            if len(self.rows) > ROWS_KEPT:
                oldest = min(self.rows)
                self.write(client, oldest, None, "DELETE FROM app.orders WHERE id = $1", [oldest])
        elif choice < 0.8:
            key = max(self.rows)
            row = (self.rows[key][0] + 1, "done")
            sql = "UPDATE app.orders SET amount = amount + 1, status = 'done' WHERE id = $1"
            self.write(client, key, row, sql, [key])
        else:
            [found] = client.query("SELECT count(*) AS n FROM app.orders WHERE status = 'pending'")
            expected = sum(status == "pending" for _, status in self.rows.values())
            if int(found["n"]) != expected:
                self.problems.append(f"{self.user}: {found['n']} pending, not {expected}")

    def write(self, client: Client, key: int, row: Row | None, sql: str, values: list[object]) -> None:
        self.in_doubt = {key: row}
        client.execute(sql, values)
        self.settle(key, row)

    def settle(self, key: int, row: Row | None) -> None:
        if row is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = row
        self.in_doubt = {}

    def check(self, client: Client) -> None:
        """Compare all rows; a write that got no answer may have happened or not."""
        rows = client.query("SELECT id, amount, status FROM app.orders ORDER BY id")
        found = {int(row["id"]): (float(row["amount"]), str(row["status"])) for row in rows}
        for key, row in list(self.in_doubt.items()):
            if found.get(key) == row:
                self.settle(key, row)
            self.in_doubt = {}
        if len(found) != len(rows) or found != self.rows:
            wrong = {key for key in {*found, *self.rows} if found.get(key) != self.rows.get(key)}
            self.problems.append(f"{self.user}: rows differ, {sorted(wrong)[:5]} of {len(wrong)}")


class Follower:
    """What one user's live queries say, from the first round to the last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._done = client.live_table("SELECT id, amount, status FROM app.orders WHERE status = 'done'")
        self._typing = client.live_table("SELECT id FROM app.typing")

    def open(self) -> None:
        self._done.open()
        self._typing.open()

    def close(self) -> None:
        self._client.close()

    def check(self, writer: Writer) -> None:
        """Wait until the live rows are those that the writer knows, and what lives for a while has ended."""
        done = {key: row for key, row in writer.rows.items() if row[1] == "done"}
        self._expect(writer, self._done, done)
        self._expect(writer, self._typing, {})

    @staticmethod
    def _expect(writer: Writer, followed: LiveRows, expected: dict[int, Row]) -> None:
        def holds(rows: list[dict[str, Any]]) -> bool:
            return {int(row["id"]): (row.get("amount"), row.get("status")) for row in rows} == expected

        try:
            followed.wait(holds, FOLLOWED_S)
        except (TimeoutError, ClientError) as error:
            writer.problems.append(
                f"{writer.user}: a live query differs from {len(expected)} rows: {error!r}"
            )


class Soak:
    def __init__(self, directory: Path, seed: int, *, leak_mb_per_minute: float = 0.0) -> None:
        self.server = ServerProcess(
            directory,
            env={"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "1"},
            command=(sys.executable, "-c", TIGHT, str(leak_mb_per_minute), *SERVE),
        )
        chance = random.Random(seed)
        self.writers = [Writer(user, random.Random(chance.random())) for user in USERS]
        self.followers: list[Follower] = []
        self.samples: list[Sample] = []
        self.began = self.born = time.monotonic()
        self.life = self.rounds = self.columns = 0

    def client(self, user: str) -> Client:
        password = self.server.root_password if user == "root" else PASSWORD
        return connect(self.server.url, user=user, password=password)

    def prepare(self) -> None:
        with self.client("root") as root:
            root.execute("CREATE NAMESPACE app")
            root.execute(
                "CREATE TABLE app.orders (id BIGINT PRIMARY KEY, amount DOUBLE, status TEXT) "
                "WITH (TYPE = 'USER', FLUSH_POLICY = 'rows:100')"
            )
            root.execute(
                "CREATE TABLE app.typing (id BIGINT PRIMARY KEY) "
                f"WITH (TYPE = 'STREAM', TTL_SECONDS = {TTL_S})"
            )
            for user in USERS:
                root.execute(f"CREATE USER '{user}' WITH PASSWORD '{PASSWORD}' ROLE user")
        self.followers = [Follower(self.client(user)) for user in USERS]
        for follower in self.followers:
            follower.open()

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began) / 60

    @property
    def age(self) -> float:
        """Minutes of the server's present life."""
        return (time.monotonic() - self.born) / 60

    def round(self, *, kill: bool) -> None:
        """Write for a while; meanwhile flush, compact and alter; then stop, or be killed and start again."""
        self.rounds += 1
        stop = threading.Event()
        clients = [self.client(writer.user) for writer in self.writers]
        pairs = zip(self.writers, clients, strict=True)
        threads = [threading.Thread(target=writer.run, args=(client, stop)) for writer, client in pairs]
        for thread in threads:
            thread.start()
        with self.client("root") as root:
            for share in range(4):
                time.sleep(ROUND_S / 4)
                root.execute(f"STORAGE {'COMPACT' if share == 3 else 'FLUSH'} TABLE app.orders")
            self.alter(root)
        if kill:
            self.server.kill()
        stop.set()
        for thread, client in zip(threads, clients, strict=True):
            thread.join()
            client.close()
        if kill:
            self.server.start()
            self.life, self.born = self.life + 1, time.monotonic()

    def alter(self, root: Client) -> None:
        """Add a column each round, then one now and then for the oldest that was added."""
        if self.columns < COLUMNS_KEPT or self.rounds % ROUNDS_AN_ALTER == 0:
            root.execute(f"ALTER TABLE app.orders ADD COLUMN c{self.columns} INT DEFAULT {self.columns}")
            self.columns += 1
            if self.columns > COLUMNS_KEPT:
                root.execute(f"ALTER TABLE app.orders DROP COLUMN c{self.columns - COLUMNS_KEPT - 1}")

    def check(self) -> list[str]:
        for writer, follower in zip(self.writers, self.followers, strict=True):
            with self.client(writer.user) as client:
                writer.check(client)
            follower.check(writer)
        return [problem for writer in self.writers for problem in writer.problems]

    @property
    def is_full(self) -> bool:
        """Whether the tables have the rows and columns that they keep."""
        return self.columns >= COLUMNS_KEPT and all(len(each.rows) >= ROWS_KEPT for each in self.writers)

    def sample(self) -> Sample:
        with self.client("root") as root:
            sql = "SELECT job_id FROM system.jobs WHERE status IN ('new', 'queued', 'running', 'retrying')"
            backlog = len(root.query(sql))
        proc = Path(f"/proc/{self.server.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        partitions = cold.partitions(self.server.data_dir / "storage")
        sample: Sample = {
            "minutes": round(self.minutes, 2),
            "life": self.life,
            "age": round(self.age, 2),
            "is_full": self.is_full,
            "operations": sum(writer.operations for writer in self.writers),
            "rss_mb": int(status["VmRSS"].split()[0]) // 1024,
            "own_mb": round(int(status["RssAnon"].split()[0]) / 1024, 1),
            "descriptors": len(list((proc / "fd").iterdir())),
            "segments": sum(len(partition.segments) for partition in partitions),
            "backlog": backlog,
        }
        self.samples.append(sample)
        return sample

    def finish(self) -> list[str]:
        """When everything is flushed and compacted, the files alone hold the truth."""
        for follower in self.followers:
            follower.close()
        with self.client("root") as root:
            for command in ("FLUSH", "COMPACT"):
                root.execute(f"STORAGE {command} TABLE app.orders")
                sql = (
                    "SELECT job_id FROM system.jobs WHERE status IN ('new', 'queued', 'running', 'retrying')"
                )
                wait_until(lambda: not root.query(sql), timeout_s=120, what="all jobs to end")  # noqa: B023
        storage = self.server.data_dir / "storage"
        wait_until(lambda: cold.audit(storage) == [], timeout_s=60, what="replaced files to go")
        problems = []
        for writer in self.writers:
            partition = cold.find_partition(storage, "app.orders", writer.user)
            rows = [] if partition is None else cold.rows(partition, "id")
            found = {row["id"]: (row["amount"], row["status"]) for row in rows}
            if found != writer.rows:
                problems.append(f"{writer.user}: the files hold {len(found)} rows, not {len(writer.rows)}")
        return problems


def from_life_to_life(samples: Sequence[Sample]) -> Trend:
    """Return the trend of the first samples of lives, each right after a start."""
    first = {sample["life"]: sample for sample in reversed(samples) if sample["life"] > 0}
    full = [sample for _, sample in sorted(first.items()) if sample["is_full"]]
    return trend(full, FLAT, minutes_min=JUDGED_MINUTES_MIN)


def within_one_life(samples: Sequence[Sample]) -> Trend:
    """Return the trend of the life that lasted longest, after its warm-up."""
    longest = max(samples, key=lambda sample: sample["age"])["life"]
    warm = [sample for sample in samples if sample["life"] == longest and sample["age"] >= WARM_UP_MINUTES]
    return trend(warm, FLAT, minutes_min=JUDGED_MINUTES_MIN)


def soaked(soak: Soak, minutes: float, long_share: float) -> list[str]:
    """Run rounds for so many minutes and return what was wrong.

    Lives are short at first; the last is long, if there is time for one that can be judged. It is killed too:
    what it held is opened once more.
    """
    long_minutes = max(minutes * long_share, WARM_UP_MINUTES + JUDGED_MINUTES_MIN + ROUND_S / 30)
    if minutes < JUDGED_FROM_MINUTES:
        long_minutes = 0.0
    problems: list[str] = []
    while not problems and (soak.minutes < minutes or soak.age < long_minutes):
        is_short = soak.minutes < minutes - long_minutes
        soak.round(kill=is_short and soak.rounds % ROUNDS_A_LIFE == ROUNDS_A_LIFE - 1)
        problems = soak.check()
        print(json.dumps(soak.sample()), flush=True)
    if not problems:
        soak.round(kill=True)
        problems = soak.check()
        print(json.dumps(soak.sample()), flush=True)
    return problems + soak.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description="A mixed load against a model, for minutes.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--long", type=float, default=LONG_SHARE, help="part of the time, of the last life")
    parser.add_argument("--leak", type=float, default=0.0, help="MB that the server loses each minute")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="upwell-soak-") as name:
        soak = Soak(Path(name) / "data", options.seed, leak_mb_per_minute=options.leak)
        with soak.server:
            soak.prepare()
            problems = soaked(soak, options.minutes, options.long)
    judged = {
        "within one life": within_one_life(soak.samples),
        "from life to life": from_life_to_life(soak.samples),
    }
    slopes = {
        what: {"slopes_per_minute": each.slopes, "verdict": each.verdict} for what, each in judged.items()
    }
    print(json.dumps({"rounds": len(soak.samples), **slopes, "problems": problems}))
    for what, each in judged.items():
        print(f"{what}: {each.verdict}", file=sys.stderr)
    return 1 if problems or any(each.steep for each in judged.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
