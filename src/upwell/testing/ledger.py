"""What a fleet wrote, and where it went: the laws of sync, checked against the server's log.

Laws that are asserted: a row's versions are 1, 2, 3 … each once; a change id makes one entry at most, or one
per content; a row that isn't pending reads as the log's entry of its version, one that is as it was edited;
versions and cursors only grow; what others did up to a file's cursor is in the file; no device is in conflict
with itself; an edit is in the log, was overwritten by a later one of its device, or is in `_sync_conflicts`.

Each edit writes values ("stamps") that were never used before, so that each can be followed.
"""

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from upwell.storage.hot import load_floor
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

    counter: int
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
    # The server kept refusing a deletion, and the row came back as it was.
    is_undelete: bool


@dataclass
class Ledger:
    """The whole log of one user, also what was trimmed from the server since."""

    entries: dict[Place, list[Entry]] = field(default_factory=dict)
    counter: int = 0
    # Up to where the log was trimmed: an upload that is repeated so late is judged by its base version alone.
    floor: int = 0
    # What was made by requests that came again when their devices no longer waited for an answer.
    late: set[tuple[Place, int]] = field(default_factory=set)
    _live: dict[Place, Content] = field(default_factory=dict)
    _change_ids: set[tuple[str, int]] = field(default_factory=set)

    def read(self, db: Embedded, user: str, *, is_late: bool = False) -> None:
        """Read on; to be called before each trim."""
        view = db.settle()
        self.floor = load_floor(view.hot, user_owner(user)).counter
        for change in view.hot.read_owner_log(user_owner(user), self.counter, None, CHANGES_MAX):
            assert change.counter == self.counter + 1, "the log is dense"
            self.counter = change.counter
            place = (view.catalog.by_id[change.table].name, str(change.key))
            entry = Entry(
                change.counter,
                change.count,
                _content(change.before),
                _content(change.after),
                change.source,
                change.change_id,
            )
            known = self.entries.setdefault(place, [])
            assert entry.count == len(known) + 1, (place, entry, known)
            assert entry.before == (known[-1].after if known else None), (place, entry, known)
            known.append(entry)
            if entry.after is None:
                self._live.pop(place, None)
            else:
                self._live[place] = entry.after
            if is_late:
                self.late.add((place, entry.count))
            self._note_change_id(place, known)

    def _note_change_id(self, place: Place, known: list[Entry]) -> None:
        entry = known[-1]
        if entry.source is None or entry.change_id is None:
            return
        made_by = (entry.source, entry.change_id)
        # What a proxy refused after it had taken effect may be edited, and then succeeds its own version.
        is_corrected = any(
            (old.source, old.change_id) == made_by and old.after != entry.after for old in known[-2:-1]
        )
        assert made_by not in self._change_ids or is_corrected, (
            f"{made_by} took effect twice: {place} {entry}"
        )
        self._change_ids.add(made_by)

    def at(self, place: Place, version: int) -> Entry:
        """Return what made a version."""
        found = self.entries.get(place, [])
        assert 1 <= version <= len(found), f"{place} has no version {version}: {found}"
        return found[version - 1]

    def live(self) -> dict[Place, Content]:
        """Return the rows as the log's end has them."""
        return self._live

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
            seen: dict[str, int] = {}
            for entry in entries:
                fresh = entry.fresh_stamps()
                again = {stamp for stamp in fresh if seen.get(stamp, 0) > self.floor}
                is_news = len(fresh) > len(again)
                # An edit by a foreign key action has no stamp.
                is_news |= (entry.before or ())[STAMPED:] != (entry.after or ())[STAMPED:]
                is_decided = is_news and (entry.source, place, entry.count - 1) in decided
                is_revived = entry.before is None and entry.source is not None
                assert not again or is_decided or is_revived, f"{place}: {again} took effect again: {entries}"
                seen |= dict.fromkeys(fresh, entry.counter)


