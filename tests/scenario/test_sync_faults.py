"""The known defects of sync protocols, with the real device SDK, the real server and a wire that misbehaves.

The numbers are those of the device sync contract, section 13.4.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from upwell.device import Request, Response, Unreachable, client_wins
from upwell.testing.sync_world import Phone, World, delete, key, upsert
from upwell.testing.wire import Site

A, B, C, D = (key(number) for number in range(1, 5))
Install = Callable[..., Phone]


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


@pytest.fixture
def user(world: World) -> str:
    """A fresh user."""
    return world.user()


@pytest.fixture
def install(world: World, user: str, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Install the app of `user` on a fresh file, under the name of its source."""
    directory = tmp_path_factory.mktemp("phones")

    def install(source: str = "phone", **options: Any) -> Phone:
        return world.phone(directory, user, source, **options)

    return install


def add_user(phone: Phone, pk: str, name: str = "n") -> None:
    phone.run("INSERT INTO users (id, name) VALUES (?, ?)", pk, name)


def names(world: World, user: str) -> dict[str, str]:
    """What SQL has: key → name."""
    return {row["id"]: row["name"] for row in world.sql(user, "SELECT id, name FROM {ns}.users")}


def lose_answer(phone: Phone) -> None:
    """Upload; the server does its work, and the phone never hears of it."""
    phone.line.drop = 1
    with pytest.raises(Unreachable):
        phone.device.upload()


def agree(world: World, user: str, *phones: Phone) -> None:
    """After a round or two all have the same rows as SQL, and nothing waits."""
    for _ in range(2):
        for phone in phones:
            phone.device.sync()
    for phone in phones:
        phone.check()
        assert dict(phone.run("SELECT id, name FROM users")) == names(world, user)


# --- D1, D2: the server's log


def test_d1_a_change_that_lost_is_nowhere_and_its_retry_counts(
    world: World, user: str, install: Install
) -> None:
    phone, laptop = install(resolver=client_wins), install("laptop")
    for pk in (A, B, C):
        add_user(phone, pk)
    agree(world, user, phone, laptop)
    laptop.run("UPDATE users SET name = 'theirs' WHERE id = ?", B)
    laptop.device.sync()
    phone.run("UPDATE users SET name = 'mine'")

    report = phone.device.upload()

    # The conflict was one of three; merged to the phone's row it went up in a second request.
    assert (report.requests, report.conflicts, report.applied, report.pending) == (2, 1, 3, 0)
    log = [(c["server_version"], c["payload"]["name"]) for c in world.handset(user).log() if c["pk"] == B]
    assert log == [(1, "n"), (2, "theirs"), (3, "mine")]
    agree(world, user, phone, laptop)
    assert set(names(world, user).values()) == {"mine"}


def test_d2_two_devices_and_a_back_end_skip_nothing(world: World, user: str, install: Install) -> None:
    phones = [install("phone"), install("laptop")]
    tablet = install("tablet", download_limit=3)
    for number in range(12):
        for offset, phone in enumerate(phones):
            add_user(phone, key(100 * offset + number))
        other = phones[1]
        phones[0].line.on_send = lambda _, other=other: other.device.upload()
        phones[0].device.upload()
        world.sql(user, f"INSERT INTO {{ns}}.users VALUES ('{key(1000 + number)}', 'sql', NULL)")
        tablet.device.download()
    assert len(tablet.contents()["users"]) == 36
    agree(world, user, *phones, tablet)


# --- answers that get lost


