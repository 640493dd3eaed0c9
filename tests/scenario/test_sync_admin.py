"""`/admin/materialize-failures`: a device lists what the server couldn't apply, and has it tried again.

Written from the device sync contract, sections 1.3, 1.5 and 1.10.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from upwell.testing.sync_world import Handset, World, applied, delete, key, now_s, repeated, upsert
from upwell.testing.wire import Site

Json = dict[str, Any]
LIST, RETRY, WATCH = "/admin/materialize-failures", "/admin/materialize-failures/retry", "/sync/watch"
METHODS = {LIST: "GET", RETRY: "POST", WATCH: "GET"}
OTHER_SECRET = "another-secret-with-more-than-32-bytes-in-it"


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def failures(phone: Handset, **query: Any) -> list[Json]:
    answer = phone.call("GET", LIST, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: list[Json] = answer.json()
    return found


def retry(phone: Handset, failure: int) -> Json:
    answer = phone.call("POST", RETRY, params={"id": failure})
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def only(phone: Handset) -> int:
    (failure,) = failures(phone)
    return int(failure["id"])


def refusal(phone: Handset, method: str, path: str, **options: Any) -> tuple[int, str]:
    answer = phone.call(method, path, **options)
    body = answer.json()
    assert set(body) == {"error", "message"}, body
    return answer.status_code, body["error"]


def test_the_list_has_every_field_of_the_contract(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    assert failures(phone) == []
    before = datetime.now(UTC) - timedelta(seconds=1)
    phone.put(upsert(1, "users", key(1), name="n"))
    phone.upload(upsert(2, "users", key(1), 1, name=None))
    phone.upload(delete(3, "users", "no-uuid", 6))
    second, first = failures(phone)
    assert before < datetime.fromisoformat(first["first_seen"]) < before + timedelta(minutes=1)
    assert second["first_seen"] >= first["first_seen"]
    assert (type(first.pop("id")), type(second.pop("id"))) == (int, int)
    del first["first_seen"], second["first_seen"]
    common = {"user_id": user, "schema": world.ns, "table": "users", "retry_count": 0, "source_id": "phone"}
    assert first == {
        **common,
        "pk": key(1),
        "attempted_version": 2,
        "op": "UPDATE",
        "payload": {"id": key(1), "name": None},
        "error": "constraint_violation: Constraint violation: NOT NULL constraint violation:"
        " column 'name' cannot be NULL",
        "source_change_id": 2,
    }
    assert second == {
        **common,
        "pk": "no-uuid",
        "attempted_version": 7,
        "op": "DELETE",
        "error": "bad_payload: invalid UUID format: no-uuid",
        "source_change_id": 3,
    }


def test_the_list_is_newest_first_filtered_and_limited(world: World) -> None:
    phone = world.handset()
    for number in range(1, 121):
        table = "users" if number % 3 else "notes"
        schema = world.ns if number % 2 else "elsewhere"
        phone.upload({**upsert(number, table, key(number), op="odd"), "schema": schema})
    everything = [failure["source_change_id"] for failure in failures(phone, limit=1000)]
    assert everything == list(range(120, 0, -1))

    def listed(**query: Any) -> list[int]:
        return [failure["source_change_id"] for failure in failures(phone, **query)]

    for bad in ("0", "1001", "-1", "x", ""):
        assert listed(limit=bad) == everything[:100]
    assert listed() == everything[:100]
    assert listed(limit=7) == everything[:7]
    notes = [number for number in everything if not number % 3]
    assert listed(table="notes") == listed(table=" Notes ") == notes
    here = [number for number in everything if number % 2]
    assert listed(schema=world.ns) == here
    assert listed(schema=world.ns, table="notes", limit=2) == [n for n in notes if n % 2][:2]
    assert listed(table="none") == []


def test_a_retry_applies_what_is_possible_by_now(world: World) -> None:
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")
    phone.put(upsert(1, "users", key(1), name="n"), upsert(2, "posts", key(2), title="t", author=key(1)))
    refused = delete(3, "users", key(1), 1)
    phone.upload(refused)
    failure = only(phone)
    impossible = retry(phone, failure)
    assert (impossible["source_change_id"], impossible["status"]) == (0, "materialize_error")
    assert impossible["message"].startswith("has_children: ")
    assert set(impossible) == {"source_change_id", "status", "message"}
    assert failures(phone)[0]["retry_count"] == 1
    phone.put(delete(4, "posts", key(2), 1))
    # Any device of the user may ask for it.
    assert retry(tablet, failure) == applied(0, 2)
    assert failures(phone) == []
    assert [(c["pk"], c["op"], c["source_id"], c["source_change_id"]) for c in tablet.log(after=3)] == [
        (key(1), "DELETE", "phone", 3)
    ]
    assert refusal(phone, "POST", RETRY, params={"id": failure}) == (404, "not_found")
    # The device that tries once more hears that it is done.
    assert phone.upload(refused) == [repeated(3, 2, deleted=True)]


def test_a_retry_of_what_the_device_has_mended_itself_only_removes_it(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.upload(upsert(1, "users", key(1), name=None))
    failure = only(phone)
    phone.put(upsert(2, "users", key(1), name="mended"))
    phone.put(upsert(3, "users", key(1), 1, name="and more"))
    assert retry(phone, failure) == {**applied(0, 2), "message": "failure was stale; removed"}
    assert failures(phone) == []
    assert world.sql(user, "SELECT id, name FROM {ns}.users") == [{"id": key(1), "name": "and more"}]
    assert len(phone.log()) == 2


def test_a_table_that_is_made_later_takes_what_was_refused_before(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    table = f"late_{key(1)[-1]}_{user.split('-')[1]}"
    phone.upload(upsert(1, table, "a", text="kept"), upsert(2, table, "b", text="too"))
    world.root.execute(
        f"CREATE TABLE {world.ns}.{table} (id TEXT PRIMARY KEY, text TEXT) WITH (TYPE='USER', SYNC=TRUE)"
    )
    for failure in failures(phone):
        assert retry(phone, failure["id"]) == applied(0, 1)
    rows = world.sql(user, f"SELECT id, text FROM {{ns}}.{table} ORDER BY id")
    assert rows == [{"id": "a", "text": "kept"}, {"id": "b", "text": "too"}]
    assert failures(phone) == []


def test_what_can_never_be_applied_stays_and_is_counted(world: World) -> None:
    phone = world.handset()
    large = upsert(3, "users", key(3), name="x" * (16 * 1024 * 1024 + 1))
    phone.upload(upsert(1, "users", "no-uuid", name="n"), upsert(2, "users", key(2), 5, name="n"), large)
    ids = {failure["source_change_id"]: failure["id"] for failure in failures(phone)}
    for _ in range(2):
        messages = {number: retry(phone, failure)["message"] for number, failure in ids.items()}
    assert messages[1] == "bad_payload: invalid UUID format: no-uuid"
    assert messages[2] == "internal_error: conflict without server_row"
    assert messages[3].startswith("constraint_violation: Constraint violation: a row of")
    assert {f["source_change_id"]: f["retry_count"] for f in failures(phone)} == {1: 2, 2: 2, 3: 0}


def test_a_parent_that_is_missing_by_now_is_a_failure_too(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", key(1), name="n"))
    phone.upload(upsert(2, "posts", key(2), title=None, author=key(1)))
    phone.put(delete(3, "users", key(1), 1))
    phone.upload(upsert(2, "posts", key(2), title="now fine", author=key(1)))
    failure = only(phone)
    assert retry(phone, failure)["status"] == "materialize_error"
    assert failures(phone)[0]["retry_count"] == 1


def test_the_id_is_a_query_parameter_or_in_the_body(world: World) -> None:
    phone = world.handset()
    phone.upload(upsert(1, "users", "no-uuid", name="n"))
    failure = only(phone)
    assert phone.call("POST", RETRY, json={"id": failure}).json()["status"] == "materialize_error"
    for options in (
        {},
        {"content": b"{"},
        {"json": {}},
        {"json": {"id": "x"}},
        {"json": {"id": 1 << 63}},
        {"params": {"id": "x"}},
        {"params": {"id": ""}},
    ):
        assert refusal(phone, "POST", RETRY, **options) == (400, "invalid_request"), options
    assert refusal(phone, "POST", RETRY, json={"id": -1}) == (404, "not_found")


def test_users_see_and_retry_their_own_failures_only(world: World) -> None:
    alice, bob = world.handset(), world.handset()
    alice.upload(upsert(1, "users", "no-uuid", name="n"))
    failure = only(alice)
    assert failures(bob) == []
    assert refusal(bob, "POST", RETRY, params={"id": failure}) == (404, "not_found")
    assert failures(alice)[0]["retry_count"] == 0


@pytest.mark.parametrize("path", [LIST, RETRY, WATCH])
def test_only_a_device_token_of_a_user_opens_them(world: World, path: str) -> None:
    user, method = world.user(), METHODS[path]
    good = world.token(user, "phone")
    boss, _ = world.account("dba")
    for token in (
        jwt.encode({"sub": user, "did": "phone"}, OTHER_SECRET, "HS256"),
        jwt.encode({"sub": user}, world.server.jwt_secret, "HS256"),
        world.token(user, ""),
        world.token(user, "phone", exp=now_s() - 3600),
        world.token(boss, "phone"),
        world.token("root", "phone"),
        world.account()[1].token,
    ):
        phone = Handset(world.http, str(token), world.ns)
        assert refusal(phone, method, path) == (401, "authentication_failed")
    assert world.http.request(method, path).status_code == 401
    phone = Handset(world.http, good, world.ns)
    for wrong in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {method}:
        assert refusal(phone, wrong, path) == (405, "method_not_allowed")
    assert phone.call("GET", path + "/more").status_code in (404, 405)
