"""Snapshots of live queries: pages of the rows that existed when it was subscribed, and missed deletes.

Law: a page holds rows with `_seq` ≤ the seq of the subscription that are still current on the newest
View. What was changed meanwhile has a later `_seq` and comes from the log, so nothing is lost and no
View is kept from page to page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from upwell.decodable import decodable
from upwell.engine.catalog import Table
from upwell.engine.changelog import Changelog
from upwell.engine.history import is_lost
from upwell.engine.named_query import quoted
from upwell.engine.query import QueryEngine
from upwell.engine.source import Source
from upwell.engine.view import View
from upwell.errors import InvalidInput, SeqTrimmed, TableNotFound
from upwell.feeds.match import Gaps, Watch, decide, judge
from upwell.ids import snowflake_floor
from upwell.protocol.codec import encode_frame, encode_row
from upwell.protocol.messages import (
    BatchControl,
    Protocol,
    Serialization,
    SubscriptionOptions,
    batch_size_default,
)
from upwell.storage import arrow
from upwell.types import Key, Value

BATCH_ROWS_MAX = 10_000
BATCH_BYTES_MAX = 4 << 20
SCAN_CHANGES = 1_000


@decodable
class Window(msgspec.Struct, frozen=True, array_like=True):
    """A resume from `after` that may have been cut off: its client's cursor is somewhere up to `until`."""

    after: int
    until: int


@dataclass(slots=True)
class Leg:
    """Deletes to be told from the log, after < seq ≤ until: key → seq; told with their own or `told_seq`.

    What leaves the log meanwhile is told by the next change of the row.
    """

    after: int
    until: int
    deletes: dict[Key, int]
    told_seq: int | None = None


@dataclass(slots=True)
class Snapshot:
    """How far a snapshot has been read: rows with `after` < `_seq` ≤ `until` are still to come.

    `resumed_after` is where the client had been, None without a resume. `deletes` are told after the rows;
    they begin before that, at `told_after`, if the client may not have seen all those of an earlier resume.
    `gaps` are those of who resumes. `window` is recorded while this one may be cut off. `newest` asks the
    first page to begin with so many of the newest rows.
    """

    until: int
    after: int
    batch_rows: int
    resumed_after: int | None = None
    newest: int | None = None
    batch_num: int = 0
    told_after: int = 0
    deletes: dict[Key, int] = field(default_factory=dict)
    gaps: Gaps | None = None
    window: Window | None = None

    @classmethod
    def begin(cls, options: SubscriptionOptions, *, until: int) -> "Snapshot":
        """Start at the options of a subscription; raise `InvalidInput` if they contradict each other."""
        batch_rows = min(options.batch_size or batch_size_default, BATCH_ROWS_MAX)
        if options.after is not None:
            # Seqs are positive: below them there is nothing, and the log isn't asked for it.
            after = max(options.after, 0)
            return cls(until, after, batch_rows, resumed_after=after, told_after=after)
        newest = options.last_rows
        if newest is not None and newest > batch_rows:
            raise InvalidInput(
                f"last_rows ({newest}) cannot exceed batch_size ({batch_rows}); "
                "paginated last_rows replay is not supported"
            )
        return cls(until, 0, batch_rows, newest=newest)

    def is_safe(self, page: "Page") -> bool:
        """Whether a client that is cut off anywhere, this being the first page, misses no delete."""
        assert self.resumed_after is not None, "only a resume misses deletes"
        if not self.deletes:
            return True
        first = min(self.deletes.values())
        return first > self.resumed_after and not page.has_more and (page.last_seq or 0) < first

    def legs(self) -> list[Leg]:
        """Return how the deletes are told: new ones in their places, then those that were missed twice."""
        after, until = self.resumed_after or 0, self.until
        new = {key: seq for key, seq in self.deletes.items() if seq > after}
        again = {key: seq for key, seq in self.deletes.items() if seq <= after}
        # Their own seqs would count as seen by a client whose cursor is later.
        legs = [Leg(after, until, new), Leg(self.told_after, until, again, told_seq=until)]
        return [leg for leg in legs if leg.deletes]


@dataclass(frozen=True, slots=True)
class Page:
    """Encoded rows, ascending by `_seq`; `last_seq` None if there are none."""

    rows: list[msgspec.Raw]
    last_seq: int | None
    has_more: bool

    def control(self, batch_num: int) -> BatchControl:
        status = "ready" if not self.has_more else "loading" if batch_num == 0 else "loading_batch"
        return BatchControl(batch_num, self.has_more, status, self.last_seq)  # type: ignore[arg-type]

    def frame(self, subscription_id: str, batch_num: int, protocol: Protocol) -> bytes:
        """Return the frame of this page; its rows have the protocol's serialization already."""
        return encode_frame(_InitialBatch(subscription_id, self.rows, self.control(batch_num)), protocol)


