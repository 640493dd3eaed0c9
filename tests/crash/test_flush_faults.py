"""A flush whose n-th file call fails loses nothing, doubles nothing, and succeeds the next time.

Each run is a world of its own; `each_fault` goes through every n until a flush passes without the fault.
"""

import itertools
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from upwell.errors import ColdFileMissing
from upwell.testing import FailingFiles, TableModel, each_fault
from upwell.testing.embedded import Embedded, memory_store

TABLE = "app.notes"
NEVER = 1_000_000
USER = "ann"


class World:
    """A table with rows in every state, and the model of what it holds."""

    def __init__(self, directory: Path, *, flushes_before: int) -> None:
        self.files = FailingFiles(NEVER)
        self.db = Embedded(directory, store=memory_store(), files=self.files)
        self.model = TableModel("id", ("id", "v"))
        self.db.run(
            f"CREATE NAMESPACE app; CREATE TABLE {TABLE} (id INT PRIMARY KEY, v TEXT) WITH (TYPE = 'USER')"
        )
        for flush in range(flushes_before + 1):
            if flush:
                self.db.flush(TABLE)
            self.write(flush)

    def write(self, round_: int) -> None:
        """New rows, a changed and a deleted one, and one that came and went."""
        base = round_ * 10
        for key in (base, base + 1, base + 2, base + 3):
            self.model.insert(USER, {"id": key, "v": f"new {key}"})
            self.db.change(f"INSERT INTO {TABLE} VALUES ({key}, 'new {key}')", user=USER)
        # The rows of the round before are cold by now, if there was a flush between.
        for key in {base + 1, max(0, base - 10)}:
            self.model.update(USER, {"v": f"changed in {round_}"}, {"id": key})
            self.db.change(f"UPDATE {TABLE} SET v = 'changed in {round_}' WHERE id = {key}", user=USER)
        for key in {base + 2, max(2, base - 7)}:
            self.model.delete(USER, {"id": key})
            self.db.change(f"DELETE FROM {TABLE} WHERE id = {key}", user=USER)

    def check(self) -> None:
        """The answers are the model's, by scan and by key."""
        expected = [tuple(row.values()) for row in self.model.rows(USER)]
        assert self.db.rows(f"SELECT id, v FROM {TABLE} ORDER BY id", user=USER) == expected
        for key in (0, 2, 11, 12, 21):
            found = self.db.rows(f"SELECT id, v FROM {TABLE} WHERE id = {key}", user=USER)
            assert found == [row for row in expected if row[0] == key]

    def check_cold(self) -> None:
        """The files alone hold the truth, and nothing else lies about."""
        assert self.db.cold_problems() == []
        assert self.db.cold_rows(TABLE, USER) == self.model.rows(USER)

    def close(self) -> None:
        self.db.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[[int], World]]:
    numbers = itertools.count()
    worlds: list[World] = []

    def make(flushes_before: int) -> World:
        worlds.append(World(tmp_path / str(next(numbers)), flushes_before=flushes_before))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.mark.parametrize("flushes_before", [0, 2])
def test_each_call_of_a_flush_may_fail(make_world: Callable[[int], World], flushes_before: int) -> None:
    calls: set[str] = set()

    def run(fail_at: int) -> bool:
        world = make_world(flushes_before)
        world.files.arm(fail_at)
        try:
            world.db.flush(TABLE)
        except (OSError, ColdFileMissing):
            assert world.files.fired
        fired = world.files.fired
        calls.update(name for name, _ in world.files.trace)
        world.files.arm(NEVER)
        world.check()
        if fail_at % 2:  # half of the worlds go on writing and restart before they try again
            world.write(3)
            world.db.reopen()
            world.check()
        world.db.settle()
        world.db.flush(TABLE)
        world.check()
        world.write(4)  # what a failed clean-up left lying is removed by the partition's next flush
        world.db.flush(TABLE)
        world.check_cold()
        return fired

    assert each_fault(run) > 30
    assert calls >= {"open", "write", "fsync", "fsync-dir", "link", "rename", "unlink", "stat", "list"}
    assert ("mkdir" if flushes_before == 0 else "read") in calls


@contextmanager
def file_bytes_max(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: the system refuses the write (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_write_of_the_parquet_file_itself_may_fail(make_world: Callable[[int], World]) -> None:
    """Arrow writes it, past our files; so the system is made to refuse it."""
    world = make_world(1)
    before = sorted(world.db.cold_root.rglob("*.parquet"))
    with file_bytes_max(300), pytest.raises(OSError, match="File too large"):
        world.db.flush(TABLE)
    assert sorted(world.db.cold_root.rglob("*.parquet")) == before
    assert not list(world.db.cold_root.rglob(".*.tmp"))
    world.check()
    world.db.flush(TABLE)
    world.check()
    world.check_cold()


def test_the_copy_for_other_readers_is_made_up_for(make_world: Callable[[int], World]) -> None:
    """The flush has switched, but `manifest.json` could not be replaced: the next flush does it."""
    world = make_world(1)
    twin = make_world(1)
    twin.files.arm(NEVER)
    twin.db.flush(TABLE)
    world.files.arm(1 + [name for name, _ in twin.files.trace].index("rename"))
    with pytest.raises(OSError, match="injected"):
        world.db.flush(TABLE)
    world.files.arm(NEVER)
    world.check()
    assert world.db.cold_rows(TABLE, USER) != world.model.rows(USER)
    world.db.settle()
    world.db.flush(TABLE)
    world.check_cold()
