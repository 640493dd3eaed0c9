"""One table name over two tiers: whatever was flushed, compacted, altered and moved when, whatever call of a
disk or a bucket fails meanwhile, the answers are those of a plain model.

Two users have rows of a table on the disk, and all share one whose files are in a bucket. A statement that
fails has no effect, a flush or a compaction that fails changes no answer; at the end, done again, they leave
exactly the files that count.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from upwell.engine import sweep as sweep_module
from upwell.engine.commit import Durability
from upwell.engine.in_force import decode_manifest_record, partition_name
from upwell.errors import AlreadyExists, UpwellError
from upwell.storage.hot import Kind
from upwell.storage.place import LOCAL
from upwell.testing import DuplicateKey, FailingFiles, TableModel, cold
from upwell.testing.bucket import MemoryBucket
from upwell.testing.embedded import Embedded, memory_store
from upwell.testing.inprocess import OneThread

KEYS = st.integers(1, 9)
USERS = st.sampled_from(["ann", "bob"])
MINE, OURS = "app.mine", "app.ours"
COLUMNS = "(id INT PRIMARY KEY, n BIGINT NOT NULL, s TEXT)"
# Each table with the owners in the model, and the account that sees an owner's rows.
PLACES = [(MINE, "ann", "ann"), (MINE, "bob", "bob"), (OURS, None, "root")]
PLACE = st.sampled_from(PLACES)
Place = tuple[str, str | None, str]


NEVER = 1_000_000_000
SWEEP = {"SCAN_ROWS": 2, "RANGE_ROWS_MIN": 2, "RANGE_ROWS_MAX": 3}
"""Few rows make several ranges to be forgotten, and rows that are forgotten alone."""
STORAGE = "CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'"
# In memory, where there is such a place: nothing is proven here about syncs.
SHM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Tiers(RuleBasedStateMachine):
    """Statements, flushes, moves, faults and restarts in any order, against `TableModel`."""

    on_rocks: bool

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for limit, rows in SWEEP.items():
            self.patch.setattr(sweep_module, limit, rows)
        self.directory = Path(tempfile.mkdtemp(prefix="upwell-tiers-", dir=SHM))
        self.files, self.bucket = FailingFiles(NEVER, OSError(errno.EIO, "injected")), MemoryBucket()
        self.db = Embedded(
            self.directory,
            store=None if self.on_rocks else memory_store(),
            files=self.files,
            open_bucket=self.bucket.opened,
            durability=Durability.GROUP if self.on_rocks else Durability.ASYNC,
            loop_factory=OneThread,
        )
        self.db.run(
            f"{STORAGE}; CREATE NAMESPACE app; CREATE TABLE {MINE} {COLUMNS} WITH (TYPE = 'USER');"
            f"CREATE TABLE {OURS} {COLUMNS} WITH (TYPE = 'SHARED', STORAGE_ID = 'far')"
        )
        self.models = {name: TableModel("id", ("id", "n", "s")) for name in (MINE, OURS)}
        self.added: dict[str, dict[str, object]] = {MINE: {}, OURS: {}}
        self.serial = 0
        self.disturbed: set[str] = set()
        """Tables of which a fault may have left files that the next change removes."""
        self.looked = self.restarted = 0
        self.touched: set[str] = set()

    @initialize(mode=st.sampled_from(["hot", "cold", "mixed"]))
    def choose(self, mode: str) -> None:
        """Nothing is ever flushed, everything is at once, or flushes come as they come."""
        self.mode = mode

    @rule(place=PLACE, keys=st.lists(KEYS, min_size=1, max_size=4))
    def insert(self, place: Place, keys: list[int]) -> None:
        table, owner, user = place
        values = ", ".join(f"({key}, {self.tick()}, 'new')" for key in keys)
        rows: list[dict[str, object]] = [
            {"id": key, "n": self.serial - len(keys) + index, "s": "new"} | self.added[table]
            for index, key in enumerate(keys, 1)
        ]
        try:
            self.models[table].insert(owner, *rows)
        except DuplicateKey:
            with pytest.raises(AlreadyExists):
                self.db.change(f"INSERT INTO {table} (id, n, s) VALUES {values}", user=user)
        else:
            assert self.db.change(f"INSERT INTO {table} (id, n, s) VALUES {values}", user=user) == len(keys)
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS, null=st.booleans())
    def update_one(self, place: Place, key: int, null: bool) -> None:
        table, owner, user = place
        text = None if null else f"v{self.tick()}"
        expected = self.models[table].update(
            owner, lambda row: {"n": int(str(row["n"])) + 1, "s": text}, {"id": key}
        )
        changed = self.db.change(f"UPDATE {table} SET n = n + 1, s = $1 WHERE id = {key}", [text], user)
        assert changed == expected
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS)
    def update_many(self, place: Place, key: int) -> None:
        table, owner, user = place
        above = self.models[table].update(
            owner, lambda row: {"n": int(str(row["n"])) * -1 - 1}, lambda row: int(str(row["id"])) > key
        )
        assert self.db.change(f"UPDATE {table} SET n = n * -1 - 1 WHERE id > {key}", user=user) == above
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS, other=KEYS)
    def rename(self, place: Place, key: int, other: int) -> None:
        """A changed primary key is a deletion and an insertion."""
        table, owner, user = place
        sql = f"UPDATE {table} SET id = {other}, n = {self.tick()} WHERE id = {key}"
        try:
            moved = self.models[table].update(owner, {"id": other, "n": self.serial}, {"id": key})
        except DuplicateKey:
            with pytest.raises(AlreadyExists):
                self.db.change(sql, user=user)
        else:
            assert self.db.change(sql, user=user) == moved
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS)
    def delete_one(self, place: Place, key: int) -> None:
        table, owner, user = place
        gone = self.models[table].delete(owner, {"id": key})
        assert self.db.change(f"DELETE FROM {table} WHERE id = {key}", user=user) == gone
        self.flush_if_cold(table)

    @rule(place=PLACE, low=KEYS, width=st.integers(0, 9))
    def delete_range(self, place: Place, low: int, width: int) -> None:
        table, owner, user = place
        high = low + width
        gone = self.models[table].delete(owner, lambda row: low <= int(str(row["id"])) <= high)
        sql = f"DELETE FROM {table} WHERE id BETWEEN {low} AND {high}"
        assert self.db.change(sql, user=user) == gone
        self.flush_if_cold(table)

    @precondition(lambda self: self.mode == "mixed")
    @rule(table=st.sampled_from([MINE, OURS]))
    def flush(self, table: str) -> None:
        """Afterwards nothing is hot, and the files alone hold the truth."""
        self.touched.add(table)
        self.db.flush(table)
        assert self.db.flush(table) == {}
        self.check_files(table)

    @precondition(lambda self: self.mode != "hot")
    @rule(table=st.sampled_from([MINE, OURS]), whole=st.booleans())
    def compact(self, table: str, whole: bool) -> None:
        """What the files say is the same, in at most one segment a partition if it was wanted."""
        self.touched.add(table)
        before = [self.cold_rows(table, owner) for name, owner, _ in PLACES if name == table]
        self.db.compact(table, whole=whole)
        assert [self.cold_rows(table, owner) for name, owner, _ in PLACES if name == table] == before
        if whole:
            found = cold.partitions(self.home(table), table_id=table)
            assert all(len(each.segments) <= 1 and not each.hidden for each in found)

    @precondition(lambda self: self.mode != "hot")
    @rule(
        table=st.sampled_from([MINE, OURS]), at=st.integers(1, 60), is_flush=st.booleans(), lost=st.booleans()
    )
    def fail(self, table: str, at: int, is_flush: bool, lost: bool) -> None:
        """A call of a disk or a bucket fails in a flush or a compaction, or there were fewer calls."""
        work = partial(self.db.flush, table) if is_flush else partial(self.compact_once, table)
        with self.failing(table, at, loses_answer=lost) as is_fired:
            try:
                work()
            except (OSError, UpwellError):
                assert is_fired(), "what fails has a cause"
        self.db.settle()
        self.answers_are_those_of_the_model()
        self.touched.add(table)
        work()  # the job's next attempt

    def compact_once(self, table: str) -> None:
        found = self.db.table(table)
        for owner in self.db.compactor.owners(self.db.view, found, due_only=False):
            self.db.compactor.compact_partition(found, owner, whole=True)
        self.db.partitions.collect_due()

    @rule(place=PLACE, key=KEYS)
    def change_while_away(self, place: Place, key: int) -> None:
        """No file can be read: the statement is done from what is known, or fails without effect."""
        table, owner, user = place
        value = self.tick()
        with self.failing(table, NEVER):
            self.bucket.is_away = True
            try:
                changed = self.db.change(f"UPDATE {table} SET n = {value} WHERE id = {key}", user=user)
            except UpwellError:
                return
            finally:
                self.bucket.is_away = False
        assert changed == self.models[table].update(owner, {"n": value}, {"id": key})
        self.flush_if_cold(table)

    @rule(storage=st.sampled_from(["far", "local"]))
    def move(self, storage: str) -> None:
        """New segments of the shared table go there; the old ones are read where they are."""
        self.db.run(f"ALTER TABLE {OURS} SET TBLPROPERTIES (STORAGE_ID = '{storage}')")
        self.disturbed.add(OURS)  # what it has left is collected by the changes that follow

    @precondition(lambda self: len(self.added[MINE]) + len(self.added[OURS]) < 3)
    @rule(table=st.sampled_from([MINE, OURS]), has_default=st.booleans())
    def add_column(self, table: str, has_default: bool) -> None:
        """Rows from before read the default, in whatever segment they are and come to be."""
        name, value = f"c{len(self.added[table])}", self.tick() if has_default else None
        self.db.run(f"ALTER TABLE {table} ADD COLUMN {name} INT" + (f" DEFAULT {value}" if value else ""))
        self.added[table][name] = value
        for _, owner, _ in PLACES:
            self.models[table].update(owner, {name: value})

    @rule(place=PLACE, key=KEYS)
    def update_added(self, place: Place, key: int) -> None:
        table, owner, user = place
        for name in self.added[table]:
            expected = self.models[table].update(owner, {"n": self.tick(), name: None}, {"id": key})
            sql = f"UPDATE {table} SET n = {self.serial}, {name} = NULL WHERE id = {key}"
            assert self.db.change(sql, user=user) == expected
        self.flush_if_cold(table)

    @precondition(lambda self: self.looked >= self.restarted + 6)
    @rule()
    def restart(self) -> None:
        self.restarted = self.looked
        self.db.reopen()
        self.touched.update((MINE, OURS))

    @rule(place=PLACE, key=KEYS)
    def aggregate(self, place: Place, key: int) -> None:
        """Predicates come after the tiers are resolved: an old version never matches."""
        table, owner, user = place
        rows = [int(str(row["n"])) for row in self.models[table].rows(owner) if int(str(row["n"])) > key]
        found = self.db.rows(f"SELECT count(*), sum(n), max(n) FROM {table} WHERE n > {key}", user=user)
        assert found == [(len(rows), sum(rows) if rows else None, max(rows, default=None))]

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        """By scan of the table that was touched, and by a few keys too of one of the owners in turn."""
        self.looked += 1
        for at, (table, owner, user) in enumerate(PLACES):
            if table not in self.touched and at != self.looked % len(PLACES):
                continue
            expected = [tuple(row.values()) for row in self.models[table].rows(owner)]
            names = ", ".join(["id", "n", "s", *self.added[table]])
            assert self.db.rows(f"SELECT {names} FROM {table} ORDER BY id", user=user) == expected
            if at == self.looked % len(PLACES):
                for key in (1 + self.looked % 9, 1 + self.looked // 9 % 9):
                    row = self.db.rows(f"SELECT {names} FROM {table} WHERE id = {key}", user=user)
                    assert row == [found for found in expected if found[0] == key]

        self.touched.clear()

    @contextmanager
    def failing(self, table: str, at: int, *, loses_answer: bool = False) -> Iterator[Callable[[], bool]]:
        """Let the n-th call of the disk or of the bucket fail, whichever comes first to it."""
        self.touched.add(table)
        self.disturbed.add(table)
        self.files.arm(at)
        self.bucket.arm(at, loses_answer=loses_answer)
        try:
            yield lambda: self.files.fired or self.bucket.fired
        finally:
            self.files.arm(NEVER)
            self.bucket.arm(NEVER)

    def home(self, table: str) -> Path:
        """Return the root where the manifests of a table are."""
        if table == MINE:
            return self.db.cold_root
        owner = self.db.table(table).owner_for("root")
        record = self.db.view.hot.find_record(Kind.MANIFEST, partition_name(self.db.table(table).id, owner))
        place = decode_manifest_record(record).place
        return self.roots()["local" if place is not None and place.storage == LOCAL else "far"]

    def roots(self) -> dict[str, Path]:
        saved = self.directory / "saved"
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        self.db.cold_root.mkdir(exist_ok=True)
        return {"far": self.bucket.save(saved), "local": self.db.cold_root}

    def cold_rows(self, table: str, owner: str | None) -> list[dict[str, object]]:
        """What the files say; a column that a file doesn't have yet reads what it began with."""
        found = cold.find_partition(self.home(table), table, owner, roots=self.roots())
        return [self.added[table] | row for row in cold.rows(found, "id")] if found else []

    def check_files(self, table: str) -> None:
        """The files of a table hold exactly the model's rows, and nothing is wrong with them."""
        for name, owner, _ in PLACES:
            if name == table:
                assert self.cold_rows(table, owner) == self.models[table].rows(owner)
        for partition in cold.partitions(self.home(table), table_id=table, roots=self.roots()):
            assert cold.audit_hidden(partition, "id") == []
        if not self.disturbed:
            assert cold.audit(self.db.cold_root, self.roots()) == []

    def finish(self) -> None:
        """Whatever failed, what is done again leaves exactly the files that count."""
        for table, owner, user in PLACES:
            self.models[table].insert(owner, {"id": 99, "n": 1, "s": "last"} | self.added[table])
            assert self.db.change(f"INSERT INTO {table} (id, n, s) VALUES (99, 1, 'last')", user=user) == 1
        for table in (MINE, OURS):
            self.db.flush(table)
            self.db.compact(table)
        self.disturbed.clear()
        for table in (MINE, OURS):
            self.check_files(table)
        self.touched.update((MINE, OURS))
        self.answers_are_those_of_the_model()

    def tick(self) -> int:
        self.serial += 1
        return self.serial

    def flush_if_cold(self, table: str) -> None:
        self.touched.add(table)
        if self.mode == "cold":
            self.flush(table)

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.patch.undo()
            self.db.close()
        shutil.rmtree(self.directory)


class TiersInMemory(Tiers):
    on_rocks = False


class TiersOnRocks(Tiers):
    on_rocks = True


TestTiersInMemory = TiersInMemory.TestCase
TestTiersInMemory.settings = settings(max_examples=200, stateful_step_count=50)
TestTiersOnRocks = TiersOnRocks.TestCase
TestTiersOnRocks.settings = settings(max_examples=8, stateful_step_count=20)
