"""STREAM tables: rows that live for a while, for readers, for live queries, through a crash and on disk."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.testing import ServerProcess, cold, wait_until
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

WAIT_S = 30.0
TTL_S = 4
SETTINGS = {
    "UPWELL_BCRYPT_COST": "4",
    "UPWELL_STREAM_EXPIRY_INTERVAL_S": "0.05",
    "UPWELL_STREAM_EVICTION_INTERVAL_S": "0.2",
    "UPWELL_STREAM_GRACE_S": "0.2",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that looks often for what has expired."""
    with ServerProcess(tmp_path_factory.mktemp("stream") / "data", env=SETTINGS) as server:
        site = Site(server)
        yield site
        site.close()
        assert "Traceback" not in server.log_path.read_text(), server.log_tail()


def stream(site: Site, namespace: str, columns: str, ttl_s: int = 600) -> str:
    table = f"{namespace}.events"
    options = f"TYPE = 'STREAM', TTL_SECONDS = {ttl_s}"
    message = site.root.run(f"CREATE TABLE {table} ({columns}) WITH ({options})").message
    assert message.endswith(f"stream table {table} created successfully")
    return table


def files_with(data_dir: Path, text: str) -> list[str]:
    """Return the files under a data directory that contain a text."""
    found = []
    for path in data_dir.rglob("*"):
        try:
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(path.name)
        except FileNotFoundError:
            pass  # a log or segment that has just been replaced
    return found


def live_rows(wire: Wire, table: str) -> list[int]:
    """Return the keys in the snapshot of a new subscriber."""
    with Socket(wire.port, wire.token) as socket:
        return Watched(socket, f"SELECT * FROM {table}", options={}).snapshot().keys()


def test_a_row_is_gone_everywhere_when_its_time_is_over(site: Site, namespace: str) -> None:
    """By SELECT, by key, by COUNT, in snapshots, for a view, and on disk; and not before."""
    user, wire = site.account()
    table = stream(site, namespace, "id BIGINT PRIMARY KEY, body TEXT", TTL_S)
    begun = time.monotonic()
    marks = [uuid.uuid4().hex for _ in range(3)]
    for number, mark in enumerate(marks, 1):
        wire.run(f"INSERT INTO {table} VALUES ({number}, $1)", mark)
    assert files_with(site.server.data_dir, marks[0])
    with Socket(wire.port, wire.token) as socket:
        view = Watched(socket, f"SELECT * FROM {table}", id="v", options={"view": True}).snapshot()
        plain = Watched(socket, f"SELECT * FROM {table}", id="p", options={}).snapshot()
        assert wire.run(f"SELECT COUNT(*) FROM {table}").cell == "3"
        assert wire.run(f"SELECT body FROM {table} WHERE id = 2").cell == marks[1]
        counts = [3]

        def is_over() -> bool:
            counts.append(int(wire.run(f"SELECT COUNT(*) FROM {table}").cell))
            return counts[-1] == 0

        wait_until(is_over, timeout_s=WAIT_S, what="the rows are gone")
        assert time.monotonic() - begun >= TTL_S
        assert counts == sorted(counts, reverse=True)
        for number in (1, 2, 3):
            assert wire.run(f"SELECT body FROM {table} WHERE id = {number}").rows == []
        assert live_rows(wire, table) == []
        assert [view.change() for _ in marks] == [("delete", str(number)) for number in (1, 2, 3)]
        wire.run(f"INSERT INTO {table} VALUES (1, 'again')")
        assert view.change() == plain.change() == ("insert", "1"), "and nothing before it"
    wait_until(
        lambda: not any(files_with(site.server.data_dir, mark) for mark in marks),
        timeout_s=WAIT_S,
        what="no file has them any more",
    )
    jobs = f"SELECT DISTINCT status FROM system.jobs WHERE parameters LIKE '%{table}%' AND job_id LIKE 'SE-%'"
    wait_until(
        lambda: "completed" in [row[0] for row in site.root.run(jobs).rows],
        timeout_s=WAIT_S,
        what="the job that cleared them to end",
    )
    assert cold.find_partition(site.server.data_dir / "storage", table, user) is None, "never Parquet"


def test_the_time_goes_on_while_the_server_is_down(site: Site, namespace: str) -> None:
    """What has time left is there after kill -9; what has none left goes from the disk too."""
    _, wire = site.account()
    mark = uuid.uuid4().hex
    columns = "id BIGINT PRIMARY KEY, body TEXT"
    long = stream(site, namespace, columns)
    short = stream(site, site.namespace(), columns, TTL_S)
    begun = time.monotonic()
    for table in (long, short):
        wire.run(f"INSERT INTO {table} VALUES (1, $1)", f"{mark} in {table}")
    before = wire.run(f"SELECT _seq FROM {long}").cell
    site.server.restart()
    assert wire.run(f"SELECT _seq FROM {long}").cell == before
    assert live_rows(wire, long) == [1]
    wait_until(lambda: live_rows(wire, short) == [], timeout_s=WAIT_S, what="the row is gone")
    assert time.monotonic() - begun >= TTL_S
    wait_until(
        lambda: not files_with(site.server.data_dir, f"{mark} in {short}"),
        timeout_s=WAIT_S,
        what="no file has it any more",
    )


