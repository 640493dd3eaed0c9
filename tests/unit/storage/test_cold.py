"""A cold partition answers as a dict of the newest versions would, or says which file is missing."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import datafusion
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.effects import Files, OsFiles
from upwell.errors import ColdFileMissing
from upwell.storage.cold import (
    MANIFESTS_OPEN_MAX,
    ColdCache,
    ColdPartition,
    drop_partition,
    find_orphans,
    remove_orphans,
)
from upwell.storage.groups import GroupCache
from upwell.storage.hot import Version
from upwell.storage.key_filter import KeyFilter
from upwell.storage.manifest import (
    Manifest,
    copy_manifest,
    empty_manifest,
    load_manifest,
    write_hidden,
    write_manifest,
)
from upwell.storage.place import Partition
from upwell.storage.segments import write_segment
from upwell.storage.storages import Storages
from upwell.testing.cold import audit
from upwell.testing.faults import FailingFiles, disk_full, each_fault
from upwell.types import Column, Key, Owner, SqlType, TableId, owner_user, user_owner

ALICE = user_owner("alice")
COLUMNS = [Column(1, "id", SqlType.INT, primary_key=True), Column(2, "v", SqlType.TEXT)]
Model = dict[Key, Version]


class Tier:
    """Publishes segments as a flush would: data, then manifest, then the copy."""

    def __init__(
        self,
        root: Path,
        files: Files,
        *,
        table_id: int = 7,
        owner: Owner = ALICE,
        group_rows: int = 10_000,
    ) -> None:
        self.root = root
        self.store = Storages(root, files)
        self.partition = Partition("app", "todo", TableId(table_id), owner)
        self.files = self.store.open(self.partition)
        self.manifest = empty_manifest(self.partition, time_ms=1)
        self.group_rows = group_rows

    def flush(self, versions: Sequence[Version], hidden: Sequence[int] = ()) -> Manifest:
        self.files.make()
        number = max(self.files.next_number("batch"), self.manifest.last_sequence_number + 1)
        path = self.files.temp(self.partition.segment_name(number))
        stats = write_segment(
            path, versions, COLUMNS, owner=self.partition.owner, synced=False, group_rows=self.group_rows
        )
        self.files.publish(path, self.partition.segment_name(number))
        keys = [version.key for version in versions]
        sha256 = self.files.digest(self.files.path(self.partition.segment_name(number)))
        entry = stats.entry(self.partition, number, schema=1, time_ms=2, sha256=sha256)
        self.files.write_new(entry.filter, KeyFilter.build(keys).encode(entry.seal(self.partition.owner)))
        sets = self.manifest.hidden
        if hidden:
            sets += (write_hidden(self.files, self.files.next_number("hidden"), hidden),)
        manifest = Manifest(
            table_id=self.manifest.table_id,
            table_number=self.partition.table_id,
            user_id=owner_user(self.partition.owner),
            version=max(self.files.next_number("manifest"), self.manifest.version + 1),
            created_at=1,
            updated_at=2,
            segments=(*self.manifest.segments, entry),
            hidden=sets,
            flushed_until=entry.max_seq,
            last_sequence_number=number,
        )
        write_manifest(self.files, manifest)
        self.manifest = manifest
        copy_manifest(self.files, manifest)
        return manifest

    def open(self, manifest: Manifest | None = None) -> ColdPartition:
        return ColdPartition(
            self.files, manifest or self.manifest, COLUMNS, schema=1, groups=GroupCache(1 << 20)
        )


def live(key: int, seq: int, value: str = "x") -> Version:
    return Version(key, seq, 1, 1, [key, value])


def gone(key: int, seq: int) -> Version:
    return Version(key, seq, 1, 1, None)


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier(tmp_path / "storage", OsFiles())


FLUSHES = st.lists(
    st.dictionaries(st.integers(0, 30), st.tuples(st.booleans(), st.text("ab", max_size=2)), min_size=1),
    max_size=5,
)


@given(FLUSHES, st.sampled_from([1, 3, 10_000]), st.booleans(), st.sets(st.integers(1, 60)))
def test_find_and_scan_are_those_of_a_dict(
    tmp_path_factory: pytest.TempPathFactory,
    flushes: list[dict[int, tuple[bool, str]]],
    group_rows: int,
    hides: bool,
    also_hidden: set[int],
) -> None:
    """With or without the hidden sets that a flush writes, and with rows superseded by hot ones."""
    tier = Tier(tmp_path_factory.mktemp("cold"), OsFiles(), group_rows=group_rows)
    model: Model = {}
    seq = 0
    for flush in flushes:
        versions = []
        superseded = [model[key].seq for key in flush if key in model]
        for key, (is_live, value) in sorted(flush.items()):
            seq += 1
            versions.append(live(key, seq, value) if is_live else gone(key, seq))
        tier.flush(versions, superseded if hides else ())
        model |= {version.key: version for version in versions}
    if flushes and hides:
        last = live(99, seq + 1)
        tier.flush([last], sorted(also_hidden - {seq + 1}))
        model = {key: version for key, version in model.items() if version.seq not in also_hidden} | {
            99: last
        }
    cold = tier.open()
    expected = [model[key] for key in sorted(model)]  # type: ignore[type-var]
    assert list(cold.scan()) == expected
    assert [cold.find(key) for key in (*range(-1, 32), 99)] == [
        model.get(key) for key in (*range(-1, 32), 99)
    ]
    for after in (-1, 0, 15, 30, 99):
        assert list(cold.scan(after)) == [version for version in expected if version.key > after]
    cold.check()


def test_an_empty_partition_has_nothing(tier: Tier) -> None:
    cold = tier.open()
    cold.check()
    assert (cold.find(1), list(cold.scan()), cold.manifest.segments) == (None, [], ())
    assert (cold.hidden, cold.row_count_max) == (frozenset(), 0)


def test_what_a_partition_says_of_itself(tier: Tier) -> None:
    tier.flush([live(1, 10), live(2, 11)])
    tier.flush([live(1, 12), gone(2, 13)], hidden=[10, 11])
    cold = tier.open()
    assert [each.path for each in cold.manifest.segments] == ["batch-7-0.parquet", "batch-7-1.parquet"]
    assert cold.hidden == {10, 11}
    assert cold.row_count_max == 3
    assert audit(tier.store.root) == []


def test_the_newest_version_counts_in_whatever_segment_it_is(tier: Tier) -> None:
    tier.flush([live(1, 10), live(3, 4)])
    tier.flush([live(1, 5), live(2, 20), live(3, 6)])
    cold = tier.open()
    assert list(cold.scan()) == [live(1, 10), live(2, 20), live(3, 6)]
    assert [cold.find(key) for key in (1, 2, 3)] == list(cold.scan())


def test_a_manifest_is_read_as_it_was_while_newer_ones_come(tier: Tier) -> None:
    first = tier.flush([live(1, 10, "old")])
    tier.flush([live(1, 12, "new")], hidden=[10])
    assert tier.open(load_manifest(tier.files, first.version)).find(1) == live(1, 10, "old")
    assert tier.open().find(1) == live(1, 12, "new")


@pytest.mark.parametrize("name", ["batch-7-0.parquet", "batch-7-1.parquet"])
def test_a_missing_or_resized_segment_is_named(tier: Tier, name: str) -> None:
    tier.flush([live(1, 10)])
    tier.flush([live(1, 11), live(2, 12)])
    path = tier.files.path(name)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    with pytest.raises(ColdFileMissing, match=f"{name} has {len(whole) + 1} bytes, not {len(whole)}"):
        tier.open().check()
    path.unlink()
    with pytest.raises(ColdFileMissing, match=f"{name} is missing"):
        tier.open().check()
    with pytest.raises(ColdFileMissing, match=f"{name} is missing"):
        list(tier.open().scan())
    with pytest.raises(ColdFileMissing, match=f"{name} is missing"):
        tier.open().links()


def test_a_segment_of_other_rows_is_named(tier: Tier) -> None:
    tier.flush([live(1, 10)])
    tier.flush([live(1, 11), live(2, 12)])
    tier.files.path("batch-7-1.parquet").write_bytes(tier.files.path("batch-7-0.parquet").read_bytes())
    with pytest.raises(ColdFileMissing, match=r"batch-7-1\.parquet has \d+ bytes, not \d+"):
        tier.open().find(2)


def test_a_lost_filter_is_made_of_its_segment_again(tier: Tier) -> None:
    tier.flush([live(1, 10), live(2, 11)])
    path = tier.files.path("batch-7-0.filter")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert tier.open().find(1) == live(1, 10)
    assert path.read_bytes() == whole
    path.unlink()
    assert tier.open().find(3) is None
    assert path.read_bytes() == whole


class FullDisk(OsFiles):
    """There is no room to write anything again."""

    def replace(self, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        raise disk_full()


def test_a_filter_that_cannot_be_written_again_fails_no_look_up(tmp_path: Path) -> None:
    """It may be one of an earlier version, as all are after an update, on a disk that is full."""
    Tier(tmp_path / "storage", OsFiles()).flush([live(1, 10), live(2, 11)])
    tier = Tier(tmp_path / "storage", FullDisk())
    path = tier.files.path("batch-7-0.filter")
    path.unlink()
    found = tier.open(load_manifest(tier.files, 1))
    assert (found.find(1), found.find(3)) == (live(1, 10), None)
    assert not path.exists()


def test_another_segment_s_filter_denies_no_key(tmp_path: Path) -> None:
    """That of another segment, another owner's of the same name, or one of other rows of the same name."""
    tier, others = Tier(tmp_path / "storage", OsFiles()), []
    tier.flush([live(1, 10), live(2, 11)])
    tier.flush([live(3, 12)])
    for at, (owner, first_seq) in enumerate([(ALICE, 20), (user_owner("bob"), 10)]):
        other = Tier(tmp_path / f"other{at}", OsFiles(), owner=owner)
        other.flush([live(5, first_seq), live(6, first_seq + 1)])
        others.append(other.files.read("batch-7-0.filter"))
    path = tier.files.path("batch-7-0.filter")
    whole = path.read_bytes()
    for wrong in (tier.files.read("batch-7-1.filter"), *others):
        path.write_bytes(wrong)
        assert tier.open().find(1) == live(1, 10)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("version", [b"\x01", b"\x02"])
