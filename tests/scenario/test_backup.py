"""BACKUP and RESTORE DATABASE: online, at one commit, verified, on another machine, never half.

Black box: SQL over HTTP, directories, and servers on other data directories.
"""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import upwell.client
from upwell.client import LiveError
from upwell.clock import SystemClock
from upwell.effects import CRASH_POINT
from upwell.engine.history import stream_id
from upwell.storage.rocks import RocksStore
from upwell.testing import ServerFailed, ServerProcess, cold, wait_until
from upwell.testing.wire import Site, Wire

WAIT_S = 60.0
ENV = {"UPWELL_BCRYPT_COST": "4", "UPWELL_COLD_GRACE_S": "0"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ServerProcess(tmp_path_factory.mktemp("backup") / "data", env=ENV) as server:
        site = Site(server)
        site.root.run("CREATE NAMESPACE app")
        site.root.run("CREATE TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (TYPE = 'SHARED')")
        site.root.run("CREATE TABLE app.mine (id INT PRIMARY KEY, n INT) WITH (TYPE = 'USER')")
        for start in (0, 100):
            rows = ", ".join(f"({key}, 0)" for key in range(start, start + 50))
            site.root.run(f"INSERT INTO app.ours VALUES {rows}")
            site.root.run(f"INSERT INTO app.mine VALUES {rows}")
            job(site.root, "STORAGE FLUSH TABLE app.ours")
            job(site.root, "STORAGE FLUSH TABLE app.mine")
            site.root.run(f"UPDATE app.ours SET n = 1 WHERE id = {start}")
            site.root.run(f"DELETE FROM app.mine WHERE id = {start}")
        yield site
        site.close()


def job(root: Wire, sql: str) -> tuple[str, str]:
    """Run a statement that starts a job; return how that ended."""
    message = root.run(sql).message
    assert "Job ID: " in message, message
    name = message.split("Job ID: ")[1].split(".")[0]

    def ended() -> list[list[str]]:
        rows = root.run(f"SELECT status, message FROM system.jobs WHERE job_id = '{name}'").rows
        return [row for row in rows if row[0] not in ("new", "queued", "running", "retrying")]

    [(status, told)] = wait_until(ended, timeout_s=WAIT_S, what=f"job {name} to end")
    return status, told


def state(root: Wire) -> list[list[list[object]]]:
    return [root.run(f"SELECT id, n FROM app.{table} ORDER BY id").rows for table in ("ours", "mine")]


@contextmanager
def restored(directory: Path, source: Path) -> Iterator[Site]:
    """A server on another directory that has restored a backup and was started again."""
    with ServerProcess(directory, env=ENV) as server:
        there = Site(server)
        status, told = job(there.root, f"RESTORE DATABASE FROM '{source}'")
        assert status == "completed", told
        server.restart()
        yield there
        there.close()


def test_a_backup_under_fire_is_one_commit_and_comes_back_elsewhere(site: Site, tmp_path: Path) -> None:
    """Two rows change together, rows are flushed and compacted, tables come and go, while all is saved."""
    target = tmp_path / "backups" / "first"
    done = threading.Event()

    def write() -> None:
        with site.wire(site.root.token) as wire:
            for n in range(1, 10_000):
                wire.run(f"UPDATE app.ours SET n = {n} WHERE id IN (7, 107)")
                if n % 5 == 0:
                    wire.run("STORAGE FLUSH TABLE app.ours")
                if n % 20 == 0:
                    wire.run("STORAGE COMPACT TABLE app.ours")
                if n % 3 == 0:
                    wire.run("CREATE TABLE app.passing (id INT PRIMARY KEY) WITH (TYPE = 'SHARED')")
                    wire.run("INSERT INTO app.passing VALUES (1), (2), (3)")
                    wire.run("STORAGE FLUSH TABLE app.passing")
                    wire.run("DROP TABLE app.passing")
                if done.is_set():
                    return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        status, told = job(site.root, f"BACKUP DATABASE TO '{target}'")
    finally:
        done.set()
        thread.join()
    assert status == "completed", told
    archive = json.loads((target / "backup.json").read_bytes())
    on_disk = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert {entry["path"] for entry in archive["files"]} | {"backup.json"} == on_disk
    site.root.run("UPDATE app.ours SET n = -1")
    with restored(tmp_path / "other", target) as there:
        ours = {row[0]: row[1] for row in there.root.run("SELECT id, n FROM app.ours").rows}
        assert set(ours) == {*range(50), *range(100, 150)}
        assert ours[7] == ours[107], "the two that change together"
        assert {n for key, n in ours.items() if key not in (0, 7, 100, 107)} == {0}
        assert there.root.run("SELECT COUNT(*) FROM app.mine").cell == "98"
        if "passing" in [row[1] for row in there.root.run("SHOW TABLES IN app").rows]:
            assert there.root.run("SELECT COUNT(*) FROM app.passing").cell in ("0", "3")
        assert there.root.run("SELECT COUNT(*) FROM system.jobs WHERE job_type = 'backup'").cell == "0"
        there.root.run("INSERT INTO app.ours VALUES (1000, 1)")
        job(there.root, "STORAGE FLUSH TABLE app.ours")
        job(there.root, "STORAGE COMPACT TABLE app.ours")
        partition = cold.find_partition(tmp_path / "other" / "storage", "app.ours")
        assert partition is not None
        assert {row["id"]: row["n"] for row in cold.rows(partition, "id")} == ours | {1000: 1}


def test_a_restore_in_place_begins_a_new_history(site: Site, tmp_path: Path) -> None:
    """What came after the backup is put aside; devices and live queries notice, also the second time."""
    source = tmp_path / "source"
    with ServerProcess(tmp_path / "data", env=ENV) as server:
        here = Site(server)
        here.root.run("CREATE NAMESPACE app")
        for table in ("ours", "mine"):
            here.root.run(f"CREATE TABLE app.{table} (id INT PRIMARY KEY, n INT) WITH (TYPE = 'USER')")
            here.root.run(f"INSERT INTO app.{table} VALUES (1, 1)")
        job(here.root, "STORAGE FLUSH TABLE app.ours")
        before = state(here.root)
        kept = cursor(here)
        assert job(here.root, f"BACKUP DATABASE TO '{source}'")[0] == "completed"
        streams = []
        for round_ in range(2):
            here.root.run(f"INSERT INTO app.ours VALUES ({round_ + 2}, 2)")
            lost = cursor(here)
            job(here.root, "STORAGE FLUSH TABLE app.ours")
            assert job(here.root, f"RESTORE DATABASE FROM '{source}'")[0] == "completed"
            assert state(here.root) != before, "until the restart nothing changes"
            server.kill()
            streams.append(stream(server))
            server.start()
            assert state(here.root) == before
            assert cursor(here, kept) == kept, "nothing is new since"
            with pytest.raises(LiveError, match="history that was lost"):
                cursor(here, lost)
            here.root.run("UPDATE app.ours SET n = n + 1")
            assert cursor(here, cursor(here)) != kept, "what comes now is of the new history"
        server.kill()
        assert len({*streams, stream(server)}) == 3
        assert len(list((tmp_path / "data").glob("replaced-RS-*/storage"))) == 2
        assert not (tmp_path / "data" / "restored").exists()
        here.close()


def test_files_of_another_history_are_not_taken_for_those_of_a_backup(tmp_path: Path) -> None:
    """After a restore names of files are given again; a newer backup brings its own back to a storage."""
    with ServerProcess(tmp_path / "data", env=ENV) as server:
        here = Site(server)
        root = here.root
        root.run(f"CREATE STORAGE far TYPE filesystem BASE_DIRECTORY '{tmp_path}/far'")
        root.run("CREATE NAMESPACE app")
        for table in ("ours", "mine"):
            root.run(
                f"CREATE TABLE app.{table} (id INT PRIMARY KEY, n INT) "
                "WITH (TYPE = 'SHARED', STORAGE_ID = 'far')"
            )

        def add(key: int) -> list[list[list[object]]]:
            root.run(f"INSERT INTO app.ours VALUES ({key}, {key})")
            assert job(root, "STORAGE FLUSH TABLE app.ours")[0] == "completed"
            return state(root)

        states = []
        for key in (1, 2):
            states.append(add(key))
            assert job(root, f"BACKUP DATABASE TO '{tmp_path}/backup-{key}'")[0] == "completed"
        for key in (1, 2):
            assert job(root, f"RESTORE DATABASE FROM '{tmp_path}/backup-{key}'")[0] == "completed"
            server.restart()
            assert state(root) == states[key - 1]
            add(key + 5)
        here.close()


def test_a_copy_on_another_server_leaves_the_storages_of_the_first_alone(tmp_path: Path) -> None:
    """Two servers in one storage would remove each other's files; who is gone for good can be succeeded."""
    source, far = tmp_path / "source", tmp_path / "far"

    def add(root: Wire, key: int) -> None:
        root.run(f"INSERT INTO app.ours VALUES ({key}, {key})")
        assert job(root, "STORAGE FLUSH TABLE app.ours")[0] == "completed"

    def keys(root: Wire) -> list[int]:
        return [key for (key,) in root.run("SELECT id FROM app.ours ORDER BY id").rows]

    with (
        ServerProcess(tmp_path / "first", env=ENV) as first,
        ServerProcess(tmp_path / "copy", env=ENV) as copy,
        closing(Site(first)) as here,
        closing(Site(copy)) as site,
    ):
        root, there = here.root, site.root
        table = "CREATE SHARED TABLE app.ours (id INT PRIMARY KEY, n INT)"
        for wire in (root, there):
            wire.run("CREATE NAMESPACE app")
        root.run(f"CREATE STORAGE far TYPE filesystem PATH '{far}'")
        root.run(f"{table} WITH (STORAGE_ID = 'far')")
        there.run(f"{table}; INSERT INTO app.ours VALUES (9, 9)")
        lost = cursor(site)
        add(root, 1)
        assert job(root, f"BACKUP DATABASE TO '{source}'")[0] == "completed"
        add(root, 2)
        status, told = job(there, f"RESTORE DATABASE FROM '{source}'")
        assert (status, "belongs to another server" in told) == ("failed", True), told
        assert f"remove {far}/upwell-storage.json" in told
        there.run(f"CREATE STORAGE far TYPE filesystem PATH '{tmp_path}/near'")
        assert job(there, f"RESTORE DATABASE FROM '{source}'")[0] == "completed"
        copy.restart()
        assert keys(there) == [1]
        with pytest.raises(LiveError, match="history that was lost"):
            cursor(site, lost)
        add(there, 3)
        assert job(there, "STORAGE COMPACT TABLE app.ours")[0] == "completed"
        assert keys(there) == [1, 3]
        there.run("DROP TABLE app.ours")
        there.run("DROP STORAGE far")
        first.restart()
        assert keys(root) == [1, 2]
        assert cold.audit(far) == []
    (far / "upwell-storage.json").unlink()
    with restored(tmp_path / "successor", source) as successor:
        assert keys(successor.root) == [1]
        add(successor.root, 4)
        assert keys(successor.root) == [1, 4]


def test_what_a_lost_disk_had_comes_back_by_a_restore(tmp_path: Path) -> None:
    """On the server that it was lost to; a storage that isn't ready stops the restore, not the next start."""
    far = tmp_path / "far"
    with ServerProcess(tmp_path / "data", env=ENV) as server, closing(Site(server)) as here:
        root = here.root
        root.run("CREATE NAMESPACE app")
        root.run(f"CREATE STORAGE far TYPE filesystem PATH '{far}'")
        root.run("CREATE SHARED TABLE app.ours (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID = 'far')")
        root.run("INSERT INTO app.ours VALUES (1, 1), (2, 2)")
        job(root, "STORAGE FLUSH TABLE app.ours")
        restore = f"RESTORE DATABASE FROM '{tmp_path}/source'"
        assert job(root, f"BACKUP DATABASE TO '{tmp_path}/source'")[0] == "completed"
        shutil.rmtree(far)
        status, told = job(root, restore)
        assert (status, "is the right disk mounted" in told) == ("failed", True), told
        assert "ALTER STORAGE far SET CONFIG" in told
        root.run("ALTER STORAGE far SET CONFIG '{}'")
        assert job(root, restore)[0] == "completed"
        far.rename(tmp_path / "away")
        with pytest.raises(ServerFailed, match="Start again when that is repaired"):
            server.restart()
        assert "Traceback" not in server.log_text()
        (tmp_path / "away").rename(far)
        server.start()
        assert root.run("SELECT id, n FROM app.ours ORDER BY id").rows == [[1, 1], [2, 2]]
        assert cold.audit(far) == []
        assert not (tmp_path / "data" / "restored").exists()
        root.run("DROP TABLE app.ours")
        root.run("DROP STORAGE far")
        assert not (far / "upwell-storage.json").exists()
        assert job(root, restore)[0] == "completed"
        server.restart()
        assert root.run("SELECT id, n FROM app.ours ORDER BY id").rows == [[1, 1], [2, 2]]
        assert cold.audit(far) == []


def cursor(site: Site, after: int | None = None) -> int | None:
    """Return up to where a live query has read, which goes on from there if `after` is given."""
    with (
        upwell.client.connect(site.server.url, token=site.root.token) as client,
        client.live("SELECT * FROM app.ours", from_seq=after) as live,
    ):
        live.snapshot()
        return live.cursor


def stream(server: ServerProcess) -> str:
    """Return the history's name as devices are told it, while the server is down."""
    store = RocksStore(server.data_dir / "hot", clock=SystemClock())
    try:
        return stream_id(store)
    finally:
        store.close()


def test_what_can_be_no_backup_is_refused_at_once(site: Site, tmp_path: Path) -> None:
    root, data = site.root, site.server.data_dir
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "empty").mkdir()
    for sql, reason in {
        f"BACKUP DATABASE TO '{tmp_path}/taken'": "not empty",
        f"BACKUP DATABASE TO '{tmp_path}/taken/file'": "not empty",
        f"BACKUP DATABASE TO '{tmp_path}/../x'": "without '..'",
        "BACKUP DATABASE TO '/etc/backup'": "belongs to the system",
        "BACKUP DATABASE TO '/backup'": "belongs to the system",
        f"BACKUP DATABASE TO '{data}/hot/x'": "inside the data directory",
        f"BACKUP DATABASE TO '{tmp_path}/{'x' * 300}'": "File name too long",
        f"RESTORE DATABASE FROM '{tmp_path}/{'x/' * 3000}'": "File name too long",
        f"RESTORE DATABASE FROM '{tmp_path}/missing'": "no directory",
        f"RESTORE DATABASE FROM '{tmp_path}/empty'": "no backup.json",
    }.items():
        answer = root.sql(sql)
        assert answer.status == 400, sql
        assert reason in answer.body.decode(), answer.body
    assert root.sql(f"BACKUP DATABASE TO {tmp_path}/x").status == 400, "the path is quoted"
    for role in ("user", "service"):
        _, wire = site.account(role=role)
        assert wire.sql(f"BACKUP DATABASE TO '{tmp_path}/x'").status == 403
        assert wire.sql(f"RESTORE DATABASE FROM '{tmp_path}/x'").status == 403
    assert not (tmp_path / "x").exists()
    assert job(root, "BACKUP DATABASE TO 'by-name'")[0] == "completed"
    assert (data / "backups" / "by-name" / "backup.json").exists()


