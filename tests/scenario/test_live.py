"""Live queries on a real server: the socket's contract frame by frame, and what the client makes of it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import upwell.client
from upwell.client import Change, LiveTable
from upwell.testing import ServerProcess
from upwell.testing.wire import Site, Wire

WAIT_S = 20.0
StartServer = Callable[..., ServerProcess]


class Live:
    """A bare WebSocket: frames as the wire has them."""

    def __init__(self, port: int, token: str | None = None, path: str = "/v1/ws?compress=false") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._open = connect(
            f"ws://127.0.0.1:{port}{path}",
            additional_headers=headers,
            compression=None,
            ping_interval=None,
            close_timeout=1,
        )
        self.socket: ClientConnection = self._open.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def say(self, **frame: Any) -> None:
        self.socket.send(json.dumps(frame))

    def subscribe(self, sql: str, *, id: str = "s", **options: Any) -> None:  # noqa: A002
        self.say(type="subscribe", subscription={"id": id, "sql": sql, "options": options})

    def frame(self, kind: str | None = None) -> dict[str, Any]:
        """Return the next frame, which must be of this type."""
        text = self.socket.recv(WAIT_S)
        assert isinstance(text, str), "JSON frames are text"
        frame: dict[str, Any] = json.loads(text)
        assert kind in (None, frame["type"]), frame
        return frame

    def error(self) -> tuple[str, str, str]:
        frame = self.frame("error")
        return frame["subscription_id"], frame["code"], frame["message"]

    def closed(self) -> tuple[int, str]:
        """Return code and reason of the close, which must be the next that happens."""
        with pytest.raises(ConnectionClosed) as caught:
            self.socket.recv(WAIT_S)
        assert caught.value.rcvd is not None, "the server says why it closes"
        return caught.value.rcvd.code, caught.value.rcvd.reason


def live(wire: Wire) -> Live:
    """Open a socket for the account of `wire` and take its welcome."""
    opened = Live(wire.port, wire.token)
    opened.frame("auth_success")
    return opened


@pytest.fixture
def notes(namespace: str, site: Site) -> str:
    """A fresh USER table of three columns."""
    name = f"{namespace}.notes"
    site.root.run(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, kind TEXT, size INT) WITH (TYPE = 'USER')")
    return name


def test_sign_in_by_header_comes_unasked(site: Site) -> None:
    user, wire = site.account()
    with Live(wire.port, wire.token) as opened:
        assert opened.frame() == {
            "type": "auth_success",
            "user": user,
            "role": "user",
            "protocol": {"serialization": "json", "compression": "none"},
        }


def test_sign_in_by_message_and_again(site: Site, alice: Wire) -> None:
    with Live(alice.port) as opened:
        for _ in range(2):
            protocol = {"serialization": "msgpack", "compression": "gzip"}
            opened.say(type="authenticate", method="jwt", token=alice.token, protocol=protocol)
            welcome = opened.frame("auth_success")
            assert welcome["protocol"] == {"serialization": "msgpack", "compression": "none"}


@pytest.mark.parametrize("way", ["header", "message"])
def test_a_bad_token_is_refused_and_the_socket_closed(site: Site, way: str) -> None:
    with Live(site.server.port, "not-a-token" if way == "header" else None) as opened:
        if way == "message":
            opened.say(type="authenticate", method="jwt", token="not-a-token")
        assert opened.frame() == {"type": "auth_error", "message": "Invalid credentials"}
        assert opened.closed() == (1008, "Authentication failed")


def test_a_device_token_opens_no_live_query(site: Site, alice: Wire) -> None:
    token = alice.call("POST", "/v1/api/auth/device", {"device": "phone"}).json["token"]
    with Live(site.server.port, token) as opened:
        opened.frame("auth_error")
        assert opened.closed() == (1008, "Authentication failed")


def test_nothing_is_subscribed_before_the_sign_in(site: Site) -> None:
    with Live(site.server.port) as opened:
        opened.say(type="ping")
        opened.subscribe("SELECT * FROM system.users", id="early")
        assert opened.error()[:2] == ("early", "AUTH_REQUIRED")


def test_other_paths_have_no_socket(site: Site) -> None:
    with pytest.raises(InvalidStatus) as caught:
        Live(site.server.port, path="/v1/other")
    assert caught.value.response.status_code == 404


def test_silence_is_not_waited_for(start_server: StartServer) -> None:
    server = start_server(env={"UPWELL_WS_AUTH_TIMEOUT_S": "0.2", "UPWELL_WS_CLIENT_TIMEOUT_S": "2"})
    with Live(server.port) as opened:
        assert opened.frame() == {
            "type": "auth_error",
            "message": "Authentication timeout - no auth message received within 0.2 seconds",
        }
        assert opened.closed() == (1008, "Authentication timeout")
    with upwell.client.connect(server.url, user="root", password=server.root_password) as client:
        token = client.login()
    with Live(server.port, token) as silent, Live(server.port, token) as lively:
        for opened in (silent, lively):
            opened.frame("auth_success")
        while silent.socket.close_code is None:
            # A WebSocket ping is a sign of life as good as a message.
            assert lively.socket.ping().wait(WAIT_S)
        assert silent.closed() == (1000, "Heartbeat timeout")
        lively.say(type="authenticate", token=token)
        lively.frame("auth_success")


def test_what_cannot_be_read(alice: Wire) -> None:
    with live(alice) as opened:
        opened.socket.send(b"\x81\xa4type\xa4ping")
        assert opened.error() == ("protocol", "UNSUPPORTED_DATA", "Binary not supported")
        opened.socket.send(json.dumps({"type": "ping", "more": "x" * (1 << 20)}))
        assert opened.error()[:2] == ("protocol", "MESSAGE_TOO_LARGE")
        opened.socket.send("{not json")
        code, reason = opened.closed()
        assert code == 1011
        assert reason.startswith("JSON is malformed")


def test_refused_subscriptions_leave_the_socket_usable(root: Wire, alice: Wire, notes: str) -> None:
    root.run(f"CREATE TABLE {notes}_inner (id BIGINT PRIMARY KEY) WITH (TYPE = 'SHARED')")
    with live(alice) as opened:
        opened.subscribe(f"SELECT * FROM {notes}", id="  ")
        assert opened.error()[:2] == ("invalid_subscription", "INVALID_SUBSCRIPTION_ID")
        for sql, code in {
            f"SELECT * FROM {notes}_nope": "NOT_FOUND",
            "SELECT * FROM notes": "INVALID_SQL",
            f"SELECT COUNT(*) FROM {notes}": "INVALID_SQL",
            f"SELECT * FROM {notes} LIMIT 3": "INVALID_SQL",
            f"DELETE FROM {notes}": "INVALID_SQL",
            f"SELECT * FROM {notes}_inner": "UNAUTHORIZED",
        }.items():
            opened.subscribe(sql)
            assert opened.error()[:2] == ("s", code), sql
        opened.subscribe(f"SELECT * FROM {notes}", batch_size=5, last_rows=6)
        assert opened.error() == (
            "s",
            "UNSUPPORTED",
            "last_rows (6) cannot exceed batch_size (5); paginated last_rows replay is not supported",
        )
        opened.say(type="next_batch", subscription_id="s")
        assert opened.error()[:2] == ("s", "BATCH_FETCH_FAILED")
        opened.subscribe(f"SELECT * FROM {notes}")
        opened.frame("subscription_ack")
        assert opened.frame("initial_data_batch")["batch_control"]["status"] == "ready"


def test_a_socket_has_at_most_a_hundred_subscriptions(alice: Wire, notes: str) -> None:
    sql = f"SELECT * FROM {notes}"
    with live(alice) as opened:
        for number in range(100):
            opened.say(type="subscribe", subscription={"id": f"s{number}", "sql": sql})
            opened.frame("subscription_ack")
        opened.subscribe(sql, id="more")
        text = "Invalid operation: Maximum subscriptions (100) per connection exceeded"
        assert opened.error() == ("more", "UNSUPPORTED", text)
        opened.subscribe(sql, id="s7")
        opened.frame("subscription_ack")
        opened.frame("initial_data_batch")
        alice.run(f"INSERT INTO {notes} VALUES (1, 'a', 1)")
        told = [opened.frame("change")["subscription_id"] for _ in range(100)]
        assert sorted(told) == sorted(f"s{number}" for number in range(100))
        opened.say(type="unsubscribe", subscription_id="s0")
        opened.subscribe(sql, id="more")
        opened.frame("subscription_ack")


def test_every_frame_of_a_life(alice: Wire, notes: str) -> None:
    alice.run(f"INSERT INTO {notes} VALUES (1, 'a', 1), (2, 'b', 2), (3, 'a', NULL)")
    with live(alice) as opened:
        opened.subscribe(f"SELECT * FROM {notes}", batch_size=2)
        ack, first = opened.frame("subscription_ack"), opened.frame("initial_data_batch")
        assert ack["total_rows"] == 0
        assert ack["batch_control"] == first["batch_control"]
        assert [(c["name"], c["data_type"], c["index"]) for c in ack["schema"]] == [
            ("id", "BigInt", 0),
            ("kind", "Text", 1),
            ("size", "Int", 2),
            ("_seq", "BigInt", 3),
            ("_deleted", "Boolean", 4),
        ]
        assert ack["schema"][0]["flags"] == ["nn", "pk", "uq"]
        assert [row["id"] for row in first["rows"]] == ["1", "2"]
        assert set(first["rows"][0]) == {"id", "kind", "size", "_seq", "_deleted"}
        last_seq = int(first["rows"][-1]["_seq"])
        assert first["batch_control"] == {
            "batch_num": 0, "has_more": True, "status": "loading", "last_seq_id": last_seq,
        }  # fmt: skip
        opened.say(type="next_batch", subscription_id="s", last_seq_id=last_seq)
        second = opened.frame("initial_data_batch")
        assert [row["id"] for row in second["rows"]] == ["3"]
        assert second["batch_control"]["status"] == "ready"
        alice.run(f"UPDATE {notes} SET kind = NULL, size = 9 WHERE id = 3")
        update = opened.frame("change")
        assert update["rows"] == [
            {"id": "3", "size": 9, "_seq": update["rows"][0]["_seq"], "_deleted": False}
        ]
        assert update["old_values"] == [{"id": "3", "kind": "a", "_seq": second["rows"][0]["_seq"]}]
        alice.run(f"DELETE FROM {notes} WHERE id = 3")
        gone = opened.frame("change")
        seq = gone["old_values"][0]["_seq"]
        assert int(seq) > int(update["rows"][0]["_seq"])
        last = {"id": "3", "kind": None, "size": 9, "_seq": seq, "_deleted": True}
        assert gone == {
            "type": "change", "subscription_id": "s", "change_type": "delete", "old_values": [last],
        }  # fmt: skip


def test_filters_and_users(site: Site, notes: str) -> None:
    (_, ann), (_, ben) = site.account(), site.account()
    with live(ann) as hers, live(ben) as his:
        for opened in (hers, his):
            opened.subscribe(f"SELECT id FROM {notes} n WHERE n.kind LIKE 'a%' OR size > 10 -- big")
            opened.frame("subscription_ack")
            opened.frame("initial_data_batch")
        ann.run(f"INSERT INTO {notes} VALUES (1, 'b', 1), (2, 'abc', 1), (3, 'b', 11)")
        ben.run(f"INSERT INTO {notes} VALUES (9, 'a', 1)")
        assert [hers.frame("change")["rows"][0]["id"] for _ in range(2)] == ["2", "3"]
        assert [his.frame("change")["rows"][0]["id"]] == ["9"]
        # A fence: what comes next is the next that was sent.
        for opened in (hers, his):
            opened.say(type="next_batch", subscription_id="none")
            opened.frame("error")


def test_a_dropped_table_is_told(root: Wire, alice: Wire, notes: str) -> None:
    with live(alice) as opened:
        opened.subscribe(f"SELECT * FROM {notes}")
        opened.frame("subscription_ack")
        opened.frame("initial_data_batch")
        root.run(f"DROP TABLE {notes}")
        assert opened.error() == ("s", "NOT_FOUND", f"Table not found: {notes} was dropped")


def test_a_stopping_server_says_so(start_server: StartServer) -> None:
    server = start_server()
    with upwell.client.connect(server.url, user="root", password=server.root_password) as client:
        token = client.login()
    with Live(server.port, token) as opened:
        opened.frame("auth_success")
        server._child().send_signal(15)
        assert opened.closed() == (1001, "server is shutting down")
    assert server.wait_exit() == 0


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that lets a socket be silent for long."""
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_WS_CLIENT_TIMEOUT_S": "600"}
    with ServerProcess(tmp_path_factory.mktemp("patient") / "data", env=env) as server:
        yield server