def test_a_filter_of_another_version_is_made_again(tier: Tier, version: bytes) -> None:
    """Of 1, with a checksum of its bits alone, which could be any segment's; of 2, with other bits."""
    tier.flush([live(1, 10), live(2, 11)])
    path = tier.files.path("batch-7-0.filter")
    whole, bits = path.read_bytes(), b"\x00" * 8
    digest = hashlib.blake2b(bits, digest_size=16).digest()
    path.write_bytes(b"UWKF" + version + b"\x07\x00\x00" + (64).to_bytes(8, "little") + digest + bits)
    assert tier.open().find(1) == live(1, 10)
    assert path.read_bytes() == whole


def test_a_filter_in_the_manifest_is_asked_without_a_file(tier: Tier) -> None:
    """Each segment its own; one of another version is made again where it is needed, and not kept."""
    tier.flush([live(1, 10), live(2, 11)])
    tier.flush([live(3, 12)])
    short, old = [], []
    for segment in tier.manifest.segments:
        content = tier.files.read(segment.filter)
        tier.files.remove(segment.filter)
        short.append(msgspec.structs.replace(segment, filter="", filter_bytes=content))
        before = content[:4] + b"\x02" + content[5:]
        old.append(msgspec.structs.replace(segment, filter="", filter_bytes=before))
    for segments in (short, old):
        manifest = msgspec.structs.replace(tier.manifest, segments=tuple(segments))
        assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest
        partition = tier.open(manifest)
        assert [partition.find(key) for key in (1, 2, 3, 4)] == [live(1, 10), live(2, 11), live(3, 12), None]
        assert [partition.is_known_absent(key) for key in (1, 3, 4)] == [False, False, True]
        assert not any(name.endswith(".filter") for name in manifest.names_at(tier.files.place))
    assert list(tier.files.directory.glob("*.filter")) == []
    for segment in short:
        tier.files.remove(segment.path)
    partition = tier.open(msgspec.structs.replace(tier.manifest, segments=tuple(short)))
    assert partition.find(4) is None


