"""A watch: one live query followed by a thread, every delivered change kept in the order of its arrival.

Law: a watch only listens; whether what it got is right is decided against `system.changes` and the SELECT.
"""

import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from upwell.client import Change, Client, ClientError, LiveTable, Patience
from upwell.demo.check import Checks
from upwell.demo.expected import Cells, columns
from upwell.demo.sql import Entry
from upwell.testing import WaitFailed, wait_until

ARRIVAL_S_MAX = 5.0
# A short patience: the demo cuts the line and kills the server, and wants to go on at once.
PATIENCE = Patience(backoff_first_s=0.02, backoff_max_s=0.2, reconnects_max=1000)
SYSTEM_COLUMNS = ("_seq", "_deleted")


class Watch:
    """Follows `SELECT * FROM table` from its open on; `changes` are all deliveries."""

    def __init__(self, client: Client, table: str) -> None:
        self.table = table
        self.changes: list[Change] = []
        self.failure = ""
        self._live = client.live(f"SELECT * FROM {table}", raw=True, patience=PATIENCE)
        self._thread = threading.Thread(target=self._follow, name=f"watch {table}", daemon=True)
        self._folded: LiveTable | None = None

    def open(self) -> None:
        """Return when the server has accepted the query; from here on nothing may be missed."""
        self._live.open()
        self._folded = LiveTable.of(self._live.schema)
        self._thread.start()

    def close(self) -> None:
        """End the live query and its thread."""
        self._live.close()
        if self._thread.is_alive():
            self._thread.join(ARRIVAL_S_MAX)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that all deliveries fold to, by key."""
        assert self._folded is not None, "opened before it is looked at"
        return [self._folded.rows[key] for key in sorted(self._folded.rows)]

    def wait_for(self, seqs: Collection[int]) -> None:
        """Wait until these seqs have arrived, or for so long that they won't; whoever compares will see."""
        wanted = set(seqs)
        with suppress(WaitFailed):
            wait_until(
                lambda: self.failure or wanted <= {change.seq for change in self.changes},
                timeout_s=ARRIVAL_S_MAX,
                what="changes to arrive",
            )

    def _follow(self) -> None:
        assert self._folded is not None
        try:
            for change in self._live:
                self._folded.apply(change)
                self.changes.append(change)
        except ClientError as failure:
            self.failure = f"{type(failure).__name__}: {failure}"


def check_arrivals(checks: Checks, watch: Watch, log: Sequence[Entry], gaps: Sequence[range]) -> None:
    """Compare what arrived with the log, exactly and in order.

    `gaps` are ranges of seqs that were committed while the watch was cut off. What was missed comes on
    resume: rows as `snapshot`, ascending, then deletes, ascending.
    """
    watch.wait_for([entry.seq for entry in log])
    expected = [(entry.seq, kind, entry.key) for entry, kind in _in_order_of_arrival(log, gaps)]
    arrived = [(change.seq, change.kind, change.row["id"]) for change in watch.changes]
    checks.equal(f"live query on {watch.table}: exactly the log's changes, in order", expected, arrived)
    checks.equal(f"live query on {watch.table}: never ended", "", watch.failure)
    contents = {entry.seq: entry.values for entry in log if entry.operation != "DELETE"}
    checks.equal(
        f"live query on {watch.table}: each row as it was written",
        contents,
        {change.seq: _declared(change.row) for change in watch.changes if change.kind != "delete"},
    )


def check_fold(checks: Checks, watch: Watch, table: str, selected: Sequence[Cells]) -> None:
    """Compare snapshot + deltas with the SELECT."""
    rows = [tuple(row[column] for column in columns(table)) for row in watch.rows()]
    checks.equal(f"live query on {watch.table}: folds to the SELECT", list(selected), rows)


def _in_order_of_arrival(log: Sequence[Entry], gaps: Sequence[range]) -> list[tuple[Entry, str]]:
    arrivals: list[tuple[Entry, str]] = []
    missed: list[Entry] = []
    for position, entry in enumerate(log):
        gap = _gap_of(entry, gaps)
        if gap is None:
            arrivals.append((entry, entry.operation.lower()))
            continue
        missed.append(entry)
        is_last = position + 1 == len(log) or _gap_of(log[position + 1], gaps) is not gap
        if is_last:
            arrivals += [(entry, "snapshot") for entry in missed if entry.operation != "DELETE"]
            arrivals += [(entry, "delete") for entry in missed if entry.operation == "DELETE"]
            missed = []
    return arrivals


def _gap_of(entry: Entry, gaps: Sequence[range]) -> range | None:
    return next((gap for gap in gaps if entry.seq in gap), None)


def _declared(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in SYSTEM_COLUMNS}