def make_notes(client: upwell.client.Client, column: str) -> None:
    """Make the table anew."""
    client.execute("CREATE NAMESPACE IF NOT EXISTS app")
    client.execute("DROP TABLE IF EXISTS app.notes")
    client.execute(f"CREATE TABLE app.notes (id BIGINT PRIMARY KEY, {column} TEXT) WITH (TYPE = 'USER')")


def test_one_who_never_reads_delays_nobody(patient: ServerProcess) -> None:
    """Megabytes for a socket that takes none; the other one has each at once, and the slow one all, later."""
    server = patient
    with upwell.client.connect(server.url, user="root", password=server.root_password) as client:
        make_notes(client, "body")
        token, text, keys = client.login(), "x" * 40_000, range(400)
        with Live(server.port, token) as healthy, Live(server.port, token) as slow:
            for opened in (healthy, slow):
                opened.frame("auth_success")
                opened.subscribe("SELECT * FROM app.notes")
                opened.frame("subscription_ack")
                opened.frame("initial_data_batch")
            for key in keys:
                client.execute("INSERT INTO app.notes VALUES ($1, $2)", [key, text])
                assert healthy.frame("change")["rows"][0]["id"] == str(key)
            assert [slow.frame("change")["rows"][0]["id"] for _ in keys] == [str(key) for key in keys]


