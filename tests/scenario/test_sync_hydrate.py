"""`GET /sync/hydrate`: all live rows in pages, parents first, then the log goes on where that began.

Law under test: rows of the pages, then the log after `next_after`, is the server's state, whatever was
written meanwhile, and also over a restart of the server.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from upwell.device import Request, Response
from upwell.testing import ServerProcess
from upwell.testing.sync_world import World, delete, hydrated_rows, key, upsert
from upwell.testing.wire import Site

A, B, C, D, E = (key(number) for number in range(1, 6))


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


def folded(rows: list[dict[str, Any]], log: list[dict[str, Any]]) -> dict[str, tuple[int, Any]]:
    """Replay the log over hydrated rows: key → (version, payload)."""
    state = {row["pk"]: (row["server_version"], row["payload"]) for row in rows}
    for change in log:
        if change["server_version"] > state.get(change["pk"], (0, None))[0]:
            state[change["pk"]] = (change["server_version"], change["payload"])
    return {pk: found for pk, found in state.items() if found[1] is not None}


def test_nothing_yet(world: World) -> None:
    page = world.handset().hydrate_page()
    assert (page["tables"], page["has_more"], page["next_after"], page["next_change_id"]) == (
        [],
        False,
        0,
        1,
    )


def test_a_row_comes_as_it_is_now(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(
        upsert(1, "users", A, name="1"), upsert(2, "users", B, name="b"), upsert(3, "users", C, name="c")
    )
    laptop.put(upsert(4, "users", A, 1, name="2", email="e"), delete(5, "users", B, 1))
    rows, page = phone.hydrate()
    assert [(r["pk"], r["server_version"], r["payload"]) for r in rows] == [
        (A, 2, {"id": A, "name": "2", "email": "e"}),
        (C, 1, {"id": C, "name": "c"}),
    ]
    assert (page["next_after"], page["next_change_id"]) == (5, 4)
    assert laptop.hydrate_page()["next_change_id"] == 6
    assert world.handset(user, "tablet").hydrate_page()["next_change_id"] == 1
    assert page["stream_id"] == phone.download()["stream_id"]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 17, 1000])
@pytest.mark.parametrize("flushed", [False, True])
def test_pages_of_any_size_have_parents_first(world: World, limit: int, flushed: bool) -> None:
    phone = world.handset()
    users, posts, comments = ([key(k * 100 + n) for n in range(7)] for k in (3, 2, 1))
    phone.put(
        *(upsert(n, "users", users[n], name="u") for n in range(7)),
        *(upsert(10 + n, "posts", posts[n], title="t", author=users[-n]) for n in range(7)),
        *(upsert(20 + n, "comments", comments[n], post=posts[n], author=users[n]) for n in range(7)),
    )
    if flushed:
        world.flush()
        phone.put(upsert(40, "users", users[3], 1, name="hot"), delete(41, "comments", comments[0], 1))
    rows, page = phone.hydrate(limit)
    assert [row["pk"] for row in rows] == users + posts + comments[flushed:]
    assert page["next_change_id"] == (42 if flushed else 27)
    assert page["next_after"] == (23 if flushed else 21)
    assert phone.hydrate(limit, schema="nowhere")[0] == []


def test_a_page_is_lists_of_values_by_table(world: World) -> None:
    """Values in the form of payloads; a payload that columns can't give back comes whole."""
    user = world.user()
    phone = world.handset(user)
    thing = {"flag": 1, "small": -3, "number": 7, "big": 2**62, "real": 1.5, "text": "é", "doc": '{"a": 1}'}
    late = {"moment": "2026-01-02T03:04:05.000006Z", "ref": E, "data": "AAH/"}
    seconds = {**thing, **late, "moment": 1767323045}
    world.sql(
        user,
        f"INSERT INTO {{ns}}.things VALUES ('{B}', {', '.join(['NULL'] * 10)}), ('{A}', TRUE, -3, 7, {2**62},"
        f" 1.5, 'é', '2026-01-02T03:04:05.000006Z', '{E}', '{{{{\"a\": 1}}}}', '0001ff')",
    )
    phone.put(upsert(1, "things", C, **thing, **late), upsert(2, "things", D, **seconds))
    phone.put(upsert(3, "notes", "n", body="text"))
    columns = ["id", "flag", "small", "number", "big", "real", "text", "moment", "ref", "doc", "data"]
    whole = {"id": None, **thing, **late}
    page = phone.hydrate_page()
    assert page["tables"] == [
        {
            "schema": world.ns,
            "table": "notes",
            "columns": ["id", "body"],
            "rows": [["n", "text"]],
            "versions": [1],
        },
        {
            "schema": world.ns,
            "table": "things",
            "columns": columns,
            "rows": [
                [A, *(whole[name] for name in columns[1:])],
                [B, *[None] * 10],
                [C, *(whole[name] for name in columns[1:])],
                [D],
            ],
            "versions": [1, 1, 1, 1],
            "exact": {"3": {"id": D, **seconds}},
        },
    ]
    assert page["max_server_id"] == page["next_after"] == 5


