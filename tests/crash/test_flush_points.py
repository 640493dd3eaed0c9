"""Whatever happens to a row at any named point of its flush, it is there once, with its newest value.

The flush runs in the test's own thread; at each point statements run as other sessions would run them.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upwell.engine import flush as flush_module
from upwell.engine import sweep as sweep_module
from upwell.engine.flush import Flushed
from upwell.engine.stop import Stop
from upwell.jobs.job import JobType
from upwell.testing import PointActions, TableModel
from upwell.testing.embedded import Embedded, memory_store

TABLE = "app.notes"
POINTS = (
    "flush:begin",
    "flush:segment-written",
    "flush:segment-published",
    "flush:manifest-written",
    "flush:before-commit",
    "flush:after-commit",
    "flush:mid-cleanup",
    "flush:after-cleanup",
    "flush:job-completed",
)


class World:
    """Rows in every state that a flush may meet them in; actions change all of them at once."""

    def __init__(self, directory: Path) -> None:
        self.actions: dict[str, Callable[[], None]] = {}
        self.points = PointActions({point: self._at(point) for point in POINTS})
        self.db = Embedded(directory, store=memory_store(), points=self.points)
        self.model = TableModel("id", ("id", "n"))
        self.serial = 0
        self.db.run(
            f"CREATE NAMESPACE app; CREATE TABLE {TABLE} (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')"
        )
        self.insert(*range(1, 8))
        self.db.flush(TABLE)
        # 1 stays cold; 2 is changed twice, 3 deleted, 4 deleted and back; 8 to 10 are new, 11 came and went.
        for key in (2, 2):
            self.update(key)
        self.delete(3)
        self.delete(4)
        self.insert(4, 8, 9, 10, 11)
        self.delete(11)

    def _at(self, point: str) -> Callable[[], None]:
        def run() -> None:
            if point in self.actions:
                self.check()
                self.actions[point]()
                self.check()

        return run

    def insert(self, *keys: int) -> None:
        for key in keys:
            self.serial += 1
            self.model.insert(None, {"id": key, "n": self.serial})
            assert self.db.change(f"INSERT INTO {TABLE} VALUES ({key}, {self.serial})") == 1

    def update(self, key: int) -> None:
        self.serial += 1
        expected = self.model.update(None, {"n": self.serial}, {"id": key})
        assert self.db.change(f"UPDATE {TABLE} SET n = {self.serial} WHERE id = {key}") == expected

    def delete(self, key: int) -> None:
        expected = self.model.delete(None, {"id": key})
        assert self.db.change(f"DELETE FROM {TABLE} WHERE id = {key}") == expected

    def keys(self) -> list[int]:
        return [int(str(row["id"])) for row in self.model.rows(None)]

    def update_each(self) -> None:
        for key in self.keys():
            self.update(key)

    def delete_each(self) -> None:
        for key in self.keys():
            self.delete(key)

    def replace_each(self) -> None:
        for key in self.keys():
            self.delete(key)
            self.insert(key)

    def insert_missing(self) -> None:
        self.insert(*(key for key in range(1, 13) if key not in self.keys()))

    def update_all(self) -> None:
        """One statement over both tiers."""
        expected = self.model.update(None, lambda row: {"n": int(str(row["n"])) + 1000})
        assert self.db.change(f"UPDATE {TABLE} SET n = n + 1000") == expected

    def check(self) -> None:
        expected = [tuple(row.values()) for row in self.model.rows(None)]
        assert self.db.rows(f"SELECT id, n FROM {TABLE} ORDER BY id") == expected
        for key in (1, 3, 4, 11):
            found = self.db.rows(f"SELECT id, n FROM {TABLE} WHERE id = {key}")
            assert found == [row for row in expected if row[0] == key]

    def flush_job(self) -> None:
        """Run a flush as its job does, all points included."""
        table = self.db.table(TABLE)
        job = self.db.jobs.submit(JobType.FLUSH, {"table_number": table.id}, "flush")
        assert job is not None
        self.db.kinds.run(self.db.jobs.start(job), Stop())

    def finish(self) -> None:
        """Nothing happens any more: after a restart and one more flush the files alone hold the truth."""
        self.actions = {}
        self.check()
        self.db.reopen()
        self.check()
        self.db.settle()
        self.db.flush(TABLE)
        self.check()
        assert self.db.flush(TABLE) == {}
        assert self.db.cold_problems() == []
        assert self.db.cold_rows(TABLE) == self.model.rows(None)


ACTIONS: Mapping[str, Callable[[World], None]] = {
    "update": World.update_each,
    "delete": World.delete_each,
    "replace": World.replace_each,
    "insert": World.insert_missing,
    "update-all": World.update_all,
}


CLEANUPS: Mapping[str, tuple[ModuleType, Mapping[str, int]]] = {
    "row by row": (flush_module, {"DROPS_MAX": 3}),
    "in ranges": (sweep_module, {"SCAN_ROWS": 2, "RANGE_ROWS_MIN": 1, "RANGE_ROWS_MAX": 3}),
}


@pytest.fixture(params=CLEANUPS)
def make_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[[], World]]:
    # The cleanup passes its point after each slice: in between, some rows are hot and cold.
    module, limits = CLEANUPS[request.param]
    for limit, rows in limits.items():
        monkeypatch.setattr(module, limit, rows)
    worlds: list[World] = []

    def make() -> World:
        worlds.append(World(tmp_path / str(len(worlds))))
        return worlds[-1]

    yield make
    for world in worlds:
        world.db.close()


def test_a_flush_passes_every_point_in_order(make_world: Callable[[], World]) -> None:
    world = make_world()
    world.points.reached.clear()
    world.actions = dict.fromkeys(POINTS, world.check)
    world.flush_job()
    reached = [point for point in world.points.reached if point.startswith("flush:")]
    assert list(dict.fromkeys(reached)) == list(POINTS)
    assert reached.count("flush:mid-cleanup") > 1
    world.finish()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", POINTS)
def test_all_rows_change_at_a_point(make_world: Callable[[], World], point: str, action: str) -> None:
    world = make_world()
    changed: list[int] = []

    def change() -> None:
        before = world.serial
        ACTIONS[action](world)
        changed.append(world.serial - before)

    world.actions[point] = change
    world.flush_job()
    assert changed, "the flush came to the point"
    world.finish()


class AttemptFailed(OSError):
    """The flush ends where it stands."""


@pytest.mark.parametrize("point", POINTS)
def test_all_rows_change_and_the_flush_ends_at_a_point(make_world: Callable[[], World], point: str) -> None:
    """What a flush that didn't end has left behind is invisible, now and to the next flush."""
    world = make_world()

    def fail() -> None:
        world.replace_each()
        raise AttemptFailed

    world.actions[point] = fail
    with pytest.raises(AttemptFailed):
        world.flush_job()
    world.actions = {}
    world.check()
    world.update_each()
    world.finish()