def test_a_hundred_go_on_beside_one_that_is_not_read(patient: ServerProcess) -> None:
    """64 MB are due to a socket that takes none of them: they wait in the log, not in the server's memory."""
    server = patient
    text, keys, names = "x" * 40_000, range(200), [str(n) for n in range(8)]
    with ExitStack() as stack:
        client = stack.enter_context(
            upwell.client.connect(server.url, user="root", password=server.root_password)
        )
        make_notes(client, "body")
        token = client.login()
        healthy = [stack.enter_context(Live(server.port, token)) for _ in range(100)]
        stalled = stack.enter_context(Live(server.port, token))
        for live in (*healthy, stalled):
            live.frame("auth_success")
        queries = [*((live, "id", "s") for live in healthy), *((stalled, "*", name) for name in names)]
        for live, columns, name in queries:
            live.subscribe(f"SELECT {columns} FROM app.notes", id=name)
            live.frame("subscription_ack")
            live.frame("initial_data_batch")
        before_bytes = server.memory_bytes()
        for key in keys:
            client.execute("INSERT INTO app.notes VALUES ($1, $2)", [key, text])
        for live in healthy:
            assert [live.frame("change")["rows"][0]["id"] for _ in keys] == [str(key) for key in keys]
        grown_bytes = server.memory_bytes() - before_bytes
        got: dict[str, list[str]] = {name: [] for name in names}
        while min(map(len, got.values())) < len(keys):
            frame = stalled.frame("change")
            got[frame["subscription_id"]] += [row["id"] for row in frame["rows"]]
        assert all(ids == [str(key) for key in keys] for ids in got.values())
        assert grown_bytes < 48 << 20


