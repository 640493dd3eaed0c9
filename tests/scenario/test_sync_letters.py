"""`system.sync_conflicts` and `system.sync_dead_letters`: what the server keeps of changes it couldn't apply.

A stock client drops a change that is answered `bad_payload` or `unregistered_table`: the letter saves it.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from upwell.testing import ServerProcess
from upwell.testing.sync_world import World, delete, key, orphan, upsert
from upwell.testing.wire import Site

Json = dict[str, Any]
PAYLOAD_MAX = 1024 * 1024


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def kept(world: World, table: str, user: str) -> list[Json]:
    """The rows of one of the two tables about a user, by change id."""
    return world.root.query(
        f"SELECT * FROM system.{table} WHERE user_id = '{user}' ORDER BY source_id, source_change_id"
    )


def dead(world: World, user: str) -> dict[int, Json]:
    return {row["source_change_id"]: row for row in kept(world, "sync_dead_letters", user)}


def test_what_is_applied_or_comes_again_leaves_no_letter(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "users", key(1), name="n"), upsert(2, "posts", key(2), title="t", author=key(1)))
    phone.upload(upsert(1, "users", key(1), name="n"), delete(3, "notes", "nowhere", 0))
    missing = upsert(4, "posts", key(3), title="t", author=key(9))
    assert phone.upload(missing) == [orphan(4, f"{world.ns}.users:{key(9)}")]
    assert kept(world, "sync_dead_letters", user) == kept(world, "sync_conflicts", user) == []


def test_every_refusal_that_is_not_for_later_is_kept_whole(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "users", key(1), name="n"), upsert(2, "posts", key(2), title="t", author=key(1)))
    odd = f'{{"id": "{key(3)}",  "name": "ä\\u00e4", "big": 12345678901234567890}}'
    changes: list[Json] = [
        upsert(10, "users", "no-uuid", name="n"),
        upsert(11, "Nowhere", key(3), a=[1, {"b": None}]),
        upsert(12, "users", key(3), op="merge", name="n"),
        {**delete(13, "users", key(3), 0), "payload": {"id": key(3)}},
        {**upsert(14, "users", key(3)), "payload": [1]},
        upsert(15, "users", key(3), name=None),
        upsert(16, "things", key(3), number="x"),
        delete(17, "users", key(1), 1),
        upsert(18, "users", key(4), 3, name="n"),
        {**upsert(19, " USERS ", key(3)), "schema": f" {world.ns.upper()} ", "op": " insert ", "payload": {}},
    ]
    statuses = phone.upload(*changes)
    letters = dead(world, user)
    assert list(letters) == [s["source_change_id"] for s in statuses if s["status"] == "invalid"]
    reasons = [status["invalid"]["reason"] for status in statuses]
    assert reasons == [
        "bad_payload", "unregistered_table", "bad_payload", "bad_payload", "bad_payload",
        "constraint_violation", "invalid_value", "has_children", "internal_error", "constraint_violation",
    ]  # fmt: skip
    for change, status in zip(changes, statuses, strict=True):
        letter = letters[change["source_change_id"]]
        assert letter["table"] == f"{world.ns}.{change['table'].strip().lower()}"
        assert (letter["source_id"], letter["pk"]) == ("phone", change["pk"])
        assert letter["op"] == change["op"].strip().upper()
        assert letter["attempted_version"] == change["server_version"] + 1
        assert letter["retry_count"] == 0
        assert (letter["reason"], letter["error"]) == (status["invalid"]["reason"], status["message"])
        sent = json.dumps(change["payload"]) if "payload" in change else None
        found = letter["payload"]
        assert (found is None) == (sent is None)
        assert sent is None or json.loads(found) == change["payload"]
    # The text is kept as it came, byte by byte.
    body = (
        f'{{"changes":[{{"source_change_id":20,"schema":"{world.ns}","table":"nowhere","op":"INSERT",'
        f'"pk":"{key(3)}","server_version":0,"payload":{odd}}}]}}'
    )
    assert phone.call("POST", "/sync/upload", content=body.encode()).status_code == 200
    assert dead(world, user)[20]["payload"] == odd
    assert kept(world, "sync_conflicts", user) == []


def test_a_repeated_refusal_is_counted_and_its_application_ends_it(world: World) -> None:
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")
    phone.put(upsert(1, "users", key(1), name="n"), upsert(2, "posts", key(2), title="t", author=key(1)))
    refused, other = delete(3, "users", key(1), 1), upsert(4, "users", key(3), name=None)
    phone.upload(refused)
    first = dead(world, user)[3]
    phone.upload(other, refused)
    phone.upload(refused)
    second = dead(world, user)[3]
    assert second == {**first, "retry_count": 2}
    assert dead(world, user)[4]["retry_count"] == 0
    # The same id of another device is another change.
    tablet.upload(upsert(3, "users", key(9), name="n"))
    phone.put(delete(5, "posts", key(2), 1))
    assert phone.put(refused) == [2]
    assert set(dead(world, user)) == {4}
    # Mended under its old id.
    phone.put(upsert(4, "users", key(3), name="mended"))
    assert dead(world, user) == {}


def test_a_conflict_is_kept_once_per_change(world: World) -> None:
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")
    phone.put(upsert(1, "users", key(1), name="n"))
    phone.put(upsert(2, "users", key(1), 1, name="newer"))
    stale = upsert(7, "users", key(1), 1, name="stale")
    assert tablet.upload(stale)[0]["status"] == "conflict"
    (conflict,) = kept(world, "sync_conflicts", user)
    assert list(conflict) == [
        "user_id", "source_id", "source_change_id", "table", "pk", "op", "base_version", "server_version",
        "payload", "at",
    ]  # fmt: skip
    assert json.loads(conflict.pop("payload")) == stale["payload"]
    first = conflict.pop("at")
    assert conflict == {
        "user_id": user, "source_id": "tablet", "source_change_id": 7, "table": f"{world.ns}.users",
        "pk": key(1), "op": "UPDATE", "base_version": 1, "server_version": 2,
    }  # fmt: skip
    phone.put(delete(3, "users", key(1), 2))
    gone = delete(8, "users", key(1), 1)
    assert [s["status"] for s in tablet.upload(stale, gone)] == ["conflict", "conflict"]
    again, other = kept(world, "sync_conflicts", user)
    assert (again["server_version"], again["source_change_id"], again["at"] > first) == (3, 7, True)
    assert (other["op"], other["payload"], other["server_version"]) == ("DELETE", None, 3)
    assert dead(world, user) == {}


def test_what_is_too_large_to_be_kept_says_so(start_server: Callable[..., ServerProcess]) -> None:
    env = {"UPWELL_UPLOAD_PAYLOAD_BYTES_MAX": str(PAYLOAD_MAX), "UPWELL_BCRYPT_COST": "4"}
    with World(start_server(env=env)) as world:
        check_what_is_too_large(world)


def check_what_is_too_large(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    large = upsert(1, "users", key(1), name="x" * PAYLOAD_MAX)
    just = upsert(2, "users", "no-uuid", name="x" * (PAYLOAD_MAX - 100))
    long_key = upsert(3, "users", "k" * 100_000, name="n")
    phone.upload(large, just, long_key)
    letters = dead(world, user)
    assert letters[1]["payload"] is None
    assert letters[1]["error"].startswith("payload too large: ")
    assert letters[1]["error"].endswith("; it was too large to be kept")
    assert json.loads(letters[2]["payload"]) == just["payload"]
    assert "too large" not in letters[2]["error"]
    assert len(letters[3]["pk"]) == 1000
    assert letters[3]["error"].endswith("; it was too large to be kept")


def test_a_batch_that_is_refused_as_a_whole_stays_with_the_device(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(env={"UPWELL_UPLOAD_CHANGES_MAX": "2", "UPWELL_BCRYPT_COST": "4"})
    with World(server) as world:
        phone = world.handset("u")
        statuses = phone.upload(*[upsert(n, "users", key(n), name="n") for n in (1, 2, 3)])
        assert {status["invalid"]["reason"] for status in statuses} == {"batch_too_large"}
        assert dead(world, "u") == {}
        # Letters and receipts of one wave are durable together.
        phone.upload(upsert(1, "users", key(1), name="n"), upsert(2, "users", "no-uuid", name="n"))
        server.kill()
        server.start()
    with World(server) as world:
        assert set(dead(world, "u")) == {2}


def test_letters_of_equal_uploads_at_once_are_one(world: World) -> None:
    user = world.user()
    phones = [world.handset(user) for _ in range(4)]
    refused = upsert(1, "users", "no-uuid", name="n")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda phone: phone.upload(refused), phones))
    assert [row["source_change_id"] for row in kept(world, "sync_dead_letters", user)] == [1]
