"""`POST /sync/upload`: one status per change, in the order of the request; what is applied is applied whole.

Written from the device sync contract, sections 1.6–1.8, 2 and 7.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.testing import ServerProcess
from upwell.testing.sync_world import World, applied, delete, invalid, key, orphan, repeated, upsert
from upwell.testing.wire import Site

A, B, C, D, E, F = (key(number) for number in range(1, 7))


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


# --- one row


def test_versions_count_the_changes_of_a_row(world: World) -> None:
    phone = world.handset()
    assert phone.post(upsert(1, "users", A, name="one")) == {
        "accepted": True,
        "highest_server_seq": 1,
        "statuses": [applied(1, 1)],
    }
    assert phone.put(upsert(2, "users", A, 1, name="two")) == [2]
    assert phone.put(delete(3, "users", A, 2)) == [3]
    # A deleted row goes on where it was, whatever the operation is called.
    assert phone.put(upsert(4, "users", A, 3, op="INSERT", name="again")) == [4]
    assert phone.put(upsert(5, "users", A, 4, op="INSERT", name="still")) == [5]
    assert [(c["op"], c["server_version"], c["deleted"]) for c in phone.log()] == [
        ("INSERT", 1, False),
        ("UPDATE", 2, False),
        ("DELETE", 3, True),
        ("INSERT", 4, False),
        ("UPDATE", 5, False),
    ]


def test_an_update_of_an_unknown_row_creates_it(world: World) -> None:
    phone = world.handset()
    assert phone.put(upsert(1, "users", A, 0, op="UPDATE", name="n")) == [1]
    assert phone.live("users") == {A: {"id": A, "name": "n"}}


@pytest.mark.parametrize("change", [upsert(9, "users", A, 3, name="mine"), delete(9, "users", A, 3)])
def test_a_wrong_base_is_a_conflict_with_the_whole_server_row(
    world: World, change: dict[str, object]
) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="one", email="e"))
    phone.put(upsert(2, "users", A, 1, name="two", email="e"))
    before = phone.log()

    (status,) = phone.upload(change)

    assert status == {
        "source_change_id": 9,
        "status": "conflict",
        "server_row": {
            "schema_name": world.ns,
            "table_name": "users",
            "id": A,
            "server_version": 2,
            "deleted": False,
            "payload": {"id": A, "name": "two", "email": "e"},
        },
    }
    # The same change stays a conflict, and leaves nothing in the log.
    assert phone.upload(change) == [status]
    assert phone.log() == before


@pytest.mark.parametrize(
    "change",
    [
        upsert(9, "users", A, 0, name="resurrected"),
        upsert(9, "users", A, 1, name="stale"),
        delete(9, "users", A, 1),
    ],
)
def test_a_tombstone_is_not_resurrected(world: World, change: dict[str, object]) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="one"))
    phone.put(delete(2, "users", A, 1))
    row = {
        "schema_name": world.ns,
        "table_name": "users",
        "id": A,
        "server_version": 2,
        "deleted": True,
        "payload": None,
    }
    assert phone.upload(change) == [{"source_change_id": 9, "status": "conflict", "server_row": row}]
    assert phone.live("users") == {}


def test_insert_against_insert_the_first_wins(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "users", A, name="phone"))
    (status,) = laptop.upload(upsert(1, "users", A, name="laptop"))
    assert status["status"] == "conflict"
    assert status["server_row"]["payload"] == {"id": A, "name": "phone"}
    # Rebased on the server's version, under a new id or under the same one, it goes through.
    assert laptop.put(upsert(1, "users", A, 1, name="laptop")) == [2]
    assert phone.live("users") == {A: {"id": A, "name": "laptop"}}


def test_a_base_version_of_an_unknown_row_is_kept_and_not_applied(world: World) -> None:
    phone = world.handset()
    assert phone.upload(upsert(1, "users", A, 4, name="n")) == [
        invalid(1, "internal_error", "conflict without server_row")
    ]
    assert phone.log() == []


@pytest.mark.parametrize("base", [0, 7])
def test_deleting_an_unknown_row_has_no_effect(world: World, base: int) -> None:
    phone = world.handset()
    for _ in range(2):
        answer = phone.post(delete(1, "users", A, base))
        (status,) = answer["statuses"]
        assert (status["status"], status.get("new_server_version")) == ("applied", None)
        # There is no row, and the device is told so: whatever it inserts later is new.
        assert status["current_server_version"] == 0
        assert answer["highest_server_seq"] == 0
    assert phone.log() == []
    assert phone.put(upsert(2, "users", A, name="n")) == [1]


def test_an_upload_tells_the_highest_number_of_the_users_log(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    assert phone.post() == {"accepted": True, "highest_server_seq": 0, "statuses": []}
    assert laptop.post(*(upsert(n, "users", key(n), name="n") for n in (1, 2)))["highest_server_seq"] == 2
    assert phone.post() == {"accepted": True, "highest_server_seq": 2, "statuses": []}
    assert world.handset().post()["highest_server_seq"] == 0


# --- many rows


def test_statuses_stand_in_the_order_of_the_request(world: World) -> None:
    phone = world.handset()
    phone.put(
        upsert(1, "users", A, name="a"), upsert(2, "users", B, name="b"), upsert(3, "users", C, name="c")
    )
    statuses = phone.upload(
        delete(14, "users", C, 1),
        upsert(13, "posts", D, title="t", author=F),
        upsert(12, "users", B, 0, name="stale"),
        upsert(11, "users", A, 1, name="a2"),
        upsert(10, "nowhere", A, name="x"),
        upsert(9, "users", "no-uuid", name="x"),
        upsert(8, "users", E, name="e"),
    )
    assert [s["status"] for s in statuses] == [
        "applied", "invalid", "conflict", "applied", "invalid", "invalid", "applied",
    ]  # fmt: skip
    assert [s["invalid"]["reason"] for s in statuses if "invalid" in s] == [
        "fk_missing", "unregistered_table", "bad_payload",
    ]  # fmt: skip
    assert phone.live("users") == {
        A: {"id": A, "name": "a2"},
        B: {"id": B, "name": "b"},
        E: {"id": E, "name": "e"},
    }


def test_fifty_rows_are_logged_in_the_order_of_the_request(world: World) -> None:
    phone = world.handset()
    keys = [key(number) for number in (*range(25), *range(99, 74, -1))]
    assert phone.put(*(upsert(n, "users", pk, name=str(n)) for n, pk in enumerate(keys, 1))) == [1] * 50
    log = phone.log()
    assert [change["pk"] for change in log] == keys
    assert [change["source_change_id"] for change in log] == list(range(1, 51))
    assert [change["server_id"] for change in log] == list(range(1, 51))


def test_a_conflict_in_a_batch_leaves_no_ghost(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "users", B, name="b"))
    phone.put(upsert(3, "users", A, 1, name="a2"))
    stale = upsert(4, "users", A, 1, name="lost")
    first, second = phone.upload(stale, upsert(5, "users", B, 1, name="b2"))
    assert first["status"] == "conflict"
    assert second == applied(5, 2)
    assert [(c["pk"], c["payload"]["name"]) for c in phone.log()] == [
        (A, "a"), (B, "b"), (A, "a2"), (B, "b2"),
    ]  # fmt: skip
    # Sent again with other changes beside it, it is still a conflict.
    again, _ = phone.upload(stale, upsert(6, "users", B, 2, name="b3"))
    assert again == first
    # The same id on top of the server's version: the merged row gets in.
    assert phone.put(upsert(4, "users", A, 2, name="merged"), delete(7, "users", B, 3)) == [3, 4]


def test_the_same_row_twice_in_a_request_is_two_changes(world: World) -> None:
    phone = world.handset()
    assert phone.put(
        upsert(1, "users", A, name="one"), upsert(2, "users", A, 1, name="two"), delete(3, "users", A, 2)
    ) == [1, 2, 3]
    assert [(c["op"], c["server_version"], c["source_change_id"]) for c in phone.log()] == [
        ("INSERT", 1, 1), ("UPDATE", 2, 2), ("DELETE", 3, 3),
    ]  # fmt: skip
    first, second = phone.upload(upsert(4, "users", B, name="one"), upsert(5, "users", B, name="other"))
    assert first == applied(4, 1)
    assert (second["status"], second["server_row"]["payload"]["name"]) == ("conflict", "one")


def test_the_same_row_twice_in_a_request_waits_for_its_parent_in_order(world: World) -> None:
    phone = world.handset()
    assert phone.put(
        upsert(1, "nodes", A, up=B), upsert(2, "nodes", A, 1, side=B), upsert(3, "nodes", B)
    ) == [1, 2, 1]


def test_upserts_come_before_deletes_whatever_the_order(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "posts", C, title="t", author=A))
    # The post moves to another author, whom this very request brings, and the old one goes.
    assert phone.put(
        delete(3, "users", A, 1),
        upsert(4, "posts", C, 1, title="t", author=B),
        upsert(5, "users", B, name="b"),
    ) == [2, 2, 1]
    assert phone.live("posts") == {C: {"id": C, "title": "t", "author": B}}
    assert set(phone.live("users")) == {B}


def test_a_change_id_twice_in_a_request(world: World) -> None:
    phone = world.handset()
    # On two rows these are two changes: nothing is swallowed, both are in the log.
    assert phone.put(upsert(1, "users", A, name="a"), upsert(1, "users", B, name="b")) == [1, 1]
    assert [change["pk"] for change in phone.log()] == [A, B]
    # The very same change twice is one.
    change = upsert(2, "users", C, name="c")
    assert phone.upload(change, change) == [applied(2, 1), repeated(2, 1)]
    assert len(phone.log()) == 3


# --- repetitions


def test_a_repetition_has_no_effect(world: World) -> None:
    phone = world.handset()
    batch = (upsert(1, "users", A, name="a"), upsert(2, "users", B, name="b"), delete(3, "users", C, 0))
    first = phone.post(*batch)
    log = phone.log()
    for request in (batch, batch[::-1], batch[:1]):
        answer = phone.post(*request)
        assert answer["highest_server_seq"] == first["highest_server_seq"]
        for change, status in zip(request, answer["statuses"], strict=True):
            if change["op"] == "INSERT":
                assert status == repeated(change["source_change_id"], 1)
            else:
                assert "new_server_version" not in status
    assert phone.log() == log
    # Some known, some new.
    assert phone.upload(batch[1], upsert(4, "users", D, name="d"), batch[0]) == [
        repeated(2, 1), applied(4, 1), repeated(1, 1),
    ]  # fmt: skip


def test_a_repetition_is_recognised_after_the_row_went_on(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    insert = upsert(1, "users", A, name="a")
    phone.put(insert)
    laptop.put(upsert(1, "users", A, 1, name="b"))
    assert phone.upload(insert) == [repeated(1, 2, made=1)]
    laptop.put(delete(2, "users", A, 2))
    assert phone.upload(insert) == [repeated(1, 3, deleted=True, made=1)]
    assert phone.live("users") == {}


def test_a_repetition_is_known_by_its_content_not_by_its_bytes(world: World) -> None:
    phone = world.handset()
    change = upsert(1, "users", A, name="a", email="e")
    phone.put(change)
    other = {**change, "payload": {"email": "e", "id": A, "name": "a"}, "table": " USERS ", "op": "insert"}
    assert phone.upload(other) == [repeated(1, 1)]


def test_the_same_id_on_another_device_is_another_change(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    assert phone.put(upsert(1, "users", A, name="a")) == [1]
    assert laptop.put(upsert(1, "users", B, name="b")) == [1]
    assert world.handset(world.user()).put(upsert(1, "users", A, name="a")) == [1]


def test_the_same_id_with_other_content_is_judged_by_its_base(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    # The answer was lost, the row edited further, the id kept: it succeeds its own version.
    assert phone.put(upsert(1, "users", A, 0, name="edited")) == [2]
    # A reinstalled app uses the id for another row.
    assert phone.put(upsert(1, "users", B, name="b")) == [1]
    # Somebody else's version in between is a conflict like any other.
    phone.put(upsert(2, "users", B, 1, name="b2"))
    (status,) = phone.upload(upsert(1, "users", B, 0, name="b3"))
    assert (status["status"], status["server_row"]["server_version"]) == ("conflict", 2)
    assert {pk: row["name"] for pk, row in phone.live("users").items()} == {A: "edited", B: "b2"}


def test_a_refused_change_leaves_its_id_free(world: World) -> None:
    phone = world.handset()
    child = upsert(1, "posts", C, title="t", author=A)
    assert phone.upload(child) == [orphan(1, f"{world.ns}.users:{A}")]
    assert phone.put(upsert(2, "users", A, name="a")) == [1]
    assert phone.put(child) == [1]


def test_of_many_equal_uploads_at_once_one_is_applied(world: World) -> None:
    phone = world.handset()
    batch = [upsert(n, "users", key(n), name=str(n)) for n in range(1, 31)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: phone.upload(*batch), range(6)))
    for number in range(1, 31):
        statuses = [answer[number - 1] for answer in answers]
        assert Counter(status["status"] for status in statuses) == {"applied": 6}
        assert [s["new_server_version"] for s in statuses if "new_server_version" in s] == [1]
    assert [change["source_change_id"] for change in phone.log()] == list(range(1, 31))
    assert phone.hydrate()[1]["next_change_id"] == 31


def test_devices_that_edit_one_row_at_once_lose_no_edit(world: World) -> None:
    user = world.user()
    world.handset(user).put(upsert(1, "users", A, name=""))

    def append(source: str) -> None:
        device = world.handset(user, source)
        version, name = 1, ""
        for number in range(1, 11):
            while True:
                (status,) = device.upload(upsert(number, "users", A, version, name=name + source[0]))
                if status["status"] == "applied":
                    version, name = status["new_server_version"], name + source[0]
                    break
                row = status["server_row"]
                version, name = row["server_version"], row["payload"]["name"]

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(append, ("phone", "laptop", "tablet")))
    log = world.handset(user).log()
    assert [change["server_version"] for change in log] == list(range(1, 32))
    assert Counter(log[-1]["payload"]["name"]) == {"p": 10, "l": 10, "t": 10}


# --- references


def test_parents_come_first_whatever_the_order(world: World) -> None:
    phone = world.handset()
    assert phone.put(
        upsert(1, "comments", C, body="c", post=B, author=A),
        upsert(2, "posts", B, title="t", author=A),
        upsert(3, "users", A, name="a"),
    ) == [1, 1, 1]
    assert [change["table"] for change in phone.log()] == ["users", "posts", "comments"]


def test_a_child_of_a_stored_parent_and_one_without_parent(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    assert phone.put(upsert(2, "posts", C, title="t", author=A)) == [1]
    assert phone.put(upsert(3, "posts", D, title="t", author=None)) == [1]
    assert phone.put(upsert(4, "posts", E, title="t")) == [1]


def test_a_missing_parent_is_named_and_stops_only_its_child(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    assert phone.post(
        upsert(2, "posts", C, title="orphan", author=F), upsert(3, "posts", D, title="t", author=A)
    ) == {
        "accepted": True,
        "highest_server_seq": 2,
        "statuses": [orphan(2, f"{world.ns}.users:{F}"), applied(3, 1)],
    }
    assert set(phone.live("posts")) == {D}
    assert [change["pk"] for change in phone.log()] == [A, D]


def test_every_missing_parent_is_named(world: World) -> None:
    phone = world.handset()
    assert phone.upload(upsert(1, "comments", C, post=E, author=F)) == [
        orphan(1, f"{world.ns}.posts:{E}", f"{world.ns}.users:{F}")
    ]


@pytest.mark.parametrize(
    "form",
    ["0B4E77AA-9F1C-4C31-8D1E-5D2B7A90C3F4", "0b4e77aa9f1c4c318d1e5d2b7a90c3f4", "C053qp8cTDGNHl0repDD9A=="],
)
def test_a_missing_parent_is_named_as_it_was_sent(world: World, form: str) -> None:
    phone = world.handset()
    sent = upsert(1, "comments", C, post=form, author=F)
    assert phone.upload(sent) == [orphan(1, f"{world.ns}.posts:{form}", f"{world.ns}.users:{F}")]


def test_a_parent_that_is_not_applied_gives_no_credit(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    phone.put(delete(2, "users", A, 1))
    # In conflict, refused, or orphaned itself: each time the child would point at nothing.
    statuses = phone.upload(
        upsert(3, "users", A, 0, name="back"),
        upsert(4, "posts", B, title="t", author=A),
        upsert(5, "users", C, email="no name"),
        upsert(6, "posts", D, title="t", author=C),
        upsert(7, "comments", E, post=D),
    )
    assert [(s["status"], s.get("invalid", {}).get("reason")) for s in statuses] == [
        ("conflict", None),
        ("invalid", "fk_missing"),
        ("invalid", "constraint_violation"),
        ("invalid", "fk_missing"),
        ("invalid", "fk_missing"),
    ]
    assert phone.live("posts") == {}
    # Of a parent in conflict that lives on the server, a child may well be born.
    phone.put(upsert(8, "users", F, name="f"))
    stale, child = phone.upload(
        upsert(9, "users", F, 0, name="x"), upsert(10, "posts", B, title="t", author=F)
    )
    assert (stale["status"], child) == ("conflict", applied(10, 1))


def test_a_parent_of_another_user_is_no_parent(world: World) -> None:
    other, phone = world.handset(), world.handset()
    other.put(upsert(1, "users", A, name="a"))
    assert phone.upload(upsert(1, "posts", B, title="t", author=A)) == [orphan(1, f"{world.ns}.users:{A}")]


def test_references_are_read_in_every_form_of_a_uuid(world: World) -> None:
    phone = world.handset()
    a = "0b4e77aa-9f1c-4c31-8d1e-5d2b7a90c3f4"
    phone.put(upsert(1, "users", a.replace("-", "").upper(), name="a"))
    for number, form in enumerate((a.upper(), "{" + a + "}", f"urn:uuid:{a}", "C053qp8cTDGNHl0repDD9A=="), 2):
        post = {**upsert(number, "posts", key(number), title="t", author=form)}
        assert phone.put(post) == [1]
        # What the phone wrote comes back as it wrote it; SQL has the UUID and can join.
        assert phone.log()[-1]["payload"]["author"] == form
    assert phone.log()[0]["pk"] == a


def test_children_of_one_table_find_parents_in_the_same_request(world: World) -> None:
    phone = world.handset()
    chain = [upsert(n, "nodes", key(n), up=key(n + 1)) for n in range(1, 400)]
    assert phone.put(*chain, upsert(400, "nodes", key(400))) == [1] * 400
    # The log has every parent before its children, so that any prefix of it is whole.
    assert [change["pk"] for change in phone.log()] == [key(n) for n in range(400, 0, -1)]
    assert phone.put(*(delete(1000 + n, "nodes", key(n), 1) for n in range(400, 0, -1))) == [2] * 400
    assert [change["pk"] for change in phone.log()[400:]] == [key(n) for n in range(1, 401)]


def test_rows_that_refer_to_each_other_come_and_go_together(world: World) -> None:
    phone = world.handset()
    circle = (upsert(1, "nodes", A, up=B), upsert(2, "nodes", B, up=C, side=B), upsert(3, "nodes", C, up=A))
    hanger_on = upsert(4, "nodes", D, up=A)
    # One of the circle alone is an orphan, and so is a circle that lacks something else.
    assert phone.upload(circle[0]) == [orphan(1, f"{world.ns}.nodes:{B}")]
    broken = upsert(3, "nodes", C, up=A, side=F)
    statuses = phone.upload(*circle[:2], broken, hanger_on)
    assert [s["invalid"]["reason"] for s in statuses] == ["fk_missing"] * 4
    assert phone.log() == []
    assert phone.put(*circle, hanger_on) == [1] * 4
    assert phone.live("nodes")[B] == {"id": B, "up": C, "side": B}
    assert [s["invalid"]["reason"] for s in phone.upload(delete(5, "nodes", A, 1))] == ["has_children"]
    assert phone.put(*(delete(n, "nodes", pk, 1) for n, pk in enumerate((A, B, C, D), 6))) == [2] * 4
    assert phone.live("nodes") == {}


def test_a_row_may_refer_to_itself(world: World) -> None:
    phone = world.handset()
    assert phone.put(upsert(1, "nodes", A, up=A)) == [1]
    assert phone.put(delete(2, "nodes", A, 1)) == [2]


def test_deletes_go_child_first_whatever_the_order(world: World) -> None:
    phone = world.handset()
    phone.put(
        upsert(1, "users", A, name="a"), upsert(2, "posts", B, title="t", author=A), upsert(3, "nodes", C),
        upsert(4, "nodes", D, up=C), upsert(5, "nodes", E, up=D),
    )  # fmt: skip
    assert phone.put(delete(6, "users", A, 1), delete(7, "posts", B, 1)) == [2, 2]
    assert phone.put(delete(8, "nodes", C, 1), delete(9, "nodes", E, 1), delete(10, "nodes", D, 1)) == [
        2,
        2,
        2,
    ]
    assert [c["pk"] for c in phone.log()[5:]] == [B, A, E, D, C]


def test_a_parent_with_live_children_stays(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "posts", B, title="t", author=A))
    phone.put(upsert(3, "users", C, name="c"))
    refused, gone = phone.upload(delete(4, "users", A, 1), delete(5, "users", C, 1))
    assert refused == invalid(
        4,
        "has_children",
        f"Constraint violation: row '{A}' of {world.ns}.users is still referenced by {world.ns}.posts; "
        "delete those rows first",
    )
    assert gone == applied(5, 2)
    assert set(phone.live("users")) == {A}
    # A child that this very request brings counts too.
    (status, _) = phone.upload(delete(6, "users", A, 1), upsert(7, "posts", D, title="new", author=A))
    assert status["invalid"]["reason"] == "has_children"
    assert phone.put(delete(8, "posts", B, 1), delete(9, "posts", D, 1), delete(6, "users", A, 1)) == [
        2,
        2,
        2,
    ]


def test_cascades_reach_the_device_that_caused_them(world: World) -> None:
    phone = world.handset()
    phone.put(
        upsert(1, "users", A, name="a"), upsert(2, "posts", B, title="t"), upsert(3, "comments", C, post=B),
        upsert(4, "comments", D, body="kept", author=A),
    )  # fmt: skip
    at = phone.download()["next_after"]
    assert phone.put(delete(5, "posts", B, 1), delete(6, "users", A, 1)) == [2, 2]
    found = phone.download(after=at)["changes"]
    assert sorted((c["pk"], c["op"], c["server_version"], c["payload"]) for c in found) == [
        (C, "DELETE", 2, None),
        (D, "UPDATE", 2, {"id": D, "body": "kept", "author": None}),
    ]


def test_a_conflict_shows_the_row_as_the_upload_leaves_it(world: World) -> None:
    """The refused edit would hang the row elsewhere; where it is, the deletion takes it along."""
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "posts", A, title="a"), upsert(2, "posts", B, title="b"))
    phone.put(upsert(3, "comments", C, post=A))
    laptop.put(upsert(1, "comments", C, 1, post=B))
    refused, gone = phone.upload(upsert(4, "comments", C, 1, post=A), delete(5, "posts", B, 1))
    assert gone == applied(5, 2)
    assert refused["status"] == "conflict"
    row = refused["server_row"]
    assert (row["server_version"], row["deleted"], row["payload"]) == (3, True, None)


def test_a_child_that_goes_with_its_parent_in_one_request(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "posts", B, title="t"), upsert(2, "comments", C, post=B))
    assert phone.put(delete(3, "posts", B, 1), delete(4, "comments", C, 1)) == [2, 2]
    assert [(c["pk"], c["server_version"]) for c in phone.log()[2:]] == [(C, 2), (B, 2)]


def test_an_upload_against_a_delete_of_its_parent_never_leaves_an_orphan(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    for round_number in range(12):
        parent, child = key(1000 + round_number), key(2000 + round_number)
        version = phone.put(upsert(10 * round_number + 1, "users", parent, name="p"))[0]
        with ThreadPoolExecutor(2) as pool:
            born = pool.submit(
                laptop.upload, upsert(round_number + 1, "posts", child, title="t", author=parent)
            )
            gone = pool.submit(phone.upload, delete(10 * round_number + 2, "users", parent, version))
        outcomes = (born.result()[0]["status"], gone.result()[0]["status"])
        assert outcomes in (("applied", "invalid"), ("invalid", "applied"))
    users, posts = phone.live("users"), phone.live("posts")
    assert {post["author"] for post in posts.values()} == set(users)


# --- what can't be applied


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "Bad-Name!"}, 'invalid table name "bad-name!"'),
        ({"table": ""}, 'invalid table name ""'),
        ({"schema": "no.good"}, 'invalid schema name "no.good"'),
        ({"op": "MERGE"}, "invalid operation: MERGE"),
        ({"op": ""}, "invalid operation: "),
        ({"pk": "not-a-uuid"}, "invalid UUID format: not-a-uuid"),
        ({"pk": ""}, "invalid UUID format: "),
        ({"payload": None}, "invalid JSON payload"),
        ({"payload": [1]}, "invalid JSON payload"),
        ({"payload": "text"}, "invalid JSON payload"),
        ({"payload": 7}, "invalid JSON payload"),
        ({"op": "DELETE"}, "payload must be absent for DELETE"),
    ],
)
def test_a_malformed_change_is_refused_and_the_others_are_applied(
    world: World, change: dict[str, object], message: str
) -> None:
    phone = world.handset()
    answer = phone.post({**upsert(1, "users", A, name="n"), **change}, upsert(2, "users", B, name="b"))
    assert answer == {
        "accepted": True,
        "highest_server_seq": 1,
        "statuses": [invalid(1, "bad_payload", message), applied(2, 1)],
    }


def test_a_payload_may_be_missing_or_null_only_in_a_delete(world: World) -> None:
    phone = world.handset()
    change = upsert(1, "users", A, name="n")
    without = {name: value for name, value in change.items() if name != "payload"}
    assert phone.upload(without) == [invalid(1, "bad_payload", "invalid JSON payload")]
    phone.put(change)
    assert phone.put({**delete(2, "users", A, 1), "payload": None}) == [2]


def test_names_are_trimmed_and_of_any_case(world: World) -> None:
    phone = world.handset()
    change = {
        **upsert(1, " Users ", f" URN:UUID:{A.upper()} ", name="n"),
        "schema": f" {world.ns.upper()} ",
        "op": " insert ",
    }
    assert phone.put(change) == [1]
    (found,) = phone.log()
    assert (found["schema"], found["table"], found["op"], found["pk"]) == (world.ns, "users", "INSERT", A)


def test_a_table_that_is_not_synced_is_not_registered(world: World) -> None:
    phone = world.handset()
    world.root.execute(f"CREATE TABLE {world.ns}.local_only (id UUID PRIMARY KEY) WITH (TYPE='USER')")
    names = ("nowhere", "local_only")
    answer = phone.post(
        *(upsert(n, name, A) for n, name in enumerate(names, 1)), upsert(3, "users", A, name="n")
    )
    assert answer["accepted"] is False
    assert answer["statuses"][2] == applied(3, 1)
    for number, name in enumerate(names):
        assert answer["statuses"][number] == {
            "source_change_id": number + 1,
            "status": "invalid",
            "message": f"table not registered {world.ns}.{name}",
            "invalid": {"reason": "unregistered_table", "details": {"schema": world.ns, "table": name}},
        }


def test_the_schema_is_public_without_one_and_schemas_are_apart(world: World) -> None:
    phone = world.handset()
    world.root.execute("CREATE NAMESPACE IF NOT EXISTS public")
    world.root.execute(
        "CREATE TABLE IF NOT EXISTS public.users (id UUID PRIMARY KEY, name TEXT)"
        " WITH (TYPE='USER', SYNC=TRUE)"
    )
    change = upsert(1, "users", A, name="here")
    body = {"changes": [{**change, "source_change_id": 2, "payload": {"id": A, "name": "public"}}]}
    answer = phone.call("POST", "/sync/upload", json=body)
    assert answer.json()["statuses"] == [applied(2, 1)]
    assert phone.put(change) == [1]
    assert phone.put({**upsert(3, "users", A, 1, name="empty is public"), "schema": ""}) == [2]
    assert [(c["schema"], c["payload"]["name"]) for c in phone.log()] == [
        ("public", "public"), (world.ns, "here"), ("public", "empty is public"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"number": "many"}, "invalid_value"),
        ({"number": 1 << 40}, "invalid_value"),
        ({"big": 1 << 70}, "invalid_value"),
        ({"small": {"a": 1}}, "invalid_value"),
        ({"flag": 2}, "invalid_value"),
        ({"real": "x"}, "invalid_value"),
        ({"moment": "yesterday"}, "invalid_value"),
        ({"ref": "nobody"}, "invalid_value"),
        ({"data": "?"}, "invalid_value"),
        ({"doc": "not json"}, "invalid_value"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused_for_good_reason(
    world: World, columns: dict[str, object], reason: str
) -> None:
    phone = world.handset()
    refused, good = phone.upload(upsert(1, "things", A, **columns), upsert(2, "things", B, number=1))
    # Not bad_payload: that reason makes the reference's device drop its change.
    assert refused["invalid"]["reason"] == reason
    (column,) = columns
    assert f"'{column}'" in refused["message"]
    assert good == applied(2, 1)


def test_a_missing_value_that_must_not_be_null(world: World) -> None:
    phone = world.handset()
    assert phone.upload(upsert(1, "users", A, email="e")) == [
        invalid(
            1,
            "constraint_violation",
            "Constraint violation: NOT NULL constraint violation: column 'name' cannot be NULL",
        )
    ]
    phone.put(upsert(2, "users", A, name="n"))
    # An update may leave out what is there.
    assert phone.put(upsert(3, "users", A, 1, email="e")) == [2]
    assert [s["invalid"]["reason"] for s in phone.upload(upsert(4, "users", A, 2, name=None))] == [
        "constraint_violation"
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not json", b"{", b"[]", b"null", b'{"changes":7}', b'{"changes":[{}]}', b"[" * 100_000,
        b'{"changes":' + b"[" * 100_000, b"\xff\xfe", b'{"changes":[{"source_change_id":1.5}]}',
        b'{"changes":[{"source_change_id":9223372036854775808,"table":"t","op":"DELETE","pk":"x",'
        b'"server_version":0}]}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_whole(world: World, body: bytes) -> None:
    phone = world.handset()
    answer = phone.call("POST", "/sync/upload", content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "invalid_request"
    assert set(answer.json()) == {"error", "message"}
    assert phone.log() == []


@pytest.mark.parametrize(
    "payload",
    [
        b'{"id":"x","name":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"id":"x","name":"\\ud800"}',
        b'{"id":"x","name":"n","email":1e999}',
        b'{"id":"x","name":NaN}',
        b'{"id":"x","name":"\xff, \\"}, {"}',
        b'{"id":"x" "name"}',
    ],
)
def test_a_payload_that_cannot_be_read_stops_nothing_else(world: World, payload: bytes) -> None:
    phone = world.handset()
    good, bad, best = ({**upsert(n, "users", key(n), name="n"), "schema": world.ns} for n in (1, 2, 3))
    text = json.dumps({"changes": [good, {**bad, "payload": "PAYLOAD"}, {**best, "payload": "BEST"}]})
    body = text.encode().replace(b'"PAYLOAD"', payload).replace(b'"BEST"', b'{"name":"n", "email" : "}"}')
    for _ in range(2):
        answer = phone.call("POST", "/sync/upload", content=body)
        assert answer.status_code == 200, answer.text
        first, refused, last = answer.json()["statuses"]
        assert (first["status"], last["status"]) == ("applied", "applied")
        assert (refused["status"], refused["invalid"]["reason"]) == ("invalid", "bad_payload")
    assert [change["payload"] for change in phone.log()] == [good["payload"], {"name": "n", "email": "}"}]
    assert [failure["pk"] for failure in phone.call("GET", "/admin/materialize-failures").json()] == [key(2)]


def test_unknown_fields_of_the_request_are_ignored(world: World) -> None:
    phone = world.handset()
    answer = phone.post({**upsert(1, "users", A, name="n"), "content_hash": "x"}, hint={"a": 1})
    assert answer["statuses"] == [applied(1, 1)]


def test_a_parent_whose_child_comes_in_the_same_upload_stays(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "users", A, name="parent"))
    child, parent = phone.upload(upsert(2, "posts", B, title="child", author=A), delete(3, "users", A, 1))
    assert child == applied(2, 1)
    assert parent["invalid"]["reason"] == "has_children"
    assert world.sql(user, "SELECT id FROM {ns}.users") == [{"id": A}]


def test_a_child_that_follows_its_parent_in_the_same_upload_is_a_deletion_that_all_hear_of(
    world: World,
) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "posts", A, title="parent", author=None))
    answers = phone.upload(upsert(2, "comments", B, body="child", post=A), delete(3, "posts", A, 1))
    assert answers == [applied(2, 1), applied(3, 2)]
    assert world.sql(user, "SELECT id FROM {ns}.comments") == []
    told = {c["pk"]: (c["op"], c["server_version"]) for c in laptop.log()}
    assert told == {A: ("DELETE", 2), B: ("DELETE", 2)}
    [late] = phone.upload(upsert(4, "comments", B, 1, body="edited"))
    assert (late["status"], late["server_row"]["server_version"], late["server_row"]["deleted"]) == (
        "conflict", 2, True,
    )  # fmt: skip


def test_a_batch_over_the_limit_is_refused_whole(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(
        env={
            "UPWELL_UPLOAD_CHANGES_MAX": "2",
            "UPWELL_UPLOAD_PAYLOAD_BYTES_MAX": "128",
            "UPWELL_UPLOAD_BATCH_BYTES_MAX": "4000",
            "UPWELL_UPLOAD_BODY_BYTES_MAX": "9000",
            "UPWELL_BCRYPT_COST": "4",
        }
    )
    with World(server) as world:
        phone = world.handset()
        batch = [upsert(n, "users", key(n), name="n") for n in (1, 2, 3)]
        message = "batch too large: changes=3 limit=2"
        assert phone.post(*batch) == {
            "accepted": False,
            "highest_server_seq": 0,
            "statuses": [invalid(n, "batch_too_large", message) for n in (1, 2, 3)],
        }
        assert phone.put(*batch[:2]) == [1, 1]

        large = upsert(4, "users", D, name="x" * 128)
        size = len(json.dumps(large["payload"], separators=(",", ":")))
        assert phone.post(large, batch[2]) == {
            "accepted": True,
            "highest_server_seq": 3,
            "statuses": [
                invalid(4, "bad_payload", f"payload too large: {size} > 128"), applied(3, 1),
            ],
        }  # fmt: skip

        refused = phone.post(batch[0], batch[1], x="x" * 4000)
        assert refused["accepted"] is False
        assert [s["invalid"]["reason"] for s in refused["statuses"]] == ["batch_too_large"] * 2
        # One change alone has no half.
        assert phone.post(upsert(5, "users", key(5), name="n"), x="x" * 4000)["statuses"] == [applied(5, 1)]
        answer = phone.call("POST", "/sync/upload", content=b'{"changes":[],"x":"' + b"x" * 9000 + b'"}')
        assert (answer.status_code, answer.json()["error"]) == (413, "invalid_request")
        assert len(phone.log()) == 4


def test_keys_may_be_any_text_where_the_table_says_so(world: World) -> None:
    phone = world.handset()
    keys = ["plain", "Ünïcode ✓ 🌊", "a/b%2F c", "quote ' \" \\", "tab\tline\n", "nul\x00byte", "x" * 5000]
    assert phone.put(*(upsert(n, "notes", pk, body=pk) for n, pk in enumerate(keys, 1))) == [1] * len(keys)
    assert {row["pk"]: row["payload"]["body"] for row in phone.hydrate(limit=2)[0]} == {pk: pk for pk in keys}
    assert phone.upload(upsert(99, "notes", "", body="")) == [
        invalid(99, "bad_payload", "the primary key is empty")
    ]
    assert phone.put(*(delete(100 + n, "notes", pk, 1) for n, pk in enumerate(keys))) == [2] * len(keys)


def test_users_may_have_any_name_and_never_meet(world: World) -> None:
    base = world.user()
    names = [
        base,
        base.upper(),
        f"{base}/phone",
        f"{base}%2Fphone",
        f"{base} ✓",
        f"s:{base}",
        f"u:{base}",
        "s:",
    ]
    for user in names:
        for source in ("phone", "phone/phone", "p%"):
            assert world.handset(user, source).put(upsert(1, "notes", source, body=user)) == [1]
    for user in names:
        assert {row["body"] for row in world.handset(user).live("notes").values()} == {user}