@pytest.mark.parametrize("meanwhile", ["", "edit", "delete", "delete and insert"])
def test_d4_d11_whatever_happens_after_a_lost_answer_arrives(
    world: World, user: str, install: Install, meanwhile: str
) -> None:
    phone = install()
    add_user(phone, A, "first")
    lose_answer(phone)
    assert names(world, user) == {A: "first"}
    if meanwhile == "edit":
        phone.run("UPDATE users SET name = 'second'")
    elif meanwhile:
        phone.run("DELETE FROM users")
    if meanwhile == "delete and insert":
        add_user(phone, A, "again")

    phone.device.upload()

    expected = {"": "first", "edit": "second", "delete and insert": "again"}.get(meanwhile)
    assert names(world, user) == ({A: expected} if expected else {})
    phone.check()
    (version, is_deleted), count = phone.versions()[A], len(world.handset(user).log())
    assert (version, is_deleted) == (count, int(expected is None))
    assert count == (1 if not meanwhile else 2)
    # And what follows is no conflict.
    if expected:
        phone.run("UPDATE users SET name = 'later'")
    else:
        add_user(phone, A, "later")
    report = phone.device.upload()
    assert (report.applied, report.conflicts) == (1, 0)
    assert names(world, user) == {A: "later"}


def test_a_row_that_died_before_it_was_sent_may_be_born_again(
    world: World, user: str, install: Install
) -> None:
    phone = install()
    add_user(phone, A)
    phone.run("DELETE FROM users")
    assert phone.pending() == {A: "DELETE"}
    lose_answer(phone)
    phone.device.upload()
    assert phone.versions()[A] == (0, 1)
    add_user(phone, A, "born")
    report = phone.device.upload()
    assert (report.applied, report.pending) == (1, 0)
    assert names(world, user) == {A: "born"}


def test_a_row_changed_by_another_after_a_lost_answer_is_a_conflict(
    world: World, user: str, install: Install
) -> None:
    phone, laptop = install(), install("laptop")
    add_user(phone, A, "phone")
    lose_answer(phone)
    laptop.device.sync()
    laptop.run("UPDATE users SET name = 'laptop'")
    laptop.device.sync()
    phone.run("UPDATE users SET name = 'edited'")
    phone.device.sync()
    assert names(world, user) == {A: "laptop"}
    assert phone.run("SELECT count(*) FROM _sync_conflicts") == [(1,)]
    agree(world, user, phone, laptop)


def test_a_request_that_never_arrived_is_sent_again(world: World, user: str, install: Install) -> None:
    phone = install()
    add_user(phone, A)

    def refuse(request: Request) -> None:
        raise Unreachable("lost on the way there")

    phone.line.on_send = refuse
    with pytest.raises(Unreachable):
        phone.device.upload()
    assert names(world, user) == {}
    assert phone.device.upload().duplicates == 0
    assert names(world, user) == {A: "n"}


@pytest.mark.parametrize(
    "answer",
    [
        Response(500, b'{"error":"upload_failed","message":"x"}'),
        Response(502, b"<html>Bad Gateway</html>"),
        Response(200, b""),
        Response(200, b'{"accepted":true,"highest_server_seq":1,"statuses":[]}'),
        Response(200, b'{"accepted":true,"highest_server_seq":1,"stat'),
        Response(401, b"Invalid token"),
    ],
)
def test_a_damaged_answer_loses_nothing(world: World, user: str, install: Install, answer: Response) -> None:
    phone = install()
    add_user(phone, A)
    phone.line.edit = lambda request, response: answer
    with pytest.raises(Exception, match=r"."):
        phone.device.upload()
    assert phone.pending() == {A: "INSERT"}
    phone.line.edit = None
    report = phone.device.upload()
    assert (report.applied, report.duplicates, report.pending) == (1, 1, 0)
    assert [c["server_version"] for c in world.handset(user).log()] == [1]


# --- edits while a request is under way


@pytest.mark.parametrize("moment", ["on_send", "on_answer"])
def test_d10_an_edit_in_flight_survives(world: World, user: str, install: Install, moment: str) -> None:
    phone = install()
    for pk in (A, B, C):
        add_user(phone, pk, "first")

    def edit(_: object) -> None:
        phone.run("UPDATE users SET name = 'in flight' WHERE id = ?", A)
        phone.run("DELETE FROM users WHERE id = ?", B)
        add_user(phone, D, "new")

    setattr(phone.line, moment, edit)
    report = phone.device.upload()
    assert (report.applied, report.conflicts, report.pending) == (6, 0, 0)
    assert names(world, user) == {A: "in flight", C: "first", D: "new"}
    assert phone.versions() == {A: (2, 0), B: (2, 1), C: (1, 0), D: (1, 0)}
    agree(world, user, phone)


