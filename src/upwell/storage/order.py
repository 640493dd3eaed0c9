"""The order of changes: what every hot store does between a batch and what it keeps of it.

Law: a batch is verified as a whole before anything of it is allotted; seqs rise in the order of the
batch's rows, an owner's counters are dense, and exactly the last change of a commit is marked.
"""

from collections.abc import Callable, Iterable

import msgspec

from upwell.ids import Seq, Snowflakes
from upwell.storage.hot import (
    Batch,
    Change,
    Expectation,
    ExpectationFailed,
    HotReader,
    NoChangeAfter,
    RecordIs,
    RowIs,
    RowWrite,
    Trim,
    Version,
    unmet,
)
from upwell.types import SHARED, Owner, owner_user

NO_COUNTER = 0


class Allotted(msgspec.Struct, frozen=True):
    """A batch in its place of the order: its end, its changes, the new counters of the users it touched."""

    seq: Seq
    changes: list[Change]
    counters: dict[Owner, int]


def verify(batch: Batch, reader: HotReader) -> None:
    """Raise `ExpectationFailed` unless all that the batch relies on is true in `reader`."""
    assert _keys_are_distinct(batch), "a batch writes each key once"
    if batch.is_newest:
        return
    failed = unmet(batch.expectations, reader)
    if failed is not None:
        raise ExpectationFailed(_told(failed))
    for write in batch.rows:
        if reader.find_seq(write.table, write.owner, write.key) != write.expect:
            raise ExpectationFailed(f"a row of table {write.table} is no longer at seq {write.expect}")


def allot(batch: Batch, seqs: Snowflakes, counter_of: Callable[[Owner], int]) -> Allotted:
    """Give each row of a verified batch its seq and counter; a batch without rows takes one seq."""
    counters: dict[Owner, int] = {}
    changes: list[Change] = []
    length = len(batch.rows) or 1
    first = seqs.take(length)
    seq = Seq(first + length - 1)
    for number, write in enumerate(batch.rows, first):
        counter = _next_counter(write.owner, counters, counter_of)
        changes.append(_change(write, number, counter, last=number == seq))
    return Allotted(seq, changes, counters)


def newest_trims(trims: Iterable[Trim]) -> dict[Owner, int]:
    """Return, for each user whose log is trimmed, the counter up to which it is."""
    newest: dict[Owner, int] = {}
    for trim in trims:
        if not trim.alone and owner_user(trim.owner) is not None:
            newest[trim.owner] = max(trim.counter, newest.get(trim.owner, NO_COUNTER))
    return newest


def version(write: RowWrite, seq: int) -> Version:
    """Return what the store keeps as the newest version of the written row."""
    return Version(write.key, seq, write.count, write.schema, write.after, write.supersedes, write.uploaded)


def _change(write: RowWrite, seq: int, counter: int, *, last: bool) -> Change:
    return Change(
        seq,
        last,
        write.table,
        write.owner,
        counter,
        write.key,
        write.op._value_,  # what `value` is, without a call
        write.schema,
        write.before,
        write.after,
        write.previous,
        write.count,
        write.source,
        write.change_id,
        write.uploaded,
        write.joined,
    )


def _next_counter(owner: Owner, counters: dict[Owner, int], counter_of: Callable[[Owner], int]) -> int:
    if owner == SHARED:
        return NO_COUNTER
    counter = (counters[owner] if owner in counters else counter_of(owner)) + 1
    counters[owner] = counter
    return counter


def _keys_are_distinct(batch: Batch) -> bool:
    return len({(write.table, write.owner, write.key) for write in batch.rows}) == len(batch.rows)


def _told(expectation: Expectation) -> str:
    match expectation:
        case RecordIs(kind, name):
            return f"the {kind.value} record '{name}' has changed"
        case RowIs(table, _, _, seq):
            return f"a row of table {table} is no longer at seq {seq}"
        case NoChangeAfter(table, _, after):
            return f"table {table} has changed after seq {after}"
