"""Scenario 08, burst and backpressure: every event exactly once, at any rate and for any reader."""

import random
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from upwell.testing import ServerProcess, wait_until
from upwell.testing.cable import Cable
from upwell.testing.websocket import CLOSE, LIVE, PING, PONG, Frame, Socket, Watched
from upwell.testing.wire import Site, Wire

WRITERS = 4
STRIDE = 1_000_000
STALLED, HEALTHY = 12, 9
LONG_ROWS, LONG_CHARS = 300, 40_000
# Twelve queues of all that the stalled ones do not read would be 144 MB.
GROWTH_BYTES_MAX = 90_000_000
GONE_S_MAX = 20.0
IDLE, SILENT_S_MAX = 520, 3
BAD_LINE_SEED, BAD_LINE_ROWS, BAD_LINE_RESETS = 8, 60, 4


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that lets a watcher be silent for long."""
    directory = tmp_path_factory.mktemp("burst") / "data"
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_WS_CLIENT_TIMEOUT_S": "600"}
    with ServerProcess(directory, env=env) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that soon ends who lags, and who is silent."""
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_WS_LAG_S_MAX": "1"}
    env["UPWELL_WS_CLIENT_TIMEOUT_S"] = f"{SILENT_S_MAX}"
    with ServerProcess(tmp_path_factory.mktemp("strict") / "data", env=env) as server:
        site = Site(server)
        yield site
        site.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def events(site: Site, namespace: str) -> str:
    """A fresh USER table."""
    columns = "(id BIGINT PRIMARY KEY, event_type TEXT NOT NULL, payload TEXT)"
    site.root.run(f"CREATE TABLE {namespace}.events {columns} WITH (TYPE = 'USER')")
    return f"{namespace}.events"


def watch(stack: ExitStack, wire: Wire, table: str, *, receive_bytes: int | None = None) -> Watched:
    """Subscribe on a socket of its own, and take the snapshot."""
    # Compressed, what these rows say would fit into any buffer.
    path = f"{LIVE}?compress=false"
    socket = stack.enter_context(Socket(wire.port, wire.token, path=path, receive_bytes=receive_bytes))
    return Watched(socket, f"SELECT * FROM {table}", options={}).snapshot()


def put(wire: Wire, table: str, *ids: int) -> None:
    values = ", ".join(f"({n}, 'made', 'payload {n}')" for n in ids)
    assert wire.run(f"INSERT INTO {table} VALUES {values}").count == len(ids)


@pytest.mark.parametrize(("statements", "rows", "watchers"), [(250, 1, 3), (25, 100, 4)])
def test_each_event_comes_exactly_once(
    site: Site, alice: Wire, events: str, stack: ExitStack, statements: int, rows: int, watchers: int
) -> None:
    """1,000 and 10,000 of them, by four writers, whose orders are kept; one reads while they come."""
    watched = [watch(stack, alice, events) for _ in range(watchers)]
    count = WRITERS * statements * rows

    def write(number: int) -> None:
        with Wire(alice.port, alice.token) as wire:
            for first in range(number * STRIDE, number * STRIDE + statements * rows, rows):
                put(wire, events, *range(first, first + rows))

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = pool.map(write, range(WRITERS))
        for one in watched:
            following = [number * STRIDE for number in range(WRITERS)]
            for _ in range(count):
                kind, key = one.change()
                writer = int(key) // STRIDE
                assert (kind, int(key)) == ("insert", following[writer])
                following[writer] += 1
            assert following == [number * STRIDE + statements * rows for number in range(WRITERS)]
        list(writing)
    put(alice, events, -1)
    assert {one.change() for one in watched} == {("insert", "-1")}, "nothing twice"
    assert alice.run(f"SELECT COUNT(*) FROM {events}").cell == str(count + 1)
    first = alice.run(f"SELECT * FROM {events} ORDER BY id LIMIT 1000").by_key
    assert all({key: one.rows[key] for key in first} == first for one in watched)
    assert {len(one.rows) for one in watched} == {count + 1}


