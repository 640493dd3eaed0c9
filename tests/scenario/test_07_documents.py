"""Scenario 07, editing together: twenty writers of one shared row, and edits that stay private."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from upwell.testing import ServerProcess, wait_until
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

WRITERS, UPDATES = 20, 50
READERS = 3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that lets a watcher be silent while the others write."""
    directory = tmp_path_factory.mktemp("documents") / "data"
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_WS_CLIENT_TIMEOUT_S": "600"}
    with ServerProcess(directory, env=env) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


@pytest.fixture
def documents(site: Site, namespace: str) -> str:
    """A fresh PUBLIC table with one document."""
    table = f"{namespace}.documents"
    site.root.run(
        f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, title TEXT NOT NULL, content TEXT,"
        " version INT DEFAULT 1, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
        " WITH (TYPE = 'SHARED', ACCESS_LEVEL = 'PUBLIC')"
    )
    site.root.run(f"INSERT INTO {table} (id, title) VALUES (1, 'one')")
    return table


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as stack:
        yield stack


def test_twenty_writers_edit_one_row(site: Site, documents: str, stack: ExitStack) -> None:
    """Each of 1,000 updates counts, and each reader sees the version after every one of them, in order."""
    services = [site.account("service")[1] for _ in range(WRITERS)]
    wires = [site.account()[1] for _ in range(READERS)]
    sockets = [stack.enter_context(Socket(wire.port, wire.token)) for wire in wires]
    sql = f"SELECT * FROM {documents} WHERE id = 1"
    readers = [Watched(socket, sql, options={}).snapshot() for socket in sockets]
    assert [reader.rows["1"]["version"] for reader in readers] == [1] * READERS

    def edit(number: int) -> None:
        with Wire(site.server.port, services[number].token) as wire:
            for turn in range(UPDATES):
                change = f"version = version + 1, content = 'writer {number} turn {turn}'"
                assert wire.run(f"UPDATE {documents} SET {change} WHERE id = 1").count == 1

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(edit, range(WRITERS)))
    final = site.root.run(sql).by_key
    assert final["1"]["version"] == 1 + WRITERS * UPDATES, "no update is lost"
    for reader in readers:
        turns = [0] * WRITERS
        before = dict(reader.batches[0]["rows"][0])
        for version in range(2, 2 + WRITERS * UPDATES):
            assert reader.change() == ("update", "1")
            (row,), (old,) = reader.last["rows"], reader.last["old_values"]
            assert row["version"] == version
            changed = ["id", "_seq", "version", *(["content"] if before.get("content") else [])]
            assert old == {name: before[name] for name in changed}, "what was seen before"
            _, writer, _, turn = row["content"].split()
            assert int(turn) == turns[int(writer)], "a writer's edits come in order"
            turns[int(writer)] += 1
            before = row
        assert reader.rows == final
        assert turns == [UPDATES] * WRITERS
    site.root.run(f"DELETE FROM {documents} WHERE id = 1")
    for reader in readers:
        assert reader.change() == ("delete", "1"), "and nothing else before it"


def test_readers_may_not_write_and_the_private_is_not_watched(
    site: Site, documents: str, alice: Wire
) -> None:
    refused = alice.sql(f"UPDATE {documents} SET version = 7 WHERE id = 1")
    assert refused.status == 403, refused.body
    private = f"{documents}_private"
    site.root.run(f"CREATE TABLE {private} (id BIGINT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
    with Socket(alice.port, alice.token) as socket:
        for number, name in enumerate((private, "system.users", "system.jobs")):
            id = f"no{number}"  # noqa: A001
            subscription = {"id": id, "sql": f"SELECT * FROM {name}", "options": {}}
            socket.say(type="subscribe", subscription=subscription)
            assert socket.message("error")["subscription_id"] == id
        watched = Watched(socket, f"SELECT * FROM {documents}", options={}).snapshot()
        site.root.run(f"INSERT INTO {private} VALUES (1, 1)")
        site.root.run(f"UPDATE {documents} SET version = 2 WHERE id = 1")
        assert watched.change() == ("update", "1")
        assert watched.rows["1"]["version"] == 2, "the refused update left no trace"


def test_presence_goes_by_itself(site: Site, namespace: str) -> None:
    table = f"{namespace}.presence"
    columns = "id BIGINT PRIMARY KEY, doc_id BIGINT NOT NULL, user_id TEXT NOT NULL, cursor_pos INT"
    site.root.run(f"CREATE TABLE {table} ({columns}) WITH (TYPE = 'STREAM', TTL_SECONDS = 1)")
    (_, ann), (_, ben) = site.account(), site.account()
    begun = time.monotonic()
    with Socket(ann.port, ann.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {table} WHERE doc_id = 1", options={}).snapshot()
        for wire in (ben, ann):
            wire.run(f"INSERT INTO {table} VALUES (2, 2, 'x', 1), (1, 1, 'x', 7)")
        assert watched.change() == ("insert", "1")
        assert [wire.run(f"SELECT COUNT(*) FROM {table}").cell for wire in (ann, ben)] == ["2", "2"]
        for wire in (ann, ben):
            empty = lambda wire=wire: wire.run(f"SELECT COUNT(*) FROM {table}").cell == "0"  # noqa: E731
            wait_until(empty, timeout_s=20, what="nobody is present")
        assert time.monotonic() - begun >= 1
        ann.run(f"INSERT INTO {table} VALUES (1, 1, 'x', 8)")
        assert watched.change() == ("insert", "1"), "the same key again, and nothing was told of the end"


def test_edits_of_users_stay_theirs(site: Site, namespace: str, stack: ExitStack) -> None:
    table = f"{namespace}.user_edits"
    columns = "(id BIGINT PRIMARY KEY, doc_id BIGINT NOT NULL, edit_type TEXT NOT NULL, edit_data TEXT)"
    site.root.run(f"CREATE TABLE {table} {columns} WITH (TYPE = 'USER')")
    kinds = ("insert", "delete")
    wires = [site.account()[1] for _ in kinds]
    sockets = [stack.enter_context(Socket(wire.port, wire.token)) for wire in wires]
    sql = f"SELECT * FROM {table} WHERE doc_id = 1"
    watched = [Watched(socket, sql, options={}).snapshot() for socket in sockets]
    for wire, kind in zip(wires, kinds, strict=True):
        wire.run(f"INSERT INTO {table} VALUES (1, 1, '{kind}', NULL), (2, 2, '{kind}', NULL)")
    for wire, kind, own in zip(wires, kinds, watched, strict=True):
        wire.run(f"INSERT INTO {table} VALUES (3, 1, 'fence', NULL)")
        assert own.until(3) == [("insert", "1")]
        assert own.rows["1"]["edit_type"] == kind
        assert own.rows == wire.run(sql).by_key
