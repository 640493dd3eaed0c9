"""What a fleet wrote, and where it went: the laws of sync, checked against the server's log.

Laws that are asserted: a row's versions are 1, 2, 3 … each once; a change id makes one entry at most; a row
that isn't pending reads as the log's entry of its version, one that is as it was edited; versions and cursors
only grow; an edit is in the log, or was overwritten by a later one of its device, or is in `_sync_conflicts`.

Each edit writes values ("stamps") that were never used before, so that each can be followed.
"""

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from upwell.testing.embedded import Embedded
from upwell.testing.inprocess import App
from upwell.types import user_owner

Place: TypeAlias = tuple[str, str]
"""A row by its table and its key as dashed UUID."""

Content: TypeAlias = tuple[Any, ...]
"""The values of a row without its key; the first `STAMPED` are stamps (or None)."""

STAMPED = 2
CHANGES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log; a change of SQL has no source."""

    count: int
    before: Content | None
    after: Content | None
    source: str | None
    change_id: int | None

    def fresh_stamps(self) -> list[str]:
        """Return the stamps that this entry brought."""
        return fresh_stamps(self.before, self.after)


@dataclass(frozen=True, slots=True)
class Edit:
    """One row change of an app, on top of the server's version `base`; `after` None: deleted."""

    place: Place
    base: int
    before: Content | None
    after: Content | None


@dataclass(frozen=True, slots=True)
class Decision:
    """One record of `_sync_conflicts`."""

    place: Place
    local: str | None
    version: int
    decision: str


@dataclass
class Ledger:
    """The whole log of one user, also what was trimmed from the server since."""

    entries: dict[Place, list[Entry]] = field(default_factory=dict)
    counter: int = 0
    # Set when entries were trimmed: an upload that is repeated so late is judged by its base version alone.
    has_lost_receipts: bool = False
    _change_ids: set[tuple[str, int]] = field(default_factory=set)

    def read(self, db: Embedded, user: str) -> None:
        """Read on; to be called before each trim."""
        view = db.settle()
        for change in view.hot.read_owner_log(user_owner(user), self.counter, None, CHANGES_MAX):
            assert change.counter == self.counter + 1, "the log is dense"
            self.counter = change.counter
            table = next(t.name for t in view.catalog.tables.values() if t.id == change.table)
            place = (table, str(change.key))
            entry = Entry(
                change.count, _content(change.before), _content(change.after), change.source, change.change_id
            )
            known = self.entries.setdefault(place, [])
            assert entry.count == len(known) + 1, (place, entry, known)
            assert entry.before == (known[-1].after if known else None), (place, entry, known)
            known.append(entry)
            if entry.source is not None and entry.change_id is not None:
                made_by = (entry.source, entry.change_id)
                assert made_by not in self._change_ids, f"{made_by} took effect twice: {place} {entry}"
                self._change_ids.add(made_by)

    def at(self, place: Place, version: int) -> Entry:
        """Return what made a version."""
        found = self.entries.get(place, [])
        assert 1 <= version <= len(found), f"{place} has no version {version}: {found}"
        return found[version - 1]

    def live(self) -> dict[Place, Content]:
        """Return the rows as the log's end has them."""
        ends = {place: entries[-1].after for place, entries in self.entries.items()}
        return {place: content for place, content in ends.items() if content is not None}

    def check_reasons(self, diaries: Sequence["Diary"]) -> None:
        """A stamp that was overwritten comes back only by a device's decision on a newer edit of its own.

        Or with a parent that was deleted on the server while a device had an unsent child of it.
        """
        decided = {
            (diary.source, decision.place, decision.version)
            for diary in diaries
            for decision in diary.decisions
            if decision.decision != "server"
        }
        for place, entries in self.entries.items():
            seen: set[str] = set()
            for entry in entries:
                again = seen.intersection(entry.fresh_stamps())
                was_deleted = any(past.after is None for past in entries[: entry.count - 1])
                is_news = len(entry.fresh_stamps()) > len(again) or was_deleted or self.has_lost_receipts
                # An edit by a foreign key action has no stamp.
                is_news |= (entry.before or ())[STAMPED:] != (entry.after or ())[STAMPED:]
                is_decided = is_news and (entry.source, place, entry.count - 1) in decided
                is_revived = entry.before is None and entry.source is not None
                assert not again or is_decided or is_revived, f"{place}: {again} took effect again: {entries}"
                seen.update(entry.fresh_stamps())