def until_key(live: Any, key: int) -> Iterator[Change]:
    """Yield changes up to the first of a row."""
    for change in live:
        yield change
        if change.row["id"] == key:
            return


@pytest.fixture
def at(patient: ServerProcess) -> Iterator[tuple[ServerProcess, upwell.client.Client]]:
    with upwell.client.connect(patient.url, user="root", password=patient.root_password) as client:
        make_notes(client, "kind")
        yield patient, client


def test_snapshot_and_deltas_are_the_select_over_both_tiers(
    at: tuple[ServerProcess, upwell.client.Client],
) -> None:
    _, client = at
    for number in range(60):
        client.execute("INSERT INTO app.notes VALUES ($1, 'a')", [number])
    client.execute("STORAGE FLUSH TABLE app.notes")
    client.execute("UPDATE app.notes SET kind = 'b' WHERE id < 10")
    client.execute("DELETE FROM app.notes WHERE id >= 50")
    live = client.live("SELECT * FROM app.notes WHERE kind = 'a'", batch_size=7, view=True)
    table = None
    for change in until_key(live, 49):
        table = table or LiveTable.of(live.schema)
        table.apply(change)
    client.execute("UPDATE app.notes SET kind = 'a' WHERE id = 3")
    client.execute("UPDATE app.notes SET kind = 'c' WHERE id = 20")
    client.execute("STORAGE FLUSH TABLE app.notes")
    client.execute("DELETE FROM app.notes WHERE id = 30")
    client.execute("INSERT INTO app.notes VALUES (1000, 'a')")
    assert table is not None
    kinds = []
    for change in until_key(live, 1000):
        kinds.append((change.kind, change.row["id"]))
        table.apply(change)
    assert kinds == [("insert", 3), ("delete", 20), ("delete", 30), ("insert", 1000)]
    rows = client.query("SELECT id, kind FROM app.notes WHERE kind = 'a'")
    assert table.rows == {row["id"]: row for row in rows}


