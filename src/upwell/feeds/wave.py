"""A wave: changes of distinct rows, evaluated on one View, and their commit.

Law: a change that can't be applied affects itself alone; it is judged by its base version, and its receipt
makes a repetition harmless. Parents come before their children, children go before their parents, and rows
that refer to each other in a circle come or go together.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.names import source_name
from upwell.engine.payload import Parsed, kept_text, payload_of, reparsed
from upwell.engine.query import QueryEngine
from upwell.engine.receipt import (
    Receipt,
    decode_change_id_max,
    find_receipt,
    receipt_record,
    source_record,
)
from upwell.engine.references import Children
from upwell.engine.rows import Rows
from upwell.engine.stage import Origin
from upwell.engine.view import View
from upwell.engine.violation import ChildrenLeft, ParentMissing, Place
from upwell.engine.write import Write, shown
from upwell.errors import ConstraintViolation, InvalidValue
from upwell.feeds.letters import Answered, Letters
from upwell.protocol import sync
from upwell.storage.hot import Kind, RecordIs, Version
from upwell.types import Key, Op, Row, user_owner


@dataclass(slots=True)
class UploadedChange:
    """One change after validation; `index` is its place in the request, `sent` how it stood there."""

    index: int
    sent: sync.UploadChange
    id: int
    table: Table
    op: Op
    key: Key
    base: int
    payload: Parsed
    digest: bytes


class Wave:
    """One evaluation of changes with distinct rows on one View, and its commit."""

    def __init__(
        self,
        committer: Committer,
        rows: Rows,
        query: QueryEngine,
        defaults: Defaults,
        user: str,
        source: str,
        changes: Sequence[UploadedChange],
    ) -> None:
        self._committer = committer
        self._view: View = committer.publication.view
        self._defaults = defaults
        self._user = user
        self._source = source
        self._owner = user_owner(user)
        self._names = source_name(user, source)
        self._changes = changes
        foreseen: dict[int, list[Key]] = {}
        self.statuses: dict[int, sync.Status] = {}
        for change in changes:
            self._follow_table(change)
            if change.op is Op.DELETE:
                foreseen.setdefault(change.table.id, []).append(change.key)
        self._write = Write(
            rows,
            self._view.hot,
            self._view.catalog,
            may_block=True,
            find_children=Children(query, self._view, foreseen),
            view_seq=self._view.seq,
        )
        self._change_id_max = 0
        self._source_record = self._view.hot.find_record(Kind.SOURCE, self._names)
        self._change_id_known = decode_change_id_max(self._source_record)

    def _follow_table(self, change: UploadedChange) -> None:
        """Read a change anew whose table was altered since it was read; refuse it if it was dropped."""
        table = self._view.catalog.by_id.get(change.table.id)
        if table is None:
            message = f"table not registered {change.table.full_name}"
            self.statuses[change.index] = _not_applied(change, sync.UNREGISTERED_TABLE, message)
            return
        if table.version == change.table.version:
            return
        try:
            change.table, change.payload = table, reparsed(table, change.payload)
        except ValueError as error:
            self.statuses[change.index] = _not_applied(change, sync.BAD_PAYLOAD, str(error))
        except InvalidValue as error:
            self.statuses[change.index] = _not_applied(change, sync.INVALID_VALUE, str(error))

    def evaluate(self) -> None:
        """Try each change, upserts before deletes."""
        left = [change for change in self._changes if change.index not in self.statuses]
        self._settle(change for change in left if change.op is not Op.DELETE)
        self._settle(change for change in left if change.op is Op.DELETE)
        self._renew_conflicts(left)

    def _renew_conflicts(self, changes: Iterable[UploadedChange]) -> None:
        """Show in each conflict the row as this very upload leaves it: a deletion may have taken it along."""
        for change in changes:
            is_conflict = self.statuses[change.index].status == "conflict"
            if is_conflict and self._write.has_staged(self._place(change)):
                current = self._write.current(change.table, self._owner, change.key)
                self.statuses[change.index] = self._behind(change, current)

    def _settle(self, changes: Iterable[UploadedChange]) -> None:
        """Try each change; one that needs another of this very upload is tried again right after that."""
        ready = deque(changes)
        stuck: dict[Place, tuple[UploadedChange, Sequence[Place]]] = {}
        waiting: dict[Place, list[UploadedChange]] = {}
        while ready:
            change = ready.popleft()
            place = self._place(change)
            needs = self._try(change)
            if needs:
                stuck[place] = change, needs
                waiting.setdefault(needs[0], []).append(change)
            else:
                stuck.pop(place, None)
                ready.extendleft(reversed(waiting.pop(place, ())))
        self._settle_circle(stuck)

    def _settle_circle(self, stuck: dict[Place, tuple[UploadedChange, Sequence[Place]]]) -> None:
        """Apply the stuck changes that need nothing but each other: they stand or fall together."""
        needed_by: dict[Place, list[Place]] = {}
        for place, (_, needs) in stuck.items():
            for need in needs:
                needed_by.setdefault(need, []).append(place)
        lost = [need for need in needed_by if need not in stuck and not self._write.has_staged(need)]
        while lost:
            lost += [place for place in needed_by.get(lost.pop(), ()) if stuck.pop(place, None)]
        if not stuck:
            return
        savepoint, refusals = self._write.savepoint(), dict(self.statuses)
        self._write.promised = frozenset(stuck)
        if [change for change, _ in stuck.values() if self._try(change)]:
            self._write.roll_back(savepoint)
            self.statuses = refusals
        self._write.promised = frozenset()

    def commit(self, letters: Letters, refused: Sequence[Answered]) -> int:
        """Commit rows, receipts and letters; return the seq that covers all answers of this wave.

        `refused` are changes that were answered without being tried.
        """
        answers = [Answered(change.sent, self.statuses[change.index]) for change in self._changes]
        batch = self._write.batch
        batch.records += letters.records(self._view.hot, [*refused, *answers])
        if not batch.rows and not batch.records:
            return self._view.seq
        if self._change_id_max > self._change_id_known:
            batch.records.append(source_record(self._user, self._source, self._change_id_max))
            batch.expectations.append(RecordIs(Kind.SOURCE, self._names, self._source_record))
        return self._committer.apply(batch)

    def _place(self, change: UploadedChange) -> Place:
        return change.table.id, self._owner, change.key

    def _try(self, change: UploadedChange) -> Sequence[Place]:
        """Answer a change; return the rows that have to come, or go, before it, if there are any."""
        savepoint = self._write.savepoint() if self._has_children(change) else None
        try:
            self.statuses[change.index] = self._apply(change)
        except ConstraintViolation as refusal:
            if savepoint:
                self._write.roll_back(savepoint)
            self.statuses[change.index] = _refused(change, refusal)
            return refusal.places if isinstance(refusal, (ParentMissing, ChildrenLeft)) else ()
        return ()

    def _has_children(self, change: UploadedChange) -> bool:
        """Whether a refusal may come after something was staged."""
        return change.op is Op.DELETE and change.table.id in self._view.catalog.children

    def _apply(self, change: UploadedChange) -> sync.Status:
        current = self._write.current(change.table, self._owner, change.key)
        receipt = self._receipt(change)
        if receipt is not None and receipt.digest == change.digest:
            # What had no effect, a deletion of what wasn't there, left the row at the base version.
            return _without_effect(change, current, repeated=receipt.version or change.base)
        if change.op is Op.DELETE and self._write.has_staged(self._place(change)):
            current = self._before_actions(change, current)
        version = current.count if current else 0
        if change.base != version and not self._made_by_this_id(change, receipt, version):
            return self._behind(change, current)
        if change.op is Op.DELETE:
            return self._delete(change, current)
        return self._upsert(change, current)

    def _before_actions(self, change: UploadedChange, current: Version | None) -> Version | None:
        """Return a row as the device deleted it: other deletions of this upload, whose foreign key actions
        came before, did nothing to it there. What they did here gives way.
        """
        stored = self._write.stored(change.table, self._owner, change.key)
        if stored is None or stored.count != change.base:
            return current
        self._write.unstage(self._place(change))
        return stored

    def _upsert(self, change: UploadedChange, current: Version | None) -> sync.Status:
        table = change.table
        before = current.row if current is not None else None
        row = list(before) if before is not None else self._new_row(table)
        for index, value in change.payload.values.items():
            row[index] = value
        row[table.key_index] = change.key
        uploaded = current.uploaded if current is not None else None
        text = kept_text(table, row, change.payload, before, uploaded)
        origin = Origin(self._source, change.id, text)
        if before is None:
            self._write.insert(table, self._owner, row, origin)
        else:
            self._write.update(table, self._owner, change.key, row, origin)
        return self._applied(change)

    def _new_row(self, table: Table) -> Row:
        return self._defaults.row(table.columns, user=self._user, now_us=self._defaults.now_us())

    def _delete(self, change: UploadedChange, current: Version | None) -> sync.Status:
        if current is None or current.row is None:
            self._keep_receipt(change, 0)
            return _without_effect(change, current)
        origin = Origin(self._source, change.id, None)
        self._write.delete(change.table, self._owner, [change.key], origin)
        return self._applied(change)

    def _applied(self, change: UploadedChange) -> sync.Status:
        staged = self._write.current(change.table, self._owner, change.key)
        assert staged is not None, "the change was just staged"
        version = staged.count
        self._keep_receipt(change, version)
        return sync.Status(source_change_id=change.id, status="applied", new_server_version=version)

    def _behind(self, change: UploadedChange, current: Version | None) -> sync.Status:
        """Answer a change whose base version isn't the current one."""
        if current is None:
            if change.op is Op.DELETE:
                return _without_effect(change, None)
            return _not_applied(change, "internal_error", "conflict without server_row")
        deleted = current.row is None
        row = sync.ServerRow(
            schema_name=change.table.namespace,
            table_name=change.table.name,
            id=shown(change.key),
            server_version=current.count,
            deleted=deleted,
            payload=sync.NULL
            if current.row is None
            else msgspec.Raw(payload_of(change.table, current.row, current.uploaded)),
        )
        return sync.Status(source_change_id=change.id, status="conflict", server_row=row)

    def _receipt(self, change: UploadedChange) -> Receipt | None:
        if change.id > self._change_id_known:
            return None
        return find_receipt(self._view.hot, self._user, self._source, change.id)

    def _made_by_this_id(self, change: UploadedChange, receipt: Receipt | None, version: int) -> bool:
        """Whether the row's newest version was made by this very change id with other content."""
        return (
            receipt is not None
            and receipt.version == version > 0
            and (receipt.table, receipt.key) == (change.table.id, shown(change.key))
        )

    def _keep_receipt(self, change: UploadedChange, version: int) -> None:
        self._change_id_max = max(self._change_id_max, change.id)
        receipt = Receipt(change.digest, change.table.id, shown(change.key), version)
        self._write.records.append(receipt_record(self._user, self._source, change.id, receipt))


