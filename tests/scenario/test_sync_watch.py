"""`GET /sync/watch` on a real server: server-sent events that say how far the user's log grew, and no more.

A stream is read by hand, byte by byte, as the format is written (HTML Living Standard, section 9.2).
"""

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from upwell.testing import ServerProcess, wait_until
from upwell.testing.sync_world import World, key, now_s, upsert
from upwell.testing.wire import Site

WAIT_S = 20.0


@pytest.fixture(scope="module")
def world(site: Site) -> Iterator[World]:
    """A namespace with synced tables."""
    with World(site.server) as world:
        yield world


class Stream:
    """One open event stream."""

    def __init__(self, server: ServerProcess, token: str, query: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        headers = {"Authorization": f"Bearer {token}"}
        self._connection.request("GET", f"/sync/watch{query}", headers=headers)
        self.response = self._connection.getresponse()

    def close(self) -> None:
        self.response.close()
        self._connection.close()

    def number(self) -> int:
        """Return the number of the next event, whose every byte is checked."""
        lines = [self.response.readline() for _ in range(3)]
        assert lines[0] == b"event: log\n", lines
        assert lines[2] == b"\n", lines
        data = json.loads(lines[1].removeprefix(b"data: "))
        assert set(data) == {"max_server_id"}
        assert isinstance(data["max_server_id"], int)
        return int(data["max_server_id"])

    def until(self, number: int) -> list[int]:
        """Return the numbers of the events up to this one."""
        seen = [self.number()]
        while seen[-1] < number:
            seen.append(self.number())
        return seen


@pytest.fixture
def watch(world: World) -> Iterator[Callable[..., Stream]]:
    """Open streams that are closed after the test."""
    streams: list[Stream] = []

    def opened(user: str, source: str = "phone", query: str = "", **claims: Any) -> Stream:
        streams.append(Stream(world.server, world.token(user, source, **claims), query))
        return streams[-1]

    yield opened
    for stream in streams:
        stream.close()


def test_a_stream_begins_with_where_the_log_is(world: World, watch: Callable[..., Stream]) -> None:
    user = world.user()
    stream = watch(user)
    assert stream.response.status == 200
    assert stream.response.headers["content-type"] == "text/event-stream"
    assert stream.response.headers["cache-control"] == "no-store"
    assert stream.number() == 0
    world.handset(user).put(upsert(1, "users", key(1), name="n"), upsert(2, "users", key(2), name="n"))
    assert stream.until(2)[-1] == 2
    assert watch(user).number() == 2
    assert watch(user, query="?after=1").number() == 2


def test_who_is_up_to_date_hears_only_of_what_is_new(world: World, watch: Callable[..., Stream]) -> None:
    user = world.user()
    phone = world.handset(user)
    phone.put(upsert(1, "users", key(1), name="n"))
    streams = [watch(user, query=f"?after={after}") for after in (1, 2)]
    phone.put(upsert(2, "users", key(2), name="n"))
    phone.put(upsert(3, "users", key(3), name="n"))
    assert streams[0].until(3) in ([2, 3], [3])
    assert streams[1].number() == 3


def test_other_devices_and_the_back_end_wake_a_stream(world: World, watch: Callable[..., Stream]) -> None:
    name, alice = world.account()
    stranger = world.user()
    stream, of_stranger = watch(name, query="?after=0"), watch(stranger, query="?after=0")
    world.handset(name, "tablet").put(upsert(1, "users", key(1), name="n"))
    assert stream.number() == 1
    world.sql(name, f"INSERT INTO {{ns}}.users (id, name) VALUES ('{key(2)}', 'as user')")
    assert stream.number() == 2
    alice.run(f"UPDATE {world.ns}.users SET name = 'own' WHERE id = '{key(2)}'")
    assert stream.number() == 3
    world.handset(stranger).put(upsert(1, "users", key(1), name="n"))
    assert of_stranger.number() == 1


def test_many_streams_of_many_users_hear_all_of_their_own(world: World, watch: Callable[..., Stream]) -> None:
    users = [world.user() for _ in range(20)]
    streams = [[watch(user, source) for source in ("phone", "tablet")] for user in users]
    for count, user in enumerate(users, 1):
        world.handset(user).put(*[upsert(n, "users", key(n), name="n") for n in range(1, count + 1)])
    for count, pair in enumerate(streams, 1):
        for stream in pair:
            assert stream.until(count)[-1] == count


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "%20", "9223372036854775808"])
def test_after_is_a_number(world: World, after: str) -> None:
    answer = world.handset().call("GET", f"/sync/watch?after={after}")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_a_stream_ends_with_its_token(world: World, watch: Callable[..., Stream]) -> None:
    stream = watch(world.user(), exp=now_s() + 2)
    assert stream.number() == 0
    assert b"event" not in stream.response.read()


def test_a_stream_ends_when_the_server_stops(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4", "UPWELL_WATCH_STREAMS_MAX": "2"})
    with World(server) as world:
        streams = [Stream(server, world.token("a", source)) for source in ("phone", "tablet")]
        refused = world.handset().call("GET", "/sync/watch")
        assert (refused.status_code, refused.json()["error"]) == (503, "too_many_streams")
        assert set(refused.json()) == {"error", "message"}
        assert [stream.number() for stream in streams] == [0, 0]
        streams.pop().close()
        _wait_room(server, world)
    assert server.terminate() == 0
    with closing(streams[0]) as stream:
        assert stream.response.read() == b""
    assert "Traceback" not in server.log_text(), server.log_tail()
    assert "timeout graceful shutdown exceeded" not in server.log_text()


def _wait_room(server: ServerProcess, world: World) -> None:
    """Wait until the server has noticed that a device went away."""

    def has_room() -> bool:
        with closing(Stream(server, world.token("b", "phone"))) as stream:
            return stream.response.status == 200

    wait_until(has_room, timeout_s=WAIT_S, what="room for another stream")
