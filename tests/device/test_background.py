"""The background loop of a device: it syncs by itself, survives every failure, and ends when told to."""

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from upwell.device import Device, NotSignedIn, NotSynced, Pace, Response, Unreachable
from upwell.testing import wait_until
from upwell.testing.sync_server import FakeTransport
from upwell.testing.sync_watch import WatchedServer

WAIT_S_MAX = 20.0
QUICK = Pace(edit_poll_s=0.005, poll_s=3600.0, backoff_min_s=0.005, backoff_max_s=0.02)


@pytest.fixture
def server() -> WatchedServer:
    return WatchedServer(references={"posts": {"author_id": "users"}})


class Looks:
    """A clock that counts who looks at it, and may go on by that alone: `step_s` at each look."""

    def __init__(self, step_s: float | None = None) -> None:
        self.count = 0
        self._step_s = step_s

    def __call__(self) -> float:
        self.count += 1
        return time.monotonic() if self._step_s is None else self.count * self._step_s


def eventually(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, timeout_s=WAIT_S_MAX, what=what)


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("upwell"))


def names(phone: Any) -> dict[str, str]:
    return dict(phone.run("SELECT id, name FROM users"))


def test_two_devices_converge_after_edits_on_both_sides(install: Any, server: WatchedServer) -> None:
    phones = [install(name, pace=QUICK) for name in ("phone", "laptop")]
    for phone in phones:
        phone.device.start()
    for index in range(20):
        phones[index % 2].run("INSERT INTO users (id, name) VALUES (?, ?)", f"u{index}", f"n{index}")
    server.write("users", "web", {"id": "web", "name": "web", "email": None, "created_at": None})
    wanted = {f"u{index}": f"n{index}" for index in range(20)} | {"web": "web"}
    for phone in phones:
        eventually(lambda phone=phone: names(phone) == wanted, "all rows on each device")
    assert {pk: row["name"] for pk, row in server.live("users").items()} == wanted
    phones[0].run("DELETE FROM users WHERE id = 'u3'")
    eventually(lambda: names(phones[1]) == {k: v for k, v in wanted.items() if k != "u3"}, "the deletion")


