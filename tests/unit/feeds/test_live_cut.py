"""A resume that is cut off anywhere: whoever comes back from the newest `_seq` that it saw misses nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.errors import SeqTrimmed
from upwell.storage.hot import Kind
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.testing.inprocess import OneThread
from upwell.testing.live import Subscriber

SQL = "SELECT * FROM app.notes WHERE size > 0"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Embedded]:
    clock = ManualClock()
    with Embedded(tmp_path, clock=clock, store=MemoryStore(clock=clock)) as db:
        prepare(db)
        yield db


def prepare(db: Embedded) -> None:
    """Make one loop do everything at once, so that a cut is where it says."""
    db.runner.close()
    db.runner = asyncio.Runner(loop_factory=OneThread)
    db.sessions = db.session(db.runner.get_loop())
    if not any(table.name == "notes" for table in db.view.catalog.by_id.values()):
        db.run("CREATE NAMESPACE app")
        db.run("CREATE TABLE app.notes (id BIGINT PRIMARY KEY, size INT) WITH (TYPE='USER')")


def write(db: Embedded, sql: str) -> None:
    db.run(sql, user="ann")


def begin(db: Embedded) -> Subscriber:
    """Return a client that holds six rows and has left."""
    write(db, "INSERT INTO app.notes VALUES (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)")
    client = Subscriber(db, db.sessions.feed, "ann", SQL)
    db.runner.run(client.open(view=True))
    hang_up(db, client)
    return client


def go_on(db: Embedded) -> None:
    """Change, while the client is away: deletes before, between and after newer rows; some come back."""
    write(db, "DELETE FROM app.notes WHERE id = 1")
    write(db, "INSERT INTO app.notes VALUES (10, 1)")
    write(db, "UPDATE app.notes SET size = 0 WHERE id = 2")
    write(db, "DELETE FROM app.notes WHERE id = 3")
    write(db, "INSERT INTO app.notes VALUES (11, 1), (12, 1), (3, 5)")
    write(db, "UPDATE app.notes SET size = 7 WHERE id = 4")
    write(db, "DELETE FROM app.notes WHERE id IN (5, 10)")


def select(db: Embedded) -> dict[str, dict[str, object]]:
    found = db.rows("SELECT id, size FROM app.notes WHERE size > 0", user="ann")
    return {str(key): {"id": str(key), "size": size} for key, size in found}


def hang_up(db: Embedded, client: Subscriber) -> None:
    async def leave() -> None:
        client.close()

    db.runner.run(leave())


def come_back(db: Embedded, client: Subscriber, frames: int | None, batch: int) -> None:
    """Resume from the newest seq that the client saw, and be cut off after so many frames."""
    client.frames_left = frames
    expected = select(db)

    def is_over() -> bool:
        is_whole = client.shown(["id", "size"]) == expected
        return client.frames_left == 0 or is_whole or bool(client.errors)

    async def resume() -> None:
        await client.resume(view=True, batch_size=batch)
        await client.until(is_over)
        if frames is not None:
            client.close()

    db.runner.run(resume())


def windows(db: Embedded) -> list[str]:
    return [name for name in db.record_names(Kind.META) if name.startswith("resume/")]


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("first", [1, 2, 3, 4, 6, 7])
def test_cut_after_any_frame(db: Embedded, first: int, batch: int) -> None:
    """Cut off twice, the second time after any frame, with changes between; then it holds the SELECT."""
    client = begin(db)
    go_on(db)
    for number, second in enumerate([None, 1, 3, 4, 6], 100):
        twin = client.copy()
        come_back(db, twin, first, batch)
        if second is not None:
            come_back(db, twin, second, batch)
        come_back(db, twin, None, batch)
        assert twin.errors == []
        assert twin.shown(["id", "size"]) == select(db), (first, second)
        hang_up(db, twin)
        twin = client.copy()
        come_back(db, twin, first, batch)
        write(db, f"DELETE FROM app.notes WHERE id IN (6, {number})")
        write(db, f"INSERT INTO app.notes VALUES ({number + 1}, 1)")
        come_back(db, twin, second if second is not None else 1, batch)
        come_back(db, twin, None, batch)
        assert twin.shown(["id", "size"]) == select(db), (first, second)
        hang_up(db, twin)


def test_a_resume_that_came_through_leaves_nothing(db: Embedded) -> None:
    client = begin(db)
    go_on(db)
    come_back(db, client, None, 2)
    assert windows(db) == []
    come_back(db, client, None, 2)
    # Nothing is told twice: the second resume brought neither rows nor deletes.
    count = len(client.events)
    come_back(db, client, None, 2)
    assert len(client.events) == count


def test_deletes_after_all_rows_need_no_record(db: Embedded) -> None:
    client = begin(db)
    write(db, "INSERT INTO app.notes VALUES (8, 1)")
    write(db, "DELETE FROM app.notes WHERE id = 1")
    before = db.committer.commits
    come_back(db, client, None, 100)
    assert db.committer.commits == before


@pytest.mark.parametrize("frames", [2, 4])
def test_it_outlives_the_server(tmp_path: Path, frames: int) -> None:
    with Embedded(tmp_path) as db:
        prepare(db)
        client = begin(db)
        go_on(db)
        come_back(db, client, frames, 2)
        db.reopen()
        prepare(db)
        again = client.copy(db)
        come_back(db, again, None, 2)
        assert again.shown(["id", "size"]) == select(db)
        assert len(windows(db)) == 1
        hang_up(db, again)
        table = db.table("app.notes")
        db.run("DROP TABLE app.notes")
        db.settle()
        db.cleanup.remove_table(table.id, namespace="app", name="notes")
        assert windows(db) == []


def test_what_the_log_no_longer_tells_is_refused(db: Embedded) -> None:
    """The window begins below the floor: going on from the cursor alone would lose its deletes."""
    client = begin(db)
    go_on(db)
    come_back(db, client, 2, 100)
    floor = client.told - 1
    clock = db.clock
    assert isinstance(clock, ManualClock)
    clock.advance(RETENTION_S + 1)
    write(db, "INSERT INTO app.notes VALUES (30, 1)")
    db.trim.run()
    assert floor > 0
    with pytest.raises(SeqTrimmed):
        come_back(db, client, None, 100)


def test_many_resumes_of_one_user_keep_one_small_record(db: Embedded) -> None:
    client = begin(db)
    go_on(db)
    for _ in range(30):
        come_back(db, client.copy(), 2, 2)
        write(db, "UPDATE app.notes SET size = size + 1 WHERE id = 4")
    [name] = windows(db)
    record = db.committer.newest.find_record(Kind.META, name)
    assert record is not None
    assert len(record) < 300
    come_back(db, client, 3, 2)
    come_back(db, client, None, 2)
    assert client.shown(["id", "size"]) == select(db)