def rss_bytes(site: Site) -> int:
    status = Path(f"/proc/{site.server.pid}/status").read_text()
    (kilobytes,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(kilobytes) * 1024


def test_those_who_do_not_read_delay_nobody_and_miss_nothing(
    site: Site, alice: Wire, events: str, stack: ExitStack
) -> None:
    """Each healthy one has each event before the next is written; the stalled ones have all, later."""
    healthy = [watch(stack, alice, events) for _ in range(HEALTHY)]
    stalled = [watch(stack, alice, events, receive_bytes=65_536) for _ in range(STALLED)]
    before_bytes = rss_bytes(site)
    for key in range(LONG_ROWS):
        alice.run(f"INSERT INTO {events} VALUES ({key}, 'long', $1)", f"{key:06}" * (LONG_CHARS // 6))
        for one in healthy:
            assert one.change() == ("insert", str(key))
    assert rss_bytes(site) - before_bytes < GROWTH_BYTES_MAX
    put(alice, events, -1)
    for one in (*stalled, *healthy):
        expected = [] if one in healthy else [("insert", str(key)) for key in range(LONG_ROWS)]
        assert one.until(-1) == expected, "in order, without a gap"
    assert all(one.rows == healthy[0].rows for one in stalled)


def test_who_stays_behind_too_long_is_told_where_to_go_on(strict: Site, stack: ExitStack) -> None:
    """Never a silent drop: an error with the cursor, and `from` there the rest, each exactly once."""
    root, table = strict.root, f"{strict.namespace()}.events"
    root.run(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, payload TEXT) WITH (TYPE = 'USER')")
    stalled = watch(stack, root, table, receive_bytes=65_536)
    keys = iter(range(10_000))
    count = 0

    def is_ended() -> bool:
        nonlocal count
        stalled.socket.say(type="ping")  # it is there, and doesn't read
        root.run(f"INSERT INTO {table} VALUES ({next(keys)}, $1)", "x" * LONG_CHARS)
        count += 1
        return root.run("SELECT COUNT(*) FROM system.live").cell == "0"

    wait_until(is_ended, timeout_s=60, what="the lag limit")
    while (last := stalled.socket.message_for("s"))["type"] == "change":
        stalled.rows[last["rows"][0]["id"]] = last["rows"][0]
    assert last["code"] == "LAG_LIMIT_EXCEEDED"
    cursor = int(last["message"].rpartition(" ")[2])
    assert cursor >= max(int(row["_seq"]) for row in stalled.rows.values())
    again = Socket(root.port, root.token)
    rest = Watched(stack.enter_context(again), f"SELECT * FROM {table}", options={"from": cursor}).snapshot()
    assert stalled.keys() + rest.keys() == list(range(count))


def sockets_count(site: Site) -> int:
    """Return how many sockets the server holds."""
    found = Path(f"/proc/{site.server.pid}/fd").iterdir()
    return sum(link.readlink().name.startswith("socket:") for link in found if link.is_symlink())


def beat(watched: list[Watched], turns: list[int]) -> None:
    """Let all say that they are there: some by a ping of WebSocket, which is answered, some by a message."""
    for number, one in enumerate(watched):
        if number % 2:
            one.socket.say(type="ping")
        else:
            one.socket.send(Frame(PING, b"%d" % turns[0]))
    for one in watched[::2]:
        assert one.socket.frame() == Frame(PONG, b"%d" % turns[0], masked=False)
    turns[0] += 1


def test_hundreds_of_idle_sockets_live_by_their_heartbeats(strict: Site, stack: ExitStack) -> None:
    """None of them is timed out, one that is silent beside them is, and they leave nothing behind."""
    root, table = strict.root, f"{strict.namespace()}.events"
    live = "SELECT COUNT(*) FROM system.live"
    wait_until(lambda: root.run(live).cell == "0", timeout_s=GONE_S_MAX, what="the live queries of before")
    root.run(
        f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, event_type TEXT, payload TEXT) WITH (TYPE = 'USER')"
    )
    put(root, table, 0)
    before = sockets_count(strict)
    watched: list[Watched] = []
    turns = [0]
    while len(watched) < IDLE:
        sockets = [stack.enter_context(Socket(root.port, root.token)) for _ in range(40)]
        watched += [Watched(socket, f"SELECT id FROM {table}") for socket in sockets]
        beat(watched, turns)
    silent = watch(stack, root, table)
    assert sockets_count(strict) == before + IDLE + 1
    assert root.run("SELECT COUNT(*) FROM system.live").cell == str(IDLE + 1)
    while not select.select([silent.socket.tcp], [], [], SILENT_S_MAX / 6)[0]:
        beat(watched, turns)
    assert silent.socket.closed() == (1000, b"Heartbeat timeout")
    put(root, table, 1)
    assert {one.change() for one in watched} == {("insert", "1")}, "nothing was said to them before"
    assert root.run("SELECT COUNT(*) FROM system.live").cell == str(IDLE)
    for number, one in enumerate(watched):
        if number % 2:
            one.socket.reset()
        else:
            one.socket.send(Frame(CLOSE, (1000).to_bytes(2)))
            assert one.socket.closed() == (1000, b"")
    wait_until(lambda: root.run(live).cell == "0", timeout_s=GONE_S_MAX, what="all live queries to end")
    wait_until(lambda: sockets_count(strict) == before, timeout_s=GONE_S_MAX, what="all sockets to be let go")
    put(root, table, 2)
    assert watch(stack, root, table).keys() == [0, 1, 2]


class Reader:
    """One who reads through a cable, in small batches; `told` are the keys in the order of their coming."""

    def __init__(self, wire: Wire, table: str, cable: Cable) -> None:
        self.told: list[int] = []
        self._connect = partial(Socket, cable.port, wire.token, path=f"{LIVE}?compress=false")
        self._sql = f"SELECT * FROM {table}"
        self.watched: Watched | None = None

    def take(self) -> None:
        """Take a message, or connect again and go on from the newest seq that came."""
        try:
            if self.watched is None or self.watched.socket.tcp.fileno() < 0:
                held = self.watched
                options = {"batch_size": 15} | ({} if held is None else {"from": held.cursor})
                self.watched = Watched(self._connect(), self._sql, options=options, held=held)
            elif self._is_loading(self.watched):
                batch = self.watched.batch()
                self.told += [int(row["id"]) for row in batch["rows"]]
                if batch["batch_control"]["has_more"]:
                    self.watched.ask()
            else:
                kind, key = self.watched.change()
                assert kind == "insert"
                self.told.append(int(key))
        except (OSError, EOFError):
            assert self.watched is not None, "the first connection"
            self.watched.socket.close()

    def _is_loading(self, watched: Watched) -> bool:
        return not watched.batches or watched.batches[-1]["batch_control"]["has_more"]


@pytest.mark.parametrize("line", [{"latency_s": 0.01}, {"bytes_per_s": 500_000, "latency_s": 0.002}])
def test_over_a_bad_line_that_is_reset_each_event_comes_once(
    site: Site, alice: Wire, events: str, stack: ExitStack, line: dict[str, Any]
) -> None:
    """Slow, narrow, and reset in the middle of whatever is under way: no gap, nothing twice, in order."""
    chance = random.Random(BAD_LINE_SEED)
    cable = stack.enter_context(Cable(alice.port, **line))
    reader = Reader(alice, events, cable)
    stack.callback(lambda: reader.watched and reader.watched.socket.close())
    reader.take()

    def write(number: int) -> None:
        with Wire(alice.port, alice.token) as wire:
            for key in range(number * STRIDE, number * STRIDE + BAD_LINE_ROWS):
                wire.run(f"INSERT INTO {events} VALUES ({key}, 'long', $1)", f"{key:08}" * 500)

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = pool.map(write, range(WRITERS))
        for _ in range(BAD_LINE_RESETS):
            until = len(reader.told) + chance.randint(1, 40)
            while len(reader.told) < until:
                reader.take()
            assert cable.reset() == 1
        while len(reader.told) < WRITERS * BAD_LINE_ROWS:
            reader.take()
        list(writing)
    put(alice, events, -1)
    reader.take()
    assert reader.told.pop() == -1, "nothing twice"
    for number in range(WRITERS):
        own = [key for key in reader.told if key // STRIDE == number]
        assert own == list(range(number * STRIDE, number * STRIDE + BAD_LINE_ROWS)), "in order, each once"
    assert reader.watched is not None
    assert reader.watched.rows == alice.run(f"SELECT * FROM {events} LIMIT 1000").by_key


def test_a_return_finds_what_was_there_and_what_came(
    site: Site, alice: Wire, events: str, stack: ExitStack
) -> None:
    put(alice, events, *range(1, 6))
    first = watch(stack, alice, events)
    assert first.keys() == [1, 2, 3, 4, 5]
    first.socket.close()
    put(alice, events, *range(6, 11))
    assert watch(stack, alice, events).keys() == list(range(1, 11))
    options = {"from": first.cursor}
    resumed = Watched(
        stack.enter_context(Socket(alice.port, alice.token)), f"SELECT * FROM {events}", options=options
    ).snapshot()
    assert resumed.keys() == [6, 7, 8, 9, 10], "the difference, and nothing else"


def test_one_who_breaks_off_again_and_again_has_all_in_the_end(
    site: Site, alice: Wire, events: str, stack: ExitStack
) -> None:
    """Dropped after a few events, each time at another place: what was held and what comes is the whole."""
    cursor, held = 0, []
    for turn in range(5):
        put(alice, events, *range(turn * 8, turn * 8 + 8))
        socket = stack.enter_context(Socket(alice.port, alice.token))
        options = {"from": cursor, "batch_size": 3}
        one = Watched(socket, f"SELECT * FROM {events}", options=options)
        for _ in range(turn % 3):
            one.batch()
            one.ask()
        held += one.keys()
        cursor = max(cursor, one.cursor)
        socket.reset()
    socket = stack.enter_context(Socket(alice.port, alice.token))
    last = Watched(socket, f"SELECT * FROM {events}", options={"from": cursor, "batch_size": 3}).snapshot()
    assert held + last.keys() == list(range(40)), "each exactly once"
