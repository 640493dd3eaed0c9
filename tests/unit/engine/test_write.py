"""Constraints hold, versions follow each other, and whoever was slower is told: also under many threads."""

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from upwell.engine.renewal import CHANGES_MAX
from upwell.engine.stage import Origin
from upwell.engine.stop import Stop, Stopped
from upwell.engine.violation import ROW_BYTES_MAX, ChildrenLeft, ParentMissing
from upwell.engine.write import Write
from upwell.errors import AlreadyExists, ConstraintViolation, QueryFailure
from upwell.storage.hot import Change, ExpectationFailed
from upwell.testing.embedded import ROOT, Embedded
from upwell.types import SHARED, Key, Owner, user_owner

ANN = user_owner("ann")
TIMEOUT_S = 60.0


def commit(db: Embedded, write: Write) -> None:
    db.committer.publication.wait(db.committer.apply(write.batch))


def log(db: Embedded, table: str, owner: Owner = SHARED) -> list[Change]:
    return db.settle().hot.read_log(db.table(table).id, owner, 0, None, 10_000)


def insert(db: Embedded, table: str, *rows: list[object], owner: Owner = SHARED) -> None:
    write = db.write()
    for row in rows:
        write.insert(db.table(table), owner, row)  # type: ignore[arg-type]
    commit(db, write)


def test_each_version_follows_the_one_before(db: Embedded) -> None:
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 10])
    write = db.write()
    write.update(table, SHARED, 1, [1, 11])
    commit(db, write)
    write = db.write()
    write.delete(table, SHARED, [1])
    commit(db, write)
    insert(db, "app.ours", [1, 12])
    changes = log(db, "app.ours")
    assert [(c.op, c.before, c.after, c.count) for c in changes] == [
        ("INSERT", None, [1, 10], 1),
        ("UPDATE", [1, 10], [1, 11], 2),
        ("DELETE", [1, 11], None, 3),
        ("INSERT", None, [1, 12], 4),
    ]
    assert [c.previous for c in changes] == [0, *(c.seq for c in changes[:-1])]


def test_one_commit_logs_a_key_once_as_it_was_before_and_after(db: Embedded) -> None:
    """Rows that exchange their keys, come and go within one evaluation."""
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 1], [2, 2])
    write = db.write()
    write.update(table, SHARED, 1, [3, 1])
    write.update(table, SHARED, 2, [1, 2])
    write.update(table, SHARED, 3, [2, 1])
    write.update(table, SHARED, 1, [1, 20])
    commit(db, write)
    changes = log(db, "app.ours")[2:]
    assert sorted((c.key, c.op, c.before, c.after) for c in changes) == [
        (1, "UPDATE", [1, 1], [1, 20]),
        (2, "UPDATE", [2, 2], [2, 1]),
    ], "3 came and went: nobody else ever saw it"
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == [(1, 20), (2, 1)]


def test_a_row_may_come_and_go_and_come_within_one_commit(db: Embedded) -> None:
    table = db.table("app.ours")
    write = db.write()
    for n in (1, 2, 3):
        write.insert(table, SHARED, [1, n])
        write.delete(table, SHARED, [1])
        assert write.batch.rows == []
        assert write.find_live(table, SHARED, 1) is None
    write.insert(table, SHARED, [1, 4])
    commit(db, write)
    assert [(c.op, c.before, c.after) for c in log(db, "app.ours")] == [("INSERT", None, [1, 4])]


def test_a_key_is_unique_over_both_tiers_and_within_a_statement(db: Embedded) -> None:
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 1])
    db.flush("app.ours")
    insert(db, "app.ours", [2, 2])
    for key in (1, 2):
        with pytest.raises(AlreadyExists, match=f"value '{key}' already exists in column 'id'"):
            db.write().insert(table, SHARED, [key, 0])
    write = db.write()
    write.insert(table, SHARED, [3, 0])
    with pytest.raises(AlreadyExists, match="appears multiple times"):
        write.insert(table, SHARED, [3, 1])


