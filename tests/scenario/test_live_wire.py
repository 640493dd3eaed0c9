"""The wire of live queries beside plain JSON: MessagePack, gzip, limits, system.live, KILL, a pruned log.

What a frame holds is read by msgspec and zlib, never by Upwell's own decoders.
"""

import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Self

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import upwell.client
from upwell.client import LiveError
from upwell.testing import ServerProcess, wait_until
from upwell.testing.wire import Site, Wire

WAIT_S = 20.0
MAGIC = b"\x1f\x8b"
LONG = "all the same words again and " * 40
SETTINGS = {
    "UPWELL_BCRYPT_COST": "4",
    "UPWELL_LOG_RETENTION_S": "1",
    "UPWELL_LOG_TRIM_INTERVAL_S": "0.2",
    "UPWELL_WS_MESSAGES_PER_S_MAX": "20",
    "UPWELL_WS_SUBSCRIPTIONS_PER_USER_MAX": "3",
}


class Peer:
    """A socket that remembers in what form each frame came."""

    def __init__(self, wire: Wire, query: str = "", *, by_header: bool = True) -> None:
        headers = {"Authorization": f"Bearer {wire.token}"} if by_header else {}
        self.socket: ClientConnection = connect(
            f"ws://127.0.0.1:{wire.port}/v1/ws{query}",
            additional_headers=headers,
            compression=None,
            ping_interval=None,
            close_timeout=1,
            legacy=True,
        )
        self.forms: list[str] = []
        self.is_packed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        self.socket.close()

    def welcome(self) -> dict[str, str]:
        """Take the welcome, which is JSON text whatever was negotiated; return what is in force."""
        text = self.socket.recv(WAIT_S)
        assert isinstance(text, str)
        frame = json.loads(text)
        assert frame["type"] == "auth_success", frame
        protocol: dict[str, str] = frame["protocol"]
        self.is_packed = protocol["serialization"] == "msgpack"
        return protocol

    def say(self, *, packed: bool = False, **frame: Any) -> None:
        self.socket.send(msgspec.msgpack.encode(frame) if packed else json.dumps(frame))

    def subscribe(self, sql: str, *, id: str = "s", packed: bool = False, **options: Any) -> None:  # noqa: A002
        subscription = {"id": id, "sql": sql, "options": options}
        self.say(packed=packed, type="subscribe", subscription=subscription)

    def frame(self, kind: str) -> dict[str, Any]:
        data = self.socket.recv(WAIT_S)
        found = self._read(data)
        assert found["type"] == kind, found
        return found

    def error(self) -> tuple[str, str, str]:
        """Return an error, which is JSON text whatever was negotiated."""
        frame = self.frame("error")
        assert self.forms[-1] == "text"
        return frame["subscription_id"], frame["code"], frame["message"]

    def closed(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as caught:
            self.socket.recv(WAIT_S)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason

    def _read(self, data: str | bytes) -> dict[str, Any]:
        form = "text" if isinstance(data, str) else "gzip" if data.startswith(MAGIC) else "binary"
        self.forms.append(form)
        if isinstance(data, bytes) and form == "gzip":
            data = _unpacked(data)
        is_packed = self.is_packed and form != "text"
        found: dict[str, Any] = msgspec.msgpack.decode(data) if is_packed else json.loads(data)
        return found


def _unpacked(data: bytes) -> bytes:
    """Unpack exactly one gzip member, as decoders do that know of no second."""
    stream = zlib.decompressobj(wbits=31)
    raw = stream.decompress(data)
    assert stream.eof
    assert stream.unused_data == b""
    assert len(raw) >= 512
    assert len(data) < len(raw)
    return raw


@pytest.fixture
def notes(namespace: str, root: Wire) -> str:
    """A fresh USER table of two columns."""
    name = f"{namespace}.notes"
    root.run(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE = 'USER')")
    return name


@pytest.mark.parametrize(
    ("query", "serialization", "compression"),
    [
        ("", "json", "gzip"),
        ("?compress=false", "json", "none"),
        ("?compression=none", "json", "none"),
        ("?serialization=msgpack", "msgpack", "gzip"),
        ("?compression=none&serialization=msgpack", "msgpack", "none"),
        ("?serialization=msgpack&compress=false", "msgpack", "none"),
        ("?serialization=xml&other=1", "json", "gzip"),
    ],
)
def test_the_address_negotiates_with_the_header(
    alice: Wire, query: str, serialization: str, compression: str
) -> None:
    with Peer(alice, query) as peer:
        assert peer.welcome() == {"serialization": serialization, "compression": compression}


@pytest.mark.parametrize("query", ["", "?compress=false", "?serialization=msgpack"])
def test_the_message_negotiates_for_itself(alice: Wire, query: str) -> None:
    may_gzip = query != "?compress=false"
    packed = {"serialization": "msgpack", "compression": "gzip"}
    plain = {"serialization": "json", "compression": "none"}
    for asked, in_force in (
        (packed, packed if may_gzip else {**packed, "compression": "none"}),
        (plain, plain),
        (None, {"serialization": "json", "compression": "gzip" if may_gzip else "none"}),
    ):
        with Peer(alice, query, by_header=False) as peer:
            protocol = {} if asked is None else {"protocol": asked}
            peer.say(type="authenticate", method="jwt", token=alice.token, **protocol)
            assert peer.welcome() == in_force


def test_every_form_tells_the_same(alice: Wire, notes: str) -> None:
    alice.run(f"INSERT INTO {notes} VALUES (1, 'short'), (2, $1)", LONG)
    queries = ("?compress=false", "", "?serialization=msgpack&compress=false", "?serialization=msgpack")
    peers = [Peer(alice, query) for query in queries]
    try:
        for peer in peers:
            peer.welcome()
            peer.subscribe(f"SELECT * FROM {notes}", batch_size=1, id="é" * 200)
        found = [[peer.frame("subscription_ack"), peer.frame("initial_data_batch")] for peer in peers]
        for peer, frames in zip(peers, found, strict=True):
            peer.say(type="next_batch", subscription_id="é" * 200)
            frames.append(peer.frame("initial_data_batch"))
        alice.run(f"INSERT INTO {notes} VALUES (3, 'c')")
        alice.run(f"UPDATE {notes} SET body = $1 WHERE id = 3", LONG)
        alice.run(f"DELETE FROM {notes} WHERE id = 3")
        for peer, frames in zip(peers, found, strict=True):
            frames += [peer.frame("change") for _ in range(3)]
        plain = found[0]
        assert found[1:] == [plain, plain, plain]
        assert [row["body"] for frame in plain[1:3] for row in frame["rows"]] == ["short", LONG]
        assert [frame["change_type"] for frame in plain[3:]] == ["insert", "update", "delete"]
        assert [set(frame) & {"rows", "old_values"} for frame in plain[3:]] == [
            {"rows"}, {"rows", "old_values"}, {"old_values"},
        ]  # fmt: skip
        assert set(peers[0].forms) == {"text"}
        assert set(peers[2].forms) == {"binary"}
        for peer in (peers[1], peers[3]):
            # Frames 3, 5 and 6 hold the long body; what is short stays as it is.
            assert [peer.forms[at] for at in (2, 4, 5)] == ["gzip"] * 3
    finally:
        for peer in peers:
            peer.socket.close()


def test_short_frames_are_never_compressed(alice: Wire, notes: str) -> None:
    with Peer(alice) as peer, Peer(alice, "?serialization=msgpack") as packed:
        for each in (peer, packed):
            each.welcome()
            each.subscribe(f"SELECT id FROM {notes}")
            each.frame("subscription_ack")
            each.frame("initial_data_batch")
        alice.run(f"INSERT INTO {notes} VALUES (1, 'a')")
        assert peer.frame("change") == packed.frame("change")
        assert (peer.forms[1:], packed.forms[1:]) == (["text"] * 2, ["binary"] * 2)


def test_packed_frames_of_a_client(alice: Wire, notes: str) -> None:
    with Peer(alice, "?serialization=msgpack") as peer:
        peer.welcome()
        peer.subscribe(f"SELECT * FROM {notes}", packed=True)
        peer.frame("subscription_ack")
        peer.frame("initial_data_batch")
        peer.subscribe(f"SELECT * FROM {notes}_nope", id="text too")
        assert peer.error()[:2] == ("text too", "NOT_FOUND")
        asked = msgspec.msgpack.encode({"type": "next_batch", "subscription_id": "s", "last_seq_id": "17"})
        peer.socket.send(gzip.compress(asked))
        assert peer.error()[:2] == ("s", "BATCH_FETCH_FAILED")
        peer.socket.send(gzip.compress(b"\0" * (8 << 20)))
        too_large = ("protocol", "MESSAGE_TOO_LARGE", "Message too large (maximum 1048576 bytes)")
        assert peer.error() == too_large
        peer.socket.send(b"\xda" + b"\0" * (1 << 20))
        assert peer.error() == too_large
        alice.run(f"INSERT INTO {notes} VALUES (1, 'a')")
        assert peer.frame("change")["rows"][0]["id"] == "1"
        peer.socket.send(b"\xc1")
        code, reason = peer.closed()
        assert code == 1011
        assert reason.startswith("MessagePack")


@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
def test_wrong_options_are_told_by_an_error_and_the_socket_lives_on(
    alice: Wire, notes: str, *, packed: bool
) -> None:
    """What was there under that id ends with it, as with every error."""
    options: list[dict[str, Any]] = [
        {"batch_size": -1},
        {"batch_size": 1 << 63},
        {"batch_size": "ten"},
        {"batch_size": 2, "last_rows": 3},
        {"last_rows": -1},
        {"from": 1.5},
        {"view": "perhaps"},
    ]
    with Peer(alice, "?serialization=msgpack" if packed else "") as peer:
        peer.welcome()
        peer.subscribe(f"SELECT * FROM {notes}", id="fence")
        peer.frame("subscription_ack")
        peer.frame("initial_data_batch")
        for wrong in options:
            peer.subscribe(f"SELECT * FROM {notes}", packed=packed)
            peer.frame("subscription_ack")
            peer.frame("initial_data_batch")
            peer.subscribe(f"SELECT * FROM {notes}", packed=packed, **wrong)
            id, code, message = peer.error()  # noqa: A001
            assert (id, code) == ("s", "UNSUPPORTED")
            assert next(reversed(wrong)) in message
        peer.say(packed=packed, type="subscribe", subscription={"id": " ", "sql": 7})
        assert peer.error()[:2] == ("invalid_subscription", "UNSUPPORTED")
        alice.run(f"INSERT INTO {notes} VALUES (1, 'a')")
        assert peer.frame("change")["subscription_id"] == "fence"


def test_binary_frames_are_refused_in_json_mode(alice: Wire, notes: str) -> None:
    with Peer(alice) as peer:
        peer.welcome()
        peer.say(packed=True, type="ping")
        assert peer.error() == ("protocol", "UNSUPPORTED_DATA", "Binary not supported")
        peer.subscribe(f"SELECT * FROM {notes}")
        peer.frame("subscription_ack")


def _live(wire: Wire) -> list[dict[str, Any]]:
    answer = wire.run("SELECT * FROM system.live ORDER BY live_id")
    names = [name for name, _ in answer.columns]
    return [dict(zip(names, row, strict=True)) for row in answer.rows]


def test_live_queries_are_listed_by_role_and_vanish_with_their_socket(site: Site, notes: str) -> None:
    (ann, anns), (ben, bens) = site.account(), site.account()
    _, dba = site.account("dba")
    sql = f"SELECT * FROM {notes} WHERE id > 0"
    with Peer(anns) as first:
        second = Peer(bens)
        for peer in (first, second):
            peer.welcome()
            peer.subscribe(sql, id="mine", batch_size=7)
            peer.frame("subscription_ack")
            peer.frame("initial_data_batch")
        anns.run(f"INSERT INTO {notes} VALUES (1, 'a')")
        first.frame("change")
        [own] = _live(anns)
        namespace, table = notes.split(".")
        connection = own["connection_id"]
        assert {
            name: own[name] for name in own if name not in ("created_at", "last_update", "last_ping_at")
        } == {
            "live_id": f"{ann}-{connection}-mine",
            "connection_id": connection,
            "subscription_id": "mine",
            "namespace_id": namespace,
            "table_name": table,
            "user_id": ann,
            "query": sql,
            "options": '{"batch_size":7}',
            "status": "active",
            "changes": "1",
            "node_id": "1",
        }
        assert own["created_at"] <= own["last_update"]
        assert [row["user_id"] for row in _live(bens)] == [ben]
        assert {ann, ben} <= {row["user_id"] for row in _live(dba)}
        assert anns.run(f"EXECUTE AS USER '{ann}' (SELECT user_id FROM system.live)").rows == [[ann]]
        # An abrupt drop: a reset instead of a goodbye.
        second.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        second.socket.socket.close()
        wait_until(lambda: not _live(bens), timeout_s=WAIT_S, what="the dropped socket's entry is gone")
        assert len(_live(anns)) == 1
        first.say(type="unsubscribe", subscription_id="mine")
        wait_until(lambda: not _live(anns), timeout_s=WAIT_S, what="the ended subscription's entry is gone")


def test_kill_ends_a_live_query_and_says_so(site: Site, notes: str) -> None:
    (_, anns), (_, bens) = site.account(), site.account()
    _, dba = site.account("dba")
    sql = f"SELECT * FROM {notes}"
    with Peer(anns, "?serialization=msgpack") as peer:
        peer.welcome()
        for name in ("one", "two", "three"):
            peer.subscribe(sql, id=name)
            peer.frame("subscription_ack")
            peer.frame("initial_data_batch")
        ids = {row["subscription_id"]: row["live_id"] for row in _live(anns)}
        for hidden in (ids["one"], "nobody-c0-s"):
            text = bens.sql(f"KILL LIVE QUERY '{hidden}'").refused(400, "SQL_EXECUTION_ERROR")
            assert f"Not found: live query '{hidden}'" in text
        for wire, name in ((anns, "one"), (dba, "two")):
            killed = wire.run(f"KILL LIVE QUERY '{ids[name]}'").message
            assert killed == f"Live query killed: {ids[name]}"
            text = "The live query was ended by KILL LIVE QUERY"
            assert peer.error() == (name, "SUBSCRIPTION_KILLED", text)
        assert [row["subscription_id"] for row in _live(anns)] == ["three"]
        anns.run(f"INSERT INTO {notes} VALUES (1, 'a')")
        assert peer.frame("change")["subscription_id"] == "three"
        peer.subscribe(sql, id="one")
        peer.frame("subscription_ack")
    assert "in quotes" in site.root.sql("KILL LIVE QUERY").refused(400, "INVALID_SQL")


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with a short log and low limits."""
    with ServerProcess(tmp_path_factory.mktemp("tight") / "data", env=SETTINGS) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


@pytest.fixture
def short(tight: Site) -> str:
    """A USER table on the server with a short log."""
    name = f"{tight.namespace()}.notes"
    tight.root.run(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE = 'USER')")
    return name


def _trimmed(wire: Wire) -> None:
    wait_until(
        lambda: wire.run("SELECT count(*) FROM system.changes").cell == "0",
        timeout_s=WAIT_S,
        what="the log is trimmed",
    )


def test_a_resume_from_below_the_floor_is_told_so(tight: Site, short: str) -> None:
    _, wire = tight.account()
    wire.run(f"INSERT INTO {short} VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    cursor = int(wire.run(f"SELECT _seq FROM {short} WHERE id = 1").cell)
    wire.run(f"DELETE FROM {short} WHERE id = 2")
    _trimmed(wire)
    with Peer(wire) as peer:
        peer.welcome()
        peer.subscribe(f"SELECT * FROM {short}", batch_size=1, **{"from": cursor})
        name, code, message = peer.error()
        assert (name, code) == ("s", "HISTORY_PRUNED")
        assert message.endswith("subscribe again without `from`")
        assert _live(wire) == []
        peer.subscribe(f"SELECT * FROM {short}")
        peer.frame("subscription_ack")
        assert [row["id"] for row in peer.frame("initial_data_batch")["rows"]] == ["1", "3"]


def test_a_snapshot_that_is_read_too_slowly_is_told_so(tight: Site, short: str) -> None:
    _, wire = tight.account()
    wire.run(f"INSERT INTO {short} VALUES (1, 'a'), (2, 'b')")
    with Peer(wire) as peer:
        peer.welcome()
        peer.subscribe(f"SELECT * FROM {short}", batch_size=1)
        peer.frame("subscription_ack")
        assert peer.frame("initial_data_batch")["batch_control"]["has_more"]
        wire.run(f"INSERT INTO {short} VALUES (3, 'c')")
        wire.run(f"DELETE FROM {short} WHERE id = 2")
        # What memory has of the log is forgotten with the old columns.
        tight.root.run(f"ALTER TABLE {short} ADD COLUMN more TEXT")
        _trimmed(wire)
        peer.say(type="next_batch", subscription_id="s")
        assert peer.frame("initial_data_batch")["batch_control"]["status"] == "ready"
        assert peer.error()[:2] == ("s", "HISTORY_PRUNED")
        assert _live(wire) == []


def test_the_client_says_that_its_cursor_is_too_old(tight: Site, short: str) -> None:
    _, wire = tight.account()
    wire.run(f"INSERT INTO {short} VALUES (1, 'a')")
    cursor = int(wire.run(f"SELECT _seq FROM {short}").cell)
    wire.run(f"UPDATE {short} SET body = 'b' WHERE id = 1")
    _trimmed(wire)
    with upwell.client.connect(tight.server.url, token=wire.token) as client:
        with pytest.raises(LiveError) as caught:
            client.live(f"SELECT * FROM {short}", from_seq=cursor).snapshot()
        assert caught.value.code == "HISTORY_PRUNED"
        [change] = client.live(f"SELECT * FROM {short}").snapshot()
        assert change.row["body"] == "b"


def test_who_asks_too_fast_is_refused_and_may_go_on(tight: Site, short: str) -> None:
    _, wire = tight.account()
    with Peer(wire) as peer:
        peer.welcome()
        for _ in range(200):
            peer.say(type="ping")
        refusal = ("rate_limit", "RATE_LIMIT_EXCEEDED", "Too many messages")
        assert peer.error() == refusal
        subscription = {"id": "s", "sql": f"SELECT * FROM {short}"}
        answers = set()
        while "subscription_ack" not in answers:
            peer.say(type="subscribe", subscription=subscription)
            answers.add(json.loads(_text(peer.socket.recv(WAIT_S)))["type"])
        assert answers == {"error", "subscription_ack"}


def _text(data: str | bytes) -> str:
    return data if isinstance(data, str) else gzip.decompress(data).decode()


def test_a_user_has_so_many_live_queries_on_all_sockets_together(tight: Site, short: str) -> None:
    (_, wire), (_, other) = tight.account(), tight.account()
    sql = f"SELECT * FROM {short}"
    peers = [Peer(wire) for _ in range(3)]
    try:
        for peer in peers:
            peer.welcome()
            peer.subscribe(sql)
            peer.frame("subscription_ack")
            peer.frame("initial_data_batch")
        first = peers[0]
        first.subscribe(sql, id="more")
        assert first.error() == ("more", "SUBSCRIPTION_LIMIT_EXCEEDED", "Maximum subscriptions reached")
        first.subscribe(sql)  # in place of the one of this id
        first.frame("subscription_ack")
        first.frame("initial_data_batch")
        with Peer(other) as free:
            free.welcome()
            free.subscribe(sql)
            free.frame("subscription_ack")
        peers[1].socket.close()
        wait_until(lambda: len(_live(wire)) == 2, timeout_s=WAIT_S, what="the closed socket's entry is gone")
        first.subscribe(sql, id="more")
        first.frame("subscription_ack")
    finally:
        for peer in peers:
            peer.socket.close()
