"""Every call of a disk and of a bucket fails once, in whatever a job does with files: no answer changes, what
is done again comes to its end, and the files that are left are exactly those that count.

One world for all n: rows change, the n-th call from there fails, until the work passes without the fault.
"""

import errno
import itertools
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from upwell.clock import SystemClock
from upwell.effects import NoPoints, OsFiles
from upwell.engine import partition as partition_module
from upwell.engine.archive import LIST, load_archive
from upwell.engine.restore import RESTORED, Restore, adopt_restored, return_elsewhere
from upwell.engine.stop import Stop
from upwell.errors import UpwellError
from upwell.storage.rocks import RocksStore
from upwell.testing import FailingFiles, TableModel, cold, each_fault
from upwell.testing.bucket import MemoryBucket
from upwell.testing.embedded import Embedded, memory_store

NEVER = 1_000_000_000
NEAR, FAR = "app.near", "app.far"
USER = "ann"
OPEN_STORE = partial(RocksStore, clock=SystemClock())
EFFECTS = ("disk", "bucket", "answer of a bucket")


@pytest.fixture(autouse=True)
def filters_are_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of many keys are: calls of their own, which may fail."""
    monkeypatch.setattr(partition_module, "FILTER_IN_MANIFEST_BYTES_MAX", 0)


class World:
    """A USER table on the disk, a SHARED one in a bucket, and a model of both."""

    def __init__(self, directory: Path, *, on_rocks: bool = False) -> None:
        self.files = FailingFiles(NEVER, OSError(errno.EIO, "Input/output error (injected)"))
        self.bucket = MemoryBucket()
        store = None if on_rocks else memory_store()
        self.db = Embedded(directory, store=store, files=self.files, open_bucket=self.bucket.opened)
        self.db.run(
            "CREATE STORAGE pail TYPE s3 PATH 's3://bucket/pail'; CREATE NAMESPACE app;"
            f"CREATE USER TABLE {NEAR} (id INT PRIMARY KEY, n INT);"
            f"CREATE SHARED TABLE {FAR} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID = 'pail')"
        )
        self.models = {table: TableModel("id", ("id", "n")) for table in (NEAR, FAR)}
        self.round = 0
        self.change()
        for table in self.models:
            self.db.flush(table)

    def change(self) -> None:
        """New rows in both tables, one changed and one deleted of those from before."""
        self.round += 1
        base = self.round * 10
        for table, model in self.models.items():
            for key in range(base, base + 3):
                model.insert(None, {"id": key, "n": 0})
            values = ", ".join(f"({key}, 0)" for key in range(base, base + 3))
            self.db.change(f"INSERT INTO {table} VALUES {values}", user=USER_OF[table])
            model.update(None, {"n": self.round}, {"id": base - 10})
            sql = f"UPDATE {table} SET n = {self.round} WHERE id = {base - 10}"
            self.db.change(sql, user=USER_OF[table])
            model.delete(None, {"id": base - 9})
            self.db.change(f"DELETE FROM {table} WHERE id = {base - 9}", user=USER_OF[table])

    def arm(self, effect: str, fail_at: int) -> None:
        if effect == "disk":
            self.files.arm(fail_at)
        else:
            self.bucket.arm(fail_at, loses_answer=effect != "bucket")

    def disarm(self) -> bool:
        """Let nothing fail any more; return whether something did."""
        fired = self.files.fired or self.bucket.fired
        self.files.arm(NEVER)
        self.bucket.arm(NEVER)
        return fired

    def check(self, db: Embedded | None = None) -> None:
        for table, model in self.models.items():
            rows = (db or self.db).rows(f"SELECT id, n FROM {table} ORDER BY id", user=USER_OF[table])
            assert rows == [tuple(row.values()) for row in model.rows(None)], table

    def check_files(self, saved: Path) -> None:
        """After one more change the files alone are the model, and nothing else lies about."""
        self.change()
        for table in self.models:
            self.db.flush(table)
            self.db.compact(table)
        roots = {"pail": self.bucket.save(saved), "local": self.db.cold_root}
        for table, owner in ((NEAR, USER), (FAR, None)):
            [found] = [
                each
                for root in roots.values()
                for each in cold.partitions(root, table_id=table, roots=roots)
                if each.user_id == owner
            ]
            assert cold.rows(found, "id") == self.models[table].rows(None)
        assert cold.audit(self.db.cold_root, roots) == []

    # What is done, each without what prepares it

    def flush(self, table: str) -> None:
        self.db.flush(table)

    def compact(self, table: str) -> None:
        found = self.db.table(table)
        for owner in self.db.compactor.owners(self.db.view, found, due_only=False):
            self.db.compactor.compact_partition(found, owner, whole=True)
        self.db.partitions.collect_due()

    def move(self, table: str) -> None:
        self.flush(table)
        self.compact(table)


USER_OF = {NEAR: USER, FAR: "root"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "data")
    yield world
    world.db.close()


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("deed", ["flush", "compact", "move"])
def test_each_call_of_a_change_of_files(world: World, tmp_path: Path, deed: str, effect: str) -> None:
    work: Callable[[str], None] = getattr(world, deed)

    def run(fail_at: int) -> bool:
        world.change()
        if deed == "compact":
            for table in (NEAR, FAR):
                world.flush(table)
        if deed == "move":
            storages = ("pail", "local") if fail_at % 2 else ("local", "pail")
            for table, storage in zip((NEAR, FAR), storages, strict=True):
                world.db.run(f"ALTER TABLE {table} SET TBLPROPERTIES (STORAGE_ID = '{storage}')")
        world.arm(effect, fail_at)
        try:
            for table in (NEAR, FAR):
                work(table)
        except (OSError, UpwellError):
            assert world.files.fired or world.bucket.fired
        fired = world.disarm()
        world.db.settle()
        world.check()
        for table in (NEAR, FAR):
            work(table)
        world.check()
        return fired

    print(f"{deed}, {effect}: {each_fault(run)} calls, each failed once")
    world.check_files(tmp_path / "saved")


@pytest.mark.parametrize("effect", EFFECTS)
def test_each_call_of_a_drop(world: World, tmp_path: Path, effect: str) -> None:
    def run(fail_at: int) -> bool:
        for storage in ("local", "pail"):
            table = f"app.{storage}_{fail_at}"
            world.db.run(
                f"CREATE TABLE {table} (id INT PRIMARY KEY) WITH (TYPE = 'USER', STORAGE_ID = '{storage}')"
            )
            for user in ("ann", "bob"):
                world.db.change(f"INSERT INTO {table} VALUES (1)", user=user)
            world.db.flush(table)
            world.db.change(f"INSERT INTO {table} VALUES (2)", user="ann")
        names = [
            (world.db.table(f"app.{each}_{fail_at}").id, f"{each}_{fail_at}") for each in ("local", "pail")
        ]
        for _, name in names:
            world.db.run(f"DROP TABLE app.{name}")
        world.arm(effect, fail_at)
        for number, name in names:
            remove = partial(world.db.cleanup.remove_table, number, namespace="app", name=name)
            try:
                remove()
            except (OSError, UpwellError):
                assert world.files.fired or world.bucket.fired
                remove()
        fired = world.disarm()
        return gone() and fired

    def gone() -> bool:
        world.check()
        assert {path.name for path in (world.db.cold_root / "app").iterdir()} == {"near"}
        assert not [key for key in world.bucket.objects if "pail_" in key]
        return True

    print(f"drop, {effect}: {each_fault(run)} calls, each failed once")
    world.check_files(tmp_path / "saved")


@pytest.mark.parametrize("effect", EFFECTS[:2])
def test_each_call_of_a_backup(tmp_path: Path, effect: str) -> None:
    """What failed has no name, or is whole; done again by the same job it is whole."""
    world = World(tmp_path / "data", on_rocks=True)
    world.change()

    def run(fail_at: int) -> bool:
        target = tmp_path / "backups" / str(fail_at)
        if effect == "bucket":  # a copy of an earlier run must not spare the question
            world.db.close()
            shutil.rmtree(tmp_path / "data" / "cache", ignore_errors=True)
            world.db._open()
        back_up = partial(world.db.kinds.backup.run, target, f"BK-{fail_at}", Stop())
        world.arm(effect, fail_at)
        try:
            back_up()
        except (OSError, UpwellError):
            assert world.files.fired or world.bucket.fired
            assert not target.exists() or (target / LIST).exists(), "half a backup has no name"
        fired = world.disarm()
        archive = back_up()
        on_disk = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        assert on_disk == {LIST, *(entry.path for entry in archive.files)}
        assert {path.name for path in target.parent.iterdir() if path.name.startswith(".")} == set()
        world.check()
        return fired

    count = each_fault(run)
    print(f"backup, {effect}: {count} calls, each failed once")
    for number in sorted({1, count // 2, count, count + 1}):
        other = tmp_path / f"other-{number}"
        other.mkdir()
        Restore(other, OPEN_STORE, NoPoints(), OsFiles()).run(
            tmp_path / "backups" / str(number), "RS-1", epoch=0, stop=Stop()
        )
        adopt_restored(other, OPEN_STORE, NoPoints(), OsFiles())
        with Embedded(other, open_bucket=world.bucket.opened) as there:
            world.check(there)
    world.db.close()


def test_each_call_of_a_restore(tmp_path: Path) -> None:
    """The copy, its adoption by the next start, and the return of files to an empty bucket."""
    world = World(tmp_path / "data", on_rocks=True)
    world.change()
    source = tmp_path / "backup"
    world.db.kinds.backup.run(source, "BK-1", Stop())
    world.db.close()
    numbers = itertools.count()

    def again(fail_at: int, work: Callable[[], object]) -> bool:
        """Do it with a failing call, and again until it passes, as a job's next attempt or a next start."""
        world.files.arm(fail_at)
        world.bucket.arm(NEVER)
        try:
            work()
        except (OSError, UpwellError):
            assert world.files.fired
            work()
        fired = world.files.fired
        world.disarm()
        return fired

    def fresh() -> tuple[Path, Restore]:
        other = tmp_path / f"other-{next(numbers)}"
        other.mkdir()
        return other, Restore(other, OPEN_STORE, NoPoints(), world.files)

    def copy(fail_at: int) -> bool:
        other, restore = fresh()
        fired = again(fail_at, lambda: restore.run(source, "RS-1", epoch=0, stop=Stop()))
        archive = load_archive(other / RESTORED)
        cold_files = [entry for entry in archive.files if not entry.path.startswith("hot/")]
        assert all((other / RESTORED / each.path).stat().st_size == each.size_bytes for each in cold_files)
        assert {path.name for path in other.iterdir()} == {RESTORED}
        shutil.rmtree(other)
        return fired

    def start(fail_at: int) -> bool:
        other, restore = fresh()
        restore.run(source, "RS-1", epoch=0, stop=Stop())
        adopted = again(fail_at, lambda: adopt_restored(other, OPEN_STORE, NoPoints(), world.files))
        world.bucket.objects = {key: data for key, data in world.bucket.objects.items() if "app/" not in key}
        with Embedded(other, open_bucket=world.bucket.opened, files=world.files) as there:
            catalog = there.view.catalog
            world.bucket.arm(fail_at)
            try:
                return_elsewhere(other, there.storages, catalog)
            except UpwellError:
                assert world.bucket.fired
                world.disarm()
                return_elsewhere(other, there.storages, catalog)
            returned = world.disarm()
            world.check(there)
        assert not (other / RESTORED).exists()
        return adopted or returned

    print(
        f"restore: {each_fault(copy)} calls of the copy, {each_fault(start)} of the start, each failed once"
    )


def test_retention_and_trim_touch_no_file(world: World) -> None:
    """What they remove is in the hot store alone."""
    world.files.arm(NEVER)
    world.bucket.arm(NEVER)
    world.db.trim.run()
    world.db.retention.run()
    world.db.expiry.run()
    assert (world.files.trace, world.bucket.trace) == ([], [])