@dataclass
class Diary:
    """What one installed file was told by its app, and what is known of its past."""

    app: App
    tables: Sequence[str]
    # The newest entry then: what an earlier installation of the source did, this file never knew.
    installed_after: int = 0
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
        return contents_of(self._connection.execute, self.tables)

    def in_flight(self) -> list[Place]:
        """Return the rows that were sent and not answered yet."""
        found = self._connection.execute("SELECT table_name, pk_uuid FROM _sync_outbox ORDER BY position")
        return [(table, _dashed(key)) for table, key in found]

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
        decided = self._read_decisions(ledger)
        assert rows.keys() <= metas.keys() | pending, "a row that sync knows nothing of"
        for place in decided & self._mine.keys():
            self._mine.pop(place)
            if place in pending:
                self._mine[place] = rows.get(place)
        for place in pending & self._mine.keys():
            assert rows.get(place) == self._mine[place], f"{self.source} {place}: an edit doesn't read back"
        for place in metas.keys() - pending:
            self._check_settled(ledger, place, metas[place], rows.get(place))
        withheld = self._withheld()
        self._check_monotonic(metas, withheld)
        self._check_covered(ledger, metas, withheld, rows.keys() - pending)

    def check_at_rest(self) -> None:
        """After an exchange that succeeded: every reference has its parent."""
        assert self._connection.execute("PRAGMA foreign_key_check").fetchall() == []

    def _check_settled(
        self, ledger: Ledger, place: Place, meta: tuple[int, bool], row: Content | None
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
        if entry.source == self.source and own is not None:
            # What was applied as it was edited, and was deleted by somebody else since, comes back as it was
            # last if an unsent edit here needs it.
            is_revived = entry.before is None and any(
                older.source == self.source and older.after == own
                for older in ledger.entries[place][: entry.count - 1]
            )
            assert row == own or is_revived, (
                f"{self.source} {place}: acknowledged, but not what was edited: {own}"
            )

    def _check_monotonic(
        self, metas: Mapping[Place, tuple[int, bool]], withheld: Mapping[Place, int]
    ) -> None:
        for place, version in self._versions.items():
            # A row that waits for its parent is out of sight; one that the app writes there meanwhile is new.
            if place not in withheld:
                assert place in metas, f"{self.source} {place}: forgotten"
                assert metas[place][0] >= version, f"{self.source} {place}: {version} → {metas[place][0]}"
        for place, (version, _) in metas.items():
            self._versions[place] = max(version, self._versions.get(place, 0))
        state, cursor = self._state()
        hydration = state.get("hydration")
        if state.get("hydrated"):
            known, reached = self._position
            assert hydration != known or cursor >= reached, f"{self.source}: cursor {reached} → {cursor}"
            self._position = hydration, cursor

    def _check_covered(
        self,
        ledger: Ledger,
        metas: Mapping[Place, tuple[int, bool]],
        withheld: Mapping[Place, int],
        settled: Set[Place],
    ) -> None:
        """What others did up to the cursor is here, whatever happened; a hydration has its own numbers."""
        state, cursor = self._state()
        if cursor < ledger.floor or state.get("hydration_phase"):
            return
        for place, entries in ledger.entries.items():
            covered = [entry for entry in entries if entry.counter <= cursor]
            foreign = [entry.count for entry in covered if entry.source != self.source]
            if not foreign:
                continue
            version = max(metas.get(place, (0, False))[0], withheld.get(place, 0))
            # A hydration says nothing of what is gone.
            is_gone = covered[-1].after is None and place not in settled
            assert version >= foreign[-1] or is_gone, (
                f"{self.source} {place}: the cursor is {cursor}, but of {covered} only {version} is here"
            )

    def _state(self) -> tuple[dict[str, str], int]:
        state = dict(self._connection.execute("SELECT key, value FROM _sync_state"))
        found = self._connection.execute("SELECT last_server_seq_seen FROM _sync_client_info").fetchone()
        return state, found[0] if found else 0

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

    def _read_decisions(self, ledger: Ledger) -> set[Place]:
        found = self._connection.execute(
            "SELECT id, table_name, pk_uuid, local_payload, server_version, decision,"
            " local_payload IS NULL AND base_payload IS server_payload FROM _sync_conflicts"
            " WHERE id > ? ORDER BY id",
            (self._decisions_read,),
        ).fetchall()
        for number, table, key, *decided in found:
            self._decisions_read = number
            self.decisions.append(Decision((table, _dashed(key)), *decided))
            self._check_cause(ledger, self.decisions[-1])
        return {(table, _dashed(key)) for _, table, key, *_ in found}

    def _check_cause(self, ledger: Ledger, decision: Decision) -> None:
        """A conflict is with another's change, never with this device's own, however often that was sent."""
        entry = ledger.at(decision.place, decision.version)
        is_own = entry.source == self.source and entry.counter > self.installed_after
        is_late = (decision.place, decision.version) in ledger.late or entry.counter <= ledger.floor
        assert not is_own or is_late or decision.is_undelete, (
            f"{self.source} {decision}: in conflict with its own {entry}"
        )

    def _metas(self) -> dict[Place, tuple[int, bool]]:
        return {
            (table, _dashed(key)): (version, bool(deleted))
            for table, key, version, deleted in self._connection.execute(
                "SELECT table_name, pk_uuid, server_version, deleted FROM _sync_row_meta"
            )
        }

    def _withheld(self) -> dict[Place, int]:
        found = self._connection.execute("SELECT table_name, pk_uuid, server_version FROM _sync_withheld")
        return {(table, _dashed(key)): version for table, key, version in found}

    def _places(self, table: str) -> set[Place]:
        found = self._connection.execute(f"SELECT table_name, pk_uuid FROM {table}")
        return {(name, _dashed(key)) for name, key in found}


def contents_of(run: Callable[[str], Iterable[Sequence[Any]]], tables: Sequence[str]) -> dict[Place, Content]:
    """Return all rows of a file, in which `run` runs a query."""
    return {
        (table, _dashed(key)): tuple(content)
        for table in tables
        for key, *content in run(f"SELECT * FROM {table}")
    }


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
