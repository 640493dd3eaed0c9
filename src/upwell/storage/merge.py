"""Merging segments: their rows as Arrow, in the columns of today, and as one new segment.

Law: what comes out is exactly the newest version of each key, without hidden ones, in primary-key order.
Rows are never Python objects here: a million of them takes a second or two, most of it without the GIL.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from upwell.errors import ColdFileMissing
from upwell.storage.arrow import DELETED, SEQ, cells, column_array, column_type, key_index, physical_name
from upwell.storage.key_filter import KeyDigests
from upwell.storage.segments import (
    ROW_GROUP_ROWS,
    UPLOADED,
    SegmentStats,
    column_stats,
    footer,
    reading,
    segment_schema,
    segment_writer,
)
from upwell.types import Column, Key, coerce


@dataclass(frozen=True, slots=True)
class Loaded:
    """A segment's rows × (columns, system columns); `width`: how many of the columns the file has.

    Columns that were added later have what they began with.
    """

    rows: pa.Table
    width: int


def size_in_memory(path: Path) -> int:
    """Return about how many bytes the rows of a segment take; raise `ColdFileMissing` if it can't be read."""
    with reading(path):
        metadata = pq.read_metadata(path)
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def load_segment(path: Path, columns: Sequence[Column], *, synced: bool, row_count: int) -> Loaded:
    """Read a whole segment; raise `ColdFileMissing` if it is missing, damaged or has other rows."""
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(use_threads=False)
    if table.num_rows != row_count:
        raise ColdFileMissing(
            f"cold file {path} has {table.num_rows} rows, not {row_count}: it is damaged; "
            "bring it back from a backup"
        )
    schema = segment_schema(columns, synced=synced)
    arrays = [_column(table, column) for column in columns]
    for field in list(schema)[len(columns) :]:
        is_there = field.name in table.column_names
        arrays.append(table.column(field.name) if is_there else pa.nulls(row_count, field.type))
    width = max(at for at, column in enumerate(columns, 1) if physical_name(column) in table.column_names)
    return Loaded(pa.Table.from_arrays(arrays, schema=schema), width)


def merged(parts: Sequence[pa.Table], columns: Sequence[Column], hidden: Sequence[int]) -> pa.Table:
    """Return the newest version of each key that isn't hidden, tombstones too, in primary-key order."""
    rows = pa.concat_tables(parts)
    if hidden:
        rows = rows.filter(pc.invert(pc.is_in(rows.column(SEQ), value_set=pa.array(hidden, pa.int64()))))
    key = _key_name(columns)
    rows = rows.take(pc.sort_indices(rows, sort_keys=[(key, "ascending"), (SEQ, "descending")]))
    if rows.num_rows < 2:
        return rows
    keys = rows.column(key)
    differs = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    return rows.filter(pa.chunked_array([pa.array([True]), *differs.chunks]))


def without_tombstones(
    rows: pa.Table, columns: Sequence[Column], is_needed: Callable[[Key, int], bool]
) -> pa.Table:
    """Return the rows without the tombstones (key, `_seq`) that nobody needs."""
    gone = rows.filter(rows.column(DELETED))
    found = zip(keys_of(gone, columns), gone.column(SEQ).to_pylist(), strict=True)
    free = [seq for key, seq in found if not is_needed(key, seq)]
    if not free:
        return rows
    return rows.filter(pc.invert(pc.is_in(rows.column(SEQ), value_set=pa.array(free, pa.int64()))))


def with_payloads(
    loaded: Loaded, columns: Sequence[Column], payload: Callable[[list[object]], str]
) -> pa.Table:
    """Return the rows of a synced table, each with the payload that it had before columns were added.

    `payload` makes it of a row that is as long as the file has columns.
    """
    rows = loaded.rows
    if loaded.width == len(columns):
        return rows
    short = [cells(rows.column(at), column.type) for at, column in enumerate(columns[: loaded.width])]
    told = [
        text if text is not None or gone else payload(list(row))
        for text, gone, *row in zip(
            rows.column(UPLOADED).to_pylist(), rows.column(DELETED).to_pylist(), *short, strict=True
        )
    ]
    at = rows.column_names.index(UPLOADED)
    return rows.set_column(at, rows.schema.field(at), pa.array(told, pa.string()))


def keys_of(rows: pa.Table, columns: Sequence[Column]) -> list[Key]:
    """Return the primary keys of the rows."""
    return cells(rows.column(_key_name(columns)), columns[key_index(columns)].type)  # type: ignore[return-value]


def write_rows(path: Path, rows: pa.Table, columns: Sequence[Column], *, digests: KeyDigests) -> SegmentStats:
    """Write merged rows as a segment, and tell its keys to `digests`; doesn't sync.

    Raises `OSError` if the system refuses.
    """
    for start in range(0, rows.num_rows, ROW_GROUP_ROWS):
        digests.add(keys_of(rows.slice(start, ROW_GROUP_ROWS), columns))
    try:
        with segment_writer(path, columns, rows.schema) as writer:
            writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    bounds = pc.min_max(rows.column(SEQ)).as_py()
    return SegmentStats(
        row_count=rows.num_rows,
        live_count=rows.num_rows - pc.sum(rows.column(DELETED)).as_py(),
        min_seq=bounds["min"],
        max_seq=bounds["max"],
        size_bytes=path.stat().st_size,
        column_stats=column_stats(footer(writer), columns),
    )


def _column(table: pa.Table, column: Column) -> pa.ChunkedArray | pa.Array:
    """Return a file's column in today's type, or what a newer column began with."""
    if physical_name(column) in table.column_names:
        return table.column(physical_name(column)).cast(column_type(column))
    return pa.repeat(column_array([coerce(column.initial, column)], column)[0], table.num_rows)


def _key_name(columns: Sequence[Column]) -> str:
    return physical_name(columns[key_index(columns)])
