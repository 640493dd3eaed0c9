"""Segments: immutable Parquet files of versions sorted by primary key.

Law: a segment has one version per key; `find` and `scan` give back exactly what was written, with the
columns of today, up to the last one that the file has: those that were added later are missing, so that
the reader knows. A column missing in between reads what it began with; types widen. A file that is
missing, cut off or has a changed page raises `ColdFileMissing`, never a wrong row: pages carry checksums, and
`ready` says whether the file is what was written.

Columns: the declared ones by physical name (field id = column id), `_seq`, `_deleted`, `_version` (the
key's change count), `_owner` (the user, NULL if shared) and for synced tables `_uploaded`. zstd,
statistics, row groups of 10,000 rows. A tombstone has its key, the system columns, and NULLs.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from operator import lt
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from upwell.errors import ColdFileMissing
from upwell.storage import arrow
from upwell.storage.groups import GroupCache
from upwell.storage.hot import Version
from upwell.storage.key_filter import KeyDigests
from upwell.storage.manifest import ColumnStats, Scalar, Segment
from upwell.storage.place import Partition
from upwell.types import Column, Key, Owner, SqlType, Value, coerce, owner_user

VERSION, OWNER, UPLOADED = "_version", "_owner", "_uploaded"
SYSTEM_NAMES = frozenset({arrow.SEQ, arrow.DELETED, VERSION, OWNER, UPLOADED})
"""Names that no declared column may have in Parquet."""

ROW_GROUP_ROWS = 10_000
PIECE_ROWS = 2_000
"""So many rows are converted at once."""
SCAN_ROWS_MAX = 1_000
WRITE_BYTES = 256 * 1024
STATS_BYTES_MAX = 64

# Declared columns count from 1; far above them, and below what Iceberg reserves.
_FIELD_IDS = {arrow.SEQ: 2_000_000_001, arrow.DELETED: 2_000_000_002, VERSION: 2_000_000_003,
              OWNER: 2_000_000_004, UPLOADED: 2_000_000_005}  # fmt: skip
_SCALARS = {
    SqlType.BOOLEAN: "Boolean",
    SqlType.SMALLINT: "Int16",
    SqlType.INT: "Int32",
    SqlType.BIGINT: "Int64",
    SqlType.FLOAT: "Float32",
    SqlType.DOUBLE: "Float64",
    SqlType.TEXT: "Utf8",
    SqlType.TIMESTAMP: "TimestampMicrosecond",
    SqlType.DATETIME: "TimestampMicrosecond",
    SqlType.DATE: "Date32",
    SqlType.TIME: "Time64Microsecond",
    SqlType.UUID: "Utf8",
    SqlType.JSON: "Utf8",
}


class SegmentStats(NamedTuple):
    """What a manifest says about a segment; `column_stats` by column id."""

    row_count: int
    live_count: int
    min_seq: int
    max_seq: int
    size_bytes: int
    column_stats: dict[str, ColumnStats]

    def entry(self, partition: Partition, number: int, *, schema: int, time_ms: int, sha256: str) -> Segment:
        """Return what a manifest says of the segment that was published with this number."""
        return Segment(
            **self._asdict(),
            id=f"batch-{partition.table_id}-{number}",
            path=partition.segment_name(number),
            filter=partition.filter_name(number),
            schema_version=schema,
            created_at=time_ms,
            sha256=sha256,
        )


class Bounds(NamedTuple):
    """The least and the greatest value of a column in one row group."""

    min: Any
    max: Any


def segment_schema(columns: Sequence[Column], *, synced: bool) -> pa.Schema:
    """Return the schema of a segment file."""
    return _segment_schema(tuple(columns), synced=synced)


@lru_cache(maxsize=1_024)
def _segment_schema(columns: tuple[Column, ...], *, synced: bool) -> pa.Schema:
    declared = list(arrow.table_schema(columns, physical=True))[: len(columns)]
    system = [
        _system_field(arrow.SEQ, SqlType.BIGINT, nullable=False),
        _system_field(arrow.DELETED, SqlType.BOOLEAN, nullable=False),
        _system_field(VERSION, SqlType.BIGINT, nullable=False),
        _system_field(OWNER, SqlType.TEXT, nullable=True),
    ]
    if synced:
        system.append(_system_field(UPLOADED, SqlType.TEXT, nullable=True))
    return pa.schema(declared + system)


def write_segment(
    path: Path,
    versions: Iterable[Version],
    columns: Sequence[Column],
    *,
    owner: Owner,
    synced: bool,
    digests: KeyDigests | None = None,
    group_rows: int = ROW_GROUP_ROWS,
) -> SegmentStats:
    """Write at least one version, sorted by primary key, each of the shape of `columns`; doesn't sync.

    They are taken piece by piece, so that they never are in memory all at once, and no piece keeps other
    threads waiting; `digests` gets their keys. `path` is a temporary one that the caller publishes. Raises
    `OSError` if the system refuses.
    """
    schema = segment_schema(columns, synced=synced)
    total = _Total()
    with ExitStack() as failed:
        failed.callback(path.unlink, missing_ok=True)
        with segment_writer(path, columns, schema) as writer, _written_beside(writer) as write:
            for group in _groups(iter(versions), min(PIECE_ROWS, group_rows), group_rows):
                batches = []
                for piece in group:
                    keys = total.add(piece)
                    if digests is not None:
                        digests.add(keys)
                    batches.append(_piece_batch(piece, columns, schema, owner))
                write(pa.Table.from_batches(batches))
        assert total.row_count, "a segment has at least one row"
        failed.pop_all()
    return SegmentStats(
        row_count=total.row_count,
        live_count=total.live_count,
        min_seq=total.min_seq,
        max_seq=total.max_seq,
        size_bytes=path.stat().st_size,
        column_stats=column_stats(footer(writer), columns),
    )


@dataclass(slots=True)
class _Total:
    """What has been written so far."""

    row_count: int = 0
    live_count: int = 0
    min_seq: int = 1 << 63
    max_seq: int = 0
    last: list[Key] = field(default_factory=list)

    def add(self, piece: Sequence[Version]) -> list[Key]:
        """Count some more versions, and return their keys."""
        keys: list[Key] = [version.key for version in piece]
        follow = [*self.last, *keys]
        assert all(map(lt, follow, islice(follow, 1, None))), "versions come sorted, one per key"
        seqs = [version.seq for version in piece]
        self.row_count += len(piece)
        self.live_count += len(piece) - [version.row for version in piece].count(None)
        self.min_seq, self.max_seq = min(self.min_seq, *seqs), max(self.max_seq, *seqs)
        self.last = keys[-1:]
        return keys


def _groups(
    versions: Iterator[Version], piece_rows: int, group_rows: int
) -> Iterator[Iterator[list[Version]]]:
    """Yield the pieces of one row group after the other; each group is consumed before the next."""
    pieces = iter(lambda: list(islice(versions, piece_rows)), [])
    for first in pieces:
        yield chain([first], islice(pieces, group_rows // piece_rows - 1))


@contextmanager
def _written_beside(writer: pq.ParquetWriter) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what writes row groups, each beside the making of the next: Arrow needs no GIL for that.

    One group is made while one is written and one waits; a single one is written by the caller's thread.
    """
    waiting: pa.Table | None = None
    written: Future[None] | None = None

    def write(group: pa.Table) -> None:
        nonlocal waiting, written
        if written is not None:
            written.result()
        if waiting is not None:
            written = thread.submit(writer.write_table, waiting)
        waiting = group

    with ThreadPoolExecutor(1, "upwell-segment") as thread:
        yield write
        if written is not None:
            written.result()
        if waiting is not None:
            writer.write_table(waiting)


