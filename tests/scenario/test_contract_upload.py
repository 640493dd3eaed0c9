"""What the reference's own server tests ask of an upload, asked of ours: the cases not asked elsewhere.

Written from the device sync contract, sections 1.6–1.8, 2 and 7; the names of cases (TC…, C…, DFK…) are its.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from upwell.testing.sync_world import Handset, World, applied, delete, invalid, key, repeated, upsert
from upwell.testing.wire import Site

A, B, C, D, E = (key(number) for number in range(1, 6))


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def conflict(
    number: int, world: World, pk: str, version: int, payload: dict[str, Any] | None
) -> dict[str, Any]:
    """The status of a change whose base is not the server's version of a user."""
    row = {"schema_name": world.ns, "table_name": "users", "id": pk, "server_version": version}
    server_row = {**row, "deleted": payload is None, "payload": payload}
    return {"source_change_id": number, "status": "conflict", "server_row": server_row}


def entries(phone: Handset) -> list[tuple[str, str, int, int]]:
    """(key, operation, version, change id) of the whole log."""
    return [(c["pk"], c["op"], c["server_version"], c["source_change_id"]) for c in phone.log()]


def live(phone: Handset, table: str) -> dict[str, dict[str, Any]]:
    """Key → payload of a table's living rows, as a device has them that replays the log."""
    newest = {change["pk"]: change["payload"] for change in phone.log() if change["table"] == table}
    return {pk: payload for pk, payload in newest.items() if payload is not None}


# --- conflicts: C01–C04, U06, I05


def test_c01_the_loser_of_two_updates_gets_the_winners_row_and_rebases_under_a_new_id(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "users", A, name="v1"))
    for version in range(1, 5):
        phone.put(upsert(version + 1, "users", A, version, name=f"v{version + 1}"))
    assert phone.put(upsert(6, "users", A, 5, name="winner")) == [6]
    loser = upsert(1, "users", A, 5, name="loser")
    assert laptop.upload(loser) == [conflict(1, world, A, 6, {"id": A, "name": "winner"})]
    assert laptop.upload(loser, upsert(2, "users", B, name="b"))[0]["status"] == "conflict"
    assert laptop.put(upsert(3, "users", A, 6, name="merged")) == [7]
    assert [entry[2:] for entry in entries(laptop) if entry[0] == A] == [
        (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 3),
    ]  # fmt: skip


def test_c02_update_against_delete_both_ways(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "users", B, name="b"))
    phone.put(delete(3, "users", A, 1), upsert(4, "users", B, 1, name="b2"))
    updates, deletes = laptop.upload(upsert(1, "users", A, 1, name="late"), delete(2, "users", B, 1))
    assert updates == conflict(1, world, A, 2, None)
    assert deletes == conflict(2, world, B, 2, {"id": B, "name": "b2"})
    assert len(phone.log()) == 4
    # With the version that they were told, both get their way.
    assert laptop.put(upsert(3, "users", A, 2, name="revived"), delete(4, "users", B, 2)) == [3, 3]
    assert live(phone, "users") == {A: {"id": A, "name": "revived"}}


def test_c04_a_later_id_may_come_first(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="one"))
    assert phone.put(upsert(3, "users", A, 1, name="three")) == [2]
    assert phone.upload(upsert(2, "users", A, 1, name="two")) == [
        conflict(2, world, A, 2, {"id": A, "name": "three"})
    ]
    assert entries(phone) == [(A, "INSERT", 1, 1), (A, "UPDATE", 2, 3)]
    assert phone.put(upsert(2, "users", A, 2, name="two")) == [3]
    assert entries(phone)[2:] == [(A, "UPDATE", 3, 2)]


# --- tombstones: T01–T03, TC09


