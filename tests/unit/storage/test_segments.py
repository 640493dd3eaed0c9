"""A segment gives back exactly what was written, to `find` and `scan` and to a reader that isn't ours."""

import gc
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import ColdFileMissing, ReadOnly
from upwell.storage.groups import GroupCache
from upwell.storage.hot import Version
from upwell.storage.manifest import ColumnStats, Segment
from upwell.storage.place import Partition
from upwell.storage.segments import (
    SYSTEM_NAMES,
    SegmentReader,
    SegmentStats,
    segment_schema,
    write_segment,
)
from upwell.types import SHARED, Column, Default, Key, SqlType, TableId, user_owner

ALICE = user_owner("alice")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS: dict[SqlType, st.SearchStrategy[Key]] = {
    SqlType.BOOLEAN: st.booleans(),
    SqlType.SMALLINT: st.integers(-(2**15), 2**15 - 1),
    SqlType.INT: st.integers(-(2**31), 2**31 - 1),
    SqlType.BIGINT: INT64,
    SqlType.DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    SqlType.TEXT: TEXT | st.integers(0, 9).map(lambda n: "x" * 5000 + str(n)),
    SqlType.TIMESTAMP: INT64,
    SqlType.DATETIME: INT64,
    SqlType.DATE: st.integers(-719_162, 2_932_896),
    SqlType.TIME: st.integers(0, 86_399_999_999),
    SqlType.UUID: st.uuids().map(str),
    SqlType.JSON: TEXT,
    SqlType.BYTES: st.binary(),
}
COLUMNS = [
    Column(1, "id", SqlType.BIGINT, primary_key=True),
    Column(2, "name", SqlType.TEXT, nullable=False),
    Column(5, "at", SqlType.TIMESTAMP, physical="at__5"),
]


def read(path: Path, columns: list[Column] = COLUMNS, *, cache: GroupCache | None = None) -> SegmentReader:
    return SegmentReader(path, columns, schema=1, cache=cache or GroupCache(1 << 20))


def rows_of(count: int) -> list[Version]:
    """Even keys from 0; every fifth is a tombstone."""
    return [
        Version(2 * n, 1000 + n, n + 1, 1, None if n % 5 == 4 else [2 * n, f"row {n}", None if n % 2 else n])
        for n in range(count)
    ]


@given(st.data(), st.sampled_from(list(KEYS)), st.integers(1, 4))
def test_keys_of_every_type_are_found_and_scanned(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, sql_type: SqlType, group_rows: int
) -> None:
    columns = [Column(1, "v", SqlType.BYTES), Column(2, "k", sql_type, primary_key=True)]
    keys = sorted(data.draw(st.sets(KEYS[sql_type], min_size=1, max_size=12)))
    versions = [
        Version(key, n, 1, 1, data.draw(st.none() | st.tuples(st.binary(), st.just(key)).map(list)))
        for n, key in enumerate(keys)
    ]
    path = tmp_path_factory.mktemp("segments") / "s.parquet"
    write_segment(path, versions, columns, owner=SHARED, synced=False, group_rows=group_rows)
    reader = read(path, columns)
    assert list(reader.scan()) == versions
    assert [reader.find(key) for key in keys] == versions
    other = data.draw(KEYS[sql_type])
    assert reader.find(other) == next((each for each in versions if each.key == other), None)
    assert list(reader.scan(after=other)) == [each for each in versions if each.key > other]


