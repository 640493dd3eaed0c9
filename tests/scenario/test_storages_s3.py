"""Storages in a bucket, over HTTP: where files land, and what happens when the server of the bucket fails."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from upwell.testing import ServerProcess, cold
from upwell.testing.s3 import Fault, FaultProxy, Harm, S3Server
from upwell.testing.wait import wait_until
from upwell.testing.wire import Site, Wire

KEY_ID, SECRET = "AKIA-OF-A-TEST", "the-secret-of-a-test"
CREDENTIALS = json.dumps(
    {"access_key_id": "env:STORAGE_TEST_KEY", "secret_access_key": "env:STORAGE_TEST_SECRET"}
)
DONE = ("completed", "failed", "skipped", "cancelled")
BUCKET = "archive"


@dataclass
class Cloud:
    """A server with the storages `fast_ssd` and `s3_archive`, and the bucket behind a proxy that can fail."""

    site: Site
    s3: S3Server
    proxy: FaultProxy
    ssd: Path
    bucket: str = BUCKET

    @property
    def root(self) -> Wire:
        return self.site.root

    def create(self, name: str, bucket: str, **config: object) -> str:
        """Return CREATE STORAGE of a bucket behind the proxy."""
        settings = {
            "endpoint": self.proxy.url, "allow_http": True, "region": "us-east-1", "retries_max": 1, **config
        }  # fmt: skip
        return (
            f"CREATE STORAGE {name} TYPE 's3' PATH 's3://{bucket}' "
            f"CONFIG '{json.dumps(settings)}' CREDENTIALS '{CREDENTIALS}'"
        )

    def submit(self, table: str) -> str:
        return self.root.run(f"STORAGE FLUSH TABLE {table}").message.split("Job ID: ")[1]

    def ended(self, job: str) -> tuple[str, str]:
        """Wait for the end of a job; return its status and message."""
        question = f"SELECT status, message FROM system.jobs WHERE job_id = '{job}'"
        wait_until(lambda: self.root.run(question).rows[0][0] in DONE, timeout_s=60, what=job)
        status, message = self.root.run(question).rows[0]
        return status, message

    def archive(self, directory: Path, prefix: str = "") -> Path:
        return self.s3.download(self.bucket, directory, prefix)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    directory = tmp_path_factory.mktemp("cloud")
    env = {"UPWELL_BCRYPT_COST": "4", "STORAGE_TEST_KEY": KEY_ID, "STORAGE_TEST_SECRET": SECRET}
    with (
        S3Server() as s3,
        FaultProxy(s3.port) as proxy,
        ServerProcess(directory / "data", env=env) as server,
    ):
        s3.make_bucket(BUCKET)
        cloud = Cloud(Site(server), s3, proxy, directory / "ssd")
        cloud.root.run(f"CREATE STORAGE fast_ssd TYPE filesystem PATH '{cloud.ssd}'")
        cloud.root.run(cloud.create("s3_archive", BUCKET))
        yield cloud
        cloud.site.close()
        log = server.log_path.read_text()
        assert SECRET not in log
        assert KEY_ID not in log
        assert "Traceback" not in log, server.log_tail()


@pytest.fixture
def space(cloud: Cloud) -> str:
    return cloud.site.namespace()


# --- where files land


def test_two_tables_of_one_name_and_the_same_keys_never_meet(cloud: Cloud, tmp_path: Path) -> None:
    """Two storages, the same table name and keys: the files of each are in its own place, nowhere else."""
    one, two = cloud.site.namespace(), cloud.site.namespace()
    for space, storage in ((one, "fast_ssd"), (two, "s3_archive")):
        cloud.root.run(
            f"CREATE TABLE {space}.events (id BIGINT PRIMARY KEY, value TEXT) "
            f"WITH (TYPE='USER', STORAGE_ID='{storage}')"
        )
        rows = ", ".join(f"({number}, '{storage} {number}')" for number in range(100))
        cloud.root.run(f"INSERT INTO {space}.events VALUES {rows}")
        cloud.proxy.seen.clear()
        assert cloud.ended(cloud.submit(f"{space}.events"))[0] == "completed"
    puts = [path for method, path in cloud.proxy.seen if method == "PUT"]
    assert puts[-1] == f"/{BUCKET}/{two}/events/root/manifest.json", "the copy is the last that is written"
    assert not [path for path in puts if one in path]

    archive = cloud.archive(tmp_path / "archive")
    for space, root, storage in ((one, cloud.ssd, "fast_ssd"), (two, archive, "s3_archive")):
        partition = cold.find_partition(root, f"{space}.events", "root")
        assert partition is not None
        assert partition.directory == root / space / "events" / "root"
        assert cold.rows(partition, "id") == [{"id": n, "value": f"{storage} {n}"} for n in range(100)]
        manifest = json.loads((partition.directory / "manifest.json").read_bytes())
        assert {each["storage"] for each in [manifest, *manifest["segments"]]} == {storage}
    assert cold.partitions(archive, table_id=f"{one}.events") == []
    assert cold.partitions(cloud.ssd, table_id=f"{two}.events") == []
    assert not list((cloud.site.server.data_dir / "storage").rglob("*.parquet"))
    joined = cloud.root.run(
        f"SELECT COUNT(*), SUM(a.id) FROM {one}.events a JOIN {two}.events b ON a.id = b.id "
        "WHERE a.value <> b.value"
    )
    assert [int(cell) for cell in joined.rows[0]] == [100, sum(range(100))]
    kinds = cloud.root.run("SELECT table_name, storage_id, namespace_id FROM system.tables").rows
    assert ["events", "fast_ssd", one] in kinds
    assert ["events", "s3_archive", two] in kinds


def test_users_and_kinds_of_tables_in_a_bucket(cloud: Cloud, space: str, tmp_path: Path) -> None:
    """Scenario 11: ten rows of each of two users, ten shared; a STREAM table has no files."""
    cloud.root.run(f"CREATE USER TABLE {space}.mine (id INT PRIMARY KEY) WITH (STORAGE_ID='s3_archive')")
    cloud.root.run(
        f"CREATE SHARED TABLE {space}.ours (id INT PRIMARY KEY) "
        "WITH (STORAGE_ID='s3_archive', ACCESS_LEVEL='PUBLIC')"
    )
    cloud.root.run(f"CREATE STREAM TABLE {space}.seen (id INT) WITH (TTL_SECONDS=3600)")
    (ann, first), (bob, second) = cloud.site.account(), cloud.site.account()
    for wire, start, table in ((first, 1, "mine"), (second, 11, "mine"), (cloud.root, 21, "ours")):
        values = ", ".join(f"({number})" for number in range(start, start + 10))
        wire.run(f"INSERT INTO {space}.{table} VALUES {values}")
    for table in ("mine", "ours"):
        assert cloud.ended(cloud.submit(f"{space}.{table}"))[0] == "completed"
    cloud.root.sql(f"STORAGE FLUSH TABLE {space}.seen").refused(400, "SQL_EXECUTION_ERROR")
    for wire, start, table in ((first, 1, "mine"), (second, 11, "mine"), (first, 21, "ours")):
        rows = wire.run(f"SELECT id FROM {space}.{table} ORDER BY id").rows
        assert [int(row[0]) for row in rows] == list(range(start, start + 10))
    found = cold.partitions(cloud.archive(tmp_path, f"{space}/"))
    assert {(each.table_id, each.user_id) for each in found} == {
        (f"{space}.mine", ann), (f"{space}.mine", bob), (f"{space}.ours", None)
    }  # fmt: skip


def test_a_restart_without_the_copies_reads_everything_again(cloud: Cloud, space: str) -> None:
    table = f"{space}.t"
    cloud.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID='s3_archive')")
    cloud.root.run(f"INSERT INTO {table} VALUES (1, 1), (2, 2), (3, 3)")
    assert cloud.ended(cloud.submit(table))[0] == "completed"
    cloud.root.run(f"UPDATE {table} SET n = 20 WHERE id = 2; DELETE FROM {table} WHERE id = 3")
    assert cloud.ended(cloud.submit(table))[0] == "completed"
    copies = cloud.site.server.data_dir / "cache/s3_archive" / space / "t"
    damaged = next(copies.glob("batch-*-0.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    for path in copies.glob("*-1.*"):
        path.unlink()
    expected = [["1", 1], ["2", 20]]
    found = cloud.root.run(f"SELECT id, n FROM {table} ORDER BY id").rows
    assert [[str(key), int(n)] for key, n in found] == expected
    assert cloud.root.run(f"SELECT n FROM {table} WHERE id = 2").cell == 20
    message = cloud.root.sql(f"INSERT INTO {table} VALUES (1, 5)").refused(400, "SQL_EXECUTION_ERROR")
    assert "Primary key violation" in message


def test_a_table_moves_and_its_old_storage_can_go(cloud: Cloud, space: str, tmp_path: Path) -> None:
    table, old = f"{space}.t", tmp_path / "old"
    cloud.root.run(f"CREATE STORAGE {space} TYPE filesystem PATH '{old}'")
    cloud.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID='{space}')")
    cloud.root.run(f"INSERT INTO {table} VALUES (1, 1), (2, 2), (3, 3)")
    assert cloud.ended(cloud.submit(table))[0] == "completed"
    cloud.root.sql(f"ALTER TABLE {table} SET TBLPROPERTIES (STORAGE_ID = 'nowhere')").refused(
        400, "INVALID_SQL"
    )
    message = cloud.root.run(f"ALTER TABLE {table} SET TBLPROPERTIES (STORAGE_ID = 's3_archive')").message
    assert (
        message
        == f"Table {table} altered successfully: SET TBLPROPERTIES (STORAGE_ID='s3_archive') (version 2)"
    )
    cloud.root.run(f"UPDATE {table} SET n = 20 WHERE id = 2; INSERT INTO {table} VALUES (4, 4)")
    assert cloud.ended(cloud.submit(table))[0] == "completed"

    expected = [{"id": 1, "n": 1}, {"id": 2, "n": 20}, {"id": 3, "n": 3}, {"id": 4, "n": 4}]
    roots = {space: old, "s3_archive": tmp_path / "archive"}
    cloud.s3.download(BUCKET, tmp_path / "archive")
    partition = cold.find_partition(tmp_path / "archive", table, roots=roots)
    assert partition is not None
    assert {segment.directory for segment in partition.segments} == {
        root / space / "t" for root in roots.values()
    }
    assert cold.rows(partition, "id") == expected
    assert not list(old.rglob("manifest.json")), "there is one copy, beside the manifest"
    message = cloud.root.sql(f"DROP STORAGE {space}").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Cannot drop storage '{space}': 1 table(s) still using it" in message

    job = cloud.root.run(f"STORAGE COMPACT TABLE {table}").message.split("Job ID: ")[1]
    assert cloud.ended(job)[0] == "completed"
    rows = cloud.root.run(f"SELECT id, n FROM {table} ORDER BY id").rows
    assert [{"id": int(key), "n": int(n)} for key, n in rows] == expected
    partition = cold.find_partition(cloud.s3.download(BUCKET, tmp_path / "after"), table)
    assert partition is not None
    assert cold.rows(partition, "id") == expected


def test_a_dropped_table_leaves_nothing_in_its_bucket(cloud: Cloud, space: str) -> None:
    cloud.root.run(cloud.create("gone", f"{BUCKET}/{space}"))
    cloud.root.run(f"CREATE USER TABLE {space}.t (id INT PRIMARY KEY) WITH (STORAGE_ID='gone')")
    for wire in (cloud.root, cloud.site.account()[1]):
        wire.run(f"INSERT INTO {space}.t VALUES (1)")
    assert cloud.ended(cloud.submit(f"{space}.t"))[0] == "completed"
    assert len(cloud.s3.keys(BUCKET, f"{space}/{space}/t/")) == 6
    job = cloud.root.run(f"DROP TABLE {space}.t").message.split("Cleanup job: ")[1]
    assert cloud.ended(job)[0] == "completed"
    assert cloud.s3.keys(BUCKET, f"{space}/") == [f"{space}/upwell-storage.json"]
    assert cloud.root.run("DROP STORAGE gone").message == "Storage 'gone' dropped successfully"
    assert cloud.s3.keys(BUCKET, f"{space}/") == []


# --- faults

FAULTS = [
    pytest.param(Fault(Harm.REFUSE, "PUT", status=403, code="AccessDenied"), "403 AccessDenied", id="403"),
    pytest.param(
        Fault(Harm.REFUSE, status=404, code="NoSuchBucket"), "the bucket doesn't exist", id="missing-bucket"
    ),
    pytest.param(Fault(Harm.CUT_UPLOAD, "PUT", path=".parquet"), "was cut off on its way", id="cut-off"),
]


@pytest.mark.parametrize(("fault", "cause"), FAULTS)
def test_a_flush_that_fails_says_why_and_is_done_later(
    cloud: Cloud, space: str, tmp_path: Path, fault: Fault, cause: str
) -> None:
    """Failed with its cause, the rows readable all the time; after the repair completed, each row once."""
    table = f"{space}.t"
    cloud.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID='s3_archive')")
    cloud.root.run(f"INSERT INTO {table} VALUES (1, 1), (2, 2)")
    assert cloud.ended(cloud.submit(table))[0] == "completed"
    cloud.root.run(f"UPDATE {table} SET n = 20 WHERE id = 2; INSERT INTO {table} VALUES (3, 3)")
    question = f"SELECT id, n FROM {table} ORDER BY id"
    expected = [[1, 1], [2, 20], [3, 3]]
    with cloud.proxy.failing(fault):
        job = cloud.submit(table)
        status, message = cloud.ended(job)
        assert status == "failed", message
        assert cause in message
        assert "s3_archive" in message
        assert f"s3://{BUCKET}/" in message
        assert SECRET not in message
        assert KEY_ID not in message
        assert [[int(cell) for cell in row] for row in cloud.root.run(question).rows] == expected
    cloud.root.run(f"RETRY JOB '{job}'")
    assert cloud.ended(job)[0] == "completed"
    assert [[int(cell) for cell in row] for row in cloud.root.run(question).rows] == expected
    check_files(cloud, table, tmp_path, [{"id": key, "n": n} for key, n in expected])


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            Fault(Harm.LOSE_ANSWER, "PUT", path=".parquet", times=1), id="repeated-put-of-a-segment"
        ),
        pytest.param(Fault(Harm.CUT_UPLOAD, "PUT", path="manifest-", times=1), id="cut-off-manifest"),
        pytest.param(Fault(Harm.REFUSE, status=503, times=3), id="503-three-times"),
        pytest.param(Fault(Harm.HOLD, "PUT", path=".parquet", times=1), id="slow"),
    ],
)
def test_a_passing_fault_is_overcome(cloud: Cloud, space: str, tmp_path: Path, fault: Fault) -> None:
    table, storage = f"{space}.t", f"s_{space}"
    cloud.root.run(cloud.create(storage, f"{BUCKET}/{space}", timeout_s=1))
    cloud.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID='{storage}')")
    cloud.root.run(f"INSERT INTO {table} VALUES (1, 1), (2, 2), (3, 3)")
    with cloud.proxy.failing(fault):
        status, message = cloud.ended(cloud.submit(table))
        assert status == "completed", message
        assert fault.taken == fault.times, "the fault was there"
    check_files(cloud, table, tmp_path, [{"id": n, "n": n} for n in (1, 2, 3)], prefix=f"{space}/")


def check_files(
    cloud: Cloud, table: str, directory: Path, expected: list[dict[str, int]], prefix: str = ""
) -> None:
    """After one more flush the bucket has each row once, and no file that no manifest names."""
    cloud.root.run(f"INSERT INTO {table} VALUES (9, 9)")
    assert cloud.ended(cloud.submit(table))[0] == "completed"
    space = table.split(".")[0]
    root = cloud.archive(directory, f"{prefix}{space}/")
    partition = cold.find_partition(root, table)
    assert partition is not None
    assert cold.rows(partition, "id") == [*expected, {"id": 9, "n": 9}]
    seqs = [row["_seq"] for row in cold.versions(partition)]
    assert len(seqs) == len(set(seqs)), "no version twice"
    assert cold.audit(root) == []


def test_a_kill_in_the_middle_of_a_flush(cloud: Cloud, tmp_path: Path) -> None:
    """After the restart the job ends by itself, each row is there once, and no file is left over."""
    env = {"UPWELL_BCRYPT_COST": "4", "STORAGE_TEST_KEY": KEY_ID, "STORAGE_TEST_SECRET": SECRET}
    point, prefix = "flush:manifest-written", "killed"
    with (
        ServerProcess(tmp_path / "data", env={**env, "UPWELL_CRASH_POINT": point}) as server,
        ExitStack() as stack,
    ):
        site = stack.enter_context(closing(Site(server)))
        theirs = site.root.sql(cloud.create("far", f"{BUCKET}/{prefix}")).refused(400, "SQL_EXECUTION_ERROR")
        assert f"s3://{BUCKET} belongs to another server" in theirs
        cloud.s3.make_bucket("own-bucket")
        site.root.run(cloud.create("far", f"own-bucket/{prefix}"))
        space = site.namespace()
        site.root.run(f"CREATE SHARED TABLE {space}.t (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID='far')")
        site.root.run(f"INSERT INTO {space}.t VALUES (1, 1), (2, 2), (3, 3)")
        killed = Cloud(site, cloud.s3, cloud.proxy, cloud.ssd, "own-bucket")
        job = killed.submit(f"{space}.t")
        assert server.wait_exit() == -9
        server.restart(env={"UPWELL_CRASH_POINT": ""})
        killed.site = stack.enter_context(closing(Site(server)))
        assert killed.ended(job)[0] == "completed"
        rows = killed.root.run(f"SELECT id, n FROM {space}.t ORDER BY id").rows
        assert [[int(cell) for cell in row] for row in rows] == [[1, 1], [2, 2], [3, 3]]
        check_files(
            killed, f"{space}.t", tmp_path / "files", [{"id": n, "n": n} for n in (1, 2, 3)], f"{prefix}/"
        )


def test_a_read_that_fails_says_which_file_and_never_gives_fewer_rows(cloud: Cloud, space: str) -> None:
    table = f"{space}.t"
    cloud.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY) WITH (STORAGE_ID='s3_archive')")
    cloud.root.run(f"INSERT INTO {table} VALUES (1), (2)")
    assert cloud.ended(cloud.submit(table))[0] == "completed"
    for path in (cloud.site.server.data_dir / "cache/s3_archive" / space / "t").glob("*.*"):
        path.unlink()
    with cloud.proxy.failing(Fault(Harm.REFUSE, "GET", status=403, code="AccessDenied")):
        message = cloud.root.sql(f"SELECT COUNT(*) FROM {table}").refused(503, "INTERNAL_ERROR")
        assert f"s3://{BUCKET}/{space}/t/" in message
        assert "403 AccessDenied" in message
        assert cloud.root.run("SELECT COUNT(*) FROM system.tables").status == 200, "others are unaffected"
    assert int(cloud.root.run(f"SELECT COUNT(*) FROM {table}").cell) == 2


# --- definitions


def test_a_check_tells_what_works(cloud: Cloud) -> None:
    bucket = "checked"
    cloud.s3.make_bucket(bucket)
    cloud.root.run(cloud.create("checked", bucket))
    ask = "STORAGE CHECK checked EXTENDED"
    (row,) = cloud.root.run(ask).by_key.values()
    assert (row["status"], row["error"], row["total_bytes"], row["used_bytes"]) == (
        "healthy",
        None,
        None,
        None,
    )
    assert all(row[ability] is True for ability in ("readable", "writable", "listable", "deletable"))
    assert row["tested_at"] is not None
    assert int(str(row["latency_ms"])) >= 0
    with cloud.proxy.failing(Fault(Harm.REFUSE, "PUT", status=403, code="AccessDenied")):
        (row,) = cloud.root.run(ask).by_key.values()
    assert (row["status"], row["writable"], row["deletable"]) == ("degraded", False, True)
    assert "403 AccessDenied" in str(row["error"])
    cloud.s3.remove_bucket(bucket)
    (row,) = cloud.root.run(ask).by_key.values()
    assert (row["status"], row["readable"]) == ("unreachable", False)
    assert "doesn't exist" in str(row["error"])
    cloud.s3.make_bucket(bucket)
    (row,) = cloud.root.run(ask).by_key.values()
    assert "upwell-storage.json is missing" in str(row["error"]), "an empty bucket isn't the same bucket"
    cloud.root.run("DROP STORAGE checked")


def test_what_cannot_be_used_is_refused_at_once(cloud: Cloud, tmp_path: Path) -> None:
    def refused(statement: str) -> str:
        message = cloud.root.sql(statement).refused(400, "SQL_EXECUTION_ERROR")
        assert SECRET not in message
        assert KEY_ID not in message
        return message

    assert "the bucket doesn't exist" in refused(cloud.create("x", "nobody-s"))
    assert "can't connect" in refused(cloud.create("x", BUCKET, endpoint="http://127.0.0.1:9"))
    with cloud.proxy.failing(Fault(Harm.FORGET_CONDITION, "PUT")):
        assert "ignores If-None-Match" in refused(cloud.create("x", f"{BUCKET}/careless"))
    with cloud.proxy.failing(Fault(Harm.REFUSE, status=403, code="InvalidAccessKeyId")):
        assert "403 InvalidAccessKeyId" in refused(cloud.create("x", f"{BUCKET}/denied"))
    cloud.s3.put(BUCKET, "other/upwell-storage.json", b'{"server":"another","format":1}')
    assert "belongs to another server" in refused(cloud.create("x", f"{BUCKET}/other"))
    secret = json.dumps({"access_key_id": KEY_ID, "secret_access_key": SECRET})
    for clause in ("CREDENTIALS", "CONFIG"):
        text = f"CREATE STORAGE x TYPE s3 BUCKET '{BUCKET}' {clause} '{secret}'"
        assert "where the secret is, not what it is" in refused(text)
        assert SECRET not in cloud.root.sql(text).body.decode()
    unknown = CREDENTIALS.replace("STORAGE_TEST_SECRET", "UPWELL_JWT_SECRET")
    text = f"CREATE STORAGE x TYPE s3 BUCKET '{BUCKET}' CREDENTIALS '{unknown}'"
    assert "finds no secret at 'env:UPWELL_JWT_SECRET'" in refused(text)
    assert "x" not in cloud.root.run("SHOW STORAGES").by_key


def test_secrets_are_shown_nowhere(cloud: Cloud) -> None:
    row = cloud.root.run("SHOW STORAGES").by_key["s3_archive"]
    assert json.loads(row["credentials"]) == {"access_key_id": "***", "secret_access_key": "***"}
    assert json.loads(row["config_json"])["endpoint"] == cloud.proxy.url
    for name in ("storages", "jobs", "audit_log"):
        text = cloud.root.run(f"SELECT * FROM system.{name}").body.decode()
        assert SECRET not in text
        assert KEY_ID not in text
    audit = cloud.root.run("SELECT action, target FROM system.audit_log").rows
    assert ["CREATE_STORAGE", "s3_archive"] in audit
