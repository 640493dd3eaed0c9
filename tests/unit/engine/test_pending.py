"""What is due for a flush: counted per partition, by rows and by age, also after a start."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.engine.flush_policy import FlushPolicy, parse_policy
from upwell.engine.pending import WAITING_LOOK_S
from upwell.engine.recount import recount
from upwell.storage.memory import MemoryStore
from upwell.testing import FailingFiles
from upwell.testing.embedded import Embedded
from upwell.types import SHARED, Owner, user_owner

ANN, BOB = user_owner("ann"), user_owner("bob")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def files() -> FailingFiles:
    return FailingFiles(1_000_000)


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock, files: FailingFiles) -> Iterator[Embedded]:
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock, files=files) as db:
        db.run("CREATE NAMESPACE app")
        yield db


def create(db: Embedded, policy: str | None, kind: str = "USER", name: str = "t") -> None:
    option = "" if policy is None else f", FLUSH_POLICY = '{policy}'"
    db.run(f"CREATE TABLE app.{name} (id INT PRIMARY KEY, n INT) WITH (TYPE = '{kind}'{option})")


def insert(db: Embedded, *keys: int, user: str = "ann", name: str = "t") -> None:
    db.change(f"INSERT INTO app.{name} VALUES " + ", ".join(f"({key}, 0)" for key in keys), user=user)


def due(db: Embedded, name: str = "t") -> list[Owner]:
    """Return the due partitions of a table, which must be due itself exactly if there are some."""
    table, now = db.table(f"app.{name}").id, db.clock.now_us()
    owners = db.committer.pending.due_owners(table, now)
    assert (table in db.committer.pending.due_tables(now)) == bool(owners)
    return owners


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rows:1000", FlushPolicy(1000, None)),
        ("interval:60", FlushPolicy(None, 60)),
        ("rows:1000,interval:60", FlushPolicy(1000, 60)),
        ("interval:60, rows:5", FlushPolicy(5, 60)),
        ("rows:0007", FlushPolicy(7)),
        ("rows:" + "9" * 5_000, FlushPolicy(10**18)),
    ],
)
def test_a_policy_is_what_its_text_says(text: str, policy: FlushPolicy) -> None:
    assert parse_policy(text) == policy
    assert parse_policy(str(policy)) == policy


@pytest.mark.parametrize(
    "text", ["", "rows", "rows:0", "rows:-1", "rows:1,rows:2", "interval:1.5", "hours:3"]
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a flush policy is"):
        parse_policy(text)


def test_rows_are_counted_for_each_user_alone(db: Embedded) -> None:
    create(db, "rows:5")
    insert(db, 1, 2, 3, 4)
    insert(db, 1, 2, user="bob")
    assert due(db) == []
    insert(db, 5)
    assert due(db) == [ANN]
    insert(db, *range(100, 120), user="bob")
    assert sorted(due(db)) == [ANN, BOB], "also a statement that jumps over the line"


def test_updates_and_deletes_count_as_they_write_versions(db: Embedded) -> None:
    create(db, "rows:4", "SHARED")
    insert(db, 1, 2, user="root")
    db.change("UPDATE app.t SET n = 1 WHERE id = 1")
    assert due(db) == []
    db.change("DELETE FROM app.t WHERE id = 2")
    assert due(db) == [SHARED]


def test_a_flush_takes_the_count_with_it(db: Embedded) -> None:
    create(db, "rows:5")
    insert(db, 1, 2, 3, 4, 5)
    db.flush("app.t")
    assert due(db) == []
    insert(db, 100, 101, 102, 103)
    assert due(db) == []
    insert(db, 104)
    assert due(db) == [ANN]


def test_a_flush_that_fails_gives_the_count_back(db: Embedded, files: FailingFiles) -> None:
    create(db, "rows:5")
    insert(db, 1, 2, 3, 4, 5)
    files.arm(3)
    with pytest.raises(OSError, match="injected"):
        db.flush("app.t")
    assert due(db) == [ANN]
    db.flush("app.t")
    assert due(db) == []


def test_what_a_flush_was_not_asked_for_still_counts(db: Embedded) -> None:
    create(db, "rows:3", "SHARED")
    insert(db, 1, 2, user="root")
    asked = db.committer.last_seq
    insert(db, 3, 4, 5, user="root")
    flushed = db.flusher.flush_partition(db.table("app.t"), SHARED, until=asked)
    assert (flushed.rows, flushed.flushed_until, flushed.left) == (2, asked, (3, asked))
    db.settle()
    assert [row["id"] for row in db.cold_rows("app.t")] == [1, 2], "rows after the command stay hot"
    assert due(db) == [SHARED]
    assert db.rows("SELECT id FROM app.t ORDER BY id") == [(1,), (2,), (3,), (4,), (5,)]
    db.flush("app.t")
    assert [row["id"] for row in db.cold_rows("app.t")] == [1, 2, 3, 4, 5]
    assert due(db) == []


def test_an_interval_counts_from_the_oldest_change(db: Embedded, clock: ManualClock) -> None:
    create(db, "interval:60", "SHARED")
    clock.advance(1_000)
    assert due(db) == [], "without rows nothing is due"
    insert(db, 1, user="root")
    clock.advance(30)
    insert(db, 2, user="root")
    assert due(db) == []
    clock.advance(31)
    assert due(db) == [SHARED]
    db.flush("app.t")
    assert due(db) == []
    clock.advance(1_000)
    assert due(db) == []


def test_of_both_rules_the_first_counts(db: Embedded, clock: ManualClock) -> None:
    create(db, "rows:3,interval:60", "SHARED")
    insert(db, 1, 2, 3, user="root")
    assert due(db) == [SHARED]
    db.flush("app.t")
    insert(db, 4, user="root")
    clock.advance(61)
    assert due(db) == [SHARED]


def test_a_table_without_a_policy_has_the_servers(db: Embedded, clock: ManualClock) -> None:
    create(db, None, "SHARED")
    insert(db, 1, user="root")
    clock.advance(86_399)
    assert due(db) == []
    clock.advance(2)
    assert due(db) == [SHARED]


def test_another_policy_holds_at_once_for_what_is_there(db: Embedded, clock: ManualClock) -> None:
    create(db, "rows:100")
    insert(db, 1, 2, 3)
    for policy, expected in (("rows:3", [ANN]), ("rows:4", []), ("interval:5", [])):
        table = replace(db.table("app.t"), options={"flush_policy": policy})
        db.committer.pending.define(table)
        assert due(db) == expected, policy
    clock.advance(6)
    assert due(db) == [ANN]


def test_many_small_partitions_wait_for_more_rows_or_age(db: Embedded, clock: ManualClock) -> None:
    """100 users with a row each are flushed when their interval is over, more aren't: so many files."""
    create(db, "interval:1")
    users = [f"u{number:03d}" for number in range(102)]
    for user in users[:100]:
        insert(db, 1, user=user)
    clock.advance(2)
    assert len(due(db)) == 100
    insert(db, 1, user=users[100])
    insert(db, 1, user=users[101])
    clock.advance(2)
    assert due(db) == []
    insert(db, *range(2, 101), user="u007")
    clock.advance(WAITING_LOOK_S)
    assert due(db) == [user_owner("u007")], "this one is worth a file by now"
    clock.advance(3_600)
    assert len(due(db)) == 102