def test_a_lost_hidden_set_follows_from_the_segments(tier: Tier) -> None:
    tier.flush([live(1, 10), live(2, 11), live(3, 12)])
    tier.flush([live(1, 20), gone(2, 21)], hidden=[10, 11])
    tier.flush([live(2, 30)], hidden=[21])
    expected, hidden = list(tier.open().scan()), tier.open().hidden
    assert expected == [live(1, 20), live(2, 30), live(3, 12)]
    tier.files.path("hidden-7-0.json").write_bytes(b"[10,1")
    assert list(tier.open().scan()) == expected
    tier.files.remove("hidden-7-1.json")
    assert (list(tier.open().scan()), tier.open().hidden) == (expected, hidden)
    tier.files.remove("batch-7-0.parquet")
    with pytest.raises(ColdFileMissing, match=r"batch-7-0\.parquet is missing"):
        tier.open()


def test_a_key_that_no_filter_knows_opens_no_segment(tier: Tier) -> None:
    tier.flush([live(1, 10)])
    cold = tier.open()
    tier.files.remove("batch-7-0.parquet")
    assert cold.find(2) is None


def test_datafusion_reads_exactly_the_linked_segments(tier: Tier) -> None:
    tier.flush([live(1, 10), live(2, 11)])
    cold = tier.open()
    links = cold.links().directory
    tier.flush([live(3, 12)])
    context = datafusion.SessionContext()
    context.register_parquet("t", f"{links}/")
    assert context.sql("SELECT id, _seq FROM t ORDER BY id").to_pydict() == {"id": [1, 2], "_seq": [10, 11]}
    assert links == tier.files.directory / ".links" / "7-1"
    assert sorted(path.name for path in tier.open().links().directory.iterdir()) == [
        "batch-7-0.parquet",
        "batch-7-1.parquet",
    ]


