"""The WebSocket by the byte (RFC 6455): what is a message, what ends a socket and how, and that bad company
harms nobody: a neighbour on the same server goes on writing and being told.
"""

import contextlib
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from upwell.testing import ServerProcess
from upwell.testing.websocket import BINARY, CLOSE, LIVE, PING, PONG, TEXT, Frame, Socket, Watched
from upwell.testing.wire import Site, Wire

CONTINUATION = 0x0
MESSAGE_BYTES_MAX = 1024 * 1024
GARBAGE_SEED, GARBAGE_SOCKETS = 6455, 120
# Where a server must have stopped to take in a message that doesn't end.
ENDLESS_BYTES_MAX = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of its own, since bad company fills its log."""
    directory = tmp_path_factory.mktemp("websocket") / "data"
    env = {
        "UPWELL_BCRYPT_COST": "4",
        "UPWELL_AUTH_ATTEMPTS_PER_S_MAX": "1000000",
        "UPWELL_WS_MESSAGES_PER_S_MAX": "1000000",
    }
    with ServerProcess(directory, env=env) as server:
        site = Site(server)
        yield site
        site.close()


class Neighbour:
    """Somebody else on the same server, who writes and is told of it."""

    def __init__(self, site: Site, wire: Wire) -> None:
        self._wire = wire
        self._count = 0
        self._table = f"{site.namespace()}.notes"
        site.root.run(f"CREATE TABLE {self._table} (id BIGINT PRIMARY KEY) WITH (TYPE = 'USER')")
        self.socket = Socket(wire.port, wire.token)
        self._watched = Watched(self.socket, f"SELECT * FROM {self._table}", options={}).snapshot()

    def exchange(self, times: int = 1) -> None:
        """Write a row and be told of exactly it."""
        for _ in range(times):
            self._count += 1
            self._wire.run(f"INSERT INTO {self._table} VALUES ({self._count})")
            self.socket.send(Frame(PING))
            assert self._watched.change() == ("insert", str(self._count))


@pytest.fixture
def neighbour(site: Site) -> Iterator[Neighbour]:
    """A neighbour, who has to be well at the end of each test too."""
    found = Neighbour(site, site.account()[1])
    yield found
    found.exchange()
    found.socket.close()


@pytest.fixture(scope="module")
def unanswered(site: Site) -> Iterator[Socket]:
    """A socket that was told a close and never answered it."""
    with Socket(site.server.port, site.root.token) as socket:
        socket.send(Frame(TEXT, b"{"))
        frame = socket.frame()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, (1011).to_bytes(2))
        yield socket


@pytest.fixture
def opened(alice: Wire) -> Iterator[Socket]:
    """A socket of somebody signed in."""
    with Socket(alice.port, alice.token) as opened:
        yield opened


def question(name: str = "none", **more: Any) -> bytes:
    """Return a message that is answered by one error frame, which names `name`."""
    return json.dumps({"type": "next_batch", "subscription_id": name, **more}, ensure_ascii=False).encode()


def answered(opened: Socket, name: str = "none") -> None:
    """Check that the next message is the answer to `question`."""
    error = opened.message("error")
    assert (error["subscription_id"], error["code"]) == (name, "BATCH_FETCH_FAILED")


def closing(code: int, reason: bytes = b"") -> Frame:
    return Frame(CLOSE, code.to_bytes(2) + reason)


# Messages and frames


@pytest.mark.usefixtures("unanswered")
def test_a_close_that_is_not_answered_begins(neighbour: Neighbour) -> None:
    """How it ends is the last test of this file, so that nobody waits for it."""
    neighbour.exchange()


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 1000])
def test_a_message_in_many_frames_with_pings_between(opened: Socket, chunk_bytes: int) -> None:
    text = question("grüße 🌊")
    assert "🌊".encode() in text, "characters are cut through"
    pieces = [text[start : start + chunk_bytes] for start in range(0, len(text), chunk_bytes)]
    for number, piece in enumerate(pieces):
        opcode = CONTINUATION if number else TEXT
        opened.send(
            Frame(opcode, piece, final=False), Frame(PING, b"ping %d" % number), Frame(PONG, b"unasked")
        )
        assert opened.frame() == Frame(PONG, b"ping %d" % number, masked=False)
    opened.send(Frame(CONTINUATION, b"", final=True))
    answered(opened, "grüße 🌊")


@pytest.mark.parametrize("cut", range(4))
def test_every_kind_of_character_in_one_frame_or_cut_through(opened: Socket, cut: int) -> None:
    """The first and last characters of each length, and code points that are no characters, are text."""
    points = (
        0x7F,
        0x80,
        0x7FF,
        0x800,
        0xD7FF,
        0xE000,
        0xFDD0,
        0xFFFD,
        0xFFFE,
        0xFFFF,
        0x10000,
        0x1FFFF,
        0x10FFFF,
    )
    for point in points:
        name = f"n{chr(point)}"
        text = question(name)
        at = text.index(chr(point).encode()) + cut
        opened.send(Frame(TEXT, text[:at], final=False), Frame(CONTINUATION, text[at:]))
        answered(opened, name)


def test_bytes_one_at_a_time(opened: Socket) -> None:
    for byte in Frame(TEXT, question("slow")).encoded():
        opened.tcp.sendall(bytes([byte]))
    answered(opened, "slow")
    for byte in Frame(PING, b"slow").encoded():
        opened.tcp.sendall(bytes([byte]))
    assert opened.frame() == Frame(PONG, b"slow", masked=False)


def test_many_messages_in_one_piece(opened: Socket) -> None:
    opened.send(*(Frame(TEXT, question(f"n{number}")) for number in range(30)))
    for number in range(30):
        answered(opened, f"n{number}")


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x80\x7f\xfe"])
def test_any_mask(opened: Socket, mask: bytes) -> None:
    text = question("masked")
    assert len(text) < 126
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
    opened.tcp.sendall(bytes([0x80 | TEXT, 0x80 | len(text)]) + mask + masked)
    answered(opened, "masked")


@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_a_ping_is_answered_with_its_payload(opened: Socket, size: int) -> None:
    payload = bytes(range(256))[-size:] if size else b""
    opened.send(Frame(PONG, b"nobody asked"), Frame(PING, payload))
    assert opened.frame() == Frame(PONG, payload, masked=False)


def test_each_of_many_pings_is_answered_in_order(opened: Socket) -> None:
    opened.send(*(Frame(PING, b"%d" % number) for number in range(100)))
    assert [opened.frame().payload for _ in range(100)] == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("size", [125, 126, 127, 65_535, 65_536, MESSAGE_BYTES_MAX])
def test_messages_of_every_length_form(opened: Socket, size: int) -> None:
    padding = size - len(question(more=""))
    text = question(more="x" * padding)
    assert len(text) == size
    opened.send(Frame(TEXT, text))
    answered(opened)


@pytest.mark.parametrize("frames", [1, 5])
def test_an_oversize_message_is_refused_and_the_socket_goes_on(opened: Socket, frames: int) -> None:
    text = question(more="x" * MESSAGE_BYTES_MAX)
    piece = len(text) // frames + 1
    for number in range(frames):
        part = text[number * piece : (number + 1) * piece]
        opened.send(Frame(CONTINUATION if number else TEXT, part, final=number == frames - 1))
    error = opened.message("error")
    assert (error["subscription_id"], error["code"]) == ("protocol", "MESSAGE_TOO_LARGE")
    opened.send(Frame(TEXT, question()))
    answered(opened)


@pytest.mark.parametrize("frames", [1, 3])
def test_binary_is_refused_and_the_socket_goes_on(opened: Socket, frames: int) -> None:
    opened.send(
        *(Frame(CONTINUATION if n else BINARY, b"\x81\xa4", final=n == frames - 1) for n in range(frames)),
        Frame(TEXT, question()),
    )
    error = opened.message("error")
    assert error["code"] == "UNSUPPORTED_DATA"
    answered(opened)


# What ends a socket

_BROKEN = {
    "not masked": [Frame(TEXT, b"{}", masked=False)],
    "a ping not masked": [Frame(PING, b"", masked=False)],
    "reserved bit 1": [Frame(TEXT, question(), reserved=4)],
    "reserved bit 2": [Frame(TEXT, question(), reserved=2)],
    "reserved bit 3": [Frame(TEXT, question(), reserved=1)],
    "reserved bit of a ping": [Frame(PING, b"", reserved=4)],
    "reserved bit of a continuation": [Frame(TEXT, b"{", final=False), Frame(CONTINUATION, b"}", reserved=4)],
    **{f"opcode {code:x}": [Frame(code, b"x")] for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "opcode 3 within a message": [Frame(TEXT, b"{", final=False), Frame(3, b"")],
    "a ping in parts": [Frame(PING, b"a", final=False)],
    "a close in parts": [Frame(CLOSE, b"\x03\xe8", final=False)],
    "a ping of 126 bytes": [Frame(PING, b"x" * 126)],
    "a close of 126 bytes": [closing(1000, b"x" * 124)],
    "nothing to continue": [Frame(CONTINUATION, b"}")],
    "text within text": [Frame(TEXT, b"{", final=False), Frame(TEXT, b"}")],
    "binary within text": [Frame(TEXT, b"{", final=False), Frame(BINARY, b"}")],
    "a close of one byte": [Frame(CLOSE, b"\x03")],
    **{
        f"close code {code}": [closing(code)]
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_violation_of_the_protocol_is_1002(opened: Socket, neighbour: Neighbour, name: str) -> None:
    opened.send(Frame(TEXT, question()))
    answered(opened)
    opened.send(*_BROKEN[name])
    assert opened.closed()[0] == 1002


_NO_UTF8 = {
    "a lone continuation": b"\x80",
    "an overlong slash": b"\xc0\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "cut off": b"\xf0\x9f\x8c",
    "never valid": b"\xff",
}


@pytest.mark.parametrize("name", _NO_UTF8)
@pytest.mark.parametrize("way", ["one frame", "two frames", "close"])
def test_invalid_utf8_is_1007(opened: Socket, neighbour: Neighbour, name: str, way: str) -> None:
    bad = _NO_UTF8[name]
    match way:
        case "one frame":
            opened.send(Frame(TEXT, b'{"type":"' + bad + b'"}'))
        case "two frames":
            half = len(bad) // 2 or 1
            opened.send(Frame(TEXT, b'{"type":"' + bad[:half], final=False))
            opened.send(Frame(CONTINUATION, bad[half:] + b'"}'))
        case _:
            opened.send(closing(1000, b"reason " + bad))
    assert opened.closed()[0] == 1007


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
def test_a_close_is_echoed(opened: Socket, code: int) -> None:
    opened.send(closing(code, "auf Wiedersehen 🌊".encode()), Frame(TEXT, question()), Frame(PING, b"late"))
    assert opened.closed()[0] == code, "and what came after it is not answered"


def test_a_close_without_a_code_is_echoed(opened: Socket) -> None:
    opened.send(Frame(CLOSE))
    assert opened.closed()[0] in (None, 1000)


def test_a_close_within_a_message(opened: Socket) -> None:
    opened.send(Frame(TEXT, b'{"type"', final=False), closing(1000))
    # Whether that is a clean end the RFC leaves open.
    assert opened.closed()[0] in (1000, 1002)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"7", b"[]", b"{}", b'{"type":"nope"}', b'{"type":"subscribe"}', b"\0", b"NaN"],
)
def test_what_is_no_message_is_1011(opened: Socket, neighbour: Neighbour, text: bytes) -> None:
    opened.send(Frame(TEXT, text))
    code, reason = opened.closed()
    assert code == 1011
    assert 0 < len(reason) <= 123
    assert b"Traceback" not in reason


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_frame_that_claims_to_be_huge(opened: Socket, neighbour: Neighbour, size: int) -> None:
    opened.send(Frame(TEXT, b"x", size=size))
    # With the highest bit set the length itself is a violation (5.2), however large it is.
    assert opened.closed()[0] in ((1009,) if size < 1 << 63 else (1002, 1009))


def test_a_message_that_never_ends(alice: Wire, neighbour: Neighbour) -> None:
    with Socket(alice.port, alice.token) as endless:
        piece, sent = Frame(CONTINUATION, b"x" * (1 << 20), final=False), 0
        endless.send(Frame(TEXT, b"{", final=False))
        with contextlib.suppress(OSError):
            while sent < ENDLESS_BYTES_MAX:
                endless.send(piece)
                sent += 1 << 20
        assert sent < ENDLESS_BYTES_MAX, "the server has had enough"
    neighbour.exchange(5)


def test_before_the_sign_in_the_rules_are_the_same(alice: Wire, neighbour: Neighbour) -> None:
    for frames, code in (
        ([Frame(TEXT, b"{", reserved=4)], 1002),
        ([Frame(TEXT, b"\xff")], 1007),
        ([Frame(TEXT, b"{")], 1011),
        ([closing(1000)], 1000),
        ([Frame(TEXT, b"x", size=1 << 40)], 1009),
    ):
        with Socket(alice.port) as opened:
            opened.send(Frame(PING, b"first"))
            assert opened.frame() == Frame(PONG, b"first", masked=False)
            opened.send(*frames)
            assert opened.closed()[0] == code


# How a connection ends


def drained(opened: Socket) -> None:
    """Take frames until the server hangs up."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            opened.frame()