def test_after_a_start_what_is_hot_is_counted_again(db: Embedded, clock: ManualClock) -> None:
    create(db, "rows:5,interval:60")
    create(db, "rows:5", "SHARED", "ours")
    insert(db, 1, 2, 3, 4, 5)
    insert(db, 1, 2, 3, user="root", name="ours")
    db.flush("app.t")
    insert(db, 11, 12, 13, 14)
    insert(db, 1, user="bob")
    db.reopen()
    assert (due(db), due(db, "ours")) == ([], [])
    first = db.view
    insert(db, 4, user="root", name="ours")  # a client is faster than the recount
    recount(db.committer, first)
    assert (due(db), due(db, "ours")) == ([], [])
    insert(db, 15)
    assert due(db) == [ANN]
    insert(db, 5, user="root", name="ours")
    assert due(db, "ours") == [SHARED]
    clock.advance(61)
    assert sorted(due(db)) == [ANN, BOB]


def test_a_recount_does_not_count_what_was_flushed_meanwhile(db: Embedded) -> None:
    create(db, "rows:3", "SHARED")
    insert(db, 1, 2, 3, user="root")
    db.reopen()
    first = db.view
    db.flush("app.t")
    recount(db.committer, first)
    assert due(db) == []


def test_a_dropped_table_is_never_due(db: Embedded) -> None:
    create(db, "rows:1", "SHARED")
    insert(db, 1, user="root")
    table = db.table("app.t").id
    db.run("DROP TABLE app.t")
    now = db.clock.now_us()
    assert (db.committer.pending.due_tables(now), db.committer.pending.due_owners(table, now)) == ([], [])