class _InitialBatch(msgspec.Struct, frozen=True, tag_field="type", tag="initial_data_batch"):
    """`InitialDataBatch` whose rows are encoded already."""

    subscription_id: str
    rows: list[msgspec.Raw]
    batch_control: BatchControl


def expect_same_table(table: Table, options: SubscriptionOptions | None) -> None:
    """Refuse a resume from before the table was made: the rows that its client holds are another table's."""
    after = options.after if options is not None else None
    if after is not None and 0 < after < snowflake_floor(table.created_at_us // 1000):
        raise TableNotFound(
            f"{table.full_name}: it was made anew after this cursor; subscribe without `from`"
        )


def read_batch(
    changelog: Changelog,
    query: QueryEngine,
    view: View,
    watch: Watch,
    snapshot: Snapshot,
    serialization: Serialization,
) -> Page:
    """Return the next page; with the first page of a resume, the snapshot gets the deletes that it missed.

    Blocks its thread; raises `SeqTrimmed` if the log doesn't tell them any more, and what a query raises.
    """
    after = snapshot.told_after
    if snapshot.resumed_after is not None and snapshot.batch_num == 0:
        if is_lost(view.hot, snapshot.resumed_after):
            raise SeqTrimmed(
                f"the cursor {snapshot.resumed_after} is of a history that was lost: a backup was restored, "
                "or the server ended without notice; subscribe again without `from`"
            )
        snapshot.gaps = Gaps(watch, after=after)
        snapshot.deletes = missed_deletes(
            changelog, view, watch, snapshot.gaps, after=after, until=snapshot.until
        )
    return read_page(query, view, watch, snapshot, serialization)


def read_page(
    query: QueryEngine, view: View, watch: Watch, snapshot: Snapshot, serialization: Serialization
) -> Page:
    """Return the snapshot's next page; blocks its thread, raises what a query raises."""
    if snapshot.newest == 0 or snapshot.after >= snapshot.until:
        return Page([], None, has_more=False)
    columns, seqs = _run(query, view, watch, snapshot)
    encoded: list[msgspec.Raw] = []
    size = 0
    for row in islice(watch.projection.rows(columns, seqs), snapshot.batch_rows):
        if size >= BATCH_BYTES_MAX:
            break
        raw = encode_row(row, serialization)
        size += len(memoryview(raw))
        encoded.append(raw)
    last_seq = seqs[len(encoded) - 1] if encoded else None
    return Page(encoded, last_seq, has_more=len(encoded) < len(seqs))


def missed_deletes(
    changelog: Changelog, view: View, watch: Watch, gaps: Gaps, *, after: int, until: int
) -> dict[Key, int]:
    """Return the rows that left `watch` in after < seq ≤ until and hadn't come back at `until`: key → seq.

    `gaps` are those of who was told everything up to `after`.
    """
    missed: dict[Key, int] = {}
    while after < until:
        changes = changelog.read(
            view, watch.table.id, watch.owner, after=after, limit=SCAN_CHANGES, needed=watch.needed
        )
        verdicts = decide(view, watch, changes)
        for change in changes:
            if change.seq > until:
                return missed
            kind = judge(watch, change, verdicts, is_gap=gaps.has(change))
            gaps.pass_by(change)
            if kind == "delete":
                missed[change.key] = change.seq
            elif kind is not None:
                missed.pop(change.key, None)
        if len(changes) < SCAN_CHANGES:
            break
        after = changes[-1].seq
    return missed


def _run(
    query: QueryEngine, view: View, watch: Watch, snapshot: Snapshot
) -> tuple[dict[int, list[Value]], list[int]]:
    """Return columns by their index, and `_seq`s, ascending: one row more than a page if there are more."""
    table = watch.table
    needed = sorted({output.index for output in watch.projection.outputs if output.index >= 0})
    source = Source(table, watch.owner, alive_from=watch.untold[1])
    text = _text(watch, snapshot, [table.columns[index].name for index in needed])
    found = query.run(view, text, table.namespace, [(table.namespace, table.name)], lambda *_: source)
    seqs: list[int] = found.column(0).to_pylist()
    columns = {
        index: arrow.cells(found.column(at), table.columns[index].type) for at, index in enumerate(needed, 1)
    }
    if snapshot.newest is not None:
        seqs.reverse()
        for cells in columns.values():
            cells.reverse()
    return columns, seqs


def _text(watch: Watch, snapshot: Snapshot, names: Sequence[str]) -> str:
    columns = ", ".join(quoted(name) for name in ("_seq", *names))
    # The line break ends a comment that the predicate may end with.
    where = f"({watch.where}\n) AND " if watch.where else ""
    order, limit = "", snapshot.batch_rows + 1
    if snapshot.newest is not None:
        order, limit = " DESC", snapshot.newest
    return (
        f"SELECT {columns} FROM {quoted(watch.table.namespace)}.{quoted(watch.table.name)} "
        f'WHERE {where}"_seq" > {snapshot.after} AND "_seq" <= {snapshot.until} '
        f'ORDER BY "_seq"{order} LIMIT {limit}'
    )
