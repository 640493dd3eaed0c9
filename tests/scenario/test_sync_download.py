"""`GET /sync/download`: the user's log, unabridged and in order, in pages and frozen windows.

Written from the device sync contract, sections 1.9, 3 and 7.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from upwell.testing.sync_world import Handset, World, delete, key, upsert
from upwell.testing.wire import Site

A, B, C, D = (key(number) for number in range(1, 5))


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def pages(device: Handset, **query: Any) -> list[dict[str, Any]]:
    """Follow the log to the end of the window of the first page."""
    found = [device.download(**query)]
    while found[-1]["has_more"]:
        query |= {"after": found[-1]["next_after"], "until": found[-1]["window_until"]}
        found.append(device.download(**query))
    return found


def test_an_empty_log(world: World) -> None:
    page = world.handset().download()
    stream = page.pop("stream_id")
    assert stream
    assert page == {"changes": [], "has_more": False, "next_after": 0, "window_until": 0, "max_server_id": 0}


def test_an_entry_has_all_that_a_device_needs(world: World) -> None:
    user = world.user()
    began = datetime.now(UTC)
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(11, "users", A, name="a"))
    phone.put(delete(12, "users", A, 1))
    first, second = laptop.download()["changes"]
    moments = [datetime.fromisoformat(change.pop("ts")) for change in (first, second)]
    assert all(moment.utcoffset() == timedelta(0) for moment in moments)
    assert (
        began - timedelta(seconds=1) <= moments[0] <= moments[1] <= datetime.now(UTC) + timedelta(seconds=1)
    )
    common = {"schema": world.ns, "table": "users", "pk": A, "source_id": "phone"}
    assert first == {
        **common, "server_id": 1, "op": "INSERT", "payload": {"id": A, "name": "a"}, "server_version": 1,
        "deleted": False, "source_change_id": 11,
    }  # fmt: skip
    assert second == {
        **common, "server_id": 2, "op": "DELETE", "payload": None, "server_version": 2,
        "deleted": True, "source_change_id": 12,
    }  # fmt: skip


def test_own_changes_are_hidden_unless_asked_for(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "users", A, name="a"))
    laptop.put(upsert(1, "users", B, name="b"))
    phone.put(upsert(2, "users", C, name="c"))
    assert [c["pk"] for c in phone.download()["changes"]] == [B]
    assert [c["pk"] for c in laptop.download()["changes"]] == [A, C]
    assert [c["pk"] for c in phone.download(include_self="true")["changes"]] == [A, B, C]
    assert [c["pk"] for c in phone.download(include_self="true", after=1)["changes"]] == [B, C]
    # Anything but `true` is false.
    for value in ("false", "1", "TRUE", "yes", ""):
        assert [c["pk"] for c in phone.download(include_self=value)["changes"]] == [B]
    # A device that has seen nothing but its own changes is not sent over them again and again.
    assert phone.download()["next_after"] == 3
    assert phone.download(after=2)["next_after"] == 3


def test_the_source_comes_from_the_token_only(world: World) -> None:
    user = world.user()
    phone = world.handset(user)
    body = {
        "source_id": "laptop",
        "user_id": "somebody-else",
        "changes": [{**upsert(1, "users", A, name="a"), "schema": world.ns, "source_id": "laptop"}],
    }
    assert phone.call("POST", "/sync/upload", json=body).status_code == 200
    (found,) = world.handset(user, "laptop").download()["changes"]
    assert found["source_id"] == "phone"
    assert phone.download()["changes"] == []


@pytest.mark.parametrize("limit", [1, 2, 7, 20, 21, 1000])
def test_pages_of_any_size_give_the_same_log(world: World, limit: int) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    for number in range(1, 21):
        # Every third is the reader's own: pages are filled after these are left out.
        (laptop if number % 3 == 0 else phone).put(upsert(number, "notes", f"n{number:02}", body="b"))
    found = pages(laptop, limit=limit)
    others = [f"n{number:02}" for number in range(1, 21) if number % 3]
    assert [change["pk"] for page in found for change in page["changes"]] == others
    assert [len(page["changes"]) for page in found[:-1]] == [limit] * (len(found) - 1)
    assert len(found) == -(-len(others) // limit)
    assert {page["window_until"] for page in found} == {20}
    assert found[-1]["next_after"] == 20
    assert [change["pk"] for change in phone.log(limit)] == [f"n{number:02}" for number in range(1, 21)]


def test_there_is_more_only_if_there_is(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(*(upsert(n, "notes", f"n{n}", body="b") for n in range(1, 4)))
    assert [laptop.download(limit=n)["has_more"] for n in (1, 2, 3, 4)] == [True, True, False, False]
    page = laptop.download(limit=2)
    assert (page["next_after"], page["window_until"], page["max_server_id"]) == (2, 3, 3)
    # What follows in the window is the reader's own: nothing more for it.
    laptop.put(upsert(1, "notes", "mine", body="b"))
    page = laptop.download(limit=3)
    assert (page["has_more"], page["next_after"], page["window_until"]) == (False, 4, 4)


def test_a_window_stays_as_it_was_at_the_first_page(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(*(upsert(n, "notes", f"n{n}", body="b") for n in range(1, 6)))
    page = laptop.download(limit=2)
    window = page["window_until"]
    assert window == 5
    phone.put(*(upsert(n, "notes", f"n{n}", body="b") for n in range(6, 9)))
    rest = pages(laptop, limit=2, after=page["next_after"], until=window)
    assert [c["server_id"] for p in rest for c in p["changes"]] == [3, 4, 5]
    assert rest[-1]["next_after"] == window
    assert [p["window_until"] for p in rest] == [window] * len(rest)
    # Zero is the same as none: freeze now.
    assert laptop.download(after=5, until=0)["window_until"] == 8


def test_the_edges_of_a_window(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(*(upsert(n, "notes", f"n{n}", body="b") for n in range(1, 4)))

    def seen(**query: int) -> tuple[list[int], bool, int, int]:
        page = laptop.download(**query)
        ids = [change["server_id"] for change in page["changes"]]
        return ids, page["has_more"], page["next_after"], page["window_until"]

    assert seen(after=0, until=2) == ([1, 2], False, 2, 2)
    assert seen(after=1, until=2, limit=1) == ([2], False, 2, 2)
    assert seen(after=2, until=2) == ([], False, 2, 2)
    assert seen(after=3, until=1) == ([], False, 3, 1)
    # Beyond the end it is echoed, and the cursor doesn't run ahead of the log.
    assert seen(after=0, until=99) == ([1, 2, 3], False, 3, 99)
    assert seen(after=77) == ([], False, 77, 3)
    assert seen(after=(1 << 63) - 1) == ([], False, (1 << 63) - 1, 3)


@pytest.mark.parametrize(
    "query",
    [
        {"after": "-1"}, {"after": "x"}, {"after": "1.5"}, {"after": "9" * 19}, {"after": "9" * 5000},
        {"after": "²"}, {"limit": "0"}, {"limit": "-1"}, {"limit": "1001"}, {"limit": "10000"},
        {"limit": "x"}, {"until": "-5"}, {"until": "x"}, {"schema": "Invalid-Name"}, {"schema": "a.b"},
        {"schema": "a b"}, {"schema": "ä"}, {"after": " 1"}, {"after": "+1"}, {"after": "1_0"},
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(world: World, query: dict[str, str]) -> None:
    answer = world.handset().call("GET", "/sync/download", params=query)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] == "invalid_request"
    (name,) = query
    assert name in answer.json()["message"]


def test_a_schema_filters_and_keeps_the_numbers(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    with World(world.server, tables=["users (id UUID PRIMARY KEY, name TEXT)"]) as other:
        phone.put(upsert(1, "users", A, name="here"))
        phone.put({**upsert(2, "users", A, name="there"), "schema": other.ns})
        phone.put(upsert(3, "users", B, name="here too"))
        assert [c["server_id"] for c in laptop.download(schema=world.ns)["changes"]] == [1, 3]
        page = laptop.download(schema=other.ns)
        assert [(c["server_id"], c["schema"]) for c in page["changes"]] == [(2, other.ns)]
        assert (page["next_after"], page["window_until"], page["max_server_id"]) == (3, 3, 3)
        assert laptop.download(schema="nowhere")["changes"] == []
        assert len(laptop.download(schema="")["changes"]) == 3
        assert [page["has_more"] for page in pages(laptop, schema=world.ns, limit=1)] == [True, False]


def test_a_user_sees_nothing_of_another(world: World) -> None:
    one, two = world.handset(), world.handset()
    one.put(upsert(1, "users", A, name="one"))
    two.put(upsert(1, "users", A, name="two"), upsert(2, "users", B, name="b"))
    assert [c["payload"]["name"] for c in one.log()] == ["one"]
    # Each user's numbers are dense: 1, 2, 3 …
    assert [c["server_id"] for c in two.log()] == [1, 2]


def test_a_third_device_gets_the_whole_story_in_order(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(upsert(1, "users", A, name="1"))
    laptop.put(upsert(1, "users", A, 1, name="2"))
    phone.put(upsert(2, "posts", B, title="t", author=A))
    laptop.put(delete(2, "posts", B, 1))
    phone.put(delete(3, "users", A, 2))
    tablet = world.handset(user, "tablet")
    assert [
        (c["pk"], c["op"], c["server_version"], c["source_id"]) for c in tablet.download()["changes"]
    ] == [
        (A, "INSERT", 1, "phone"),
        (A, "UPDATE", 2, "laptop"),
        (B, "INSERT", 1, "phone"),
        (B, "DELETE", 2, "laptop"),
        (A, "DELETE", 3, "phone"),
    ]


def test_a_reader_beside_two_writers_never_skips(world: World) -> None:
    """What commits later never has a lower number than what was already read."""
    user = world.user()
    rounds, batch = 30, 5

    def write(source: str) -> None:
        device = world.handset(user, source)
        for number in range(rounds):
            first = number * batch + 1
            device.put(*(upsert(n, "notes", f"{source}-{n}", body="b") for n in range(first, first + batch)))

    reader, found, after = world.handset(user, "tablet"), [], 0
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, source) for source in ("phone", "laptop")]
        while not all(writer.done() for writer in writers):
            page = reader.download(after=after, limit=7)
            found += page["changes"]
            after = page["next_after"]
        for writer in writers:
            writer.result()
    for page in pages(reader, after=after, limit=7):
        found += page["changes"]
    assert [change["server_id"] for change in found] == list(range(1, 2 * rounds * batch + 1))
    for source in ("phone", "laptop"):
        own = [change["source_change_id"] for change in found if change["source_id"] == source]
        assert own == list(range(1, rounds * batch + 1))


def test_no_window_ever_shows_half_a_request(world: World) -> None:
    """A child without its parent can't be seen at the end of any window, whatever is being written."""
    user = world.user()
    phone, tablet = world.handset(user), world.handset(user, "tablet")

    def write() -> None:
        for number in range(40):
            parent, child = key(2 * number), key(2 * number + 1)
            phone.put(
                upsert(2 * number, "posts", child, title="t", author=parent),
                upsert(2 * number + 1, "users", parent, name="p"),
            )

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        while not writer.done():
            found = tablet.log()
            assert len(found) % 2 == 0
            seen: set[str] = set()
            for change in found:
                assert change["table"] == "users" or change["payload"]["author"] in seen
                seen.add(change["pk"])
        writer.result()


def test_a_dropped_table_leaves_the_log_without_gaps_for_others(world: World) -> None:
    with World(world.server, tables=["a (id TEXT PRIMARY KEY)", "b (id TEXT PRIMARY KEY)"]) as other:
        phone = other.handset()
        phone.put(upsert(1, "a", "1"), upsert(2, "b", "1"), upsert(3, "a", "2"))
        other.root.execute(f"DROP TABLE {other.ns}.a")
        assert [(c["table"], c["pk"]) for c in phone.log(1)] == [("b", "1")]
        assert phone.download(include_self="true")["next_after"] == 3
        (status,) = phone.upload(upsert(4, "a", "3"))
        assert status["invalid"]["reason"] == "unregistered_table"


def test_the_schema_version_is_a_setting(world: World) -> None:
    answer = world.handset().call("GET", "/sync/schema-version")
    assert (answer.status_code, answer.json()) == (200, {"schema_version": 1})
