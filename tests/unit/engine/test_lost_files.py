"""A query reads what was written, or fails and names the file: whatever happened to it since it was read."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from upwell.clock import SystemClock
from upwell.effects import NoPoints, OsFiles
from upwell.engine.reading import Reading
from upwell.engine.restore import Restore, adopt_restored, return_elsewhere
from upwell.engine.stop import Stop
from upwell.errors import ColdFileMissing
from upwell.storage.rocks import RocksStore
from upwell.testing.bucket import MemoryBucket
from upwell.testing.embedded import Embedded, Tuples
from upwell.testing.faults import disk_full

ROWS = 300
EVERY = 97
"""Each so many bytes one is changed."""
QUERIES = (
    "SELECT id, n, s FROM app.t ORDER BY id",
    "SELECT count(*), sum(n) FROM app.t",
    "SELECT id FROM app.t WHERE n > 700 ORDER BY id",
    "SELECT id, n, s FROM app.t WHERE id = 7",
)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path, open_bucket=MemoryBucket().opened) as db:
        db.run("CREATE NAMESPACE app; CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'")
        yield db


def fill(db: Embedded, storage: str) -> list[Tuples]:
    """Put rows into a segment, and return the answers; they were read of the segment."""
    db.run(
        "CREATE TABLE app.t (id INT PRIMARY KEY, n BIGINT, s TEXT)"
        f" WITH (TYPE = 'SHARED', STORAGE_ID = '{storage}')"
    )
    db.run("INSERT INTO app.t VALUES " + ", ".join(f"({n}, {n * 7}, 'text {n}')" for n in range(ROWS)))
    hot = [db.rows(sql) for sql in QUERIES]
    db.flush("app.t")
    assert [db.rows(sql) for sql in QUERIES] == hot
    return hot


def test_a_changed_byte_anywhere_is_noticed(db: Embedded) -> None:
    """The query engine looks at no checksum: it would take most of them for other values."""
    expected = fill(db, "local")
    path = next(db.cold_root.rglob("batch-*.parquet"))
    whole = path.read_bytes()
    for at in range(0, len(whole), EVERY):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        for sql in QUERIES[:3]:
            with pytest.raises(ColdFileMissing, match=rf"{path.name} is damaged"):
                db.rows(sql)
    with pytest.raises(ColdFileMissing, match=rf"{path.name} is damaged"):
        db.compact("app.t")
    path.write_bytes(whole)
    assert [db.rows(sql) for sql in QUERIES] == expected


def test_what_a_server_wrote_it_reads_and_writes_on_without_its_bucket(tmp_path: Path) -> None:
    """Keys are looked up in filters, which are on this machine too, from the flush on and after a start."""
    bucket = MemoryBucket()
    with Embedded(tmp_path, open_bucket=bucket.opened) as db:
        db.run("CREATE NAMESPACE app; CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'")
        fill(db, "far")
        for key in (ROWS, ROWS + 1):
            bucket.is_away = True
            db.run(f"INSERT INTO app.t VALUES ({key}, {key}, 'new')")
            db.run(f"UPDATE app.t SET n = -1 WHERE id = {key - ROWS}")
            bucket.is_away = False
            db.flush("app.t")
            db.reopen()
        bucket.is_away = True
        db.run("DELETE FROM app.t WHERE id = 5")
        assert db.rows("SELECT count(*) FROM app.t") == [(ROWS + 1,)]
        assert db.rows("SELECT id FROM app.t WHERE n = -1 ORDER BY id") == [(0,), (1,)]


class FullDisk(OsFiles):
    """No temporary file can be written; what Arrow writes has room elsewhere."""

    def write_stream(self, path: Path, chunks: Iterable[bytes]) -> None:
        raise disk_full()


def test_a_copy_for_which_there_is_no_room_fails_no_flush(tmp_path: Path) -> None:
    """The bucket has taken the file; it is fetched when it is read."""
    bucket = MemoryBucket()
    with Embedded(tmp_path, open_bucket=bucket.opened, files=FullDisk()) as db:
        db.run("CREATE NAMESPACE app; CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'")
        fill(db, "far")
        assert db.change("UPDATE app.t SET n = -1 WHERE id = 5") == 1
        db.flush("app.t")
        assert db.rows("SELECT count(*), sum(n) FROM app.t WHERE id < 6") == [(6, 0 + 7 + 14 + 21 + 28 - 1)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "another's"])
def test_a_key_filter_in_a_bucket_that_is_no_more_what_was_written(tmp_path: Path, damage: str) -> None:
    """Of many keys, a file beside the segment: it denies no key, and is made of the segment again."""
    bucket = MemoryBucket()
    with Embedded(tmp_path, open_bucket=bucket.opened) as db:
        db.run("CREATE NAMESPACE app; CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'")
        fill(db, "far")
        values = ", ".join(f"({n}, {n}, 'more')" for n in range(ROWS, 2 * ROWS))
        db.run(f"INSERT INTO app.t VALUES {values}")
        db.flush("app.t")
        key, other = sorted(key for key in bucket.objects if key.endswith(".filter"))
        whole = bucket.objects[key]
        found = {
            "cut": whole[:-9],
            "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
            "gone": None,
            "another's": bucket.objects[other],
        }[damage]
        bucket.objects.pop(key) if found is None else bucket.objects.update({key: found})
        shutil.rmtree(tmp_path / "cache")
        db.reopen()
        changed = [
            db.change(f"UPDATE app.t SET n = -1 WHERE id = {n}") for n in (0, 7, ROWS - 1, ROWS, 2 * ROWS)
        ]
        assert changed == [1, 1, 1, 1, 0]
        assert bucket.objects[key] == whole


def restored(directory: Path, backup: Path, bucket: MemoryBucket) -> Embedded:
    """Open a server whose data were replaced by a backup, as RESTORE DATABASE and the next start do."""
    open_store = partial(RocksStore, clock=SystemClock())
    directory.mkdir(exist_ok=True)
    job = f"RS-{backup.name}"
    Restore(directory, open_store, NoPoints(), OsFiles()).run(backup, job, epoch=0, stop=Stop())
    adopt_restored(directory, open_store, NoPoints(), OsFiles())
    db = Embedded(directory, open_bucket=bucket.opened)
    return_elsewhere(directory, db.storages, db.view.catalog)
    return db


def test_a_restore_believes_no_copy_of_a_bucket_that_another_server_had(tmp_path: Path) -> None:
    """Both begin with one backup, and write other rows under the same names."""
    bucket, one, first, second = MemoryBucket(), tmp_path / "one", tmp_path / "first", tmp_path / "second"

    def write(db: Embedded, base: int) -> None:
        values = ", ".join(f"({n}, {n}, 'more')" for n in range(base, base + ROWS))
        db.run(f"INSERT INTO app.t VALUES {values}")
        db.flush("app.t")

    with Embedded(one, open_bucket=bucket.opened) as db:
        db.run("CREATE NAMESPACE app; CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'")
        fill(db, "far")
        db.kinds.backup.run(first, "BK-1", Stop())
        write(db, 1000)
        db.kinds.backup.run(second, "BK-2", Stop())
        expected = [db.rows(sql) for sql in QUERIES]
    names = set(bucket.objects)
    with restored(tmp_path / "other", first, bucket) as db:
        write(db, 5000)
    assert set(bucket.objects) == names
    restored(one, second, bucket).close()
    shutil.rmtree(one / "cache")
    with Embedded(one, open_bucket=bucket.opened) as db:
        assert [db.rows(sql) for sql in QUERIES] == expected
        found = [
            db.change(f"UPDATE app.t SET n = -1 WHERE id = {n}") for n in (0, 1000, 1000 + ROWS - 1, 5000)
        ]
        assert found == [1, 1, 1, 0]


class Swept(MemoryBucket):
    """While an object is on its way, the directory of its copy goes: it is empty, a dropped table's."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path()
        self.swept = 0

    def fetch(self, key: str, path: Path) -> None:
        super().fetch(key, path)
        with suppress(OSError):
            self.directory.rmdir()
            self.swept += 1