def _refused(change: UploadedChange, refusal: ConstraintViolation) -> sync.Status:
    match refusal:
        case ParentMissing():
            details = msgspec.Raw(msgspec.json.encode({"missing": _as_sent(change, refusal)}))
            invalid = sync.Invalid(reason=sync.FK_MISSING, details=details)
            return sync.Status(source_change_id=change.id, status="invalid", invalid=invalid)
        case ChildrenLeft():
            return _not_applied(change, sync.HAS_CHILDREN, str(refusal))
        case _:
            return _not_applied(change, sync.CONSTRAINT_VIOLATION, str(refusal))


def _as_sent(change: UploadedChange, refusal: ParentMissing) -> list[str]:
    """Return the names of missing parents, with their keys in the form that the device wrote them in."""
    written: dict[tuple[int, object], str] = {}
    for name, value in msgspec.json.decode(change.payload.text, type=dict[str, object]).items():
        index = change.table.index_of.get(name.lower())
        for reference in change.table.references:
            if reference.column == index and isinstance(value, str):
                written[reference.parent, change.payload.values.get(index)] = value
    names = []
    for name, (table, _, key) in zip(refusal.missing, refusal.places, strict=True):
        value = written.get((table, key), shown(key))
        names.append(name.removesuffix(shown(key)) + value)
    return names


def _not_applied(change: UploadedChange, reason: str, message: str) -> sync.Status:
    details = msgspec.Raw(msgspec.json.encode({"error": message}))
    invalid = sync.Invalid(reason=reason, details=details)
    return sync.Status(source_change_id=change.id, status="invalid", message=message, invalid=invalid)


def _without_effect(
    change: UploadedChange, current: Version | None, *, repeated: int | None = None
) -> sync.Status:
    """Answer what needs no doing, with where the row is now; version 0: there never was one.

    `repeated` is the version that the change led to when it was applied before.
    """
    return sync.Status(
        source_change_id=change.id,
        status="applied",
        current_server_version=current.count if current else 0,
        current_deleted=current is None or current.row is None,
        duplicate=None if repeated is None else True,
        applied_server_version=repeated,
    )