def test_a_page_is_bounded_in_bytes(world: World) -> None:
    """Ten rows of a megabyte don't come at once."""
    user = world.user()
    for number in range(10):
        world.sql(user, f"INSERT INTO {{ns}}.notes VALUES ('{number}', '{'x' * 1_000_000}')")
    phone, counts, cursor = world.handset(user), [], ""
    while True:
        page = phone.hydrate_page(cursor=cursor)
        counts += [len(table["rows"]) for table in page["tables"]]
        cursor = page["cursor"]
        if not page["has_more"]:
            break
    assert counts == [3, 3, 3, 1]


def test_an_empty_key_is_a_row_like_any_other(world: World) -> None:
    user = world.user()
    world.sql(user, "INSERT INTO {ns}.notes VALUES ('', 'empty'), ('a', 'b')")
    assert [row["pk"] for row in world.handset(user).hydrate(1)[0]] == ["", "a"]


def test_what_is_written_between_pages_is_in_the_log(world: World) -> None:
    user = world.user()
    phone, laptop = world.handset(user), world.handset(user, "laptop")
    phone.put(*(upsert(n, "users", key(n), name="u") for n in range(10, 30)))
    writes = iter(
        [
            upsert(1, "users", key(1), name="before all"),
            upsert(2, "users", key(99), name="after all"),
            delete(3, "users", key(10), 1),
            delete(4, "users", key(29), 1),
            upsert(5, "users", key(20), 1, name="changed"),
            upsert(6, "posts", key(50), title="child", author=key(1)),
            delete(7, "users", key(99), 1),
        ]
    )

    def write() -> None:
        if (change := next(writes, None)) is not None:
            laptop.put(change)

    rows, page = phone.hydrate(3, between=write)
    assert next(writes, None) is None
    assert page["next_after"] == 20
    log = phone.log(after=page["next_after"])
    assert len(log) == 7
    fresh, _ = world.handset(user, "tablet").hydrate()
    assert folded(rows, log) == folded(fresh, [])
    # The own next id is of the last page's time.
    assert laptop.hydrate()[1]["next_change_id"] == 8