@contextmanager
def segment_writer(path: Path, columns: Sequence[Column], schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of a segment; its rows come in primary-key order."""
    with (
        # Without a buffer each page is a call of the system.
        pa.BufferedOutputStream(pa.OSFile(str(path), "wb"), WRITE_BYTES) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            # Measured on mostly unique values: twice as fast and a third smaller without dictionaries.
            use_dictionary=[OWNER],
            write_page_checksum=True,
            sorting_columns=[pq.SortingColumn(arrow.key_index(columns))],
        ) as writer,
    ):
        yield writer


def footer(writer: pq.ParquetWriter) -> pq.FileMetaData:
    """Return what a writer that has been closed wrote at the end of its file, without reading it there."""
    return writer.writer.metadata


def load_keys(path: Path, columns: Sequence[Column], *, row_count: int) -> list[tuple[Key, int]]:
    """Return key and `_seq` of each row; raise `ColdFileMissing` if the file hasn't all its rows."""
    column = columns[arrow.key_index(columns)]
    name = arrow.physical_name(column)
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns=[name, arrow.SEQ], use_threads=False)
    if table.num_rows != row_count:
        raise ColdFileMissing(f"cold file {path} has {table.num_rows} rows, not {row_count}: it is damaged")
    keys: list[Any] = arrow.cells(table.column(name).cast(arrow.column_type(column)), column.type)
    return list(zip(keys, table.column(arrow.SEQ).to_pylist(), strict=True))


