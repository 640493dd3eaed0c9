"""A server whose log may take 64 KiB: the oldest goes, never silently, and living devices keep theirs."""

from collections.abc import Iterator

import pytest

import upwell.client
from upwell.client import LiveError
from upwell.testing import ServerProcess, wait_until
from upwell.testing.sync_world import World, key, upsert

SETTINGS = {
    "UPWELL_BCRYPT_COST": "4",
    "UPWELL_LOG_BYTES_MAX": "65536",
    "UPWELL_LOG_TRIM_INTERVAL_S": "0.2",
    "UPWELL_DEVICE_RECORDS_INTERVAL_S": "0.05",
}
TEXT = "x" * 4096
WAIT_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("small") / "data", env=SETTINGS) as running:
        yield running
        assert "Traceback" not in running.log_path.read_text(), running.log_tail()


@pytest.fixture
def root(server: ServerProcess) -> Iterator[upwell.client.Client]:
    with upwell.client.connect(server.url, user="root", password=server.root_password) as client:
        yield client


def write(root: upwell.client.Client, table: str, numbers: range) -> None:
    for number in numbers:
        root.execute(f"INSERT INTO {table} VALUES ($1, $2)", [number, TEXT])


def test_who_resumes_from_before_what_went_is_told_and_who_follows_misses_nothing(
    root: upwell.client.Client,
) -> None:
    root.execute("CREATE NAMESPACE app")
    root.execute("CREATE TABLE app.notes (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE = 'USER')")

    def entries() -> int:
        return int(root.query("SELECT count(*) AS n FROM system.changes")[0]["n"])

    with root.live("SELECT id FROM app.notes") as live:
        assert live.snapshot() == []
        write(root, "app.notes", range(60))
        assert [live.receive(WAIT_S).row["id"] for _ in range(60)] == list(range(60))
    wait_until(lambda: entries() <= 16, timeout_s=WAIT_S, what="the log is trimmed")
    assert entries() >= 14, "the newest 58,983 bytes stay: 14 entries of about 4,150"
    seqs = [row["_seq"] for row in root.query("SELECT _seq FROM app.notes ORDER BY id")]
    assert len(seqs) == 60, "rows stay where they are"
    with pytest.raises(LiveError) as caught:
        root.live("SELECT id FROM app.notes", from_seq=int(seqs[40])).snapshot()
    assert caught.value.code == "HISTORY_PRUNED"
    root.execute("DELETE FROM app.notes WHERE id = 59")
    with root.live("SELECT id FROM app.notes", from_seq=int(seqs[55])) as resumed:
        missed = [resumed.receive(WAIT_S) for _ in range(4)]
    told = [(change.kind, change.row["id"]) for change in missed]
    assert told == [("snapshot", 56), ("snapshot", 57), ("snapshot", 58), ("delete", 59)]


def test_what_a_living_device_has_not_read_is_kept_until_it_has(
    server: ServerProcess, root: upwell.client.Client
) -> None:
    with World(server) as world:
        user = world.user()
        reader, writer = world.handset(user, "reader"), world.handset(user, "writer")
        root.execute(
            f"CREATE TABLE {world.ns}.busy (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE = 'SHARED')"
        )

        def left() -> str:
            [row] = world.sql(user, "SELECT count(*) AS n FROM system.changes")
            return str(row["n"])

        writer.put(*(upsert(n, "users", key(n), name="n") for n in range(1, 6)))
        assert len(reader.download(after=0, limit=2)["changes"]) == 2
        assert writer.download(after=0)["next_after"] == 5
        table = f"{world.ns}.busy"
        write(root, table, range(40))
        cursor = int(root.query(f"SELECT _seq FROM {table} WHERE id = 0")[0]["_seq"])

        def is_trimmed() -> bool:
            try:
                with root.live(f"SELECT id FROM {table}", from_seq=cursor) as live:
                    live.snapshot()
            except LiveError as refusal:
                return refusal.code == "HISTORY_PRUNED"
            return False

        wait_until(is_trimmed, timeout_s=WAIT_S, what="what others wrote later is trimmed")
        page = reader.download(after=0, limit=100)
        assert [change["pk"] for change in page["changes"]] == [key(n) for n in range(1, 6)]
        reader.download(after=5)
        writer.download(after=5)
        write(root, table, range(40, 60))
        wait_until(lambda: left() == "0", timeout_s=WAIT_S, what="what all devices have read is trimmed")
        assert reader.download(after=5)["changes"] == []
        answer = reader.call("GET", "/sync/download", params={"after": 2})
        assert (answer.status_code, answer.json()["error"]) == (409, "history_pruned")