def test_a_damaged_backup_is_refused_by_the_file(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "source"
    assert job(site.root, f"BACKUP DATABASE TO '{source}'")[0] == "completed"
    before = state(site.root)
    parquet = next(path for path in source.rglob("*.parquet"))
    hot = max((path for path in (source / "hot").iterdir()), key=lambda path: path.stat().st_size)
    for path in (parquet, hot):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        status, told = job(site.root, f"RESTORE DATABASE FROM '{source}'")
        assert (status, path.name in told) == ("failed", True), told
        path.unlink()
        status, told = job(site.root, f"RESTORE DATABASE FROM '{source}'")
        assert (status, f"{path.name} is missing" in told) == ("failed", True), told
        path.write_bytes(whole)
    site.server.restart()
    assert state(site.root) == before


def test_a_damaged_list_of_a_backup_is_refused(site: Site, tmp_path: Path) -> None:
    """It is sealed; that of an older release isn't, and has to agree with what it lists."""
    source = tmp_path / "source"
    assert job(site.root, f"BACKUP DATABASE TO '{source}'")[0] == "completed"
    listed, before = source / "backup.json", state(site.root)
    whole = listed.read_bytes()
    archive = json.loads(whole)
    seq = archive["seq"]
    sealed = (
        whole.replace(f'"seq":{seq}'.encode(), f'"seq":{seq - 1}'.encode()),
        json.dumps(archive | {"files": []}).encode(),
        json.dumps(archive).encode(),
        whole.replace(archive["sha256"].encode(), b""),
    )
    for damaged in sealed:
        assert damaged != whole
        listed.write_bytes(damaged)
        answer = site.root.sql(f"RESTORE DATABASE FROM '{source}'")
        assert (answer.status, "backup.json is damaged" in answer.body.decode()) == (400, True), answer.body
    del archive["sha256"]
    away = {"path": "hot/CURRENT", "table": 1, "owner": "s", "storage": "x", "directory": "..", "name": "x"}
    for wrong, reason in (
        ({"files": [archive["files"][0] | {"path": "../x"}]}, "names a file outside of it"),
        ({"elsewhere": [away]}, "names a file outside of it"),
        ({"files": []}, "names no hot/CURRENT"),
        ({"seq": seq << 1}, "isn't that of the store"),
        ({"epoch": archive["epoch"] + 1}, "isn't that of the store"),
    ):
        listed.write_text(json.dumps(archive | wrong))
        status, told = job(site.root, f"RESTORE DATABASE FROM '{source}'")
        assert (status, reason in told) == ("failed", True), told
    listed.write_text(json.dumps(archive | {"format": 2}))
    assert "take a newer version" in site.root.sql(f"RESTORE DATABASE FROM '{source}'").body.decode()
    listed.write_text(json.dumps(archive))
    with restored(tmp_path / "other", source) as there:
        assert state(there.root) == before
    site.server.restart()
    assert state(site.root) == before


POINTS = ("backup:file-copied", "backup:list-written", "backup:named")


def test_a_backup_that_dies_is_none_or_is_made_again(site: Site, tmp_path: Path) -> None:
    """SIGKILL at each point: the target isn't there or is whole, and the job completes after the restart."""
    for number, point in enumerate(POINTS):
        target = tmp_path / str(number)
        site.server.restart(env={CRASH_POINT: point})
        message = site.root.run(f"BACKUP DATABASE TO '{target}'").message
        name = message.split("Job ID: ")[1]
        assert site.server.wait_exit() == -9
        assert target.exists() == (point == "backup:named")
        site.server.start()

        def completed(name: str = name) -> bool:
            sql = f"SELECT status FROM system.jobs WHERE job_id = '{name}'"
            return bool(site.root.run(sql).cell == "completed")

        wait_until(completed, timeout_s=WAIT_S, what="the backup to be made again")
        assert (target / "backup.json").exists()
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(target)


@pytest.mark.parametrize("point", ["restore:named", "restore:replaced#1", "restore:replaced#2"])
def test_a_restore_that_dies_goes_on(site: Site, tmp_path: Path, point: str) -> None:
    source = tmp_path / "source"
    assert job(site.root, f"BACKUP DATABASE TO '{source}'")[0] == "completed"
    before = state(site.root)
    with ServerProcess(tmp_path / "data", env=ENV) as server:
        there = Site(server)
        is_swap = point.startswith("restore:replaced")
        if not is_swap:
            server.restart(env={CRASH_POINT: point})
        there.root.run(f"RESTORE DATABASE FROM '{source}'")
        if not is_swap:
            assert server.wait_exit() == -9
            server.start()
        if is_swap:

            def is_over() -> bool:
                sql = "SELECT status FROM system.jobs WHERE job_type = 'restore'"
                return bool(there.root.run(sql).cell == "completed")

            wait_until(is_over, timeout_s=WAIT_S, what="the restore to be made again")
        if is_swap:
            server.kill()
            server.spawn(env={CRASH_POINT: point})
            assert server.wait_exit() == -9
            server.start()
        else:
            server.restart()
        assert state(there.root) == before
        there.close()
