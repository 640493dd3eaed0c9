"""Soak: a mixed load against a model, with flush, compaction, ALTER and kill -9 under way.

    make soak MINUTES=10 SEED=1
    python benchmarks/soak.py --minutes 10 --long 1    (one life, no kill)

Each user writes rows of their own and knows what must be there; what was under way when the server was killed
may be either way, and is looked up. A live query of each user, and one of their STREAM table, follow from the
first round to the last, through each kill. After each round every row is compared with SELECT and with what
was followed, and the rows of the STREAM table have to end. It prints one JSON line a round, and at the end
the slopes of memory, descriptors, segments and job backlog; exit code 1 if a row is wrong or something grows.

Lives of the server are short at first, and compared by their ends. The last one is long (`--long`, a part of
the time): what it gains after its first third, in which caches fill, is what a server gains that stays up.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upwell.client import Client, ClientError, ConnectionLost, connect
from upwell.client.table import LiveRows
from upwell.testing import ServerProcess, cold, wait_until

USERS = ("ann", "bob", "eve")
PASSWORD = "a-password-of-a-soak"
ROWS_KEPT = 300
COLUMNS_MAX = 20
ROUND_S = 5.0
ROUNDS_A_LIFE = 6
TTL_S = 2
FOLLOWED_S = 60.0
LONG_SHARE = 0.6
LONG_MINUTES_MIN = 3.0
"""A long life with less after its first third says nothing of memory: caches and memtables fill meanwhile."""
# What the server may gain per minute, from life to life or within the long one, and still be called flat.
FLAT = {"rss_mb": 8.0, "descriptors": 4.0, "segments": 4.0, "backlog": 1.0}

Row = tuple[float, str]
Sample = dict[str, float]


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
    def __init__(self, directory: Path, seed: int) -> None:
        self.server = ServerProcess(directory, env={"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "1"})
        chance = random.Random(seed)
        self.writers = [Writer(user, random.Random(chance.random())) for user in USERS]
        self.followers: list[Follower] = []
        self.samples: list[Sample] = []
        self.columns = 0

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

    def round(self, *, kill: bool) -> None:
        """Write for a while; meanwhile flush, compact and alter; then stop, or be killed."""
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
            if self.columns < COLUMNS_MAX:
                root.execute(f"ALTER TABLE app.orders ADD COLUMN c{self.columns} INT DEFAULT {self.columns}")
                self.columns += 1
        if kill:
            self.server.kill()
        stop.set()
        for thread, client in zip(threads, clients, strict=True):
            thread.join()
            client.close()
        if kill:
            self.server.start()

    def check(self) -> list[str]:
        for writer, follower in zip(self.writers, self.followers, strict=True):
            with self.client(writer.user) as client:
                writer.check(client)
            follower.check(writer)
        return [problem for writer in self.writers for problem in writer.problems]

    def sample(self, life: int, minutes: float) -> Sample:
        with self.client("root") as root:
            sql = "SELECT job_id FROM system.jobs WHERE status IN ('new', 'queued', 'running', 'retrying')"
            backlog = len(root.query(sql))
        proc = Path(f"/proc/{self.server.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        partitions = cold.partitions(self.server.data_dir / "storage")
        sample = {
            "minutes": round(minutes, 2),
            "life": life,
            "operations": sum(writer.operations for writer in self.writers),
            "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
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


def life_slopes(samples: list[Sample], long_life: float) -> dict[str, float]:
    """Return the gain per minute from end to end of the short lives; nothing of fewer than three."""
    ends = {sample["life"]: sample for sample in samples if sample["life"] != long_life}
    points = list(ends.values())[1:]  # the first one fills the tables
    return slopes(points) if len(points) >= 3 else {}


def long_slopes(samples: list[Sample], long_life: float) -> dict[str, float]:
    """Return the gain per minute within the long life, after its first third; nothing if it was short."""
    of_life = [sample for sample in samples if sample["life"] == long_life]
    points = of_life[len(of_life) // 3 :]
    is_long = points[-1]["minutes"] - points[0]["minutes"] >= LONG_MINUTES_MIN
    return slopes(points) if is_long else {}


def slopes(points: list[Sample]) -> dict[str, float]:
    """Return the gain per minute of what has to be flat (least squares)."""
    mean_x = sum(point["minutes"] for point in points) / len(points)
    spread = sum((point["minutes"] - mean_x) ** 2 for point in points)
    found = {}
    for name in FLAT:
        mean_y = sum(point[name] for point in points) / len(points)
        together = sum((point["minutes"] - mean_x) * (point[name] - mean_y) for point in points)
        found[name] = round(together / spread, 3)
    return found


def soaked(soak: Soak, minutes: float, long_share: float) -> list[str]:
    """Run rounds for so many minutes and return what was wrong; there is no kill in the last `long_share`."""
    began = time.monotonic()
    problems: list[str] = []
    number = life = 0
    while not problems and (elapsed := (time.monotonic() - began) / 60) < minutes:
        number += 1
        kill = number % ROUNDS_A_LIFE == 0 and elapsed < minutes * (1 - long_share)
        life += kill
        soak.round(kill=kill)
        problems = soak.check()
        print(json.dumps(soak.sample(life, (time.monotonic() - began) / 60)), flush=True)
    return problems + soak.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description="A mixed load against a model, for minutes.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--long", type=float, default=LONG_SHARE, help="part of the time, of the last life")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="upwell-soak-") as name:
        soak = Soak(Path(name) / "data", options.seed)
        with soak.server:
            soak.prepare()
            problems = soaked(soak, options.minutes, options.long)
    last = soak.samples[-1]["life"]
    by_life, by_minute = life_slopes(soak.samples, last), long_slopes(soak.samples, last)
    found = {"slopes_per_minute": by_life, "long_life_slopes_per_minute": by_minute}
    print(json.dumps({"rounds": len(soak.samples), **found, "problems": problems}))
    steep = {name for name, slope in by_life.items() if slope > FLAT[name]}
    steep |= {f"{name} within one life" for name, slope in by_minute.items() if slope > FLAT[name]}
    if steep:
        print(f"not flat: {', '.join(sorted(steep))}", file=sys.stderr)
    return 1 if problems or steep else 0


if __name__ == "__main__":
    sys.exit(main())