class SegmentReader:
    """Reads one segment in the shape of `columns`, up to the last one that it has.

    Keeps its footer, but no open file. Thread-safe. `ready` is called before the file is opened: it may
    have to bring it here.
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        *,
        schema: int,
        cache: GroupCache,
        ready: Callable[[], object] = bool,
    ) -> None:
        self.path = path
        self._ready = ready
        self._schema = schema
        self._cache = cache
        self._key_at = arrow.key_index(columns)
        ready()
        with reading(path), pq.ParquetFile(path) as file:
            self._metadata = file.metadata
            # Not the `schema` of the metadata: each would hold the other, some 50 kB of which a collection of
            # garbage sees two small objects, and so comes late.
            names = file.schema_arrow.names
        width = max(at for at, column in enumerate(columns, 1) if arrow.physical_name(column) in names)
        self._columns = columns[:width]
        key = columns[self._key_at]
        self._bounds = _bounds(self._metadata, names.index(arrow.physical_name(key)), key)

    @property
    def row_count(self) -> int:
        return int(self._metadata.num_rows)

    def find(self, key: Key) -> Version | None:
        """Return the key's version, a tombstone too; None if the segment has none. Decodes a row group."""
        for index, bounds in enumerate(self._bounds):
            if bounds is None or bounds.min <= key <= bounds.max:
                batch = self._group(index, keep=True)
                start, until = self._span(batch, key)
                if start < until:
                    return self._versions(batch.slice(start, 1))[0]
        return None

    def scan(self, after: Key | None = None) -> Iterator[Version]:
        """Yield versions, tombstones too, by row group, in primary-key order, keys above `after`."""
        for index, bounds in enumerate(self._bounds):
            if after is not None and bounds is not None and bounds.max <= after:
                continue
            # Who asks for keys above one reads page by page, and comes again for the rest of the group.
            batch = self._group(index, keep=after is not None)
            if after is not None:
                batch = batch.slice(self._span(batch, after)[1])
            for offset in range(0, batch.num_rows, SCAN_ROWS_MAX):
                yield from self._versions(batch.slice(offset, SCAN_ROWS_MAX))

    def forget_groups(self) -> None:
        """Let go of the row groups that the cache keeps of it."""
        for index in range(len(self._bounds)):
            self._cache.forget((self.path, self._schema, index))

    def _group(self, index: int, *, keep: bool) -> pa.RecordBatch:
        name = (self.path, self._schema, index)
        batch = self._cache.find(name)
        if batch is None:
            batch = self._read(index)
            if keep:
                self._cache.put(name, batch)
        return batch

    def _read(self, index: int) -> pa.RecordBatch:
        self._ready()
        with (
            reading(self.path),
            pq.ParquetFile(self.path, metadata=self._metadata, page_checksum_verification=True) as file,
        ):
            table = file.read_row_group(index, use_threads=False)
        named = {name: table.column(name).combine_chunks() for name in table.column_names}
        arrays = [_shaped(named.get(arrow.physical_name(column)), column, table.num_rows)
                  for column in self._columns]  # fmt: skip
        arrays += [named[arrow.SEQ], named[arrow.DELETED], named[VERSION]]
        arrays.append(named.get(UPLOADED, pa.nulls(table.num_rows, pa.string())))
        # Only positions are used from here: a column's name in the catalog may change.
        return pa.RecordBatch.from_arrays(arrays, names=[str(index) for index in range(len(arrays))])

    def _span(self, batch: pa.RecordBatch, key: Key) -> tuple[int, int]:
        """Return where the key's row begins and ends; both where it would be, if there is none."""
        keys = batch.column(self._key_at)
        keys = arrow.plain_keys(keys, self._columns[self._key_at].type)
        start = bisect_left(range(len(keys)), key, key=lambda index: keys[index].as_py())
        return start, start + (start < len(keys) and keys[start].as_py() == key)

    def _versions(self, batch: pa.RecordBatch) -> list[Version]:
        rows = arrow.values(batch, self._columns)
        seqs, deleted, counts, uploaded = (
            batch.column(len(self._columns) + index).to_pylist() for index in range(4)
        )
        return [
            Version(row[self._key_at], seq, count, self._schema, None if gone else row, (), text)
            for row, seq, gone, count, text in zip(rows, seqs, deleted, counts, uploaded, strict=True)
        ]


