"""Rows that refer to each other come whole to a client that checks references at the end of each page."""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from upwell.clock import ManualClock
from upwell.errors import SeqTrimmed, SqlFailure
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.protocol import sync
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.testing.pages import USER, Phone, create_tables, server_rows, trim
from upwell.types import user_owner

TABLES = {
    "nodes": "id TEXT PRIMARY KEY, up TEXT REFERENCES nodes (id), side TEXT REFERENCES nodes (id)",
    "leaves": "id TEXT PRIMARY KEY, node TEXT REFERENCES nodes (id)",
}
LIMITS = (1, 2, 3, 7)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def db(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as opened:
        create_tables(opened, tables=TABLES)
        yield opened


def phone_of(db: Embedded, limit: int, source: str, *, include_self: bool = True) -> Phone:
    return Phone(db, limit, source, include_self=include_self, tables=TABLES)


def run_all(db: Embedded, *statements: str) -> None:
    for statement in statements:
        db.run(statement, user=USER)


def pages_of(phone: Phone) -> list[list[str]]:
    """Read to the end; return the keys of each page."""
    found, has_more = [], True
    while has_more:
        page = phone.fetch()
        phone.store(page)
        found.append([change.pk for change in page.changes])
        has_more = page.has_more
    assert phone.rows() == server_rows(phone.db, phone.tables)
    return found


CIRCLE = "INSERT INTO app.nodes VALUES ('a', 'b', NULL), ('b', 'a', 'b'), ('c', 'a', NULL), ('d', NULL, NULL)"
LEAF = "INSERT INTO app.leaves VALUES ('l', 'b')"
LOG = {
    1: [["a", "b"], ["c"], ["d"], ["l"]],
    2: [["a", "b"], ["c", "d"], ["l"]],
    3: [["a", "b", "c"], ["d", "l"]],
    7: [["a", "b", "c", "d", "l"]],
}


# --- the log


@pytest.mark.parametrize("limit", LIMITS)
def test_the_entries_of_a_circle_are_on_one_page(db: Embedded, limit: int) -> None:
    run_all(db, CIRCLE, LEAF)
    assert pages_of(phone_of(db, limit, "phone")) == LOG[limit]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_circle_goes_as_it_came(db: Embedded, limit: int) -> None:
    run_all(db, CIRCLE)
    phone = phone_of(db, limit, "phone")
    phone.read()
    run_all(db, "DELETE FROM app.nodes WHERE id <> 'd'")
    assert pages_of(phone) == {1: [["c"], ["a", "b"]], 2: [["c", "a", "b"]]}.get(limit, [["c", "a", "b"]])


def test_a_longer_circle_and_what_joins_it_are_no_more_than_that(db: Embedded) -> None:
    run_all(
        db,
        "INSERT INTO app.nodes VALUES ('a', 'b', NULL), ('x', NULL, NULL), ('b', 'c', 'x'),"
        " ('y', 'c', NULL), ('c', 'd', NULL), ('d', 'a', 'c')",
    )
    pages = pages_of(phone_of(db, 1, "phone"))
    assert [sorted(page) for page in pages] == [["x"], ["a", "b", "c", "d"], ["y"]]


def test_rows_that_are_there_already_may_come_one_by_one(db: Embedded) -> None:
    run_all(
        db,
        "INSERT INTO app.nodes VALUES ('a', NULL, NULL), ('b', NULL, NULL)",
        "BEGIN; UPDATE app.nodes SET up = 'b' WHERE id = 'a';"
        " UPDATE app.nodes SET up = 'a' WHERE id = 'b'; COMMIT",
    )
    assert [len(page) for page in pages_of(phone_of(db, 1, "phone"))] == [1] * 4


def test_what_one_transaction_inserts_and_changes_is_a_circle(db: Embedded) -> None:
    run_all(
        db,
        "BEGIN; INSERT INTO app.nodes VALUES ('a', NULL, NULL);"
        " INSERT INTO app.nodes VALUES ('b', 'a', NULL);"
        " UPDATE app.nodes SET side = 'b' WHERE id = 'a'; COMMIT",
    )
    assert [sorted(page) for page in pages_of(phone_of(db, 1, "phone"))] == [["a", "b"]]


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET NULL"])
def test_what_follows_a_row_of_a_circle_comes_with_it(tmp_path: Path, on_delete: str) -> None:
    with Embedded(tmp_path, store=MemoryStore(clock=ManualClock())) as db:
        create_tables(db, tables=TABLES, on_delete=on_delete)
        run_all(db, CIRCLE, LEAF)
        phone = phone_of(db, 1, "phone")
        phone.read()
        run_all(db, "DELETE FROM app.nodes WHERE id = 'a'")
        pages_of(phone)


@pytest.mark.parametrize(
    ("until", "told"), [(1, []), (2, ["a", "b"]), (3, ["a", "b", "c"]), (99, ["a", "b", "c", "d"])]
)
def test_a_window_that_ends_in_a_circle_ends_before_it(db: Embedded, until: int, told: list[str]) -> None:
    run_all(db, CIRCLE)
    phone = phone_of(db, 100, "phone")
    page = phone.fetch(until=until)
    phone.store(page)
    assert [change.pk for change in page.changes] == told
    assert (page.has_more, page.next_after, page.window_until) == (False, min(len(told), until), until)
    page = phone.fetch(until=until)
    assert (page.changes, page.has_more, page.next_after) == ([], False, len(told))
    pages_of(phone)


# --- rows of a log that was trimmed


@pytest.mark.parametrize("limit", LIMITS)
def test_the_rows_of_a_circle_are_on_one_page(db: Embedded, clock: ManualClock, limit: int) -> None:
    """Behind the rows that it refers to, and before those that refer to it."""
    run_all(
        db,
        "INSERT INTO app.nodes VALUES ('z', NULL, NULL)",
        "INSERT INTO app.nodes VALUES ('m', 'y', 'z'), ('y', 'x', NULL), ('x', 'm', NULL),"
        " ('a', 'x', 'b'), ('b', 'a', 'z')",
        "INSERT INTO app.nodes VALUES ('0', 'a', NULL), ('s', 's', NULL)",
        "INSERT INTO app.leaves VALUES ('l', '0')",
    )
    trim(db, clock)
    expected = {
        1: [["s"], ["z"], ["m", "x", "y"], ["a", "b"], ["0"], ["l"]],
        2: [["s", "z"], ["m", "x", "y"], ["a", "b"], ["0", "l"]],
        3: [["s", "z", "m", "x", "y"], ["a", "b", "0"], ["l"]],
        7: [["s", "z", "m", "x", "y", "a", "b"], ["0", "l"]],
    }
    assert pages_of(phone_of(db, limit, "phone")) == expected[limit]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("floor", [1, 2, 3])
def test_a_floor_inside_a_circle_is_behind_it(
    db: Embedded, clock: ManualClock, floor: int, limit: int
) -> None:
    run_all(db, CIRCLE, LEAF)
    clock.advance(RETENTION_S + 1)
    db.registry.note(USER, "slow", floor)
    db.trim.run()
    assert db.view.hot.read_owner_log(user_owner(USER), 0, None, 1)[0].counter == floor + 1
    phone = phone_of(db, limit, "phone")
    pages_of(phone)
    assert len(phone.seen) == len(set(phone.seen)) == 5


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_circle_that_several_commits_made_is_cut_by_no_floor(
    db: Embedded, clock: ManualClock, step: int, limit: int
) -> None:
    commits = (
        "INSERT INTO app.nodes VALUES ('a', NULL, NULL)",
        "INSERT INTO app.nodes VALUES ('b', 'a', NULL)",
        "UPDATE app.nodes SET up = 'b' WHERE id = 'a'",
        "UPDATE app.nodes SET side = 'a'",
        "DELETE FROM app.nodes",
    )
    early = phone_of(db, limit, "early")
    run_all(db, *commits[:step])
    early.read()
    trim(db, clock)
    run_all(db, *commits[step:])
    pages_of(phone_of(db, limit, "phone"))
    pages_of(early)


@pytest.mark.parametrize("limit", LIMITS)
def test_an_old_file_loses_a_circle_that_is_gone(db: Embedded, clock: ManualClock, limit: int) -> None:
    run_all(db, CIRCLE, LEAF)
    phone = phone_of(db, limit, "phone")
    phone.read()
    run_all(db, "DELETE FROM app.leaves", "DELETE FROM app.nodes WHERE id <> 'd'")
    trim(db, clock)
    phone.cursor = 0
    assert pages_of(phone)[-1][-3:] == ["a", "b", "c"]


# --- uploads


ACTIONS = {
    "users": "id TEXT PRIMARY KEY, post TEXT",
    "posts": "id TEXT PRIMARY KEY, user TEXT REFERENCES app.users (id)",
    "nodes": "id TEXT PRIMARY KEY, up TEXT REFERENCES app.nodes (id) ON DELETE CASCADE",
}


@pytest.fixture
def acting(tmp_path: Path, clock: ManualClock) -> Iterator[Embedded]:
    """Tables whose rows refer to each other, with actions."""
    with Embedded(tmp_path, store=MemoryStore(clock=clock), clock=clock) as db:
        db.run("CREATE NAMESPACE app")
        for name, columns in ACTIONS.items():
            db.run(f"CREATE TABLE app.{name} ({columns}) WITH (TYPE = 'USER', SYNC = TRUE)")
        db.run("ALTER TABLE app.users ADD FOREIGN KEY (post) REFERENCES app.posts ON DELETE SET NULL")
        yield db


def uploads_of(db: Embedded) -> Uploads:
    return Uploads(db.committer, db.rows_by_key, db.query, db.engine.defaults, UploadLimits(100, 1 << 20))


def change(
    number: int, table: str, pk: str, base: int, row: dict[str, str | None] | None
) -> sync.UploadChange:
    """A change with its number; without a row a deletion."""
    return sync.UploadChange(
        source_change_id=number,
        schema="app",
        table=table,
        op="DELETE" if row is None else "UPDATE",
        pk=pk,
        server_version=base,
        payload=msgspec.UNSET if row is None else msgspec.Raw(msgspec.json.encode({"id": pk, **row})),
    )


def applied(db: Embedded, *changes: sync.UploadChange) -> list[int | None]:
    """Upload; return the versions that were made."""
    statuses = uploads_of(db).upload(USER, "phone", sync.UploadRequest(changes=list(changes))).statuses
    assert [status.status for status in statuses] == ["applied"] * len(changes)
    return [status.new_server_version for status in statuses]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_circle_that_a_device_deletes_is_gone_though_actions_change_its_rows_on_the_way(
    acting: Embedded, is_reversed: bool
) -> None:
    made = [change(1, "users", "u", 0, {"post": "p"}), change(2, "posts", "p", 0, {"user": "u"})]
    assert applied(acting, *made) == [1, 1]
    gone = [change(3, "users", "u", 1, None), change(4, "posts", "p", 1, None)]
    assert applied(acting, *(gone[::-1] if is_reversed else gone)) == [2, 2]
    log = acting.settle().hot.read_owner_log(user_owner(USER), 2, None, 9)
    assert [(entry.op, entry.count, entry.source) for entry in log] == [("DELETE", 2, "phone")] * 2


def test_rows_that_follow_their_parent_and_are_deleted_with_it_are_deleted_once(acting: Embedded) -> None:
    rows: list[tuple[str, str | None]] = [
        ("a", None),
        ("b", "a"),
        ("c", "b"),
        ("x", "y"),
        ("y", "x"),
        ("k", "a"),
    ]
    made = [change(index, "nodes", pk, 0, {"up": up}) for index, (pk, up) in enumerate(rows, 1)]
    assert applied(acting, *made) == [1] * 6
    assert (
        applied(acting, *(change(10 + i, "nodes", pk, 1, None) for i, (pk, _) in enumerate(rows[:5])))
        == [2] * 5
    )
    log = acting.settle().hot.read_owner_log(user_owner(USER), 6, None, 99)
    assert sorted((entry.key, entry.count, entry.source) for entry in log) == [
        *((pk, 2, "phone") for pk in "abc"),
        ("k", 2, None),
        *((pk, 2, "phone") for pk in "xy"),
    ]


def test_a_deletion_of_what_somebody_else_changed_stays_a_conflict(acting: Embedded) -> None:
    """The row's parent takes it along; a stale deletion isn't what did it."""
    applied(acting, change(1, "nodes", "a", 0, {"up": None}), change(2, "nodes", "b", 0, {"up": "a"}))
    acting.change("DELETE FROM app.nodes WHERE id = 'b'", user=USER)
    acting.change("INSERT INTO app.nodes VALUES ('b', 'a')", user=USER)
    changes = [change(3, "nodes", "a", 1, None), change(4, "nodes", "b", 1, None)]
    statuses = uploads_of(acting).upload(USER, "phone", sync.UploadRequest(changes=changes)).statuses
    assert [status.status for status in statuses] == ["applied", "conflict"]


# --- whatever happens

SEEDS = range(12)
STEPS = 25
NODES = [f"n{number}" for number in range(6)]
LEAVES = [f"l{number}" for number in range(4)]


class Chaos:
    """Commits by SQL and by a device that make, change and delete circles; trims that end anywhere."""

    def __init__(self, db: Embedded, clock: ManualClock, seed: int) -> None:
        self.db, self.clock, self.chance = db, clock, random.Random(seed)
        self.ids = 0
        self.phones = [phone_of(db, limit, f"phone{limit}") for limit in LIMITS]
        self.uploads = uploads_of(db)

    def step(self) -> None:
        self.clock.advance(0.01)
        acts = [
            self.write_by_sql,
            self.write_by_sql,
            self.upload,
            self.upload,
            self.read_some,
            self.begin_anew,
            self.trim_somewhere,
        ]
        self.chance.choice(acts)()

    def write_by_sql(self) -> None:
        statements = "; ".join(self.statement() for _ in range(self.chance.randint(1, 4)))
        with suppress(SqlFailure):
            self.db.run(f"BEGIN; {statements}; COMMIT", user=USER)

    def statement(self) -> str:
        pick, nodes = self.chance.choice, self.chance.sample(NODES, self.chance.randint(1, 3))
        listed = ", ".join(f"'{node}'" for node in nodes)
        match self.chance.randint(0, 5):
            case 0 | 1:
                rows = ", ".join(f"('{node}', {self.target(nodes)}, {self.target(nodes)})" for node in nodes)
                conflict = "ON CONFLICT (id) DO UPDATE SET up = excluded.up, side = excluded.side"
                return f"INSERT INTO app.nodes VALUES {rows} {conflict}"
            case 2:
                column = pick(["up", "side"])
                return f"UPDATE app.nodes SET {column} = {self.target(NODES)} WHERE id IN ({listed})"
            case 3:
                return f"DELETE FROM app.nodes WHERE id IN ({listed})"
            case 4:
                return f"DELETE FROM app.leaves WHERE id = '{pick(LEAVES)}'"
            case _:
                row = f"('{pick(LEAVES)}', {self.target(NODES)})"
                return (
                    f"INSERT INTO app.leaves VALUES {row} ON CONFLICT (id) DO UPDATE SET node = excluded.node"
                )

    def target(self, nodes: Sequence[str]) -> str:
        return "NULL" if self.chance.random() < 0.25 else f"'{self.chance.choice(nodes)}'"

    def upload(self) -> None:
        live = dict(self.versions())
        nodes = self.chance.sample(NODES, self.chance.randint(1, 4))
        changes, is_gone = [], self.chance.random() < 0.4
        for node in nodes:
            self.ids += 1
            row = {"up": self.chance.choice([None, *nodes]), "side": self.chance.choice(nodes)}
            changes.append(change(self.ids, "nodes", node, live.get(node, 0), None if is_gone else row))
        self.uploads.upload(USER, "writer", sync.UploadRequest(changes=changes))

    def versions(self) -> list[tuple[str, int]]:
        table, view = self.db.table("app.nodes"), self.db.settle()
        return [
            (v.key, v.count) for v in self.db.rows_by_key.scan_versions(view.hot, table, user_owner(USER))
        ]

    def trim_somewhere(self) -> None:
        newest = self.db.settle().hot.owner_counter(user_owner(USER))
        self.clock.advance(4000)
        self.db.registry.note(USER, "slow", self.chance.randint(0, newest))
        self.db.trim.run()

    def read_some(self) -> None:
        phone = self.chance.choice(self.phones)
        for _ in range(self.chance.randint(1, 5)):
            self.read_page(phone)

    def begin_anew(self) -> None:
        limit = self.chance.choice(LIMITS)
        self.read_all(phone_of(self.db, limit, f"new{limit}"))

    def read_all(self, phone: Phone) -> None:
        while self.read_page(phone):
            pass
        assert phone.rows() == server_rows(self.db, TABLES)

    def read_page(self, phone: Phone) -> bool:
        try:
            page = phone.fetch()
        except SeqTrimmed:
            phone.cursor = 0
            return True
        phone.store(page)
        return page.has_more

    def check(self) -> None:
        self.phones += [phone_of(self.db, limit, f"new{limit}") for limit in LIMITS]
        self.phones += [phone_of(self.db, limit, "writer") for limit in LIMITS]
        for phone in self.phones:
            self.read_all(phone)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_page_is_refused(db: Embedded, clock: ManualClock, seed: int) -> None:
    chaos = Chaos(db, clock, seed)
    for _ in range(STEPS):
        chaos.step()
    chaos.check()
