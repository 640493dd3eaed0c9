"""Devices and SQL write the same rows: each sees at once what the other did, nobody else does, and a
payload comes back as it was uploaded, hot or cold.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from upwell.testing.sync_world import World, applied, delete, invalid, key, repeated, upsert
from upwell.testing.wire import Site

A, B, C, D = (key(number) for number in range(1, 5))


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


# --- who sees what


def test_what_a_phone_uploads_is_in_sql_at_once_and_nobody_elses(world: World) -> None:
    (name, alice), (other, bob) = world.account(), world.account()
    phone = world.handset(name)
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "posts", B, title="t", author=A))
    join = f"SELECT p.title, u.name FROM {world.ns}.posts p JOIN {world.ns}.users u ON p.author = u.id"
    assert alice.run(join).rows == [["t", "a"]]
    assert alice.run(f"SELECT name FROM {world.ns}.users WHERE id = '{A}'").rows == [["a"]]
    for nobody in (bob, world.wire(world.root.login())):
        assert nobody.run(join).rows == []
        assert nobody.run(f"SELECT COUNT(*) FROM {world.ns}.users WHERE id = '{A}'").cell == "0"
    # The same key is another row for another user.
    world.handset(other).put(upsert(1, "users", A, name="bob's"))
    phone.put(upsert(3, "users", A, 1, name="a2"))
    assert alice.run(f"SELECT name FROM {world.ns}.users").rows == [["a2"]]
    assert bob.run(f"SELECT name FROM {world.ns}.users").rows == [["bob's"]]


def test_what_sql_writes_comes_down(world: World) -> None:
    name, alice = world.account()
    phone = world.handset(name)
    alice.run(f"INSERT INTO {world.ns}.users VALUES ('{A}', 'sql', NULL)")
    alice.run(f"INSERT INTO {world.ns}.posts VALUES ('{B}', 't', '{A}')")
    alice.run(f"UPDATE {world.ns}.users SET email = 'e' WHERE name = 'sql'")
    alice.run(f"DELETE FROM {world.ns}.posts")
    found = phone.download()["changes"]
    names = ("server_id", "op", "pk", "server_version", "payload", "source_id", "source_change_id")
    assert [tuple(change[name] for name in names) for change in found] == [
        (1, "INSERT", A, 1, {"id": A, "name": "sql", "email": None}, "", 0),
        (2, "INSERT", B, 1, {"id": B, "title": "t", "author": A}, "", 0),
        (3, "UPDATE", A, 2, {"id": A, "name": "sql", "email": "e"}, "", 0),
        (4, "DELETE", B, 2, None, "", 0),
    ]
    assert phone.put(upsert(1, "users", A, 2, name="phone", email="e")) == [3]
    assert alice.run(f"SELECT name, email FROM {world.ns}.users").rows == [["phone", "e"]]


def test_a_transaction_is_one_version_of_a_row_however_often_it_wrote_it(world: World) -> None:
    """Nobody saw what was between, and whoever counts versions finds none missing."""
    name, alice = world.account()
    phone = world.handset(name)
    insert = f"INSERT INTO {world.ns}.users VALUES ('{{}}', 'first', NULL)"
    rename = f"UPDATE {world.ns}.users SET name = name || '!' WHERE id = '{A}'"
    alice.run(f"BEGIN; {insert.format(A)}; {rename}; {rename}; COMMIT")
    alice.run(f"BEGIN; {rename}; DELETE FROM {world.ns}.users; {insert.format(A)}; {rename}; COMMIT")
    alice.run(f"BEGIN; {insert.format(B)}; DELETE FROM {world.ns}.users WHERE id = '{B}'; COMMIT")
    found = [(c["pk"], c["server_version"], c["deleted"]) for c in phone.download()["changes"]]
    assert found == [(A, 1, False), (A, 2, False), (B, 1, True)]
    assert phone.put(upsert(1, "users", A, 2, name="phone")) == [3]
    assert phone.put(upsert(2, "users", B, 1, name="phone")) == [2]


def test_a_back_end_writes_on_behalf_of_a_user_without_account(world: World) -> None:
    user = world.user()
    phone, other = world.handset(user), world.handset()
    world.sql(user, f"INSERT INTO {{ns}}.users VALUES ('{A}', 'back end', NULL), ('{B}', 'b', NULL)")
    world.sql(user, f"UPDATE {{ns}}.users SET name = name || '!' WHERE id = '{A}'")
    world.sql(user, f"DELETE FROM {{ns}}.users WHERE id = '{B}'")
    assert {pk: row["name"] for pk, row in phone.live("users").items()} == {A: "back end!"}
    assert [c["server_version"] for c in phone.download()["changes"]] == [1, 1, 2, 2]
    assert other.log() == []


def test_the_same_rules_hold_for_sql_and_for_devices(world: World) -> None:
    name, alice = world.account()
    phone = world.handset(name)
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "posts", B, title="t", author=A))
    # SQL can't take a phone's parent away, and can't insert what the phone has.
    alice.sql(f"DELETE FROM {world.ns}.users").refused(400, "SQL_EXECUTION_ERROR")
    alice.sql(f"INSERT INTO {world.ns}.users VALUES ('{A}', 'x', NULL)").refused(400, "SQL_EXECUTION_ERROR")
    alice.sql(f"INSERT INTO {world.ns}.posts VALUES ('{C}', 't', '{D}')").refused(400, "SQL_EXECUTION_ERROR")
    # The phone can't take a parent of SQL's.
    alice.run(f"INSERT INTO {world.ns}.users VALUES ('{C}', 'c', NULL)")
    alice.run(f"INSERT INTO {world.ns}.posts VALUES ('{D}', 't', '{C}')")
    (status,) = phone.upload(delete(3, "users", C, 1))
    assert status["invalid"]["reason"] == "has_children"
    # What SQL deleted is a tombstone with a version.
    alice.run(f"DELETE FROM {world.ns}.posts WHERE id = '{B}'")
    (status,) = phone.upload(upsert(4, "posts", B, 1, title="t2", author=A))
    assert (status["status"], status["server_row"]["deleted"], status["server_row"]["server_version"]) == (
        "conflict",
        True,
        2,
    )
    # And what SQL inserted again goes on counting.
    alice.run(f"INSERT INTO {world.ns}.posts VALUES ('{B}', 'again', NULL)")
    assert phone.put(upsert(5, "posts", B, 3, title="t3", author=A)) == [4]


def test_every_uploaded_state_stays_in_the_users_own_log(world: World) -> None:
    name, alice = world.account()
    phone = world.handset(name, "my phone")
    for number in range(1, 5):
        phone.put(upsert(number, "users", A, number - 1, name=f"state {number}"))
    phone.put(delete(5, "users", A, 4))
    found = alice.run('SELECT key, operation, "values", version, device, change_id FROM system.changes').rows
    assert [(row[0], row[1], json.loads(row[2])["name"], *row[3:]) for row in found] == [
        (A, "INSERT", "state 1", "1", "my phone", "1"),
        (A, "UPDATE", "state 2", "2", "my phone", "2"),
        (A, "UPDATE", "state 3", "3", "my phone", "3"),
        (A, "UPDATE", "state 4", "4", "my phone", "4"),
        (A, "DELETE", "state 4", "5", "my phone", "5"),
    ]


# --- payloads come back as they went up

PAYLOADS: dict[str, dict[str, Any]] = {
    "everything": {
        "flag": 1, "small": -32768, "number": 2147483647, "big": 9223372036854775807, "real": 0.1,
        "text": "ü\n🌊", "moment": 1760000000, "ref": A, "doc": {"z": [1, {"a": None}], "a": 1.50},
        "data": "AAH/",
    },
    "nulls": dict.fromkeys(["flag", "small", "number", "big", "real", "text", "moment", "doc", "data"]),
    "nothing": {},
    "unknown keys": {"number": 1, "color": "red", "nested": {"deep": [1, 2]}, "Ünïcode": "✓"},
    "booleans as words": {"flag": True},
    "booleans as numbers": {"flag": 0},
    "seconds": {"moment": 1760000000},
    "seconds with a fraction": {"moment": 1760000000.25},
    "milliseconds": {"moment": 1760000000123},
    "before 1970": {"moment": -86400},
    "a timestamp as text": {"moment": "2025-10-09T08:53:20+02:00"},
    "a UUID of sixteen bytes": {"ref": "C053qp8cTDGNHl0repDD9A=="},
    "a UUID in capitals": {"ref": "0B4E77AA-9F1C-4C31-8D1E-5D2B7A90C3F4"},
    "an integer as real": {"real": 3},
    "a real as integer": {"number": 3.0},
    "a number as text": {"text": 7},
    "text as a number": {"big": "9007199254740993"},
    "the largest integers": {"big": -9223372036854775808, "number": -2147483648},
    "beyond 2^53": {"big": 9007199254740993},
    "json as text": {"doc": '{"b": 1, "a": [ ]}'},
    "json as a list": {"doc": [3, 2, 1]},
    "json as a word": {"doc": True},
    "json with a long number": {"doc": {"n": 12345678901234567890123}},
    "no bytes": {"data": ""},
    "names in capitals": {"NUMBER": 7, "Text": "x"},
    "exponents": {"real": 1e300},
}  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_a_payload_comes_back_as_it_went_up(world: World, payload: dict[str, Any]) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "things", A, **payload))
    sent = {"id": A, **payload}
    assert phone.live("things") == {A: sent}
    assert [change["payload"] for change in phone.log()] == [sent]
    # Types too: 3 is not 3.0, 1 is not true.
    assert msgspec.json.encode(phone.log()[0]["payload"], order="sorted") == msgspec.json.encode(
        sent, order="sorted"
    )
    (status,) = phone.upload(upsert(2, "things", A, 0, number=1))
    assert status["server_row"]["payload"] == sent
    world.flush("things")
    assert phone.live("things") == {A: sent}


def test_sql_reads_what_a_payload_means(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(
        upsert(
            1, "things", A, flag=1, small="12", number=3.0, big=9007199254740993, real=3, text=7,
            moment=1760000000, ref="C053qp8cTDGNHl0repDD9A==", doc={"a": [1]}, data="AAH/", color="red",
        )
    )  # fmt: skip
    (row,) = world.sql(user, "SELECT * FROM {ns}.things")
    assert {name: row[name] for name in row if not name.startswith("_")} == {
        "id": A, "flag": True, "small": 12, "number": 3, "big": "9007199254740993", "real": 3.0, "text": "7",
        "moment": 1760000000_000000, "ref": "0b4e77aa-9f1c-4c31-8d1e-5d2b7a90c3f4", "doc": '{"a":[1]}',
        "data": [0, 1, 255],
    }  # fmt: skip
    assert world.sql(user, "SELECT id FROM {ns}.things WHERE moment = TIMESTAMP '2025-10-09T08:53:20Z'") == [
        {"id": A}
    ]


def test_the_digits_of_a_json_number_reach_sql(world: World) -> None:
    user = world.user()
    world.handset(user).put(upsert(1, "things", A, doc={"n": 12345678901234567890123}))
    assert world.sql(user, "SELECT doc FROM {ns}.things") == [{"doc": '{"n":12345678901234567890123}'}]


def test_sql_replaces_only_what_it_changes_in_the_devices_form(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(
        upsert(
            1, "things", A, flag=True, moment=1760000000, text=7, big=1, Number=5, color="red",
            ref="C053qp8cTDGNHl0repDD9A==",
        ),
        upsert(2, "things", B, moment=1760000000.5, flag=1),
        upsert(3, "things", C, moment=1760000000123, data=None),
    )  # fmt: skip
    world.sql(user, f"UPDATE {{ns}}.things SET number = 6 WHERE id = '{A}'")
    world.sql(
        user,
        "UPDATE {ns}.things SET moment = TIMESTAMP '2026-01-01T00:00:01.250Z', flag = FALSE, real = 0.5,"
        " data = X'00FF'",
    )
    assert phone.live("things") == {
        A: {
            "id": A, "flag": False, "moment": 1767225601, "text": 7, "big": 1, "Number": 6, "color": "red",
            "ref": "C053qp8cTDGNHl0repDD9A==", "real": 0.5, "data": "AP8=",
        },
        B: {"id": B, "moment": 1767225601.25, "flag": 0, "real": 0.5, "data": "AP8="},
        C: {"id": C, "moment": 1767225601250, "flag": 0, "real": 0.5, "data": "AP8="},
    }  # fmt: skip
    world.flush("things")
    before = phone.live("things")
    world.sql(user, f"UPDATE {{ns}}.things SET moment = NULL WHERE id = '{A}'")
    assert phone.live("things") == {**before, A: {**before[A], "moment": None}}


def test_what_an_upload_leaves_out_stays(world: World) -> None:
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")
    phone.put(upsert(1, "things", A, text="t", number=1, moment=1760000000, color="red"))
    # An older version of the app, that doesn't know all columns, edits the row.
    tablet.put(upsert(1, "things", A, 1, number=2))
    whole = {"id": A, "text": "t", "number": 2, "moment": 1760000000, "color": "red"}
    assert tablet.live("things") == {A: whole}
    assert phone.download()["changes"][-1]["payload"] == whole
    assert world.sql(user, "SELECT text, number FROM {ns}.things") == [{"text": "t", "number": 2}]
    # A new life of the row begins with nothing.
    phone.put(delete(2, "things", A, 2))
    phone.put(upsert(3, "things", A, 3, number=3))
    assert phone.live("things") == {A: {"id": A, "number": 3}}


def test_the_key_of_the_change_counts_not_that_of_the_payload(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    payload = {"id": B, "name": "n"}
    phone.put({**upsert(1, "users", A), "payload": payload})
    assert world.sql(user, "SELECT id FROM {ns}.users") == [{"id": A}]
    phone.put({**upsert(2, "users", C), "payload": {"name": "no key"}})
    phone.put({**upsert(3, "users", D), "payload": {"id": {"odd": True}, "name": "odd"}})
    assert {row["id"] for row in world.sql(user, "SELECT id FROM {ns}.users")} == {A, C, D}


def test_defaults_fill_what_a_new_row_leaves_out(world: World) -> None:
    table = "d (id UUID PRIMARY KEY, n INT NOT NULL DEFAULT 7, made TIMESTAMP NOT NULL DEFAULT NOW(), t TEXT)"
    with World(world.server, tables=[table]) as other:
        user = other.user()
        phone = other.handset(user)
        phone.put(upsert(1, "d", A, t="x"), upsert(2, "d", B, n=1, made=1760000000))
        first, second = other.sql(user, "SELECT n, made FROM {ns}.d ORDER BY id")
        assert (first["n"], second) == (7, {"n": 1, "made": 1760000000_000000})
        assert first["made"] > 1760000000_000000
        assert phone.live("d") == {A: {"id": A, "t": "x"}, B: {"id": B, "n": 1, "made": 1760000000}}


# --- cold


def test_after_a_flush_everything_answers_the_same(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    batch = (
        upsert(1, "users", A, name="a", color="red"), upsert(2, "users", B, name="b"),
        upsert(3, "posts", C, title="t", author=A), upsert(4, "nodes", D, up=D),
        upsert(5, "comments", A, post=C, author=B),
    )  # fmt: skip
    phone.put(*batch)
    gone = delete(6, "users", B, 1)
    phone.put(gone)
    phone.upload(delete(54, "users", D, 0))
    world.sql(user, f"UPDATE {{ns}}.users SET email = 'e' WHERE id = '{A}'")

    def answers() -> list[Any]:
        rows, page = phone.hydrate(2)
        return [
            phone.log(),
            laptop.download(limit=2),
            rows,
            page["next_after"],
            page["next_change_id"],
            # Repetitions, conflicts, tombstones, parents, children.
            phone.upload(*batch, gone),
            phone.upload(upsert(50, "users", A, 1, name="stale"), upsert(51, "users", B, 0, name="back")),
            phone.upload(upsert(52, "posts", D, title="t", author=B), delete(53, "users", A, 2)),
            phone.upload(delete(54, "users", D, 0), upsert(55, "users", D, 3, name="x")),
            world.sql(
                user, "SELECT u.name, u.email, p.title FROM {ns}.users u JOIN {ns}.posts p ON p.author = u.id"
            ),
        ]

    hot = answers()
    assert hot[5] == [
        repeated(1, 2, made=1), repeated(2, 2, deleted=True, made=1), repeated(3, 1), repeated(4, 1),
        repeated(5, 2, made=1), repeated(6, 2, deleted=True),
    ]  # fmt: skip
    assert hot[6][1]["server_row"]["deleted"] is True
    assert [status["invalid"]["reason"] for status in hot[7]] == ["fk_missing", "has_children"]
    world.flush()
    assert answers() == hot
    # Versions go on from the cold ones, also of tombstones.
    newer = (upsert(60, "users", A, 2, name="3"), upsert(61, "users", B, 2, name="3"))
    assert phone.put(*newer, delete(62, "comments", A, 2)) == [3, 3, 3]
    world.flush()
    assert phone.put(delete(63, "posts", C, 1), delete(64, "users", A, 3)) == [2, 4]
    assert phone.put(delete(65, "users", B, 3)) == [4]
    world.flush()
    assert [(row["table"], row["pk"], row["server_version"]) for row in phone.hydrate()[0]] == [
        ("nodes", D, 1)
    ]
    versions = [c["server_version"] for c in phone.log() if (c["table"], c["pk"]) == ("users", B)]
    assert versions == [1, 2, 3, 4]


def test_uploads_and_sql_writes_during_flushes_lose_nothing(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(*(upsert(n, "notes", f"n{n}", body="0") for n in range(1, 6)))
    for round_number in range(1, 6):
        message = world.root.execute(f"STORAGE FLUSH TABLE {world.ns}.notes").message
        assert message
        base = 2 * round_number - 1
        versions = phone.put(
            *(
                upsert(100 * round_number + n, "notes", f"n{n}", base, body=str(round_number))
                for n in range(1, 6)
            )
        )
        assert versions == [base + 1] * 5
        world.sql(user, "UPDATE {ns}.notes SET body = body || '!'")
    assert {row["body"] for row in phone.live("notes").values()} == {"5!"}
    log = phone.log()
    for n in range(1, 6):
        assert [c["server_version"] for c in log if c["pk"] == f"n{n}"] == list(range(1, 12))


def test_a_refusal_reads_the_same_in_both_tiers(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"), upsert(2, "posts", B, title="t", author=A))
    world.flush()
    message = (
        f"Constraint violation: row '{A}' of {world.ns}.users is still referenced by {world.ns}.posts; "
        "delete those rows first"
    )
    assert phone.upload(delete(3, "users", A, 1)) == [invalid(3, "has_children", message)]
    assert phone.upload(delete(4, "posts", B, 1), delete(3, "users", A, 1)) == [applied(4, 2), applied(3, 2)]
