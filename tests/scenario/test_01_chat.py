"""Scenario 01, a chat with an assistant: private history, one conversation live, flushed while it goes on."""

import threading
import time
from contextlib import ExitStack

from upwell.testing import cold, wait_until
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

MESSAGES = (
    "(id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(), conversation_id BIGINT NOT NULL, role_id TEXT NOT NULL,"
    " content TEXT NOT NULL, metadata TEXT, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
    " WITH (TYPE = 'USER', STORAGE_ID = 'local', FLUSH_POLICY = 'rows:50')"
)
CONVERSATIONS = (
    "(id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(), title TEXT,"
    " created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP) WITH (TYPE = 'USER', STORAGE_ID = 'local')"
)


def say(wire: Wire, table: str, *ids: int, conversation: int) -> None:
    """Write messages; even ids are the user's, odd ones the assistant's."""
    values = [f"({n}, {conversation}, '{'assistant' if n % 2 else 'user'}', 'message {n}')" for n in ids]
    sql = f"INSERT INTO {table} (id, conversation_id, role_id, content) VALUES {', '.join(values)}"
    assert wire.run(sql).count == len(ids)


def ids_of(wire: Wire, table: str, where: str = "TRUE") -> list[int]:
    rows = wire.run(f"SELECT id FROM {table} WHERE {where} ORDER BY id LIMIT 1000").rows
    return [int(row[0]) for row in rows]


class Counting:
    """A reader in the background: every COUNT(*) that it saw, in order."""

    def __init__(self, wire: Wire, table: str) -> None:
        self.counts: list[int] = []
        self._wire = Wire(wire.port, wire.token)
        self._sql = f"SELECT COUNT(*) FROM {table}"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._wire:
            while not self._is_over.is_set():
                self.counts.append(int(self._wire.run(self._sql).cell))
            self.counts.append(int(self._wire.run(self._sql).cell))

    def finish(self) -> list[int]:
        self._is_over.set()
        self._thread.join()
        return self.counts


def test_a_conversation_is_live_while_its_history_is_flushed(site: Site, namespace: str) -> None:
    """25 rows, then one update, one delete and five inserts: 29, of a history of 54."""
    (ann, hers), (ben, his) = site.account(), site.account()
    messages, conversations = f"{namespace}.messages", f"{namespace}.conversations"
    site.root.run(f"CREATE TABLE {messages} {MESSAGES}")
    site.root.run(f"CREATE TABLE {conversations} {CONVERSATIONS}")
    hers.run(f"INSERT INTO {conversations} (id, title) VALUES (1, 'one'), (2, 'two')")
    his.run(f"INSERT INTO {conversations} (id, title) VALUES (100, 'his')")
    for number in range(1, 51):
        say(hers, messages, number, conversation=1 if number <= 25 else 2)
    say(his, messages, *range(101, 121), conversation=100)
    assert ids_of(hers, messages) == list(range(1, 51))
    assert ids_of(his, messages) == list(range(101, 121))
    assert (ids_of(hers, conversations), ids_of(his, conversations)) == ([1, 2], [100])

    query = f"SELECT * FROM {messages} WHERE conversation_id = 1"
    with Socket(hers.port, hers.token) as socket, Socket(his.port, his.token) as other:
        watched = Watched(socket, query, options={}).snapshot()
        assert watched.keys() == list(range(1, 26)), "exactly 25"
        nobody = Watched(other, f"SELECT * FROM {messages} WHERE conversation_id IN (1, 2)", options={})
        assert nobody.snapshot().keys() == []
        assert hers.run(f"UPDATE {messages} SET content = 'edited' WHERE id = 1").count == 1
        assert hers.run(f"DELETE FROM {messages} WHERE id = 2").count == 1
        counting = Counting(hers, messages)
        flush = threading.Thread(target=site.flush, args=(messages,))
        flush.start()
        for number in range(51, 56):
            say(hers, messages, number, conversation=1)
        say(hers, messages, 56, conversation=2)
        assert hers.run(f"DELETE FROM {messages} WHERE id = 56").count == 1
        flush.join()
        counts = counting.finish()
        assert set(counts) <= set(range(49, 56)), counts
        assert counts[-1] == 54
        up = counts[: counts.index(55)] if 55 in counts else counts
        assert up == sorted(up), "never lower, flush or not"

        assert ids_of(hers, messages) == [1, *range(3, 56)], "54, and 2 is not back"
        say(hers, messages, 57, conversation=1)
        say(his, messages, 121, conversation=1)
        inserts = [("insert", str(number)) for number in range(51, 56)]
        assert watched.until(57) == [("update", "1"), ("delete", "2"), *inserts]
        assert hers.run(f"DELETE FROM {messages} WHERE id = 57").count == 1
        assert watched.change() == ("delete", "57")
        assert watched.keys() == [1, *range(3, 26), *range(51, 56)]
        assert len(watched.rows) == 29
        assert watched.rows["1"]["content"] == "edited"
        assert watched.rows == hers.run(query + " LIMIT 1000").by_key
        assert nobody.change() == ("insert", "121"), "nothing of hers came before his own"

    site.flush(messages)
    root = site.server.data_dir / "storage"
    for user, wire in ((ann, hers), (ben, his)):
        partition = cold.find_partition(root, messages, user)
        assert partition is not None
        stored = sorted(int(row["id"]) for row in cold.rows(partition, "id"))
        assert stored == ids_of(wire, messages), "the files alone, without tombstones, are the SELECT"
        alien = range(101, 122) if user == ann else range(1, 58)
        assert not {int(row["id"]) for row in cold.versions(partition)} & set(alien)


