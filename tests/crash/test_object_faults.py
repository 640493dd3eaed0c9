"""Every request to a bucket may fail once, at any place of a flush, compaction, drop and backup: nothing is
lost or doubled, and what is done again comes to its end.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from upwell.engine.stop import Stop
from upwell.errors import UpwellError
from upwell.testing import TableModel, cold, each_fault
from upwell.testing.embedded import Embedded
from upwell.testing.s3 import Fault, FaultProxy, Harm, S3Server

TABLE = "app.notes"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.make_bucket("faults")
        yield server


class World:
    """A table in a bucket, with a model of its rows; changes come in rounds."""

    def __init__(self, directory: Path, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.db = Embedded(directory)
        self.model = TableModel("id", ("id", "n"))
        config = {"endpoint": proxy.url, "allow_http": True, "region": "us-east-1", "retries_max": 0}
        keys = {"access_key_id": "env:STORAGE_KEY", "secret_access_key": "env:STORAGE_SECRET"}
        self.db.run(
            f"CREATE STORAGE far TYPE s3 PATH 's3://faults/{directory.name}' "
            f"CONFIG '{json.dumps(config)}' CREDENTIALS '{json.dumps(keys)}'; CREATE NAMESPACE app;"
            f"CREATE SHARED TABLE {TABLE} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID = 'far')"
        )
        self.round = 0

    def change(self) -> None:
        """Insert a row, update another, delete a third."""
        self.round += 1
        key = self.round * 10
        for new in (key, key + 1, key + 2):
            self.model.insert(None, {"id": new, "n": 0})
            assert self.db.change(f"INSERT INTO {TABLE} VALUES ({new}, 0)") == 1
        if self.round > 1:
            self.model.update(None, {"n": self.round}, {"id": key - 10})
            assert self.db.change(f"UPDATE {TABLE} SET n = {self.round} WHERE id = {key - 10}") == 1
            self.model.delete(None, {"id": key - 9})
            assert self.db.change(f"DELETE FROM {TABLE} WHERE id = {key - 9}") == 1

    def check(self) -> None:
        expected = [tuple(row.values()) for row in self.model.rows(None)]
        assert self.db.rows(f"SELECT id, n FROM {TABLE} ORDER BY id") == expected

    def work(self) -> None:
        """Flush what is hot, then compact all."""
        self.db.flush(TABLE)
        table = self.db.table(TABLE)
        self.db.compactor.compact_partition(table, table.owner_for("root"), whole=True)

    def check_files(self, s3: S3Server, directory: Path) -> None:
        root = s3.download("faults", directory, f"{self.db.directory.name}/")
        assert cold.audit(root) == []
        partition = cold.find_partition(root, TABLE)
        assert partition is not None
        assert cold.rows(partition, "id") == self.model.rows(None)


@pytest.fixture
def world(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[World]:
    monkeypatch.setenv("STORAGE_KEY", "who")
    monkeypatch.setenv("STORAGE_SECRET", "knows")
    with FaultProxy(s3.port) as proxy:
        world = World(tmp_path / f"{request.node.name.replace('[', '-').rstrip(']')}", proxy)
        world.change()
        world.db.flush(TABLE)
        yield world
        world.db.close()


def harmed(world: World, fault: Fault, work: Callable[[], object]) -> bool:
    """Work while a fault is there; return whether it failed, as it only may if the fault did something."""
    with world.proxy.failing(fault):
        try:
            work()
        except (UpwellError, OSError):
            assert fault.taken, "what fails has a cause"
            return True
    return False


@pytest.mark.parametrize("harm", [Harm.REFUSE, Harm.RESET, Harm.LOSE_ANSWER, Harm.CUT_UPLOAD, Harm.REPEAT])
def test_each_request_may_fail(s3: S3Server, world: World, tmp_path: Path, harm: Harm) -> None:
    """Of a flush and a compaction; whatever happens to it."""
    may_be_read = harm in (Harm.REFUSE, Harm.RESET)

    def run(fail_at: int) -> bool:
        world.change()
        fault = Fault(harm, "" if may_be_read else "PUT", after=fail_at - 1, times=1, status=500)
        failed = harmed(world, fault, world.work)
        world.check()
        assert failed or not fault.taken or not may_be_read, "a fault that nobody noticed"
        if failed:
            world.work()
            world.check()
        return fault.taken > 0

    count = each_fault(run)
    print(f"{harm.name}: {count} requests, each failed once")
    assert count >= (12 if may_be_read else 7)
    world.check_files(s3, tmp_path / "files")
    world.db.reopen()
    world.check()


@pytest.mark.parametrize("status", [500, 503])
def test_the_first_requests_may_fail(s3: S3Server, world: World, tmp_path: Path, status: int) -> None:
    """However many they are: attempt after attempt, until the bucket is well again."""
    for first in (1, 2, 3, 5, 9):
        world.change()
        with world.proxy.failing(Fault(Harm.REFUSE, times=first, status=status)) as fault:
            for attempt in range(first + 1):
                try:
                    world.work()
                    break
                except (UpwellError, OSError):
                    assert attempt < first, "the bucket is well again"
            assert fault.taken == first
        world.check()
    world.check_files(s3, tmp_path / "files")


@pytest.mark.parametrize("harm", [Harm.REFUSE, Harm.RESET])
def test_each_request_of_a_drop_may_fail(s3: S3Server, world: World, tmp_path: Path, harm: Harm) -> None:
    """Done again it leaves nothing of the table in the bucket, and the other tables as they are."""

    def run(fail_at: int) -> bool:
        name = f"gone_{fail_at}"
        world.db.run(
            f"CREATE SHARED TABLE app.{name} (id INT PRIMARY KEY) WITH (STORAGE_ID = 'far');"
            f"INSERT INTO app.{name} VALUES (1), (2)"
        )
        world.db.flush(f"app.{name}")
        world.db.run(f"UPDATE app.{name} SET id = 3 WHERE id = 1")
        world.db.flush(f"app.{name}")
        number = world.db.table(f"app.{name}").id
        world.db.run(f"DROP TABLE app.{name}")
        remove = partial(world.db.cleanup.remove_table, number, namespace="app", name=name)
        fault = Fault(harm, after=fail_at - 1, times=1, status=500)
        if harmed(world, fault, remove):
            remove()
        assert not [key for key in s3.keys("faults", f"{world.db.directory.name}/") if name in key]
        world.check()
        return fault.taken > 0

    count = each_fault(run)
    print(f"drop, {harm.name}: {count} requests, each failed once")
    assert count >= 8
    world.check_files(s3, tmp_path / "files")


@pytest.mark.parametrize("harm", [Harm.REFUSE, Harm.RESET])
def test_each_request_of_a_backup_may_fail(world: World, tmp_path: Path, harm: Harm) -> None:
    """Done again by the same job it is whole, and has what was in the bucket."""
    world.change()
    world.db.flush(TABLE)
    whole: set[str] = set()

    def run(fail_at: int) -> bool:
        target = tmp_path / "backups" / str(fail_at)
        shutil.rmtree(world.db.directory / "cache", ignore_errors=True)  # no copy spares the question
        back_up = partial(world.db.kinds.backup.run, target, f"BK-{fail_at}", Stop())
        fault = Fault(harm, after=fail_at - 1, times=1, status=500)
        if harmed(world, fault, back_up):
            assert not target.exists(), "half a backup has no name"
        files = {entry.path for entry in back_up().files if entry.path.startswith("elsewhere/")}
        assert all((target / path).is_file() for path in files)
        whole.update(files)
        assert files == whole
        world.check()
        return fault.taken > 0

    count = each_fault(run)
    print(f"backup, {harm.name}: {count} requests, each failed once; {len(whole)} files of a bucket")
    assert count >= 4
    assert len(whole) >= 4