def test_t02_t03_a_tombstone_still_refuses_after_a_flush(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    phone.put(delete(2, "users", A, 1))
    world.flush("users")
    assert phone.upload(upsert(3, "users", A, 0, name="back")) == [conflict(3, world, A, 2, None)]
    assert phone.put(upsert(4, "users", A, 2, name="back")) == [3]
    assert live(phone, "users") == {A: {"id": A, "name": "back"}}


def test_tc09_a_repeated_deletion_is_known(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    deletion = delete(2, "users", A, 1)
    assert phone.put(deletion) == [2]
    for _ in range(2):
        assert phone.upload(deletion) == [repeated(2, 2, deleted=True)]
    assert [entry[1] for entry in entries(phone)] == ["INSERT", "DELETE"]


def test_a_deletion_of_a_deleted_row_on_its_version_has_no_effect(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    phone.put(delete(2, "users", A, 1))
    (status,) = phone.upload(delete(3, "users", A, 2))
    assert (status["status"], "new_server_version" in status) == ("applied", False)
    assert (status["current_server_version"], status["current_deleted"]) == (2, True)
    assert entries(phone) == [(A, "INSERT", 1, 1), (A, "DELETE", 2, 2)]
    assert phone.put(upsert(4, "users", A, 2, name="back")) == [3]


# --- batches: U08, TC16, MT01, DFK01, DFK05


def test_u08_all_operations_on_two_tables_in_one_request(world: World) -> None:
    phone = world.handset()
    phone.put(*(upsert(n, "users", pk, name=str(n)) for n, pk in enumerate((A, B), 1)))
    phone.put(upsert(3, "notes", "old", body="x"), upsert(4, "notes", "gone", body="x"))
    answer = phone.post(
        delete(10, "notes", "gone", 1), upsert(11, "users", C, name="c"),
        upsert(12, "notes", "old", 1, body="y"),
        delete(13, "users", A, 1), upsert(14, "notes", "new", body="z"), upsert(15, "users", B, 1, name="b2"),
    )  # fmt: skip
    assert answer == {
        "accepted": True,
        "highest_server_seq": 10,
        "statuses": [
            applied(10, 2), applied(11, 1), applied(12, 2), applied(13, 2), applied(14, 1), applied(15, 2),
        ],
    }  # fmt: skip
    assert {pk: row["name"] for pk, row in live(phone, "users").items()} == {B: "b2", C: "c"}
    assert {pk: row["body"] for pk, row in live(phone, "notes").items()} == {"old": "y", "new": "z"}


def test_mt01_the_same_key_in_two_tables_is_two_rows(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "nodes", A), upsert(3, "notes", A, body="a"))
    phone.put(upsert(4, "users", A, 1, name="a2"), delete(5, "nodes", A, 1))
    assert live(phone, "users") == {A: {"id": A, "name": "a2"}}
    assert live(phone, "nodes") == {}
    assert phone.put(upsert(6, "notes", A, 1, body="b")) == [2]


def test_dfk05_a_hundred_children_before_their_hundred_parents(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    posts = [upsert(n, "posts", key(1000 + n), title="t", author=key(n)) for n in range(100)]
    users = [upsert(100 + n, "users", key(n), name="u") for n in range(100)]
    assert phone.put(*posts, *users) == [1] * 200
    assert [change["table"] for change in phone.log()] == ["users"] * 100 + ["posts"] * 100
    joined = "SELECT count(*) AS n FROM {ns}.posts AS p JOIN {ns}.users AS u ON p.author = u.id"
    assert world.sql(user, joined) == [{"n": "100"}]


def test_dfk04_an_orphan_is_nowhere_until_its_parent_comes(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    good, lost = upsert(1, "posts", B, title="t", author=A), upsert(2, "posts", D, title="t", author=C)
    first = phone.upload(good, lost, upsert(3, "users", A, name="a"))
    assert [status["status"] for status in first] == ["applied", "invalid", "applied"]
    assert first[1]["invalid"] == {"reason": "fk_missing", "details": {"missing": [f"{world.ns}.users:{C}"]}}
    assert "message" not in first[1]
    assert {change["pk"] for change in laptop.download()["changes"]} == {A, B}
    assert world.sql(user, "SELECT title FROM {ns}.posts WHERE author = '" + C + "'") == []
    assert phone.put(upsert(4, "users", C, name="c"), lost) == [1, 1]
    assert {change["pk"] for change in laptop.download()["changes"]} == {A, B, C, D}


@pytest.mark.parametrize("author", [None, ""])
def test_a_reference_to_nothing_needs_no_parent(world: World, author: str | None) -> None:
    user = world.user()
    phone = world.handset(user)
    assert phone.upload(upsert(1, "posts", A, title="t", author=author)) == [applied(1, 1)]
    assert phone.log()[0]["payload"] == {"id": A, "title": "t", "author": author}
    assert world.sql(user, "SELECT title FROM {ns}.posts WHERE author IS NULL") == [{"title": "t"}]


# --- payloads


def test_payload_keys_are_free(world: World) -> None:
    """Also those that the protocol uses outside the payload (AT01 is obsolete in the reference itself)."""
    user = world.user()
    phone = world.handset(user)
    columns = {
        "name": "n",
        "server_version": 7,
        "deleted": True,
        "op": "x",
        "schema": None,
        "Ö": [1, {"a": 1.5}],
    }
    assert phone.put({**upsert(1, "users", A), "payload": {"id": A, **columns}}) == [1]
    assert live(phone, "users") == {A: {"id": A, **columns}}
    assert phone.log()[0]["payload"] == {"id": A, **columns}
    assert world.sql(user, "SELECT name FROM {ns}.users") == [{"name": "n"}]


def test_the_payloads_key_is_not_compared_with_the_changes(world: World) -> None:
    phone = world.handset()
    change = upsert(1, "users", A, name="n")
    assert phone.put({**change, "payload": {**change["payload"], "id": B}}) == [1]
    (entry,) = phone.log()
    assert (entry["pk"], entry["payload"]["id"]) == (A, B)


def test_u10_what_is_refused_leaves_no_trace(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    bad = [
        {**upsert(1, "users", A, name="n"), "payload": [1]},
        {**upsert(2, "users", "no-uuid", name="n")},
        {**upsert(3, "users", B, name="n"), "op": "MERGE"},
        {**delete(4, "users", C, 0), "payload": {"id": C}},
        upsert(5, "posts", D, title="t", author=E),
        upsert(6, "users", E, 9, name="unknown base"),
        upsert(7, "nowhere", A),
    ]
    answer = phone.post(*bad)
    assert [status["status"] for status in answer["statuses"]] == ["invalid"] * 7
    assert (answer["highest_server_seq"], phone.log()) == (0, [])
    assert world.sql(user, "SELECT id FROM {ns}.users") == []
    # Their ids are free.
    assert phone.put(*(upsert(n, "users", key(100 + n), name="n") for n in range(1, 8))) == [1] * 7


# --- one user's rows are nobody else's: D3


def test_d3_the_key_of_another_users_row_is_just_a_key(world: World) -> None:
    ada, bob = world.user(), world.user()
    one, two = world.handset(ada), world.handset(bob)
    one.put(upsert(1, "users", A, name="ada's"))
    assert two.upload(upsert(1, "users", A, 1, name="stolen")) == [
        invalid(1, "internal_error", "conflict without server_row")
    ]
    (gone,) = two.upload(delete(2, "users", A, 1))
    assert (gone["status"], "new_server_version" in gone) == ("applied", False)
    assert two.put(upsert(3, "users", A, name="bob's")) == [1]
    assert two.put(upsert(4, "users", A, 1, name="bob's own")) == [2]
    assert two.put(delete(5, "users", A, 2)) == [3]
    assert live(one, "users") == {A: {"id": A, "name": "ada's"}}
    assert world.sql(ada, "SELECT name FROM {ns}.users") == [{"name": "ada's"}]
    assert world.sql(bob, "SELECT name FROM {ns}.users") == []


# --- the request itself


@pytest.mark.parametrize("body", [b'{"changes":[]}', b'{"changes":null}', b"{}"])
def test_e07_a_request_without_changes_is_accepted(world: World, body: bytes) -> None:
    """A Go client that has nothing to send writes its nil list as null."""
    answer = world.handset().call("POST", "/sync/upload", content=body)
    assert (answer.status_code, answer.json()) == (
        200,
        {"accepted": True, "highest_server_seq": 0, "statuses": []},
    )


def test_bytes_behind_the_request_are_refused(world: World) -> None:
    phone = world.handset()
    answer = phone.call("POST", "/sync/upload", content=b'{"changes":[]} {"changes":[]}')
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_the_content_type_is_not_enforced(world: World) -> None:
    phone = world.handset()
    answer = phone.call("POST", "/sync/upload", content=b'{"changes":[]}')
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_tc29_five_hundred_changes_in_one_request(world: World) -> None:
    phone = world.handset()
    changes = [upsert(n, "users", key(n), name="n") for n in range(1, 501)]
    assert phone.put(*changes) == [1] * 500
    assert phone.upload(*changes) == [repeated(n, 1) for n in range(1, 501)]
    for limit in (1000, 500, 77):
        assert [c["source_change_id"] for c in phone.log(limit)] == list(range(1, 501))


def test_l01_ten_devices_upload_at_once(world: World) -> None:
    user = world.user()

    def work(index: int) -> list[int]:
        device = world.handset(user, f"device-{index}")
        return [device.put(upsert(n, "users", key(100 * index + n), name="n"))[0] for n in range(1, 6)]

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(work, range(10))) == [[1] * 5] * 10
    log = world.handset(user, "reader").log()
    assert [change["server_id"] for change in log] == list(range(1, 51))
    assert len({(change["source_id"], change["source_change_id"]) for change in log}) == 50


def test_l02_a_payload_of_a_megabyte(world: World) -> None:
    user = world.user()
    text = "Ünïcode 🌊 " * 90_000
    world.handset(user).put(upsert(1, "notes", "large", body=text))
    (found,) = world.handset(user, "laptop").download()["changes"]
    assert found["payload"] == {"id": "large", "body": text}