def test_a_half_closed_connection_is_closed(alice: Wire, neighbour: Neighbour) -> None:
    for said in ([], [Frame(TEXT, question())], [Frame(TEXT, b"{", final=False)]):
        with Socket(alice.port, alice.token) as opened:
            opened.tcp.sendall(b"".join(frame.encoded() for frame in said))
            opened.tcp.sendall(Frame(TEXT, b"never whole").encoded()[:5])
            opened.tcp.shutdown(socket.SHUT_WR)
            drained(opened)
            opened.ended()
        neighbour.exchange()


def test_a_reset_in_the_middle(alice: Wire, neighbour: Neighbour) -> None:
    for cut in range(0, len(Frame(TEXT, question()).encoded()), 7):
        opened = Socket(alice.port, alice.token)
        opened.tcp.sendall(Frame(TEXT, question()).encoded()[:cut])
        opened.reset()
        neighbour.exchange()


# Before the upgrade

_GARBAGE = {
    "nothing": b"",
    "zeros": bytes(1000),
    "noise": bytes(random.Random(1).randbytes(5000)),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "frames": Frame(TEXT, b"{}").encoded() * 10,
    "a line without an end": b"GET /v1/ws?" + b"x" * 300_000,
    "a header without an end": b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 300_000,
    "headers without an end": b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 50_000,
    "a bad header": b"GET /v1/ws HTTP/1.1\r\nHost: a\r\n: \r\nno colon\r\n\r\n",
    "half a request": b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nUpgrade: webso",
}


