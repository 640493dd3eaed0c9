"""A compaction whose n-th file call fails, or that ends at any point, changes no answer and is done again.

Each run is a world of its own. While a compaction runs, rows are changed as other sessions would change them.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upwell.errors import ColdFileMissing
from upwell.testing import FailingFiles, PointActions, TableModel, each_fault
from upwell.testing.embedded import Embedded, memory_store

TABLE = "app.notes"
NEVER = 1_000_000
POINTS = (
    "compact:begin",
    "compact:segment-written",
    "compact:segment-published",
    "compact:manifest-written",
    "compact:before-commit",
    "compact:after-commit",
    "compact:after-copy",
    "collect:removed",
)


class World:
    """Two segments with superseded rows and tombstones, and some rows hot; the model of what it holds."""

    def __init__(self, directory: Path) -> None:
        self.files = FailingFiles(NEVER)
        self.actions: dict[str, Callable[[], None]] = {}
        self.points = PointActions({point: self._at(point) for point in POINTS})
        self.db = Embedded(directory, store=memory_store(), files=self.files, points=self.points)
        self.model = TableModel("id", ("id", "v"))
        self.db.run(
            f"CREATE NAMESPACE app; CREATE TABLE {TABLE} (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'SHARED')"
        )
        for round_ in range(2):
            self.write(round_)
            self.db.flush(TABLE)
        self.write(2)

    def _at(self, point: str) -> Callable[[], None]:
        return lambda: self.actions.get(point, lambda: None)()

    def write(self, round_: int) -> None:
        """New rows; a changed, a deleted and a replaced one of those from before."""
        base = round_ * 10
        for key in range(base, base + 4):
            self.model.insert(None, {"id": key, "v": f"new {round_}"})
            self.db.change(f"INSERT INTO {TABLE} VALUES ({key}, 'new {round_}')")
        for key in range(0, base, 10):
            self.model.update(None, {"v": f"changed {round_}"}, {"id": key})
            self.db.change(f"UPDATE {TABLE} SET v = 'changed {round_}' WHERE id = {key}")
        if round_:
            self.delete(base - 9)
            self.delete(base - 8)
            self.model.insert(None, {"id": base - 8, "v": "back"})
            self.db.change(f"INSERT INTO {TABLE} VALUES ({base - 8}, 'back')")

    def delete(self, key: int) -> None:
        self.model.delete(None, {"id": key})
        self.db.change(f"DELETE FROM {TABLE} WHERE id = {key}")

    def change_all(self) -> None:
        """What another session may do meanwhile."""
        keys = [int(str(row["id"])) for row in self.model.rows(None)]
        self.delete(keys[0])
        self.delete(keys[-1])
        self.model.update(None, {"v": "meanwhile"}, lambda row: int(str(row["id"])) % 2 == 0)
        self.db.change(f"UPDATE {TABLE} SET v = 'meanwhile' WHERE id % 2 = 0")
        self.model.insert(None, {"id": keys[0], "v": "meanwhile back"})
        self.db.change(f"INSERT INTO {TABLE} VALUES ({keys[0]}, 'meanwhile back')")

    def check(self) -> None:
        """The answers are the model's, by scan and by key."""
        expected = [tuple(row.values()) for row in self.model.rows(None)]
        assert self.db.rows(f"SELECT id, v FROM {TABLE} ORDER BY id") == expected
        for key in (0, 2, 11):
            found = self.db.rows(f"SELECT id, v FROM {TABLE} WHERE id = {key}")
            assert found == [row for row in expected if row[0] == key]

    def finish(self) -> None:
        """Done again, the files alone hold the truth, in one segment, and nothing else lies about."""
        self.check()
        self.db.reopen()
        self.check()
        self.db.flush(TABLE)
        self.db.compact(TABLE)
        self.check()
        assert self.db.cold_problems() == []
        assert self.db.cold_rows(TABLE) == self.model.rows(None)
        # The manifest says the filter of few keys.
        assert len(list((self.db.cold_root / "app" / "notes").glob("batch-*"))) == 1

    def close(self) -> None:
        self.db.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[], World]]:
    numbers = itertools.count()
    worlds: list[World] = []

    def make() -> World:
        worlds.append(World(tmp_path / str(next(numbers))))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_each_call_of_a_compaction_may_fail(make_world: Callable[[], World]) -> None:
    calls: set[str] = set()

    def run(fail_at: int) -> bool:
        world = make_world()
        world.files.arm(fail_at)
        try:
            world.db.compact(TABLE)
        except (OSError, ColdFileMissing):
            assert world.files.fired
        fired = world.files.fired
        calls.update(name for name, _ in world.files.trace)
        world.files.arm(NEVER)
        world.check()
        if fail_at % 2:
            world.change_all()
        if fail_at % 3:
            world.db.compact(TABLE)
            world.check()
        else:
            world.finish()
        return fired

    assert each_fault(run) > 30
    assert calls >= {
        "open",
        "write",
        "fsync",
        "fsync-dir",
        "link",
        "rename",
        "unlink",
        "stat",
        "list",
        "read",
    }


@pytest.mark.parametrize("point", POINTS)
def test_rows_change_at_a_point(make_world: Callable[[], World], point: str) -> None:
    world = make_world()
    reached = []

    def act() -> None:
        world.actions = {}
        reached.append(point)
        world.check()
        world.change_all()
        world.check()

    world.actions[point] = act
    world.db.compact(TABLE)
    assert reached == [point]
    world.finish()


def test_a_flush_that_comes_meanwhile_waits(make_world: Callable[[], World]) -> None:
    """Both write one manifest after the other; neither undoes the other."""
    world = make_world()
    flushes: list[threading.Thread] = []

    def flush() -> None:
        world.actions = {}
        thread = threading.Thread(target=lambda: world.db.flusher.flush_partition(table, owner))
        flushes.append(thread)
        thread.start()

    table = world.db.table(TABLE)
    owner = table.owner_for("root")
    world.actions["compact:segment-written"] = flush
    world.db.compactor.compact_partition(table, owner, whole=True)
    flushes[0].join()
    world.db.settle()
    world.check()
    world.finish()
