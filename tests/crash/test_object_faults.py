"""Every request to a bucket may fail once, at any place of a flush and of a compaction: nothing is lost or
doubled, and what is done again comes to its end.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.errors import UpwellError
from upwell.testing import TableModel, cold, each_fault
from upwell.testing.embedded import Embedded, memory_store
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
        self.db = Embedded(directory, store=memory_store())
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


@pytest.mark.parametrize("harm", [Harm.REFUSE, Harm.LOSE_ANSWER])
def test_each_request_may_fail(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm
) -> None:
    monkeypatch.setenv("STORAGE_KEY", "who")
    monkeypatch.setenv("STORAGE_SECRET", "knows")
    with FaultProxy(s3.port) as proxy:
        world = World(tmp_path / harm.name.lower(), proxy)
        world.change()
        world.db.flush(TABLE)

        def run(fail_at: int) -> bool:
            world.change()
            method = "" if harm is Harm.REFUSE else "PUT"
            with proxy.failing(Fault(harm, method, after=fail_at - 1, times=1, status=500)) as fault:
                failed = False
                try:
                    world.work()
                except (UpwellError, OSError):
                    failed = True
                world.check()
            assert failed or not fault.taken or harm is Harm.LOSE_ANSWER, "a fault that nobody noticed"
            world.work()
            world.check()
            return fault.taken > 0

        count = each_fault(run)
        print(f"{harm.name}: {count} requests, each failed once")
        assert count >= (12 if harm is Harm.REFUSE else 7)
        world.check_files(s3, tmp_path / "files")
        world.db.reopen()
        world.check()
        world.db.close()