@pytest.mark.parametrize("name", _GARBAGE)
def test_garbage_in_place_of_an_upgrade(alice: Wire, neighbour: Neighbour, name: str) -> None:
    """It is answered with an error or not at all, and the connection ends."""
    with Socket(alice.port, upgrade=False) as opened, contextlib.suppress(ConnectionError):
        opened.tcp.sendall(_GARBAGE[name])
        neighbour.exchange()
        opened.tcp.shutdown(socket.SHUT_WR)
        found = b"".join(iter(lambda: opened.tcp.recv(65_536), b""))
        assert found == b"" or found.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505")), found


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({"Sec_WebSocket_Version": "8"}, {400, 426}),
        ({"Sec_WebSocket_Version": ""}, {400, 426}),
        ({"Sec_WebSocket_Key": ""}, {400}),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, {400}),
        ({"Sec_WebSocket_Key": "no base64 at all"}, {400}),
        ({"Upgrade": ""}, {400, 404, 405, 426}),
        ({"Upgrade": "h2c"}, {400, 404, 405, 426}),
        ({"Connection": "keep-alive"}, {400, 404, 405, 426}),
    ],
)
def test_an_upgrade_that_is_none(
    alice: Wire, neighbour: Neighbour, headers: dict[str, str], statuses: set[int]
) -> None:
    with Socket(alice.port, alice.token, upgrade=False) as opened:
        opened.tcp.sendall(opened.request(**headers))
        answer = opened.answer()
        assert answer.status in statuses, answer


