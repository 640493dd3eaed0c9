"""Hot rows: a partition's live rows as Arrow batches in `_seq` order, as one View sees them.

Law: a `HotRows` never changes. The next one shares the batches of the one before, with other bitmaps:
a change names the `_seq` of the version that it replaces, which binary search finds.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise

import pyarrow as pa
import pyarrow.compute as compute

from upwell.engine.catalog import Table
from upwell.storage.arrow import SEQ, row_batch, table_schema
from upwell.storage.hot import Change, Version

CHUNKS_MAX = 10
CHUNK_ROWS_MIN = 256
"""A batch of fewer rows is merged with what comes after it."""
SCAN_ROWS = 8_192
PARTITION_BYTES = 4_096
"""About what a partition costs besides its rows: empty ones must not pile up either."""


@dataclass(frozen=True)
class Chunk:
    """Rows × (columns, `_seq`, `_deleted`) of one batch; of these `live_count` count, by the bitmap `live`.

    `live` None: all of them. `is_ordered`: by primary key as well.
    """

    batch: pa.RecordBatch
    live: bytes | None
    live_count: int
    is_ordered: bool

    @cached_property
    def rows(self) -> pa.RecordBatch:
        """The live rows."""
        return self.batch if self.live is None else self.batch.filter(self.alive)

    @property
    def alive(self) -> pa.Array | None:
        """For each row of the batch whether it is live; None: all are."""
        return None if self.live is None else _mask(self.live, len(self.batch))

    @property
    def size_bytes(self) -> int:
        size_bytes: int = self.batch.nbytes
        return size_bytes if self.live is None else 2 * size_bytes

    def since(self, seq: int) -> "Chunk":
        """Return the chunk without the rows whose `_seq` is below `seq`."""
        rows = self.rows
        older = bisect_left(_seqs(rows), seq) if len(rows) else 0
        return self if not older else Chunk(rows.slice(older), None, len(rows) - older, self.is_ordered)

    def without(self, seqs: Sequence[int]) -> "Chunk":
        """Return the chunk with the rows dead that have one of `seqs`, which are sorted."""
        own = _seqs(self.batch)
        near = seqs[bisect_left(seqs, own[0]) : bisect_right(seqs, own[-1])]
        if not near:
            return self
        live = bytearray(self.live or b"\xff" * ((len(own) + 7) // 8))
        count = self.live_count
        for seq in near:
            at = bisect_left(own, seq)
            if own[at] == seq and live[at >> 3] & (1 << (at & 7)):
                live[at >> 3] &= ~(1 << (at & 7))
                count -= 1
        chunk = Chunk(self.batch, bytes(live), count, self.is_ordered)
        return chunk if 2 * count > len(own) else Chunk(chunk.rows, None, count, self.is_ordered)


@dataclass(frozen=True)
class HotRows:
    """Live hot rows of a table at one schema version, and superseded cold `_seq`s, as of `seq`."""

    seq: int
    flushed_until: int
    table: Table
    chunks: tuple[Chunk, ...]
    superseded: tuple[int, ...]

    @property
    def schema(self) -> int:
        return self.table.version

    @cached_property
    def count(self) -> int:
        """How many rows there are."""
        return sum(chunk.live_count for chunk in self.chunks)

    @cached_property
    def batches(self) -> list[pa.RecordBatch]:
        """The rows, in at least one batch."""
        return [chunk.rows for chunk in self.chunks] or [row_batch([], [], self.table.columns)]

    @cached_property
    def arrow(self) -> pa.Table:
        """The rows as one table."""
        return pa.Table.from_batches(self.batches, schema=table_schema(self.table.columns, physical=False))

    @cached_property
    def is_ordered(self) -> bool:
        """Whether the rows come by primary key, one batch after the other."""
        return all(chunk.is_ordered for chunk in self.chunks) and all(
            _follows(a.rows, b.rows, self.table) for a, b in pairwise(self.chunks)
        )

    def since(self, alive_from: int) -> "HotRows":
        """Return the rows whose `_seq` isn't below `alive_from`: the others have expired."""
        chunks = (chunk.since(alive_from) for chunk in self.chunks)
        return replace(self, chunks=tuple(chunk for chunk in chunks if chunk.live_count))

    @property
    def size_bytes(self) -> int:
        """About what it costs to keep."""
        return PARTITION_BYTES + sum(chunk.size_bytes for chunk in self.chunks) + 40 * len(self.superseded)


def scanned(live: Iterator[Version], table: Table) -> tuple[Chunk, ...]:
    """Return the rows of a scan of the store, which come by primary key.

    They are converted piece by piece: as Python's values all of them would need ten times the memory.
    """
    batches = []
    is_ordered, last = True, 0
    while piece := list(islice(live, SCAN_ROWS)):
        seqs = [version.seq for version in piece]
        is_ordered = is_ordered and last < seqs[0] and all(a < b for a, b in pairwise(seqs))
        last = seqs[-1]
        batches.append(row_batch([version.row or [] for version in piece], seqs, table.columns))
    if not batches:
        return ()
    batch = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    if not is_ordered:
        batch = batch.take(compute.array_sort_indices(batch.column(SEQ)))
    return (Chunk(batch, None, len(batch), is_ordered),)


def advanced(rows: HotRows, changes: Sequence[Change], table: Table, seq: int) -> HotRows:
    """Return the rows after `changes`, which are all of the partition's up to `seq`."""
    replaced = {change.previous for change in changes if change.previous}
    fresh = [each for each in changes if each.after is not None and each.seq not in replaced]
    dead = sorted(replaced)
    chunks = [left for chunk in rows.chunks if (left := chunk.without(dead)).live_count]
    if fresh:
        chunks.append(_chunk(fresh, table))
    # What is replaced at or below `flushed_until` lies in a segment.
    cold = tuple(previous for previous in dead if previous <= rows.flushed_until)
    return HotRows(seq, rows.flushed_until, table, _merged(chunks, table), rows.superseded + cold)


def _chunk(changes: Sequence[Change], table: Table) -> Chunk:
    batch = row_batch([each.after or [] for each in changes], [each.seq for each in changes], table.columns)
    return Chunk(batch, None, len(changes), all(a.key <= b.key for a, b in pairwise(changes)))


def _merged(chunks: list[Chunk], table: Table) -> tuple[Chunk, ...]:
    """Merge from the end while a chunk is small, or less than twice as large as the next."""
    while len(chunks) > 1:
        before, last = chunks[-2:]
        is_large = before.live_count >= max(CHUNK_ROWS_MIN, 2 * last.live_count)
        if is_large and len(chunks) <= CHUNKS_MAX:
            break
        follows = before.is_ordered and last.is_ordered
        is_ordered = follows and _follows(before.rows, last.rows, table)
        batch = pa.concat_batches([before.rows, last.rows])
        chunks[-2:] = [Chunk(batch, None, len(batch), is_ordered)]
    return tuple(chunks)


def _follows(before: pa.RecordBatch, after: pa.RecordBatch, table: Table) -> bool:
    """Whether the first key of `after` comes after the last one of `before`."""
    key = table.key_index if table.has_key else SEQ
    last, first = before.column(key)[-1].as_py(), after.column(key)[0].as_py()
    return bool(last < first)


def _seqs(batch: pa.RecordBatch) -> memoryview:
    """Return the `_seq`s without a copy."""
    column = batch.column(SEQ)
    values = memoryview(column.buffers()[1]).cast("q")
    return values[column.offset : column.offset + len(column)]


def _mask(live: bytes, length: int) -> pa.Array:
    return pa.Array.from_buffers(pa.bool_(), length, [None, pa.py_buffer(live)])
