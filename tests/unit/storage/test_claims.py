"""A place belongs to one server, and a directory of it to one partition: of two at once, one is told."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from upwell.effects import OsFiles
from upwell.errors import InvalidOperation, StorageFailed
from upwell.storage.definition import Storage, StorageType
from upwell.storage.objects import Bucket
from upwell.storage.place import LOCAL, Place
from upwell.storage.storages import Storages
from upwell.testing.bucket import MemoryBucket

SERVERS = 8
MARKER = "upwell-storage.json"


def directory(path: Path, name: str = "s") -> Storage:
    return Storage(name, StorageType.FILESYSTEM, name, str(path))


def server(root: Path, name: str, *storages: Storage) -> Storages:
    """Return the storages of a server of its own."""
    records = {storage.id: msgspec.json.encode(storage) for storage in storages}
    return Storages(root / name / "storage", OsFiles(), server=name, find=records.get)


def raced(tries: list[Callable[[], object]]) -> list[str]:
    """Try all at once; return what those were told that failed."""
    start = threading.Barrier(len(tries))

    def tried(attempt: Callable[[], object]) -> str | None:
        start.wait()
        try:
            attempt()
        except InvalidOperation as error:
            return str(error.args[0])
        return None

    with ThreadPoolExecutor(len(tries)) as threads:
        return [told for told in threads.map(tried, tries) if told is not None]


def test_of_servers_that_take_one_directory_at_once_one_has_it(tmp_path: Path) -> None:
    storage = directory(tmp_path / "base")
    servers = [server(tmp_path, f"server{n}") for n in range(SERVERS)]
    told = raced([lambda it=each: it.create(storage) for each in servers])  # type: ignore[misc]
    assert len(told) == SERVERS - 1
    assert all("belongs to another server" in text for text in told)


def test_of_servers_that_take_one_prefix_at_once_one_has_it(tmp_path: Path) -> None:
    storage, bucket = Storage("s", StorageType.S3, "s", "s3://bucket/prefix"), MemoryBucket()
    servers = [
        Storages(tmp_path / str(n), OsFiles(), server=f"server{n}", open_bucket=bucket.opened)
        for n in range(SERVERS)
    ]
    told = raced([lambda it=each: it.create(storage) for each in servers])  # type: ignore[misc]
    assert len(told) == SERVERS - 1
    assert all("belongs to another server" in text for text in told)


def test_of_servers_one_inside_the_other_at_once_one_is_told(tmp_path: Path) -> None:
    """Whoever comes second: when it takes the place, or when it first writes there."""
    for at in range(20):
        base = tmp_path / str(at)
        outer, inner = directory(base), directory(base / "app")
        place = Place("s", "app/todo")
        one, two = server(tmp_path, f"one{at}", outer), server(tmp_path, f"two{at}", inner)

        def begin(one: Storages = one, outer: Storage = outer, place: Place = place) -> None:
            one.create(outer)
            try:
                one.refuse_claimed(place)
            except StorageFailed as error:
                raise InvalidOperation(error.args[0]) from error

        told = raced([begin, lambda two=two, inner=inner: two.create(inner)])  # type: ignore[misc]
        assert len(told) >= 1, "two servers write into one directory"
        assert all("belongs to another server" in text for text in told)


def test_a_place_that_is_refused_isnt_marked(tmp_path: Path) -> None:
    server(tmp_path, "one").create(directory(tmp_path / "base"))
    with pytest.raises(InvalidOperation, match="isn't inside of it"):
        server(tmp_path, "two").create(directory(tmp_path / "base" / "a" / "b"))
    assert not (tmp_path / "base" / "a" / "b" / MARKER).exists()
    server(tmp_path, "one").create(directory(tmp_path / "base" / "a" / "b"))


def test_a_place_that_was_given_up_is_anybodys(tmp_path: Path) -> None:
    """Unless another storage of the same server is there, or somebody else's marker."""
    base, one, two = tmp_path / "base", server(tmp_path, "one"), server(tmp_path, "two")
    storage, beside = directory(base), directory(tmp_path / "link", "beside")
    (tmp_path / "link").symlink_to(base)
    one.create(storage)
    one.release(storage, [beside])
    with pytest.raises(InvalidOperation, match="belongs to another server"):
        two.create(storage)
    one.release(storage, [directory(tmp_path / "other", "other")])
    assert list(base.iterdir()) == []
    two.create(storage)
    one.release(storage, [])
    assert (base / MARKER).read_bytes() == b'{"server":"two","format":1}'
    one.release(directory(tmp_path / "never"), [])


def test_a_place_inside_another_servers_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "hot").mkdir(parents=True)
    (tmp_path / "data" / "hot" / "CURRENT").touch()
    with pytest.raises(InvalidOperation, match="belongs to another server"):
        server(tmp_path, "two").create(directory(tmp_path / "data" / "storage" / "app"))


def test_a_directory_of_the_own_data_that_another_server_took_is_refused(tmp_path: Path) -> None:
    one = server(tmp_path, "one")
    other = tmp_path / "one" / "storage" / "app" / MARKER
    other.parent.mkdir(parents=True)
    other.write_bytes(b'{"server":"two","format":1}')
    with pytest.raises(StorageFailed, match="app in it belongs to another server"):
        one.refuse_claimed(Place(LOCAL, "app/todo/ann"))
    one.refuse_claimed(Place(LOCAL, "other/todo/ann"))


def test_prefixes_above_a_bucket_s_are_looked_at(tmp_path: Path) -> None:
    """Each prefix up to the bucket itself; one that may not be read says nothing."""
    asked: list[str] = []

    class Above(MemoryBucket):
        def __init__(self, storage: Storage, claimed: str) -> None:
            super().__init__()
            self._id, self._base = storage.id, storage.base
            asked.append(storage.base)
            if storage.base == claimed:
                self.objects[MARKER] = b'{"server":"other","format":1}'
            if storage.base == "s3://bucket":
                self.is_away = True

    def opened(claimed: str) -> Callable[[Storage, Mapping[str, str]], Bucket]:
        return lambda storage, secrets: Above(storage, claimed)

    storage = Storage("s", StorageType.S3, "s", "s3://bucket/a/b/c")
    Storages(tmp_path, OsFiles(), open_bucket=opened("")).create(storage)
    assert asked == ["s3://bucket/a/b/c", "s3://bucket", "s3://bucket/a", "s3://bucket/a/b"]
    with pytest.raises(InvalidOperation, match="s3://bucket/a belongs to another server"):
        Storages(tmp_path, OsFiles(), open_bucket=opened("s3://bucket/a")).create(storage)