@pytest.mark.parametrize(
    "headers",
    [
        {"Upgrade": "WebSocket"},
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Sec_WebSocket_Extensions": ""},
        {"Origin": "http://elsewhere.example"},
        {"X_Long": "x" * 4000},
    ],
)
def test_an_upgrade_in_other_words(alice: Wire, headers: dict[str, str]) -> None:
    with Socket(alice.port, alice.token, upgrade=False) as opened:
        opened.tcp.sendall(opened.request(**headers))
        opened.upgraded()
        opened.message("auth_success")


def test_a_slow_upgrade_delays_nobody(alice: Wire, neighbour: Neighbour) -> None:
    with Socket(alice.port, alice.token, upgrade=False) as slow:
        for number, byte in enumerate(slow.request()):
            slow.tcp.sendall(bytes([byte]))
            if number % 40 == 0:
                neighbour.exchange()
        slow.upgraded()
        slow.message("auth_success")


# Bad company


def garbage(chance: random.Random) -> bytes:
    """Return noise, or frames with something wrong in them."""
    match chance.randrange(3):
        case 0:
            return chance.randbytes(chance.randint(1, 3000))
        case 1:
            whole = bytearray(Frame(TEXT, question(more="x" * chance.randint(0, 300))).encoded())
            for _ in range(chance.randint(1, 4)):
                whole[chance.randrange(len(whole))] = chance.randrange(256)
            return bytes(whole)
        case _:
            return b"".join(
                Frame(
                    chance.randrange(16),
                    chance.randbytes(chance.randint(0, 200)),
                    final=chance.random() < 0.7,
                    reserved=chance.choice((0, 0, 0, 1, 4)),
                ).encoded()
                for _ in range(chance.randint(1, 8))
            )