def test_not_null_holds(db: Embedded) -> None:
    table = db.table("app.mine")
    for row in ([1, 1, None], [None, 1, "x"]):
        with pytest.raises(ConstraintViolation, match="cannot be NULL"):
            db.write().insert(table, ANN, row)
    insert(db, "app.mine", [1, None, "x"], owner=ANN)
    with pytest.raises(ConstraintViolation, match="column 's' cannot be NULL"):
        db.write().update(table, ANN, 1, [1, 1, None])


def test_a_row_has_a_most_of_bytes(db: Embedded) -> None:
    """Counted as UTF-8, all columns together, for new rows and new versions."""
    db.run("CREATE TABLE app.texts (id INT PRIMARY KEY, a TEXT, b TEXT) WITH (TYPE = 'SHARED')")
    kept = db.table("app.texts")
    half = ROW_BYTES_MAX // 2
    insert(db, "app.texts", [1, "é" * (half // 2), "x" * half])
    write = db.write()
    limit = f"app.texts can hold at most {ROW_BYTES_MAX} bytes of values, got {ROW_BYTES_MAX + 1}"
    with pytest.raises(ConstraintViolation, match=limit):
        write.insert(kept, SHARED, [2, "é" * (half // 2), "x" * (half + 1)])
    with pytest.raises(ConstraintViolation, match=limit):
        write.update(kept, SHARED, 1, [1, "é" * (half // 2), "x" * (half + 1)])
    assert write.batch.rows == []


def test_an_evaluation_that_is_given_up_ends_at_its_next_row(db: Embedded) -> None:
    """Nobody waits for it: what a million rows take in memory isn't gathered for nothing."""
    table, write = db.table("app.ours"), db.write()
    write.stop = Stop()
    write.insert(table, SHARED, [1, 10])
    write.stop.request()
    with pytest.raises(Stopped):
        write.insert(table, SHARED, [2, 20])
    assert [place[2] for place in write.places] == [1]


def test_a_text_that_doubles_stops_at_what_a_row_holds(db: Embedded) -> None:
    db.run(
        "CREATE TABLE app.texts (id INT PRIMARY KEY, a TEXT, b TEXT) WITH (TYPE = 'SHARED');"
        f"INSERT INTO app.texts VALUES (1, '{'x' * 1024}', 'y')"
    )
    for _ in range(13):
        assert db.change("UPDATE app.texts SET a = a || a WHERE id = 1") == 1
    with pytest.raises(ConstraintViolation, match=r"app\.texts can hold at most"):
        db.change("UPDATE app.texts SET a = a || a WHERE id = 1")
    with pytest.raises(QueryFailure, match="larger than"):
        db.change("UPDATE app.texts SET a = a || a || a WHERE id = 1")
    assert db.rows("SELECT length(a), b FROM app.texts") == [(ROW_BYTES_MAX // 2, "y")]


def test_going_back_to_a_savepoint_undoes_what_came_after(db: Embedded) -> None:
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 1])
    write = db.write()
    write.insert(table, SHARED, [2, 2])
    savepoint = write.savepoint()
    write.update(table, SHARED, 2, [2, 3])
    write.delete(table, SHARED, [1])
    write.roll_back(savepoint)
    assert [row.key for row in write.batch.rows] == [2]
    assert write.find_live(table, SHARED, 1) is not None
    commit(db, write)
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == [(1, 1), (2, 2)]


def test_who_relied_on_what_has_moved_is_refused(db: Embedded) -> None:
    """Each pair evaluates on one View; the second to commit sees what the first did, or is refused."""
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 1])
    db.flush("app.ours")
    insert(db, "app.ours", [2, 2])

    def change(write: Write, key: Key) -> None:
        write.update(table, SHARED, key, [key, 5])

    def delete(write: Write, key: Key) -> None:
        write.delete(table, SHARED, [key])

    def create(write: Write, _: Key) -> None:
        write.insert(table, SHARED, [9, 9])

    for first, second, key in ((change, delete, 1), (change, change, 2), (create, create, 0)):
        one, two = db.write(), db.write()
        first(one, key)
        second(two, key)
        commit(db, one)
        with pytest.raises(ExpectationFailed):
            db.committer.apply(two.batch)


@pytest.mark.parametrize("fill", [0, CHANGES_MAX + 1])
def test_a_flush_between_evaluation_and_commit_changes_nothing(db: Embedded, fill: int) -> None:
    """What was hot is cold now, what was absent still is; with too many changes beside them nobody looks."""
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 1], [3, 3])
    db.flush("app.ours")
    insert(db, "app.ours", [2, 2])
    db.change("DELETE FROM app.ours WHERE id = 3")
    write = db.write()
    for key in (1, 2):
        write.update(table, SHARED, key, [key, 10 * key])
    write.insert(table, SHARED, [3, 30])
    write.insert(table, SHARED, [4, 40])
    insert(db, "app.ours", [5, 5], *([100 + key, 0] for key in range(fill)))
    db.flush("app.ours")
    assert not list(db.view.hot.scan_rows(table.id, SHARED))
    if fill:
        with pytest.raises(ExpectationFailed):
            db.committer.apply(write.batch)
        return
    commit(db, write)
    changed = [(1, 10), (2, 20), (3, 30), (4, 40), (5, 5)]
    for step in (db.settle, lambda: db.flush("app.ours")):
        step()
        assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == changed
        assert db.rows("SELECT count(*) FROM app.ours") == [(5,)]


@pytest.mark.parametrize("key", [1, 2, 3])
def test_a_row_that_was_changed_and_flushed_since_its_evaluation_is_noticed(db: Embedded, key: int) -> None:
    """Cold, hot and absent when it was looked up; changed by another, and cold again at the commit."""
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 1])
    db.flush("app.ours")
    insert(db, "app.ours", [2, 2])
    write = db.write()
    if key == 3:
        write.insert(table, SHARED, [3, 30])
        insert(db, "app.ours", [3, 3])
    else:
        write.update(table, SHARED, key, [key, 10])
        db.change("UPDATE app.ours SET n = 7 WHERE id = $1", [key])
    db.flush("app.ours")
    assert not list(db.view.hot.scan_rows(table.id, SHARED))
    with pytest.raises(ExpectationFailed):
        db.committer.apply(write.batch)


def test_the_text_of_a_device_stays_where_sql_leaves_it(db: Embedded) -> None:
    table = db.table("app.mine")
    write = db.write()
    write.insert(table, ANN, [1, 1, "x"], Origin("phone", 7, '{"id":1,"n":1,"s":"x","extra":true}'))
    commit(db, write)
    assert db.change("UPDATE app.mine SET n = 2 WHERE id = 1", user="ann") == 1
    first, second = log(db, "app.mine", ANN)
    assert (first.source, first.change_id, first.uploaded) == (
        "phone",
        7,
        '{"id":1,"n":1,"s":"x","extra":true}',
    )
    assert (second.source, second.change_id, second.uploaded) == (
        None,
        None,
        '{"id":1,"n":2,"s":"x","extra":true}',
    )


@pytest.fixture
def family(db: Embedded) -> Embedded:
    """Parents that restrict, cascade and set NULL; of users' own, and shared ones of users' children."""
    db.run(
        "CREATE TABLE app.place (id INT PRIMARY KEY) WITH (TYPE = 'SHARED');"
        "CREATE TABLE app.list (id INT PRIMARY KEY, place INT REFERENCES app.place(id)) WITH (TYPE = 'USER');"
        "CREATE TABLE app.item (id INT PRIMARY KEY, list INT REFERENCES app.list(id) ON DELETE CASCADE,"
        " above INT REFERENCES app.item(id) ON DELETE SET NULL) WITH (TYPE = 'USER')"
    )
    return db


def children(db: Embedded, user: str = "ann") -> tuple[list[object], list[object]]:
    lists = db.rows("SELECT id, place FROM app.list ORDER BY id", user=user)
    return list(lists), list(db.rows("SELECT id, list, above FROM app.item ORDER BY id", user=user))


@pytest.mark.parametrize("cold", [False, True], ids=["hot", "cold"])
def test_references_hold_in_both_tiers(family: Embedded, cold: bool) -> None:
    db = family
    db.change("INSERT INTO app.place VALUES (1), (2)")
    db.run(
        "INSERT INTO app.list VALUES (1, 1), (2, NULL); INSERT INTO app.item VALUES (1, 1, NULL)", user="ann"
    )
    db.change("INSERT INTO app.item VALUES (2, 1, 1), (3, 2, 1), (4, NULL, 3)", user="ann")
    if cold:
        for table in ("app.place", "app.list", "app.item"):
            db.flush(table)
    for sql in (
        "INSERT INTO app.list VALUES (9, 3)",
        "INSERT INTO app.item VALUES (9, 9, NULL)",
        "UPDATE app.item SET list = 9 WHERE id = 1",
        "UPDATE app.item SET above = 77",
    ):
        with pytest.raises(ParentMissing):
            db.change(sql, user="ann")
    with pytest.raises(ParentMissing):
        db.change("INSERT INTO app.item VALUES (1, 1, NULL)", user="bob")
    with pytest.raises(ChildrenLeft, match=r"row '1' of app.place is still referenced by app.list"):
        db.change("DELETE FROM app.place WHERE id = 1")
    with pytest.raises(ChildrenLeft):
        db.change("UPDATE app.place SET id = 7 WHERE id = 1")
    assert db.change("DELETE FROM app.place WHERE id = 2") == 1
    assert db.change("DELETE FROM app.list WHERE id = 1", user="ann") == 1
    assert children(db) == ([(2, None)], [(3, 2, None), (4, None, 3)])
    assert db.change("DELETE FROM app.list", user="ann") == 1
    assert children(db) == ([], [(4, None, None)])
    assert db.change("DELETE FROM app.place") == 1


def test_a_parent_that_became_cold_meanwhile_still_holds_its_child(family: Embedded) -> None:
    """One that was deleted and flushed meanwhile doesn't."""
    family.run("INSERT INTO app.list VALUES (1, NULL), (2, NULL)", user="ann")
    items, writes = family.table("app.item"), [family.write(), family.write()]
    for key, write in enumerate(writes, 1):
        write.insert(items, ANN, [key, key, None])
    family.run("DELETE FROM app.list WHERE id = 2", user="ann")
    family.flush("app.list")
    commit(family, writes[0])
    with pytest.raises(ExpectationFailed):
        family.committer.apply(writes[1].batch)
    assert children(family) == ([(1, None)], [(1, 1, None)])


def test_a_table_of_children_made_meanwhile_is_noticed(db: Embedded) -> None:
    db.run("CREATE TABLE app.p (id INT PRIMARY KEY) WITH (TYPE = 'SHARED'); INSERT INTO app.p VALUES (1)")
    write = db.write()
    write.delete(db.table("app.p"), SHARED, [1])
    db.run(
        "CREATE TABLE app.c (id INT PRIMARY KEY, p INT REFERENCES app.p(id)) WITH (TYPE = 'SHARED');"
        "INSERT INTO app.c VALUES (5, 1)"
    )
    with pytest.raises(ExpectationFailed):
        db.committer.apply(write.batch)
    with pytest.raises(ChildrenLeft):
        db.change("DELETE FROM app.p WHERE id = 1")


def test_a_cascade_goes_down_a_chain_of_any_length(db: Embedded) -> None:
    db.run(
        "CREATE TABLE app.node (id INT PRIMARY KEY, up INT REFERENCES app.node(id) ON DELETE CASCADE)"
        " WITH (TYPE = 'SHARED')"
    )
    rows = ", ".join(f"({n}, {n - 1 if n else 'NULL'})" for n in range(1_200))
    assert db.change(f"INSERT INTO app.node VALUES {rows}") == 1_200
    assert db.change("DELETE FROM app.node WHERE id = 1") == 1
    assert db.rows("SELECT id FROM app.node") == [(0,)]


def test_a_child_may_point_at_itself_and_at_rows_of_its_own_statement(family: Embedded) -> None:
    family.change("INSERT INTO app.item VALUES (1, NULL, 1), (2, NULL, 1)", user="ann")
    assert family.change("DELETE FROM app.item WHERE id = 1", user="ann") == 1
    assert children(family)[1] == [(2, None, None)]


def in_threads(count: int, call: Callable[[int], None]) -> None:
    """Run `call(0)`, `call(1)`, … at once; raise what one of them raised."""
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait(TIMEOUT_S)
        call(number)

    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(run, number) for number in range(count)]:
            done.result(TIMEOUT_S)


def retried(db: Embedded, stage: Callable[[Write], None]) -> None:
    """Evaluate on the View in force and commit, again until nobody was faster."""
    while True:
        write = db.write()
        stage(write)
        try:
            db.committer.publication.wait(db.committer.apply(write.batch))
        except ExpectationFailed:
            db.settle()
        else:
            return


@pytest.mark.parametrize("cold", [False, True], ids=["hot", "cold"])
def test_twenty_threads_that_count_lose_no_step(db: Embedded, cold: bool) -> None:
    """Each reads the row, adds one and commits; a flush comes in between where it can."""
    table = db.table("app.ours")
    insert(db, "app.ours", [1, 0])
    if cold:
        db.flush("app.ours")

    def count(number: int) -> None:
        for _ in range(10):

            def step(write: Write) -> None:
                version = write.find_live(table, SHARED, 1)
                assert version is not None
                assert version.row is not None
                write.update(table, SHARED, 1, [1, version.row[1] + 1])

            retried(db, step)
            if cold and number == 0:
                db.flush("app.ours")

    in_threads(20, count)
    assert db.rows("SELECT n FROM app.ours") == [(200,)]
    assert [c.after for c in log(db, "app.ours")] == [[1, n] for n in range(201)]


def test_sessions_that_count_at_once_lose_no_step(db: Embedded) -> None:
    """By key on the event loop, and by a predicate in worker threads, both on one row."""
    db.change("INSERT INTO app.ours VALUES (1, 0), (2, 0)")

    async def count(number: int) -> None:
        where = "id = 1" if number % 2 else "id < 2"
        for _ in range(10):
            await db.outcomes(f"UPDATE app.ours SET n = n + 1 WHERE {where}")

    async def all_count() -> None:
        await asyncio.gather(*(count(number) for number in range(20)))

    db.runner.run(all_count())
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == [(1, 200), (2, 0)]


def test_of_racing_inserts_of_a_key_exactly_one_wins(db: Embedded) -> None:
    table = db.table("app.ours")
    won: list[tuple[int, int]] = []
    lost: list[int] = []

    def race(number: int) -> None:
        for key in range(20):
            try:
                retried(db, lambda write, key=key: write.insert(table, SHARED, [key, number]))  # type: ignore[misc]
            except AlreadyExists:
                lost.append(key)
            else:
                won.append((key, number))

    in_threads(16, race)
    assert sorted(key for key, _ in won) == list(range(20))
    assert len(lost) == 15 * 20
    assert db.rows("SELECT id, n FROM app.ours ORDER BY id") == sorted(won)


@pytest.mark.parametrize("parent_kind", ["USER", "SHARED"])
def test_no_orphan_comes_of_a_race_between_child_and_parent(db: Embedded, parent_kind: str) -> None:
    """Also a user's first child ever: the parent's deletion has met none of this owner's rows."""
    db.run(
        f"CREATE TABLE app.parent (id INT PRIMARY KEY) WITH (TYPE = '{parent_kind}');"
        "CREATE TABLE app.child (id INT PRIMARY KEY, parent INT REFERENCES app.parent(id))"
        " WITH (TYPE = 'USER')"
    )
    parent, child = db.table("app.parent"), db.table("app.child")
    chance = random.Random(1)
    outcomes: set[tuple[bool, bool]] = set()
    for round_ in range(40):
        owner = user_owner(f"user {round_}")
        parent_owner = owner if parent_kind == "USER" else SHARED
        insert(db, "app.parent", [round_], owner=parent_owner)
        # Both look before either commits: what would be a window of microseconds is the rule here.
        create, delete = db.write(), db.write()
        create.insert(child, owner, [1, round_])
        delete.delete(parent, parent_owner, [round_])
        order = [create, delete]
        chance.shuffle(order)
        committed = []
        for write in order:
            try:
                commit(db, write)
            except ExpectationFailed:
                continue
            committed.append(write)
        assert committed == order[:1]
        has_parent = (
            db.rows_by_key.find(db.view.hot, parent, parent_owner, round_, may_block=True).live is not None
        )
        has_child = db.rows_by_key.find(db.view.hot, child, owner, 1, may_block=True).live is not None
        assert has_parent == has_child
        outcomes.add((has_parent, has_child))
    assert outcomes == {(True, True), (False, False)}


def test_no_orphan_comes_of_sessions_that_race(db: Embedded) -> None:
    db.run(
        "CREATE TABLE app.parent (id INT PRIMARY KEY) WITH (TYPE = 'SHARED');"
        "CREATE TABLE app.child (id INT PRIMARY KEY, parent INT REFERENCES app.parent(id))"
        " WITH (TYPE = 'USER')"
    )
    succeeded: list[str] = []

    async def attempt(kind: str, sql: str, user: str) -> None:
        with suppress(ParentMissing, ChildrenLeft):
            await db.outcomes(sql, user=user)
            succeeded.append(kind)

    async def race(key: int) -> None:
        await db.outcomes(f"INSERT INTO app.parent VALUES ({key})")
        creates = [
            attempt("insert", f"INSERT INTO app.child VALUES ({key}, {key})", f"user {number}")
            for number in range(4)
        ]
        if key == 0:  # here the children are sure to be first
            await asyncio.gather(*creates, attempt("delete", "DELETE FROM app.parent WHERE id = 0", ROOT))
            return
        delete = asyncio.create_task(attempt("delete", f"DELETE FROM app.parent WHERE id = {key}", ROOT))
        for _ in range(key):  # the later the key, the further has the deletion come
            await asyncio.sleep(0)
        if key > 15:
            await delete
        await asyncio.gather(delete, *creates)

    async def all_race() -> None:
        for key in range(20):
            await race(key)

    db.runner.run(all_race())
    parents = {row[0] for row in db.rows("SELECT id FROM app.parent")}
    for number in range(4):
        referenced = {row[0] for row in db.rows("SELECT parent FROM app.child", user=f"user {number}")}
        assert referenced <= parents
    assert set(succeeded) == {"insert", "delete"}


def test_a_child_that_was_taken_back_judges_its_parent_no_more(db: Embedded) -> None:
    """It stood before its promised parent, whose other columns turn out to be what it didn't say."""
    db.run(
        "CREATE TABLE app.parent (id INT PRIMARY KEY, org TEXT);"
        "CREATE TABLE app.child (id INT PRIMARY KEY, p INT, org TEXT,"
        " FOREIGN KEY (p, org) REFERENCES app.parent (id, org))"
    )
    parent, child = db.table("app.parent"), db.table("app.child")
    write = db.write()
    write.promise(parent, SHARED, [1])
    savepoint = write.savepoint()
    write.insert(child, SHARED, [1, 1, "theirs"])
    write.roll_back(savepoint)
    write.insert(parent, SHARED, [1, "ours"])
    commit(db, write)
    assert db.rows("SELECT id, org FROM app.parent") == [(1, "ours")]
    assert db.rows("SELECT id FROM app.child") == []