def test_events_are_each_users_own(site: Site, namespace: str) -> None:
    """ST1, ST4, ST5: visible at once and live, defaults filled, an assistant's row is the target's."""
    (ann, hers), (_, his) = site.account(), site.account()
    _, service = site.account("service")
    table = stream(
        site, namespace, "id TEXT PRIMARY KEY DEFAULT ULID(), kind TEXT, at TIMESTAMP DEFAULT NOW()"
    )
    with Socket(hers.port, hers.token) as socket, Socket(his.port, his.token) as other:
        watched = Watched(socket, f"SELECT * FROM {table}", options={}).snapshot()
        nobody = Watched(other, f"SELECT * FROM {table}", options={}).snapshot()
        hers.run(f"INSERT INTO {table} (kind) VALUES ('typing')")
        ((key, kind, at),) = hers.run(f"SELECT id, kind, at FROM {table}").rows
        assert (len(key), kind, at is not None) == (26, "typing", True)
        assert watched.change() == ("insert", key)
        answer = service.run(f"EXECUTE AS USER '{ann}' (INSERT INTO {table} VALUES ('x', 'thinking', NOW()))")
        assert answer.count == 1
        assert watched.change() == ("insert", "x")
        for wire in (service, site.root, his):
            assert wire.run(f"SELECT COUNT(*) FROM {table}").cell == "0"
        assert service.run(f"EXECUTE AS USER '{ann}' (SELECT COUNT(*) FROM {table})").cell == "2"
        assert hers.run(f"SELECT COUNT(*) FROM {table}").cell == "2"
        his.run(f"INSERT INTO {table} VALUES ('y', 'typing', NOW())")
        assert nobody.change() == ("insert", "y")
        refused = his.sql(f"EXECUTE AS USER '{ann}' (SELECT COUNT(*) FROM {table})")
        assert refused.status == 403, refused.body


def test_a_filter_of_events_delivers_its_document_only(site: Site, namespace: str) -> None:
    """ST10, and ST8: a deleted event is gone, physically."""
    _, wire = site.account()
    table = stream(site, namespace, "id BIGINT PRIMARY KEY, doc_id BIGINT NOT NULL, kind TEXT")
    with Socket(wire.port, wire.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {table} WHERE doc_id = 1", options={}).snapshot()
        wire.run(
            f"INSERT INTO {table} VALUES (1, 2, 'click'), (2, 1, 'click'), (3, 1, 'look'), (4, 1, 'end')"
        )
        assert watched.until(4) == [("insert", "2"), ("insert", "3")]
        assert wire.run(f"DELETE FROM {table} WHERE kind = 'click'").count == 2
        assert watched.change() == ("delete", "2")
        assert [row[0] for row in wire.run(f"SELECT id FROM {table} ORDER BY id").rows] == ["3", "4"]
        assert wire.run(f"DELETE FROM {table} WHERE kind = 'click'").count == 0
        wire.run(f"INSERT INTO {table} VALUES (2, 1, 'again')")
        assert watched.change() == ("insert", "2")


def test_what_a_stream_is_not_for_is_refused_by_name(site: Site, namespace: str) -> None:
    _, wire = site.account()
    table = stream(site, namespace, "kind TEXT, n INT")
    wire.run(f"INSERT INTO {table} VALUES ('a', 1), ('a', 1)")
    for sql, what in (
        (f"UPDATE {table} SET n = 2", "UPDATE is not supported for STREAM tables"),
        (f"STORAGE FLUSH TABLE {table}", "STORAGE FLUSH is not supported for STREAM tables"),
        (f"STORAGE COMPACT TABLE {table}", "STORAGE COMPACT is not supported for STREAM tables"),
        (f"ALTER TABLE {table} SET TBLPROPERTIES (FLUSH_POLICY = 'rows:1')", "FLUSH_POLICY is not supported"),
        (f"BEGIN; INSERT INTO {table} VALUES ('b', 2); COMMIT", "not supported inside explicit transactions"),
        (f"BEGIN; DELETE FROM {table}; COMMIT", "not supported inside explicit transactions"),
    ):
        text = site.root.sql(sql).refused(400, "SQL_EXECUTION_ERROR")
        assert what in text
    assert wire.run(f"SELECT kind, n FROM {table}").rows == [["a", 1], ["a", 1]]
    assert wire.run(f"DELETE FROM {table} WHERE n = 1").count == 2
    assert wire.run(f"SELECT COUNT(*) FROM {table}").cell == "0"
    listed = site.root.run("SELECT table_type, options FROM system.tables WHERE table_name = 'events'").rows
    assert ["stream", '{"TYPE":"STREAM","STORAGE_ID":"local","TTL_SECONDS":"600"}'] in listed
