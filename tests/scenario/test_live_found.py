"""What people who tried the wire of live queries found, each in its smallest form."""

import contextlib
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.websocket import PING, PONG, TEXT, Frame, Socket, Watched
from upwell.testing.wire import Site, Wire

LONG_OPERANDS, TURNS_MIN = 3000, 10
PINGS_BYTES = 24_000_000
BLOCKED_S = 1.0


def rss_bytes(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(kilobytes) * 1024


def test_pongs_for_one_who_does_not_read_are_bounded(start_server: Callable[..., ServerProcess]) -> None:
    """Not even signed in: either its pings are taken no more, or not each of them is answered (5.5.3)."""
    server = start_server(env={"UPWELL_WS_AUTH_TIMEOUT_S": "60"})
    piece = Frame(PING, b"x" * 125).encoded() * 100
    with Socket(server.port, receive_bytes=4096) as deaf:
        deaf.tcp.settimeout(BLOCKED_S)
        before_bytes, sent = rss_bytes(server), 0
        with contextlib.suppress(OSError):
            while sent < PINGS_BYTES:
                sent += deaf.tcp.send(piece[sent % len(piece) :])
        assert rss_bytes(server) - before_bytes < PINGS_BYTES // 3


def test_a_server_names_the_version_that_it_understands(alice: Wire) -> None:
    """RFC 6455, 4.2.2: an answer to another version has a Sec-WebSocket-Version field, whatever status."""
    with Socket(alice.port, alice.token, upgrade=False) as opened:
        opened.tcp.sendall(opened.request(Sec_WebSocket_Version="8"))
        answer = opened.answer()
        assert answer.status in (400, 426)
        assert answer.headers.get("sec-websocket-version") == "13"


def test_an_upgrade_without_a_host_is_refused(alice: Wire) -> None:
    """RFC 6455, 4.2.1 and RFC 9112, 3.2."""
    with Socket(alice.port, alice.token, upgrade=False) as opened:
        opened.tcp.sendall(opened.request(Host=""))
        assert opened.answer().status == 400


@pytest.mark.parametrize("text", [b"\xff", b'{"type":"\xc3'])
def test_bytes_of_a_client_are_no_failure_of_the_server(
    start_server: Callable[..., ServerProcess], text: bytes
) -> None:
    """Invalid UTF-8 is the client's fault: a traceback for each such frame lets anybody fill the log."""
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    site = Site(server)
    for token in (None, site.root.token):
        with Socket(server.port, token) as opened:
            opened.send(Frame(TEXT, text))
            assert opened.closed()[0] == 1007
    site.close()
    assert "Traceback" not in server.log_text()
    assert [line for line in server.log_lines() if line["level"] == "error"] == []


@pytest.fixture
def items(root: Wire, namespace: str) -> str:
    """A fresh USER table."""
    root.run(f"CREATE TABLE {namespace}.items (id BIGINT PRIMARY KEY, n INT) WITH (TYPE = 'USER')")
    return f"{namespace}.items"


def test_a_long_query_of_one_holds_up_nobody(alice: Wire, items: str) -> None:
    """While its text is read, which takes a second, others are served."""
    sql = f"SELECT * FROM {items} WHERE " + " OR ".join(["(n = 1)"] * LONG_OPERANDS)
    with Socket(alice.port, alice.token) as talker, Socket(alice.port, alice.token) as other:
        talker.say(type="subscribe", subscription={"id": "s", "sql": sql, "options": {}})
        turns = 0
        while not select.select([talker.tcp], [], [], 0)[0]:
            other.send(Frame(PING, b"%d" % turns))
            assert other.frame() == Frame(PONG, b"%d" % turns, masked=False)
            turns += 1
        assert "at most 1000 are allowed" in talker.message("error")["message"]
        assert turns >= TURNS_MIN


def test_who_is_refused_under_a_name_has_nothing_under_it(alice: Wire, items: str) -> None:
    """An error with its id ends a live query: what it was before doesn't go on beside that."""
    with Socket(alice.port, alice.token) as socket:
        Watched(socket, f"SELECT * FROM {items}", id="a", options={}).snapshot()
        fence = Watched(socket, f"SELECT * FROM {items}", id="fence", options={}).snapshot()
        for sql in (
            f"SELECT nope FROM {items}",
            f"SELECT * FROM {items} WHERE 1 / (n - n) = 1 AND 1 / 0 = 1",
        ):
            socket.say(type="subscribe", subscription={"id": "a", "sql": sql, "options": {}})
            assert socket.message("error")["subscription_id"] == "a"
        alice.run(f"INSERT INTO {items} VALUES (1, 1)")
        assert socket.message("change")["subscription_id"] == "fence"
        alice.run(f"INSERT INTO {items} VALUES (2, 1)")
        assert fence.change() == ("insert", "2")
        assert alice.run("SELECT COUNT(*) FROM system.live").cell == "1"