@settings(max_examples=8)
@given(
    plan=st.dictionaries(st.sampled_from(POINTS), st.sampled_from(sorted(ACTIONS)), min_size=2),
    flushes=st.integers(1, 3),
)
def test_rows_change_at_several_points_of_several_flushes(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, str], flushes: int
) -> None:
    world = World(tmp_path_factory.mktemp("points"))
    try:
        world.actions = {
            point: lambda action=action: ACTIONS[action](world) for point, action in plan.items()
        }
        for _ in range(flushes):
            flushed: dict[object, Flushed] = dict(world.db.flush(TABLE))
            assert len(flushed) <= 1
        world.finish()
    finally:
        world.db.close()


def test_a_reader_keeps_the_manifest_that_its_view_names(make_world: Callable[[], World]) -> None:
    """Files go when the last View that names them is gone, not before: a View of long ago still answers."""
    world = make_world()
    old = world.db.view
    expected = [tuple(row.values()) for row in world.model.rows(None)]
    for _ in range(3):
        world.update_each()
        world.db.flush(TABLE)
        world.db.cold.forget_table(world.db.table(TABLE).id)  # the reader opens the files only now
        table = world.db.table(TABLE)
        found = world.db.rows_by_key.scan(old.hot, table, table.owner_for("root"))
        assert [tuple(version.row or ()) for version in found] == expected
    manifests = sorted(path.name for path in world.db.cold_root.rglob("manifest-*.json"))
    del old, found
    world.update_each()
    world.db.flush(TABLE)
    kept = sorted(path.name for path in world.db.cold_root.rglob("manifest-*.json"))
    assert len(manifests) == 3, "of the reader, the one before, the one in force"
    assert len(kept) == 2
    world.finish()