def test_who_types_is_seen_for_two_seconds(site: Site, namespace: str) -> None:
    _, hers = site.account()
    typing = f"{namespace}.typing_events"
    columns = "id BIGINT PRIMARY KEY, conversation_id BIGINT NOT NULL, user_id TEXT NOT NULL, event_type TEXT"
    site.root.run(f"CREATE TABLE {typing} ({columns}) WITH (TYPE = 'STREAM', TTL_SECONDS = 2)")
    begun = time.monotonic()
    sql = f"SELECT * FROM {typing} WHERE conversation_id = 1"
    with Socket(hers.port, hers.token) as socket:
        watched = Watched(socket, sql, options={"view": True}).snapshot()
        hers.run(f"INSERT INTO {typing} VALUES (1, 1, 'ann', 'typing'), (2, 2, 'ann', 'typing')")
        assert watched.change() == ("insert", "1")
        assert hers.run(f"SELECT COUNT(*) FROM {typing}").cell == "2"
        wait_until(
            lambda: hers.run(f"SELECT COUNT(*) FROM {typing}").cell == "0", timeout_s=20, what="silence"
        )
        assert time.monotonic() - begun >= 2
        assert Watched(socket, sql, id="new", options={}).snapshot().rows == {}
        assert watched.change() == ("delete", "1")


def test_an_assistant_writes_for_a_user(site: Site, namespace: str) -> None:
    """By EXECUTE AS USER: into the user's rows and to the user's sockets, nobody else's."""
    (ann, hers), (_, his) = site.account(), site.account()
    _, assistant = site.account("service")
    messages = f"{namespace}.messages"
    site.root.run(f"CREATE TABLE {messages} {MESSAGES}")
    say(hers, messages, 1, conversation=1)
    wires = (hers, assistant, site.root, his)
    with ExitStack() as stack:
        sockets = [stack.enter_context(Socket(wire.port, wire.token)) for wire in wires]
        for_her, for_assistant, for_root, for_him = (
            Watched(socket, f"SELECT * FROM {messages}", options={}).snapshot() for socket in sockets
        )
        assert for_her.keys() == [1]
        said = "(id, conversation_id, role_id, content) VALUES (2, 1, 'assistant', 'hello')"
        as_her = f"EXECUTE AS USER '{ann}' (INSERT INTO {messages} {said})"
        assert assistant.run(as_her).result["as_user"] == ann
        denied = his.sql(as_her.replace("(2,", "(3,"))
        assert denied.status == 403, denied.body
        again = f"EXECUTE AS USER '{ann}' (UPDATE {messages} SET content = 'hi' WHERE id = 2)"
        assert site.root.run(again).count == 1
        for wire in wires:
            say(wire, messages, 9, conversation=9)
        assert for_her.until(9) == [("insert", "2"), ("update", "2")]
        assert for_assistant.until(9) == for_root.until(9) == for_him.until(9) == []
        assert ids_of(hers, messages) == [1, 2, 9]
        assert [ids_of(wire, messages) for wire in wires[1:]] == [[9], [9], [9]]
        assert for_her.rows == hers.run(f"SELECT * FROM {messages}").by_key