@pytest.mark.parametrize("group_rows", [1, 3, 10, 10_000])
def test_find_and_scan_across_row_groups(tmp_path: Path, group_rows: int) -> None:
    versions = rows_of(23)
    path = tmp_path / "s.parquet"
    write_segment(path, versions, COLUMNS, owner=ALICE, synced=False, group_rows=group_rows)
    reader = read(path)
    assert [reader.find(key) for key in range(-1, 47)] == [
        versions[key // 2] if 0 <= key < 46 and key % 2 == 0 else None for key in range(-1, 47)
    ]
    for after in range(-2, 47):
        assert list(reader.scan(after)) == [version for version in versions if version.key > after]


def test_more_rows_than_a_row_group_and_a_slice(tmp_path: Path) -> None:
    versions = rows_of(12_345)
    stats = write_segment(tmp_path / "s.parquet", versions, COLUMNS, owner=ALICE, synced=False)
    assert pq.read_metadata(tmp_path / "s.parquet").num_row_groups == 2
    reader = read(tmp_path / "s.parquet")
    assert list(reader.scan()) == versions
    assert list(reader.scan(after=19_998)) == versions[10_000:]
    assert reader.find(24_688) == versions[-1]
    assert (stats.row_count, stats.live_count, stats.min_seq, stats.max_seq) == (12_345, 9_876, 1000, 13_344)


def test_the_file_is_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    versions = [
        Version(1, 2**62, 3, 1, [1, "é", 1_700_000_000_000_000], (), '{"id":1}'),
        Version(2, 9, 4, 1, None),
    ]
    write_segment(path, versions, COLUMNS, owner=ALICE, synced=True)
    schema = pq.read_schema(path)
    assert schema.names == [
        "id", "name", "at__5", "_seq", "_deleted", "_version", "_owner", "_uploaded",
    ]  # fmt: skip
    assert set(schema.names[3:]) == SYSTEM_NAMES
    ids = [int(field.metadata[b"PARQUET:field_id"]) for field in schema]
    assert ids == [1, 2, 5, 2_000_000_001, 2_000_000_002, 2_000_000_003, 2_000_000_004, 2_000_000_005]
    column = pq.read_metadata(path).row_group(0).column(0)
    assert (column.compression, column.statistics.min, column.statistics.max) == ("ZSTD", 1, 2)
    found = duckdb.sql(f"SELECT * EXCLUDE at__5, epoch_us(at__5) FROM '{path}' ORDER BY id").fetchall()
    assert found == [
        (1, "é", 2**62, False, 3, "alice", '{"id":1}', 1_700_000_000_000_000),
        (2, None, 9, True, 4, "alice", None, None),
    ]


def test_a_shared_segment_has_no_owner_and_only_synced_ones_keep_uploads(tmp_path: Path) -> None:
    write_segment(tmp_path / "s.parquet", rows_of(2), COLUMNS, owner=SHARED, synced=False)
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column("_owner").to_pylist() == [None, None]
    assert "_uploaded" not in table.column_names
    assert "_uploaded" not in segment_schema(COLUMNS, synced=False).names


def test_uploads_survive(tmp_path: Path) -> None:
    versions = [Version(1, 2, 1, 1, [1, "a", None], (), '{"a": 1.0}'), Version(2, 3, 1, 1, [2, "b", None])]
    write_segment(tmp_path / "s.parquet", versions, COLUMNS, owner=ALICE, synced=True)
    assert list(read(tmp_path / "s.parquet").scan()) == versions


def test_stats_and_the_manifest_s_entry(tmp_path: Path) -> None:
    columns = [*COLUMNS, Column(6, "long", SqlType.TEXT), Column(7, "raw", SqlType.BYTES)]
    versions = [
        Version(-(2**63), 11, 1, 1, [-(2**63), "b", 5, "x" * 65, b"1"]),
        Version(0, 10, 1, 1, [0, "a", None, "y", b"2"]),
        Version(7, 12, 2, 1, None),
    ]
    path = tmp_path / "s.parquet"
    stats = write_segment(path, versions, columns, owner=ALICE, synced=False, group_rows=1)
    expected = {
        "1": ColumnStats({"Int64": str(-(2**63))}, {"Int64": "7"}, 0),
        "2": ColumnStats({"Utf8": "a"}, {"Utf8": "b"}, 1),
        "5": ColumnStats({"TimestampMicrosecond": "5"}, {"TimestampMicrosecond": "5"}, 2),
        "6": ColumnStats(None, {"Utf8": "y"}, 1),
        "7": ColumnStats(None, None, 1),
    }
    size_bytes = path.stat().st_size
    assert stats == SegmentStats(3, 2, 10, 12, size_bytes, expected)
    entry = stats.entry(Partition("app", "todo", TableId(7), ALICE), 4, schema=9, time_ms=99, sha256="5e")
    assert entry == Segment(
        min_seq=10, max_seq=12, row_count=3, live_count=2, size_bytes=size_bytes, created_at=99,
        id="batch-7-4", path="batch-7-4.parquet", filter="batch-7-4.filter",
        column_stats=expected, schema_version=9, sha256="5e",
    )  # fmt: skip


def test_columns_of_today_over_a_file_of_yesterday(tmp_path: Path) -> None:
    old = [Column(1, "id", SqlType.INT, primary_key=True), Column(2, "gone", SqlType.TEXT)]
    write_segment(tmp_path / "s.parquet", [Version(1, 2, 1, 1, [1, "x"])], old, owner=ALICE, synced=False)
    new = [
        Column(3, "added", SqlType.TIMESTAMP),
        Column(4, "with_default", SqlType.TEXT, default=Default(value="now"), added=2, initial="d"),
        Column(5, "gone", SqlType.TEXT, physical="gone__5"),
        Column(1, "renamed", SqlType.BIGINT, primary_key=True, physical="id"),
        Column(6, "newest", SqlType.TEXT, added=3, initial="n"),
    ]
    reader = SegmentReader(tmp_path / "s.parquet", new, schema=3, cache=GroupCache(1 << 20))
    assert reader.find(1) == Version(1, 2, 1, 3, [None, "d", None, 1])


def test_unsorted_or_double_keys_and_no_rows_are_refused(tmp_path: Path) -> None:
    one, two = rows_of(2)
    for versions in ([two, one], [one, one], []):
        with pytest.raises(AssertionError):
            write_segment(tmp_path / "s.parquet", versions, COLUMNS, owner=ALICE, synced=False)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_segment(tmp_path / "no" / "s.parquet", rows_of(1), COLUMNS, owner=ALICE, synced=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_is_told(tmp_path: Path) -> None:
    """Also where the thread meets it that writes row groups beside the making of the next."""
    path = tmp_path / "s.parquet"
    for rows, group_rows in ((20_000, 1_000), (40_000, 10_000), (5, 10_000)):
        path.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            write_segment(path, rows_of(rows), COLUMNS, owner=ALICE, synced=False, group_rows=group_rows)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 500, 1_500, 4_500])