def test_garbage_after_the_upgrade_harms_nobody(alice: Wire, neighbour: Neighbour) -> None:
    """Whatever is sent: what comes back is well-formed, the connection ends, and the neighbour goes on."""
    for number in range(GARBAGE_SOCKETS):
        chance = random.Random(GARBAGE_SEED * 1000 + number)
        token = alice.token if number % 4 else None
        with Socket(alice.port, token) as opened:
            with contextlib.suppress(OSError):
                opened.tcp.sendall(garbage(chance))
                opened.tcp.shutdown(socket.SHUT_WR)
            drained(opened)
        neighbour.exchange()


def flood(opened: Socket, piece: bytes, bytes_max: int) -> int:
    """Send a piece again and again without reading, until it is taken no more; return how many whole ones."""
    opened.tcp.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < bytes_max:
            sent += opened.tcp.send(piece[sent % len(piece) :])
    opened.tcp.settimeout(20.0)
    return sent // len(piece)


def test_one_who_asks_but_does_not_read(site: Site, neighbour: Neighbour) -> None:
    """Its questions wait; when it reads again, each has its answer."""
    _, wire = site.account()
    with Socket(wire.port, wire.token, receive_bytes=4096) as deaf:
        piece = Frame(TEXT, question("deaf"), masked=True).encoded()
        count = flood(deaf, piece, 4_000_000)
        neighbour.exchange(50)
        for _ in range(count):
            answered(deaf, "deaf")
    neighbour.exchange()


def test_one_who_is_told_but_does_not_read(site: Site, alice: Wire, neighbour: Neighbour) -> None:
    """Snapshots and changes of megabytes for one who takes none, who then leaves without a word."""
    table = f"{site.namespace()}.long"
    site.root.run(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE = 'USER')")
    for key in range(20):
        alice.run(f"INSERT INTO {table} VALUES ({key}, $1)", "x" * 100_000)
    with Socket(alice.port, alice.token, path=f"{LIVE}?compress=false", receive_bytes=4096) as deaf:
        for number in range(20):
            subscription = {"id": f"s{number}", "sql": f"SELECT * FROM {table}", "options": {}}
            deaf.say(type="subscribe", subscription=subscription)
        neighbour.exchange(20)
        for key in range(20, 40):
            alice.run(f"INSERT INTO {table} VALUES ({key}, $1)", "x" * 100_000)
            neighbour.exchange()
        deaf.reset()
    neighbour.exchange(5)


def test_the_server_hangs_up_on_one_who_does_not_answer_a_close(unanswered: Socket) -> None:
    unanswered.ended()