def test_an_edit_of_any_connection_is_sent(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    phone.device.start()
    with sqlite3.connect(phone.path) as other:
        other.execute("INSERT INTO users (id, name) VALUES ('shell', 'x')")
    other.close()
    eventually(lambda: set(server.live("users")) == {"shell"}, "the row on the server")


def test_an_idle_loop_sends_nothing(install: Any, server: WatchedServer) -> None:
    looks = Looks()
    phone = install(pace=QUICK, now=looks)
    other = install("laptop")
    phone.device.start()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    other.run("INSERT INTO users (id, name) VALUES ('b', 'x')")
    other.device.sync()
    eventually(lambda: set(names(phone)) == {"a", "b"} and not phone.pending(), "both rows")
    phone.device.wait_until_synced(WAIT_S_MAX)
    sent = len(phone.wire.requests)
    # A commit that is no edit of a synced table, too.
    phone.run("CREATE TABLE diary (line TEXT)")
    seen = looks.count
    eventually(lambda: looks.count > seen + 100, "a hundred looks at the clock")
    assert len(phone.wire.requests) == sent


def test_offline_then_online(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    phone.device.start()
    phone.device.wait_until_synced(WAIT_S_MAX)
    server.is_down = True
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    eventually(lambda: "server is down" in (phone.device.status().last_error or ""), "an error")
    status = phone.device.status()
    assert (status.pending, status.is_running, server.live("users")) == (1, True, {})
    server.is_down = False
    eventually(lambda: set(server.live("users")) == {"a"}, "the edit on the server")
    eventually(lambda: phone.device.status().last_error is None, "no error any more")
    server.write("users", "b", {"id": "b", "name": "web"})
    eventually(lambda: set(names(phone)) == {"a", "b"}, "the server's row, told by a new stream")


def test_a_refusal_is_told_and_tried_again_and_loses_nothing(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    phone.wire.refuse = Response(401, b'{"error":"authentication_failed","message":"token has expired"}')
    phone.device.start()
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    eventually(lambda: "token has expired" in (phone.device.status().last_error or ""), "the refusal")
    tries = len(phone.wire.requests)
    eventually(lambda: len(phone.wire.requests) >= tries + 3, "more tries")
    assert phone.pending() == {"a": ("INSERT", 0)}
    phone.wire.refuse = None
    eventually(lambda: set(server.live("users")) == {"a"}, "the edit on the server")


def test_a_server_without_the_watch_path_is_polled(install: Any, server: WatchedServer) -> None:
    server.has_watch = False
    phone = install(pace=Pace(edit_poll_s=0.005, poll_s=0.02, backoff_min_s=0.005, backoff_max_s=0.02))
    phone.device.start()
    phone.device.wait_until_synced(WAIT_S_MAX)
    server.write("users", "b", {"id": "b", "name": "web"})
    eventually(lambda: set(names(phone)) == {"b"}, "the server's row")
    assert phone.device.status().last_error is None
    eventually(lambda: server.opened >= 3, "the stream to be asked for again")


def test_a_transport_without_streams_is_polled(install: Any, server: WatchedServer) -> None:
    phone = install(is_signed_in=False)
    phone.device.close()
    wire = FakeTransport(server, "phone")
    pace = Pace(edit_poll_s=0.005, poll_s=0.02)
    with Device.open(phone.path, schema="app", tables=["users"], dial=lambda url: wire, pace=pace) as device:
        device.sign_in("fake:", "ada", token="e30.eyJkaWQiOiJwaG9uZSJ9.x")
        device.start()
        assert threads() == ["upwell-sync"]
        server.write("users", "b", {"id": "b", "name": "web"})
        eventually(
            lambda: device.connection.execute("SELECT id FROM users").fetchall() == [("b",)], "the row"
        )
    assert threads() == []


def test_a_broken_stream_is_opened_again(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    phone.device.start()
    for number in range(3):
        eventually(lambda number=number: server.opened > number and server.listeners, "a stream")
        server.cut()
        eventually(lambda number=number: server.opened > number + 1 and server.listeners, "another")
        server.write("users", f"u{number}", {"id": f"u{number}", "name": "web"})
        eventually(lambda number=number: len(names(phone)) == number + 1, "the row")


def test_a_resolver_that_raises_does_not_end_the_loop(install: Any, server: WatchedServer) -> None:
    def resolver(conflict: Any) -> Any:
        raise ZeroDivisionError("a mistake of the app")

    phone = install(pace=QUICK, resolver=resolver)
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'mine')")
    server.write("users", "a", {"id": "a", "name": "theirs"})
    phone.device.start()
    eventually(lambda: phone.device.status().last_error == "a mistake of the app", "the mistake in status")
    server.write("users", "b", {"id": "b", "name": "web"})
    assert phone.device.status().is_running
    assert phone.pending() == {"a": ("INSERT", 0)}


def test_start_needs_a_sign_in_and_sign_out_stops(install: Any, server: WatchedServer) -> None:
    phone = install(is_signed_in=False, pace=QUICK)
    with pytest.raises(NotSignedIn):
        phone.device.start()
    with pytest.raises(NotSignedIn):
        phone.device.wait_until_synced()
    phone.device.close()
    assert threads() == []
    phone = install(pace=QUICK)
    phone.device.start()
    phone.device.start()
    assert threads() == ["upwell-sync", "upwell-watch"]
    assert phone.device.status().is_running
    phone.device.sign_out()
    assert threads() == []
    assert not phone.device.status().is_running
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    assert phone.pending() == {"a": ("INSERT", 0)}


def test_it_can_be_stopped_and_started_again(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    for number in range(3):
        phone.device.start()
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{number}")
        phone.device.wait_until_synced(WAIT_S_MAX)
        phone.device.stop()
        phone.device.stop()
        assert threads() == []
        assert len(server.live("users")) == number + 1
    phone.device.start()
    phone.device.close()
    assert threads() == []


@pytest.mark.parametrize("is_running", [True, False])
def test_wait_until_synced_means_all_of_both_sides(
    install: Any, server: WatchedServer, is_running: bool
) -> None:
    phone = install(pace=QUICK, upload_limit=2)
    if is_running:
        phone.device.start()
    for number in range(7):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{number}")
    server.write("users", "web", {"id": "web", "name": "web"})
    phone.device.wait_until_synced(WAIT_S_MAX)
    assert set(server.live("users")) == {f"u{number}" for number in range(7)} | {"web"}
    assert set(names(phone)) == set(server.live("users"))
    status = phone.device.status()
    assert (status.pending, status.is_running) == (0, is_running)


@pytest.mark.parametrize("is_running", [True, False])
def test_wait_until_synced_outlasts_an_unreachable_server(
    install: Any, server: WatchedServer, is_running: bool
) -> None:
    phone = install(pace=QUICK, now=time.monotonic if is_running else Looks(step_s=0.001))
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    server.is_down = True
    if is_running:
        phone.device.start()
        eventually(lambda: phone.device.status().last_error, "a failure")
    with pytest.raises(
        NotSynced, match=r"not synced after 0\.05 s: the server is down; pending: users a"
    ) as raised:
        phone.device.wait_until_synced(0.05)
    assert isinstance(raised.value.__cause__, Unreachable)
    waiter = threading.Thread(target=phone.device.wait_until_synced, args=(WAIT_S_MAX,))
    waiter.start()
    server.is_down = False
    waiter.join()
    assert set(server.live("users")) == {"a"}


def test_wait_until_synced_names_what_the_server_refuses(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK, now=Looks(step_s=1.0))
    phone.run("PRAGMA foreign_keys = OFF")
    phone.run("INSERT INTO posts (id, title, author_id) VALUES ('p', 't', 'nobody')")
    with pytest.raises(NotSynced, match=r"pending: posts p \(fk_missing\)"):
        phone.device.wait_until_synced(100.0)
    assert phone.pending() == {"p": ("INSERT", 0)}


def test_what_is_quarantined_is_not_waited_for(install: Any, server: WatchedServer) -> None:
    server.batch_limit = 0
    phone = install(pace=QUICK)
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'x')")
    phone.wire.refuse = Response(413, b'{"error":"payload_too_large","message":"too large"}')
    phone.device.upload()
    assert phone.device.status().quarantined == 1
    phone.wire.refuse = None
    phone.device.wait_until_synced(WAIT_S_MAX)
    assert server.live("users") == {}


def test_an_edit_made_while_waiting_is_not_waited_for(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    phone.run("INSERT INTO users (id, name) VALUES ('a', 'n')")

    def edit(request: Any) -> None:
        if request.path == "/sync/upload":
            phone.wire.on_send = None
            server.known_tables = set()
            phone.run("INSERT INTO users (id, name) VALUES ('later', 'x')")

    phone.wire.on_send = edit
    phone.device.wait_until_synced(WAIT_S_MAX)
    assert set(server.live("users")) == {"a"}
    assert set(phone.pending()) == {"later"}


def test_lag_and_last_synced_at(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    status = phone.device.status()
    assert (status.lag, status.last_synced_at) == (0, None)
    phone.device.start()
    phone.device.wait_until_synced(WAIT_S_MAX)
    assert (phone.device.status().last_synced_at or "").endswith("+00:00")
    refusal = Response(503, b"busy")
    phone.wire.refuse = refusal
    for number in range(4):
        server.write("users", f"u{number}", {"id": f"u{number}", "name": "web"})
    eventually(lambda: phone.device.status().lag == 4, "the lag")
    phone.wire.refuse = None
    eventually(lambda: phone.device.status().lag == 0, "no lag")


def test_a_foreground_call_and_the_loop_take_turns(install: Any, server: WatchedServer) -> None:
    phone = install(pace=QUICK)
    phone.device.start()
    for number in range(30):
        phone.run("INSERT INTO users (id, name) VALUES (?, 'x')", f"u{number}")
        phone.device.sync()
        assert f"u{number}" in server.live("users")
    assert isinstance(phone.device, Device)
    assert len(server.live("users")) == len(server.log) == 30