def test_a_live_query_outlives_the_server(at: tuple[ServerProcess, upwell.client.Client]) -> None:
    server, client = at
    client.execute("INSERT INTO app.notes VALUES (1, 'a'), (2, 'a'), (3, 'a')")
    live = client.live("SELECT * FROM app.notes")
    seen = [(change.kind, change.row["id"]) for change in until_key(live, 3)]
    assert seen == [("snapshot", 1), ("snapshot", 2), ("snapshot", 3)]
    client.execute("DELETE FROM app.notes WHERE id = 2")
    assert [(change.kind, change.row["id"]) for change in until_key(live, 2)] == [("delete", 2)]
    server.restart()
    with upwell.client.connect(server.url, user="root", password=server.root_password) as other:
        other.execute("DELETE FROM app.notes WHERE id = 1")
        other.execute("UPDATE app.notes SET kind = 'b' WHERE id = 3")
        other.execute("INSERT INTO app.notes VALUES (4, 'a')")
        server.restart()
        other.execute("INSERT INTO app.notes VALUES (5, 'a')")
        # What was missed may come in two parts: rows and deletes of a resume, and what came after it.
        seen = []
        while {key for _, key in seen} != {1, 3, 4, 5}:
            change = next(live)
            seen.append((change.kind, change.row["id"]))
        other.execute("INSERT INTO app.notes VALUES (6, 'a')")
    seen += [(change.kind, change.row["id"]) for change in until_key(live, 6)]
    assert sorted(key for _, key in seen) == [1, 3, 4, 5, 6], "each once, and nothing else"
    assert ("delete", 1) in seen


def test_a_resume_has_missed_deletes_after_the_rows(
    at: tuple[ServerProcess, upwell.client.Client],
) -> None:
    server, client = at
    client.execute("INSERT INTO app.notes VALUES (1, 'a'), (2, 'a'), (3, 'a')")
    live = client.live("SELECT * FROM app.notes")
    cursor = list(until_key(live, 3))[-1].seq
    live.close()
    client.execute("DELETE FROM app.notes WHERE id = 2")
    client.execute("UPDATE app.notes SET kind = 'b' WHERE id = 1")
    server.restart()
    client.execute("INSERT INTO app.notes VALUES (4, 'a')")
    resumed = client.live("SELECT * FROM app.notes", from_seq=cursor)
    found = [(change.kind, change.row["id"]) for change in until_key(resumed, 2)]
    assert found == [("snapshot", 1), ("snapshot", 4), ("delete", 2)]
