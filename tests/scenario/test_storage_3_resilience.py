"""Storage 3 and scenario 06: a flush that fails is visible, says why, loses and doubles nothing, is retried.

A real server whose disk fails from the k-th write of a flush on, for every k: one table for each k, at once.
"""

import errno
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upwell.effects import HOLD_FILE, HOLD_POINT
from upwell.testing import ServerProcess, TableModel, cold, wait_until
from upwell.testing.faults import steer
from upwell.testing.wire import Site

PROGRAM = Path(__file__).with_name("failing_server.py")
WAIT_S = 60.0
FOR_EVER = 1_000_000
CALLS_MAX = 30
FAULTS = (errno.ENOSPC, errno.EIO)
RETRIES = 3
OVER = {"completed", "failed", "skipped", "cancelled"}


@dataclass
class Shop:
    """The server, and the file that orders its faults."""

    site: Site
    orders: Path

    @property
    def root_dir(self) -> Path:
        return self.site.server.data_dir / "storage"

    def order(self, faults: dict[str, tuple[int, int, int]]) -> None:
        steer(self.orders, faults)

    def heal(self) -> None:
        self.orders.unlink()

    def jobs(self, namespace: str) -> dict[str, list[dict[str, Any]]]:
        """Return the flush jobs of a namespace's tables, oldest first."""
        answer = self.site.root.run(
            "SELECT job_id, status, message, retry_count, max_retries, created_at, started_at, finished_at, "
            "parameters FROM system.jobs WHERE job_type = 'flush' ORDER BY created_at"
        )
        names = [name for name, _ in answer.columns]
        found: dict[str, list[dict[str, Any]]] = {}
        for row in answer.rows:
            job = dict(zip(names, row, strict=True))
            table = json.loads(job["parameters"])["table_id"]
            if table.startswith(f"{namespace}."):
                found.setdefault(table, []).append(job)
        return found

    def ended(self, namespace: str) -> dict[str, dict[str, Any]]:
        """Wait until the flushes of a namespace are over; return the newest of each table."""

        def look() -> dict[str, list[dict[str, Any]]]:
            jobs = self.jobs(namespace)
            return jobs if all(job["status"] in OVER for each in jobs.values() for job in each) else {}

        found = wait_until(look, timeout_s=WAIT_S, what=f"the flushes in {namespace}")
        return {table: jobs[-1] for table, jobs in found.items()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("resilience")
    orders = directory / "orders.json"
    command = [sys.executable, str(PROGRAM), "{data_dir}", "{port}", str(orders)]
    with ServerProcess(directory / "data", command=command, env={"UPWELL_BCRYPT_COST": "4"}) as server:
        site = Site(server)
        yield Shop(site, orders)
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


class Goods:
    """A table with rows in every state, some of them cold, and the model of it."""

    def __init__(self, shop: Shop, namespace: str, name: str) -> None:
        self.shop, self.table = shop, f"{namespace}.{name}"
        self.directory = f"{namespace}/{name}"
        self.model = TableModel("id", ("id", "v"))
        shop.site.root.run(f"CREATE TABLE {self.table} (id BIGINT PRIMARY KEY, v TEXT) WITH (TYPE='SHARED')")

    def write(self, base: int) -> None:
        """Insert ten rows, change two of them and one of before, delete one of them and one of before."""
        keys = range(base, base + 10)
        values = ", ".join(f"({key}, 'v{key}')" for key in keys)
        statements = [f"INSERT INTO {self.table} VALUES {values}"]
        for key in keys:
            self.model.insert(None, {"id": key, "v": f"v{key}"})
        for key in [base, base + 1, *([base - 9] if base else [])]:
            statements.append(f"UPDATE {self.table} SET v = 'by {base}' WHERE id = {key}")
            self.model.update(None, {"v": f"by {base}"}, {"id": key})
        for key in [base + 2, *([base - 7] if base else [])]:
            statements.append(f"DELETE FROM {self.table} WHERE id = {key}")
            self.model.delete(None, {"id": key})
        self.shop.site.root.run("; ".join(statements))

    def check(self) -> None:
        """SELECT is the model."""
        rows = self.shop.site.root.run(f"SELECT id, v FROM {self.table} ORDER BY id").rows
        assert [(int(key), value) for key, value in rows] == [
            (row["id"], row["v"]) for row in self.model.rows(None)
        ], self.table

    def check_cold(self) -> None:
        """The files alone are the model, each version once, and nothing else lies about."""
        partition = cold.find_partition(self.shop.root_dir, self.table)
        assert partition is not None
        assert cold.rows(partition, "id") == self.model.rows(None)
        seqs = [(row["id"], row["_seq"]) for row in cold.versions(partition)]
        assert len(seqs) == len(set(seqs)), "a version twice in Parquet"
        assert cold.audit_hidden(partition, "id") == []
        assert cold.audit(self.shop.root_dir / self.directory) == []

    def flush(self) -> str:
        return self.shop.site.root.run(f"STORAGE FLUSH TABLE {self.table}").message


def test_a_disk_that_fails_from_any_write_of_a_flush_on(shop: Shop) -> None:
    """FAILED with its cause; after the repair the same job completes; the files hold each row once."""
    space = shop.site.namespace()
    tables = [Goods(shop, space, f"t{at}") for at in range(1, CALLS_MAX + 1)]
    for goods in tables:
        goods.write(0)
    shop.site.root.run(f"STORAGE FLUSH ALL IN {space}")
    assert {job["status"] for job in shop.ended(space).values()} == {"completed"}
    for goods in tables:
        goods.write(10)
    shop.order({goods.directory: (at, FOR_EVER, FAULTS[at % 2]) for at, goods in enumerate(tables, 1)})
    assert f"for {CALLS_MAX} table(s)" in shop.site.root.run(f"STORAGE FLUSH ALL IN {space}").message
    ended = shop.ended(space)
    jobs = [ended[goods.table] for goods in tables]
    failed = [job["status"] == "failed" for job in jobs]
    calls = failed.index(False)
    print(f"a flush makes {calls} writing calls; each has failed for good")
    assert 15 < calls < CALLS_MAX
    assert not any(failed[calls:]), "beyond the last call nothing fails"
    for at, job in enumerate(jobs[:calls], 1):
        assert f"{os.strerror(FAULTS[at % 2])} (injected)" in job["message"], job
        assert (job["retry_count"], job["max_retries"]) == (RETRIES, RETRIES)
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    for goods in tables:
        goods.check()
        goods.write(20)
    shop.heal()
    for job in jobs[:calls]:
        retry = "UPDATE system.jobs SET status = 'queued' WHERE job_id = $1"
        assert shop.site.root.run(retry, job["job_id"]).count == 1
    ended = shop.ended(space)
    for goods, before in zip(tables[:calls], jobs, strict=False):
        job = ended[goods.table]
        assert (job["job_id"], job["status"]) == (before["job_id"], "completed"), job
        assert (job["created_at"], job["retry_count"]) == (before["created_at"], RETRIES + 1)
        goods.check()
        goods.check_cold()
    skipped = f"Storage flush skipped: no pending writes for table '{tables[0].table}'"
    assert tables[0].flush() == skipped
    assert {len(jobs) for jobs in shop.jobs(space).values()} == {2}


def test_a_disk_that_fails_once_at_a_write_of_a_flush(shop: Shop) -> None:
    """The next attempt completes without anybody asking for it."""
    space = shop.site.namespace()
    tables = {at: Goods(shop, space, f"t{at}") for at in range(1, CALLS_MAX, 4)}
    for goods in tables.values():
        goods.write(0)
    shop.order({goods.directory: (at, at, errno.EIO) for at, goods in tables.items()})
    shop.site.root.run(f"STORAGE FLUSH ALL IN {space}")
    jobs = shop.ended(space)
    shop.heal()
    assert {job["status"] for job in jobs.values()} == {"completed"}, jobs
    retried = [jobs[goods.table]["retry_count"] for goods in tables.values()]
    assert set(retried) == {0, 1}, "one fault is one failed attempt at most"
    for goods in tables.values():
        goods.check()
        goods.write(10)
    shop.site.root.run(f"STORAGE FLUSH ALL IN {space}")
    assert {job["status"] for job in shop.ended(space).values()} == {"completed"}
    for goods in tables.values():
        goods.check()
        goods.check_cold()


def test_a_failed_flush_does_not_keep_another_table_or_a_new_command_from_working(shop: Shop) -> None:
    space = shop.site.namespace()
    sick, sound = Goods(shop, space, "sick"), Goods(shop, space, "sound")
    for goods in (sick, sound):
        goods.write(0)
    shop.order({sick.directory: (1, FOR_EVER, errno.ENOSPC)})
    for goods in (sick, sound):
        goods.flush()
    jobs = shop.ended(space)
    assert jobs[sick.table]["status"] == "failed"
    assert "No space left on device" in jobs[sick.table]["message"]
    assert jobs[sound.table]["status"] == "completed"
    shop.heal()
    assert "Job ID: " in sick.flush(), "the key is free again"
    assert shop.ended(space)[sick.table]["status"] == "completed"
    for goods in (sick, sound):
        goods.check()
        goods.check_cold()


def test_a_table_whose_files_cannot_be_removed_is_cleaned_up_later(shop: Shop) -> None:
    space = shop.site.namespace()
    goods = Goods(shop, space, "gone")
    goods.write(0)
    goods.flush()
    shop.ended(space)
    shop.order({goods.directory: (1, FOR_EVER, errno.EACCES)})
    message = shop.site.root.run(f"DROP TABLE {goods.table}").message
    job_id = message.removeprefix(f"Table {goods.table} dropped successfully. Cleanup job: ")
    assert job_id.startswith("CL-")
    question = f"SELECT status, message FROM system.jobs WHERE job_id = '{job_id}'"

    def over() -> list[str] | None:
        [found] = shop.site.root.run(question).rows
        return found if found[0] in OVER else None

    status = wait_until(over, timeout_s=WAIT_S, what="the cleanup to fail")
    assert status is not None
    assert status[0] == "failed"
    assert "Permission denied" in status[1]
    shop.heal()
    assert shop.site.root.run(f"RETRY JOB '{job_id}'").message == f"Job {job_id} queued again"
    ended = wait_until(over, timeout_s=WAIT_S, what="the cleanup to end")
    assert ended is not None
    assert ended[0] == "completed"
    assert not (shop.root_dir / goods.directory).exists()
    assert "'gone'" not in str(shop.site.root.run("SELECT table_name FROM system.tables").rows)


def test_a_flush_is_killed_while_it_runs(shop: Shop, tmp_path: Path) -> None:
    """It is cancelled at once and for good, whatever its thread still does; nothing is lost or doubled."""
    space = shop.site.namespace()
    goods = Goods(shop, space, "held")
    goods.write(0)
    held = tmp_path / "held"
    shop.site.server.restart(env={HOLD_POINT: "flush:before-commit", HOLD_FILE: str(held)})
    root = shop.site.root
    job_id = goods.flush().split("Job ID: ")[1]
    wait_until(held.with_name("held.reached").exists, timeout_s=WAIT_S, what="the flush to be under way")
    assert root.run(f"KILL JOB '{job_id}'").message == f"Job {job_id} killed: cancelled"
    [job] = shop.jobs(space)[goods.table]
    assert (job["status"], job["message"]) == ("cancelled", "cancelled by KILL JOB")
    goods.check()
    again = goods.flush()
    assert "Job ID: " in again, "the killed job holds nothing up but the table's turn"
    held.with_name("held.go").touch()
    assert shop.ended(space)[goods.table]["status"] in ("completed", "skipped")
    assert shop.jobs(space)[goods.table][0]["status"] == "cancelled"
    goods.check()
    goods.check_cold()