def test_rows_that_cant_be_read_leave_nothing(tmp_path: Path, count: int) -> None:
    def broken() -> Iterator[Version]:
        yield from rows_of(count)
        raise ReadOnly("no more")

    with pytest.raises(ReadOnly, match="no more"):
        write_segment(tmp_path / "s.parquet", broken(), COLUMNS, owner=ALICE, synced=False, group_rows=1_000)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    with pytest.raises(ColdFileMissing, match=r"s\.parquet is missing"):
        read(path)
    write_segment(path, rows_of(3), COLUMNS, owner=ALICE, synced=False)
    reader = read(path)
    path.unlink()
    with pytest.raises(ColdFileMissing, match=r"s\.parquet is missing"):
        reader.find(2)


def test_no_damage_is_read_as_data(tmp_path: Path) -> None:
    """Whatever byte is changed, wherever the file is cut: the rows are right, or the file is named."""
    path, versions = tmp_path / "s.parquet", rows_of(40)
    write_segment(path, versions, COLUMNS, owner=ALICE, synced=False, group_rows=20)
    whole = path.read_bytes()
    pages_end = int.from_bytes(whole[-8:-4], "little")
    damaged = 0
    for at in range(4, len(whole) - 8 - pages_end, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        damaged += not gives(path, versions)
    assert damaged > 0
    for end in range(0, len(whole), 101):
        path.write_bytes(whole[:end])
        assert not gives(path, versions)


def gives(path: Path, versions: list[Version]) -> bool:
    try:
        found = list(read(path).scan())
    except ColdFileMissing:
        return False
    assert found == versions
    return True


def test_decoded_row_groups_are_kept_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    versions = rows_of(40)
    write_segment(path, versions, COLUMNS, owner=ALICE, synced=False, group_rows=10)
    roomy, tight = GroupCache(1 << 20), GroupCache(600)
    for cache in (roomy, tight):
        reader = read(path, cache=cache)
        assert [reader.find(version.key) for version in versions] == versions
    assert 0 < tight.size_bytes <= 600 < roomy.size_bytes
    path.unlink()
    assert read_from(roomy, path) == 40
    assert 0 < read_from(tight, path) < 40


def test_a_reader_that_nobody_holds_takes_no_memory(tmp_path: Path) -> None:
    """The footer of a segment is large, and a collection of garbage comes late: it sees few objects."""
    path = tmp_path / "s.parquet"
    versions = rows_of(10)
    write_segment(path, versions, COLUMNS, owner=ALICE, synced=False)

    def footers() -> int:
        return sum(isinstance(each, pq.FileMetaData) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = footers()
        for _ in range(3):
            assert list(read(path).scan()) == versions
        assert footers() == before
    finally:
        gc.enable()


def read_from(cache: GroupCache, path: Path) -> int:
    groups = [cache.find((path, 1, index)) for index in range(4)]
    return sum(group.num_rows for group in groups if group is not None)