def _system_field(name: str, sql_type: SqlType, *, nullable: bool) -> pa.Field:
    return arrow.system_field(name, sql_type, nullable=nullable, field_id=_FIELD_IDS[name])


def _piece_batch(
    versions: Sequence[Version], columns: Sequence[Column], schema: pa.Schema, owner: Owner
) -> pa.RecordBatch:
    arrays = arrow.declared_arrays(versions, columns)
    arrays.append(pa.array([version.seq for version in versions], pa.int64()))
    arrays.append(pa.array([version.row is None for version in versions], pa.bool_()))
    arrays.append(pa.array([version.count for version in versions], pa.int64()))
    arrays.append(pa.array([owner_user(owner)] * len(versions), pa.string()))
    if UPLOADED in schema.names:
        arrays.append(pa.array([version.uploaded for version in versions], pa.string()))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _shaped(found: pa.Array | None, column: Column, row_count: int) -> pa.Array:
    """Return a file's column in today's type, or the constant that a newer column began with."""
    if found is None:
        return arrow.column_array([coerce(column.initial, column)] * row_count, column)
    return found.cast(arrow.column_type(column))


def _bounds(metadata: pq.FileMetaData, index: int, column: Column) -> list[Bounds | None]:
    """Return the bounds of the column at `index` per row group; None without statistics (long values)."""
    groups = (metadata.row_group(group).column(index) for group in range(metadata.num_row_groups))
    return [_group_bounds(group.statistics, column.type) for group in groups]


def _group_bounds(statistics: Any, sql_type: SqlType) -> Bounds | None:
    if statistics is None or not statistics.has_min_max or sql_type is SqlType.DECIMAL:
        return None
    low, high = statistics.min_raw, statistics.max_raw
    if sql_type in (SqlType.TEXT, SqlType.UUID, SqlType.JSON):
        return Bounds(low.decode(), high.decode())
    return Bounds(low, high)


def column_stats(metadata: pq.FileMetaData, columns: Sequence[Column]) -> dict[str, ColumnStats]:
    """Return the bounds of each column in a segment, by column id."""
    return {str(column.id): _stats_of(metadata, index, column) for index, column in enumerate(columns)}


def _stats_of(metadata: pq.FileMetaData, index: int, column: Column) -> ColumnStats:
    groups = [metadata.row_group(group).column(index) for group in range(metadata.num_row_groups)]
    statistics = [(group.statistics, group.num_values) for group in groups]
    null_counts = [found.null_count for found, _ in statistics]
    filled = zip(statistics, null_counts, strict=True)
    bounds = [_group_bounds(found, column.type) for (found, count), nulls in filled if nulls < count]
    null_count = sum(null_counts)
    known = [each for each in bounds if each is not None]
    if not known or len(known) < len(bounds):
        return ColumnStats(None, None, null_count)
    low, high = min(each.min for each in known), max(each.max for each in known)
    return ColumnStats(_scalar(low, column.type), _scalar(high, column.type), null_count)


def _scalar(value: Value, sql_type: SqlType) -> Scalar | None:
    if isinstance(value, bytes) or (isinstance(value, str) and len(value.encode()) > STATS_BYTES_MAX):
        return None
    assert value is not None, "bounds are values"
    as_text = sql_type in (SqlType.BIGINT, SqlType.TIMESTAMP, SqlType.DATETIME, SqlType.TIME)
    return {_SCALARS[sql_type]: str(value) if as_text else value}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what fails inside into `ColdFileMissing`, naming the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise ColdFileMissing(f"cold file {path} is missing; bring it back from a backup") from error
    except (OSError, pa.ArrowException) as error:
        raise ColdFileMissing(f"cold file {path} is damaged or can't be read: {error}") from error