def test_a_hydration_goes_on_after_a_restart_and_a_flush(
    world: World, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    with World(server) as other:
        user = other.user()
        phone, laptop = other.handset(user), other.handset(user, "laptop")
        phone.put(*(upsert(n, "users", key(n), name="u") for n in range(1, 11)))
        first = page = phone.hydrate_page(limit=3)
        other.flush("users")
        laptop.put(upsert(1, "users", key(5), 1, name="later"), delete(2, "users", key(9), 1))
        server.restart()
        rows = hydrated_rows(first)
        while page["has_more"]:
            page = phone.hydrate_page(limit=3, cursor=page["cursor"])
            rows += hydrated_rows(page)
        assert [row["pk"] for row in rows] == [key(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10)]
        assert (page["next_after"], page["next_change_id"]) == (10, 11)
        assert page["stream_id"] == first["stream_id"]
        assert [change["server_id"] for change in phone.log(after=10)] == [11, 12]
    # On a server with another history the cursor means nothing: the device has to start again.
    answer = world.handset(user).call("GET", "/sync/hydrate", params={"cursor": first["cursor"]})
    assert (answer.status_code, answer.json()["error"]) == (409, "history_pruned")


@pytest.mark.parametrize(
    "cursor",
    [
        "garbage",
        "AAAA",
        "äöü",
        "k" * 4000,
        base64.urlsafe_b64encode(b"\x93\x01\x02\xa1x").decode(),
        "=",
        "{}",
    ],
)
def test_a_cursor_that_leads_nowhere_starts_the_hydration_again(world: World, cursor: str) -> None:
    answer = world.handset().call("GET", "/sync/hydrate", params={"cursor": cursor})
    assert (answer.status_code, answer.json()["error"]) == (409, "history_pruned")
    assert set(answer.json()) == {"error", "message"}


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "10001"}, {"limit": "x"}, {"schema": "No!"}])
def test_bad_parameters_are_refused(world: World, query: dict[str, str]) -> None:
    answer = world.handset().call("GET", "/sync/hydrate", params=query)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_the_next_change_id_covers_what_left_no_row(world: World) -> None:
    phone = world.handset()
    phone.put(upsert(1, "users", A, name="a"))
    phone.upload(delete(9, "users", B, 0))
    assert phone.hydrate_page()["next_change_id"] == 10
    # A refused change has used up nothing, a lower id lowers nothing.
    phone.upload(upsert(20, "posts", C, title="t", author=E))
    phone.put(upsert(3, "users", D, name="d"))
    assert phone.hydrate_page()["next_change_id"] == 10


def test_a_fresh_installation_is_whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory, user = tmp_path_factory.mktemp("phones"), world.user()
    phone = world.phone(directory, user)
    for number in range(30):
        phone.run("INSERT INTO users VALUES (?, ?, NULL)", key(number), f"user {number}")
        phone.run("INSERT INTO posts VALUES (?, 'post', ?)", key(100 + number), key(number))
    for number in range(5):
        phone.run("DELETE FROM posts WHERE author = ?", key(number))
        phone.run("DELETE FROM users WHERE id = ?", key(number))
    phone.device.sync()
    world.flush()
    phone.run("UPDATE users SET name = 'hot' WHERE id = ?", key(7))
    phone.device.sync()
    phone.check()
    before, used = phone.contents(), phone.device.status().next_change_id
    phone.device.close()

    again = world.phone(directory, user, name="again", is_source_given=True)
    report = again.device.hydrate(page_rows=4)
    assert (report.rows, report.requests > 12) == (50, True)
    assert again.contents() == before
    again.check()
    assert again.device.status().next_change_id == used
    again.run("UPDATE users SET name = 'edited' WHERE id = ?", key(7))
    assert again.device.sync().upload.applied == 1
    assert again.versions()[key(7)] == (3, 0)


def test_an_interrupted_hydration_starts_again_in_another_history(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, user = tmp_path_factory.mktemp("phones"), world.user()
    laptop = world.handset(user, "laptop")
    laptop.put(*(upsert(n, "users", key(n), name="u") for n in range(1, 11)))
    phone = world.phone(directory, user)

    def answer_of_another_history(request: Request, response: Response) -> Response:
        if len(phone.line.requests) != 2:
            return response
        refusal = world.handset(user).call("GET", "/sync/hydrate", params={"cursor": "of-another-history"})
        return Response(refusal.status_code, refusal.content)

    phone.line.edit = answer_of_another_history
    report = phone.device.hydrate(page_rows=3)
    assert [request.path for request in phone.line.requests] == ["/sync/hydrate"] * 6 + ["/sync/download"]
    assert report.rows == 3 + 10
    assert len(phone.contents()["users"]) == 10
    phone.check()


def test_a_row_with_the_longest_key_ends_a_page(world: World) -> None:
    """Cursors hold the key of a page's last row; a longer key is refused, and the device keeps its row."""
    phone = world.handset()
    keys = ["a" * 16_384, "ü" * 8_192, "z"]
    phone.put(*(upsert(n, "notes", key, body="b") for n, key in enumerate(keys, 1)))
    [refused] = phone.upload(upsert(9, "notes", "a" * 16_385, body="b"))
    assert refused["invalid"]["reason"] == "constraint_violation"
    rows, _ = phone.hydrate(limit=1)
    assert sorted(row["pk"] for row in rows) == sorted(keys)