@dataclass
class Diary:
    """What one installed file was told by its app, and what is known of its past."""

    app: App
    tables: Sequence[str]
    edits: list[Edit] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    _mine: dict[Place, Content | None] = field(default_factory=dict)
    _versions: dict[Place, int] = field(default_factory=dict)
    _position: tuple[str | None, int] = ("", 0)
    _decisions_read: int = 0

    def __post_init__(self) -> None:
        self.source = self.app.source

    @property
    def _connection(self) -> sqlite3.Connection:
        return self.app.device.connection

    def contents(self) -> dict[Place, Content]:
        """Return all rows of the file."""
        return {
            (table, _dashed(key)): tuple(content)
            for table in self.tables
            for key, *content in self._connection.execute(f"SELECT * FROM {table}")
        }

    @contextmanager
    def editing(self) -> Iterator[None]:
        """The app edits inside; foreign key actions are edits too."""
        before = self.contents()
        yield
        after = self.contents()
        versions = {place: version for place, (version, _) in self._metas().items()}
        for place in before.keys() | after.keys():
            old, new = before.get(place), after.get(place)
            if old != new:
                self._mine[place] = new
                self.edits.append(Edit(place, versions.get(place, 0), old, new))

    def check(self, ledger: Ledger) -> None:
        """Read your writes, monotonic reads; at any time between exchanges."""
        rows, metas, pending = self.contents(), self._metas(), self._places("_sync_pending")
        decided = self._read_decisions()
        assert rows.keys() <= metas.keys() | pending, "a row that sync knows nothing of"
        for place in pending & self._mine.keys():
            if place in decided:
                self._mine[place] = rows.get(place)
            assert rows.get(place) == self._mine[place], f"{self.source} {place}: an edit doesn't read back"
        for place in metas.keys() - pending:
            self._check_settled(ledger, place, metas[place], rows.get(place), is_decided=place in decided)
        self._check_monotonic(metas)

    def check_at_rest(self) -> None:
        """After an exchange that succeeded: every reference has its parent."""
        assert self._connection.execute("PRAGMA foreign_key_check").fetchall() == []

    def _check_settled(
        self,
        ledger: Ledger,
        place: Place,
        meta: tuple[int, bool],
        row: Content | None,
        *,
        is_decided: bool,
    ) -> None:
        version, is_deleted = meta
        own = self._mine.pop(place, None)
        if version == 0:
            assert row is None, f"{self.source} {place}: neither pending nor acknowledged"
            return
        entry = ledger.at(place, version)
        if row is None and entry.after is not None:
            # A hydration shows what is gone, not the version that took it.
            found = ledger.entries[place][version:]
            entry = next((entry for entry in found if entry.after is None), entry)
        assert row == entry.after, f"{self.source} {place}: {row} isn't version {version} of the log: {entry}"
        assert is_deleted == (row is None), f"{self.source} {place}: deleted or not?"
        if entry.source == self.source and own is not None and not is_decided:
            assert row == own, f"{self.source} {place}: acknowledged, but not what was edited: {own}"

    def _check_monotonic(self, metas: Mapping[Place, tuple[int, bool]]) -> None:
        withheld = self._places("_sync_withheld")
        for place, version in self._versions.items():
            # A row that waits for its parent is out of sight; one that the app writes there meanwhile is new.
            if place not in withheld:
                assert place in metas, f"{self.source} {place}: forgotten"
                assert metas[place][0] >= version, f"{self.source} {place}: {version} → {metas[place][0]}"
        for place, (version, _) in metas.items():
            self._versions[place] = max(version, self._versions.get(place, 0))
        state = dict(self._connection.execute("SELECT key, value FROM _sync_state"))
        hydration, cursor = state.get("hydration"), self.app.device.status().cursor
        if state.get("hydrated"):
            known, reached = self._position
            assert hydration != known or cursor >= reached, f"{self.source}: cursor {reached} → {cursor}"
            self._position = hydration, cursor

    def check_nothing_lost(self, ledger: Ledger) -> None:
        """Every edit has left its trace; after the last `check`."""
        overwritten: dict[Place, set[int]] = {}
        for edit in reversed(self.edits):
            later = overwritten.setdefault(edit.place, set())
            assert edit.after is not None or later or self._was_deleted(ledger, edit), (
                f"{self.source}: a deletion is lost: {edit}, {ledger.entries.get(edit.place)}"
            )
            changed = _changed(edit.before, edit.after)
            for column in changed - later:
                stamp = edit.after[column] if edit.after is not None else None
                assert stamp is None or self._has_trace(ledger, edit.place, stamp), (
                    f"{self.source}: {stamp} is lost: {edit}, {ledger.entries.get(edit.place)}"
                )
            later |= changed

    def _was_deleted(self, ledger: Ledger, edit: Edit) -> bool:
        entries = ledger.entries.get(edit.place, [])
        is_deleted = any(entry.after is None and entry.count > edit.base for entry in entries)
        is_decided = any(d.local is None for d in self.decisions if d.place == edit.place)
        # What the server never had leaves no entry when it goes.
        live = fresh_stamps(None, entries[-1].after if entries else None)
        was_new = edit.base == 0 or (edit.base <= len(entries) and entries[edit.base - 1].after is None)
        is_gone = was_new and not set(edit.before or ()) & set(live)
        return is_deleted or is_decided or is_gone

    def _has_trace(self, ledger: Ledger, place: Place, stamp: str) -> bool:
        is_logged = any(stamp in entry.fresh_stamps() for entry in ledger.entries.get(place, []))
        return is_logged or any(stamp in (d.local or "") for d in self.decisions if d.place == place)

    def _read_decisions(self) -> set[Place]:
        found = self._connection.execute(
            "SELECT id, table_name, pk_uuid, local_payload, server_version, decision FROM _sync_conflicts"
            " WHERE id > ? ORDER BY id",
            (self._decisions_read,),
        ).fetchall()
        for number, table, key, local, version, decision in found:
            self._decisions_read = number
            self.decisions.append(Decision((table, _dashed(key)), local, version, decision))
        return {(table, _dashed(key)) for _, table, key, *_ in found}

    def _metas(self) -> dict[Place, tuple[int, bool]]:
        return {
            (table, _dashed(key)): (version, bool(deleted))
            for table, key, version, deleted in self._connection.execute(
                "SELECT table_name, pk_uuid, server_version, deleted FROM _sync_row_meta"
            )
        }

    def _places(self, table: str) -> set[Place]:
        found = self._connection.execute(f"SELECT table_name, pk_uuid FROM {table}")
        return {(name, _dashed(key)) for name, key in found}


def _changed(before: Content | None, after: Content | None) -> set[int]:
    """Return the stamped columns that a change touched; all of them if the row came or went."""
    return {
        column
        for column in range(STAMPED)
        if before is None or after is None or before[column] != after[column]
    }


def fresh_stamps(before: Content | None, after: Content | None) -> list[str]:
    """Return the stamps that a change of a row brought."""
    if after is None:
        return []
    old = before[:STAMPED] if before is not None else (None,) * STAMPED
    pairs = zip(old, after[:STAMPED], strict=True)
    return [str(now) for then, now in pairs if now is not None and now != then]


def _content(row: list[Any] | None) -> Content | None:
    return None if row is None else tuple(row[1:])


def _dashed(key: str | bytes) -> str:
    return str(uuid.UUID(bytes=key)) if isinstance(key, bytes) else str(uuid.UUID(key))