def test_orphans_go_and_what_a_manifest_names_stays(tier: Tier) -> None:
    first = tier.flush([live(1, 10)], hidden=[5])
    second = tier.flush([live(2, 11)])
    kept = tier.files.names()
    other = Tier(tier.store.root, OsFiles(), table_id=77)
    other.flush([live(1, 1)])
    for name in ("batch-7-9.parquet", "batch-7-9.filter", "hidden-7-9.json", "manifest-7-9.json"):
        tier.files.write_new(name, b"")
    temp = tier.files.temp("batch-7-10.parquet")
    temp.write_bytes(b"half")
    assert remove_orphans(tier.files, find_orphans(tier.files, [first, second])) == [
        "batch-7-9.filter", "batch-7-9.parquet", "hidden-7-9.json", "manifest-7-9.json", temp.name,
    ]  # fmt: skip
    assert tier.files.names() == kept
    assert remove_orphans(tier.files, find_orphans(tier.files, [first])) == [
        "batch-7-1.filter", "batch-7-1.parquet", "manifest-7-2.json",
    ]  # fmt: skip
    assert list(tier.open(first).scan()) == [live(1, 10)]
    assert list(other.open().scan()) == [live(1, 1)]


def test_a_dropped_table_leaves_nothing(tier: Tier) -> None:
    tier.flush([live(1, 10)], hidden=[5])
    tier.open().links()
    drop_partition(tier.files)
    assert not tier.files.directory.exists()


def test_the_cache_shares_partitions_within_its_bound(tier: Tier) -> None:
    cache = ColdCache(tier.store, partitions_max=2, group_bytes_max=1 << 20)
    tiers = [Tier(tier.root, OsFiles(), table_id=number) for number in (7, 8, 9)]
    for each in tiers:
        each.flush([live(each.partition.table_id, 10)])

    def opened(each: Tier, schema: int = 1) -> ColdPartition:
        return cache.open(each.partition, None, 1, COLUMNS, schema=schema)

    one, two = opened(tiers[0]), opened(tiers[1])
    assert (opened(tiers[0]), opened(tiers[1]), len(cache)) == (one, two, 2)
    assert opened(tiers[1], schema=2) is not two
    opened(tiers[2])
    assert opened(tiers[0]) is not one
    assert list(one.scan()) == [live(7, 10)]
    cache.forget_table(TableId(7))
    assert len(cache) == 1
    with pytest.raises(ColdFileMissing, match=r"manifest-7-9\.json is missing"):
        cache.open(tier.partition, None, 9, COLUMNS, schema=1)