# --- what triggers have to get right


def test_d6_delete_insert_delete_reaches_the_server(world: World, user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    add_user(phone, A)
    agree(world, user, phone, laptop)
    phone.run("DELETE FROM users")
    add_user(phone, A, "again")
    phone.run("DELETE FROM users")
    agree(world, user, phone, laptop)
    assert names(world, user) == {}
    assert phone.versions()[A] == laptop.versions()[A] == (2, 1)


def test_d7_a_new_primary_key_leaves_no_old_row(world: World, user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    add_user(phone, A)
    agree(world, user, phone, laptop)
    phone.run("UPDATE users SET id = ?, name = 'moved'", B)
    agree(world, user, phone, laptop)
    assert names(world, user) == {B: "moved"}


def test_d8_insert_or_replace_keeps_the_version(world: World, user: str, install: Install) -> None:
    phone = install()
    add_user(phone, A)
    phone.device.sync()
    phone.run("INSERT OR REPLACE INTO users (id, name) VALUES (?, 'replaced')", A)
    report = phone.device.upload()
    assert (report.applied, report.conflicts) == (1, 0)
    assert names(world, user) == {A: "replaced"}
    assert phone.versions()[A] == (2, 0)


# --- reinstalled


@pytest.mark.parametrize("is_hydrated_first", [True, False])
def test_d9_a_reinstalled_app_with_its_old_name(
    world: World, user: str, install: Install, is_hydrated_first: bool
) -> None:
    phone = install(name="old", is_source_given=True)
    for number in range(1, 21):
        add_user(phone, key(number), "old")
    phone.device.sync()
    phone.device.close()

    again = install(name="new", is_source_given=True)
    if is_hydrated_first:
        again.device.hydrate()
    add_user(again, key(100), "new")
    if not is_hydrated_first:
        add_user(again, key(3), "rewritten before it came back")
    report = again.device.sync()
    assert report.upload.applied >= 1
    assert report.upload.duplicates == 0
    agree(world, user, again)
    assert names(world, user)[key(100)] == "new"
    assert len(names(world, user)) == 21


def test_d9_ids_that_are_used_again_without_hydration_swallow_nothing(world: World, user: str) -> None:
    phone = world.handset(user)
    phone.put(*(upsert(n, "users", key(n), name="old") for n in range(1, 4)))
    # The reference's client after a reinstallation: ids from 1 again, for other rows and for edits.
    assert phone.put(
        upsert(1, "users", key(10), name="new"), upsert(2, "users", key(3), 1, name="edited")
    ) == [1, 2]
    assert phone.put(delete(3, "users", key(1), 1)) == [2]
    assert names(world, user) == {key(2): "old", key(3): "edited", key(10): "new"}


# --- applying what comes down


def test_d13_an_update_of_a_parent_keeps_its_children(world: World, user: str, install: Install) -> None:
    phone = install()
    phone.run("INSERT INTO posts (id, title) VALUES (?, 't')", A)
    phone.run("INSERT INTO comments (id, body, post) VALUES (?, 'c', ?)", B, A)
    phone.device.sync()
    world.sql(user, "UPDATE {ns}.posts SET title = 'changed by the back end'")
    phone.device.sync()
    assert phone.contents("posts", "comments") == {
        "posts": [(A, "changed by the back end", None)],
        "comments": [(B, "c", A, None)],
    }


def test_d14_d15_columns_that_one_side_lacks(world: World, user: str, install: Install) -> None:
    old = "CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL)"
    phone, tablet = install(), install("tablet", schema=old, tables=["users"])
    phone.run("INSERT INTO users VALUES (?, 'n', 'e')", A)
    phone.device.sync()
    tablet.device.sync()
    tablet.run("UPDATE users SET name = 'edited by an old app'")
    tablet.device.sync()
    phone.device.sync()
    assert phone.contents("users") == {"users": [(A, "edited by an old app", "e")]}
    fresh = install("fresh")
    fresh.device.sync()
    assert fresh.contents("users") == phone.contents("users")


def test_d16_a_hydration_never_stops_early(world: World, user: str, install: Install) -> None:
    laptop = world.handset(user, "laptop")
    for number in range(1, 13):
        laptop.put(upsert(number, "users", key(number), name="1"))
    # Rows that die and live again while pages are fetched, so that pages lose what they had.
    for number in range(1, 13):
        laptop.put(delete(100 + number, "users", key(number), 1))
        laptop.put(upsert(200 + number, "users", key(number), 2, name="again"))
    phone = install(download_limit=3)

    def disturb(_: object) -> None:
        laptop.put(*(delete(300 + n, "users", key(n), 3) for n in (2, 5, 11)))
        laptop.put(*(upsert(400 + n, "users", key(n), name="late") for n in (20, 21, 22, 23)))

    phone.line.on_answer = disturb
    phone.device.hydrate(page_rows=3)
    agree(world, user, phone)
    assert len(names(world, user)) == 13


def test_d18_refused_changes_dont_block_the_others(world: World, user: str, install: Install) -> None:
    no_keys = "CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT);" + (
        "CREATE TABLE posts (id TEXT PRIMARY KEY, title TEXT, author TEXT);"
    )
    phone = install(schema=no_keys, tables=["posts", "users"], upload_limit=5)
    for number in range(30):
        phone.run("INSERT INTO posts VALUES (?, 'orphan', ?)", key(100 + number), key(number % 3))
    for number in range(3):
        add_user(phone, key(number))
    phone.run("INSERT INTO posts VALUES (?, 'for ever an orphan', ?)", key(999), key(99))
    report = phone.device.upload()
    assert (report.applied, report.pending, report.deferred) == (33, 1, 1)
    # The parent comes from elsewhere; then the orphan gets through by itself.
    world.sql(user, f"INSERT INTO {{ns}}.users VALUES ('{key(99)}', 'parent', NULL)")
    assert phone.device.sync().upload.pending == 0
    assert len(world.handset(user).live("posts")) == 31


def test_d19_a_parent_deleted_elsewhere_under_an_unsent_child(
    world: World, user: str, install: Install
) -> None:
    phone, laptop = install(), install("laptop")
    add_user(phone, A, "parent")
    agree(world, user, phone, laptop)
    laptop.run("DELETE FROM users")
    laptop.device.sync()
    phone.run("INSERT INTO posts VALUES (?, 'child', ?)", B, A)
    for _ in range(3):
        for device in (phone, laptop):
            device.device.sync()
    # Nothing is wedged, nobody's edit is lost: the unsent child brings its parent back.
    agree(world, user, phone, laptop)
    assert names(world, user) == {A: "parent"}
    assert phone.contents() == laptop.contents()
    assert phone.contents("posts") == {"posts": [(B, "child", A)]}


def test_a_deletion_against_a_child_from_elsewhere(world: World, user: str, install: Install) -> None:
    phone = install()
    add_user(phone, A, "parent")
    phone.device.sync()
    world.sql(user, f"INSERT INTO {{ns}}.posts VALUES ('{B}', 'child', '{A}')")
    phone.run("DELETE FROM users")
    for _ in range(3):
        phone.device.sync()
    agree(world, user, phone)
    assert names(world, user) == {A: "parent"}


def test_d20_large_integers_keep_their_digits(world: World, user: str, install: Install) -> None:
    schema = (
        "CREATE TABLE things"
        " (id TEXT PRIMARY KEY, big INTEGER, real REAL, moment INTEGER, data BLOB, doc TEXT)"
    )
    phone, laptop = (install(name, schema=schema, tables=["things"]) for name in ("phone", "laptop"))
    row = (A, 9007199254740993, 0.1, 1760000000, b"\x00\xff" * 8, '{"a": 1}')
    phone.run("INSERT INTO things VALUES (?, ?, ?, ?, ?, ?)", *row)
    phone.device.sync()
    world.sql(user, "UPDATE {ns}.things SET big = big + 1")
    world.flush("things")
    laptop.device.sync()
    assert laptop.run("SELECT * FROM things") == [(A, 9007199254740994, *row[2:])]
    (found,) = world.sql(user, "SELECT big, moment, data, doc FROM {ns}.things")
    assert found == {
        "big": "9007199254740994", "moment": 1760000000_000000, "data": [0, 255] * 8, "doc": '{"a": 1}',
    }  # fmt: skip


# --- the server restarts, refuses, halves


def test_a_batch_is_halved_until_the_server_takes_it(
    start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = start_server(env={"UPWELL_UPLOAD_CHANGES_MAX": "7", "UPWELL_BCRYPT_COST": "4"})
    with World(server) as small:
        user, directory = small.user(), tmp_path_factory.mktemp("phones")
        phone = small.phone(directory, user)
        for number in range(20):
            add_user(phone, key(number))
            phone.run("INSERT INTO posts VALUES (?, 't', ?)", key(100 + number), key(number))
        assert phone.device.upload().pending == 0
        phone.check()
        sizes = [len(json.loads(request.body or b"{}")["changes"]) for request in phone.line.requests]
        assert sizes == [40, 20, 10, *[5] * 8]
        assert len(small.handset(user).log()) == 40


def test_an_answer_lost_as_the_server_dies(
    start_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    with World(server) as other:
        user = other.user()
        phone = other.phone(tmp_path_factory.mktemp("phones"), user, upload_limit=5)
        for number in range(20):
            add_user(phone, key(number))
        phone.line.on_answer = lambda _: server.kill()
        phone.line.drop = 1
        for _ in range(2):
            with pytest.raises(Unreachable):
                phone.device.upload()
        server.start()
        report = phone.device.upload()
        assert (report.applied, report.duplicates, report.conflicts, report.pending) == (20, 5, 0, 0)
        assert set(phone.versions().values()) == {(1, 0)}
        assert [change["server_version"] for change in other.handset(user).log()] == [1] * 20


def test_a_server_that_dies_inside_an_upload_does_nothing_twice(start_server: Callable[..., Any]) -> None:
    """Before the write, unsynced or synced: the device sends again, and each version is made once."""
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    with World(server) as other:
        phone = other.handset()
        points = ("before-write#2", "after-write#1", "after-sync#2")
        for number, point in enumerate(points):
            # Three changes of which two are of one row: two commits.
            first, second, third = (10 * number + n for n in (1, 2, 3))
            batch = (
                upsert(first, "notes", f"a{number}", body="1"),
                upsert(second, "notes", f"a{number}", 1, body="2"),
                upsert(third, "notes", f"b{number}", body="3"),
            )
            server.restart(env={"UPWELL_CRASH_POINT": f"commit:{point}"})
            with pytest.raises(httpx.TransportError):
                phone.upload(*batch)
            server.restart()
            assert [status["status"] for status in phone.upload(*batch)] == ["applied"] * 3
            versions = [(c["pk"], c["server_version"], c["source_change_id"]) for c in phone.log()][
                3 * number :
            ]
            assert versions == [(f"a{number}", 1, first), (f"b{number}", 1, third), (f"a{number}", 2, second)]
            assert phone.hydrate_page()["next_change_id"] == third + 1


def test_a_refused_value_waits_until_the_app_repairs_it(world: World, user: str, install: Install) -> None:
    schema = "CREATE TABLE things (id TEXT PRIMARY KEY, number INTEGER)"
    phone = install(schema=schema, tables=["things"])
    phone.run("INSERT INTO things VALUES (?, ?), (?, 1)", A, 1 << 40, B)
    report = phone.device.upload()
    assert (report.applied, report.pending) == (1, 1)
    (change,) = phone.device.pending()
    assert (change.reason, change.key) == ("invalid_value", A)
    assert "number" in (change.detail or "")
    phone.run("UPDATE things SET number = 2 WHERE id = ?", A)
    assert phone.device.upload().pending == 0
    assert {row["number"] for row in world.handset(user).live("things").values()} == {1, 2}