def test_a_copy_finds_its_directory_removed(tmp_path: Path) -> None:
    bucket = Swept()
    with Embedded(tmp_path, open_bucket=bucket.opened) as db:
        db.run("CREATE NAMESPACE app; CREATE STORAGE far TYPE s3 PATH 's3://bucket/far'")
        expected = fill(db, "far")
        shutil.rmtree(tmp_path / "cache")
        bucket.directory = tmp_path / "cache/far/app/t"
        db.reopen()
        assert [db.rows(sql) for sql in QUERIES] == expected
        assert bucket.swept > 0


def test_a_count_looks_into_no_file(db: Embedded) -> None:
    """It is arithmetic on the manifest, right whatever is in them; one that is cut off is named still."""
    fill(db, "local")
    db.reopen()
    path = next(db.cold_root.rglob("batch-*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    assert db.rows("SELECT COUNT(*) FROM app.t") == [(ROWS,)]
    path.write_bytes(whole[:-1])
    with pytest.raises(ColdFileMissing, match=rf"{path.name} has \d+ bytes"):
        db.rows("SELECT COUNT(*) FROM app.t")


def cut(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-9])


def flip(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)


def lose(copy: Path) -> None:
    copy.unlink()


def lose_all(copy: Path) -> None:
    shutil.rmtree(copy.parent)


def lose_links(copy: Path) -> None:
    shutil.rmtree(copy.parent / ".links")


@pytest.mark.parametrize("damage", [cut, flip, lose, lose_all, lose_links])
def test_a_copy_of_what_is_in_a_bucket_is_fetched_again(db: Embedded, damage: Callable[[Path], None]) -> None:
    expected = fill(db, "far")
    copy = next(path for path in (db.directory / "cache").rglob("batch-*.parquet") if not path.is_symlink())
    damage(copy)
    assert [db.rows(sql) for sql in QUERIES] == expected


def test_a_link_that_goes_as_the_query_begins_is_no_smaller_answer(db: Embedded) -> None:
    """Between the look at the files and the engine's: it lists a directory that has one less."""
    expected = fill(db, "local")
    table = db.table("app.t")
    partition = db.rows_by_key.cold_partition(db.view.hot, table, table.owner_for("root"))
    assert partition is not None
    linked = partition.links()

    class Listing:
        def execute_stream(self) -> None:
            next(linked.directory.iterdir()).unlink()

    reading = Reading(db.view)
    reading.cold.append((partition, linked))
    with pytest.raises(ColdFileMissing, match=r"linked in .* were changed; ask again"):
        reading.begun(Listing())
    assert [db.rows(sql) for sql in QUERIES] == expected