def test_the_cache_keeps_the_manifests_of_a_partition_that_are_read(tier: Tier) -> None:
    """Each flush and each compaction makes one: a server that stays up makes thousands."""
    cache = ColdCache(tier.store, partitions_max=1_000, group_bytes_max=1 << 20)
    numbers = [tier.flush([live(n, 10 + n)]).version for n in range(MANIFESTS_OPEN_MAX + 5)]

    def opened(number: int) -> ColdPartition:
        return cache.open(tier.partition, None, number, COLUMNS, schema=1)

    late = opened(numbers[0])
    for number in numbers[1:]:
        opened(number)
        assert opened(numbers[0]) is late, "who began before and still reads finds its own"
        assert len(cache) <= MANIFESTS_OPEN_MAX
    newest = opened(numbers[-1])
    assert cache.find_open(tier.partition, numbers[-1], schema=1) is newest
    assert cache.find_open(tier.partition, numbers[1], schema=1) is None
    assert list(opened(numbers[1]).scan()) == [live(0, 10), live(1, 11)]


def test_the_row_groups_of_replaced_segments_are_let_go_of(tier: Tier) -> None:
    cache = ColdCache(tier.store, partitions_max=1_000, group_bytes_max=1 << 20)

    def opened(number: int) -> ColdPartition:
        return cache.open(tier.partition, None, number, COLUMNS, schema=1)

    assert opened(tier.flush([live(1, 10)]).version).find(1) == live(1, 10)
    kept_bytes = cache.group_bytes
    assert kept_bytes > 0
    for n in range(MANIFESTS_OPEN_MAX + 1):
        opened(tier.flush([live(2, 11 + n)]).version)
    assert cache.group_bytes == kept_bytes, "the segment is in force, though nobody has read it again"
    for n in range(MANIFESTS_OPEN_MAX + 1):
        tier.manifest = msgspec.structs.replace(tier.manifest, segments=())
        opened(tier.flush([live(3, 21 + n)]).version)
    assert cache.group_bytes == 0


def test_each_failing_file_call_leaves_the_manifest_in_force_whole(tmp_path: Path) -> None:
    """Whatever call of a flush fails: before its manifest, all is as it was; the next attempt succeeds."""
    old, new = [live(1, 10), live(2, 11)], [live(1, 12), live(3, 13)]

    def run(fail_at: int) -> bool:
        files = FailingFiles(1_000_000)
        tier = Tier(tmp_path / str(fail_at), files)
        before = tier.flush(old)
        files.arm(fail_at)
        failed = fails(lambda: tier.flush(new, hidden=[10]))
        assert files.fired or not failed
        assert failed or tier.manifest is not before
        fired = files.fired
        files.arm(1_000_000)
        expected = old if tier.manifest is before else [new[0], old[1], new[1]]
        assert list(tier.open().scan()) == expected
        if tier.manifest is before:
            tier.flush(new, hidden=[10])
        else:
            copy_manifest(tier.files, tier.manifest)
        assert list(tier.open().scan()) == [new[0], old[1], new[1]]
        remove_orphans(tier.files, find_orphans(tier.files, [tier.manifest]))
        assert audit(tier.store.root) == []
        assert len(tier.files.names()) == 6
        return fired

    assert each_fault(run) > 20


def test_each_failing_read_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    files = FailingFiles(1_000_000)
    tier = Tier(tmp_path, files)
    tier.flush([live(1, 10)], hidden=[5])

    def run(fail_at: int) -> bool:
        files.arm(fail_at)
        cache = ColdCache(tier.store, partitions_max=2, group_bytes_max=1 << 20)
        try:
            cold = cache.open(tier.partition, None, 1, COLUMNS, schema=1)
            cold.check()
            assert cold.find(1) == live(1, 10)
        except ColdFileMissing as error:
            refused = str(error)
        else:
            refused = ""
        assert ("No space left" in refused) == files.fired
        return files.fired

    assert each_fault(run) == 6


def fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return True
    return False
