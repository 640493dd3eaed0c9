"""Upload: a device's coalesced changes become one commit, with a status for each.

Law: statuses stand in request order; rows are written parents first and deleted children first; a change
that can't be applied affects itself alone; a change is judged by its base version, and its receipt makes
a repetition harmless. Nothing is answered before it is durable.

Protocol: generation A of the device sync contract, sections 1.6–1.8 and 2.
"""

import hashlib
import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.payload import kept_text, parse_payload, payload_of
from upwell.engine.query import QueryEngine
from upwell.engine.references import Children
from upwell.engine.rows import Rows
from upwell.engine.view import View
from upwell.engine.write import ChildrenLeft, Origin, ParentMissing, Write, shown
from upwell.errors import Conflict, ConstraintViolation, InvalidValue
from upwell.logs import fields
from upwell.protocol import sync
from upwell.storage.hot import ExpectationFailed, Kind, RecordWrite, Version
from upwell.types import Key, Op, Owner, Row, SqlType, Value, user_owner

log = logging.getLogger("upwell.sync")

ATTEMPTS_MAX = 50
_NAME = re.compile(r"[a-z0-9_]+")
_OPS = {op.value: op for op in Op}


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """What a change id did: digest of its content, the row, and the version that it made (0: none)."""

    digest: bytes
    table: int
    key: str
    version: int


class SourceState(msgspec.Struct, frozen=True, array_like=True):
    """What the server knows of one source: the highest change id that it has seen."""

    change_id_max: int


@dataclass(frozen=True, slots=True)
class UploadLimits:
    changes_max: int
    payload_bytes_max: int


@dataclass(slots=True)
class _Change:
    """One change after validation; `index` is its place in the request."""

    index: int
    id: int
    table: Table
    op: Op
    key: Key
    base: int
    digest: bytes
    values: dict[int, Value] = field(default_factory=dict)
    text: str = ""


class _Refused(Exception):
    """This change can't be applied; `status` says why."""

    def __init__(self, status: sync.Status) -> None:
        super().__init__(status.status)
        self.status = status


class Uploads:
    """Applies uploads; blocks its thread."""

    def __init__(
        self,
        committer: Committer,
        rows: Rows,
        query: QueryEngine,
        defaults: Defaults,
        limits: UploadLimits,
    ) -> None:
        self._committer = committer
        self._rows = rows
        self._query = query
        self._defaults = defaults
        self._limits = limits

    def upload(self, user: str, source: str, request: sync.UploadRequest) -> sync.UploadResponse:
        """Apply a request and return when it is durable."""
        owner = user_owner(user)
        changes = request.changes
        if len(changes) > self._limits.changes_max:
            statuses = [_too_large(change, len(changes), self._limits.changes_max) for change in changes]
            return sync.UploadResponse(
                accepted=False, highest_server_seq=self._highest(owner), statuses=statuses
            )
        answered: dict[int, sync.Status] = {}
        waiting = self._validated(changes, answered)
        while waiting:
            waiting = self._apply_wave(user, source, waiting, answered)
        statuses = [answered[index] for index in range(len(changes))]
        highest = self._highest(owner)
        log.info(
            "Successfully processed upload",
            extra=fields(
                changes_count=len(changes), highest_server_seq=highest, user=user, source=source,
                applied=sum(status.status == "applied" for status in statuses),
            ),
        )  # fmt: skip
        accepted = not any(s.invalid and s.invalid.reason == sync.UNREGISTERED_TABLE for s in statuses)
        return sync.UploadResponse(accepted=accepted, highest_server_seq=highest, statuses=statuses)

    def _highest(self, owner: Owner) -> int:
        return self._committer.publication.view.hot.owner_counter(owner)

    def _validated(
        self, changes: Sequence[sync.UploadChange], answered: dict[int, sync.Status]
    ) -> list[_Change]:
        """Return the changes that can be tried, in the order to try them; answer the others."""
        catalog = self._committer.publication.view.catalog
        valid: list[_Change] = []
        for index, change in enumerate(changes):
            try:
                valid.append(self._validate(index, change, catalog))
            except _Refused as refused:
                answered[index] = refused.status
        tables = catalog.parents_first({change.table.id: change.table for change in valid}.values())
        rank = {table.id: position for position, table in enumerate(tables)}
        upserts = [change for change in valid if change.op is not Op.DELETE]
        deletes = [change for change in valid if change.op is Op.DELETE]
        upserts.sort(key=lambda change: rank[change.table.id])
        deletes.sort(key=lambda change: -rank[change.table.id])
        return upserts + deletes

    def _validate(self, index: int, change: sync.UploadChange, catalog: Catalog) -> _Change:
        schema, name = change.schema.strip().lower(), change.table.strip().lower()
        for kind, text in (("schema", schema), ("table", name)):
            if not _NAME.fullmatch(text):
                raise _Refused(_bad_payload(change, f'invalid {kind} name "{text}"'))
        table = catalog.tables.get((schema, name))
        if table is None or not table.synced:
            details = msgspec.json.encode({"schema": schema, "table": name})
            raise _Refused(
                _invalid(change, sync.UNREGISTERED_TABLE, f"table not registered {schema}.{name}", details)
            )
        op = _OPS.get(change.op.strip().upper())
        if op is None:
            raise _Refused(_bad_payload(change, f"invalid operation: {change.op}"))
        parsed = _Change(
            index, change.source_change_id, table, op, _key(change, table), change.server_version, b""
        )
        self._read_payload(change, parsed)
        return parsed

    def _read_payload(self, change: sync.UploadChange, parsed: _Change) -> None:
        payload = b"" if sync.is_null(change.payload) else bytes(change.payload)  # type: ignore[arg-type]
        if parsed.op is Op.DELETE:
            if payload:
                raise _Refused(_bad_payload(change, "payload must be absent for DELETE"))
        else:
            if len(payload) > self._limits.payload_bytes_max:
                raise _Refused(
                    _bad_payload(
                        change, f"payload too large: {len(payload)} > {self._limits.payload_bytes_max}"
                    )
                )
            try:
                content = parse_payload(parsed.table, payload)
            except InvalidValue as error:
                raise _Refused(_invalid(change, "invalid_value", str(error))) from error
            except ValueError as error:
                raise _Refused(_bad_payload(change, "invalid JSON payload")) from error
            parsed.values, parsed.text = content.values, content.text
        parsed.digest = _digest(change, parsed, payload)

    def _apply_wave(
        self,
        user: str,
        source: str,
        changes: list[_Change],
        answered: dict[int, sync.Status],
    ) -> list[_Change]:
        """Commit what can be applied now; return changes whose row was already written by this wave."""
        for _ in range(ATTEMPTS_MAX):
            wave = _Wave(self._committer, self._rows, self._query, self._defaults, user, source, changes)
            try:
                wave.evaluate(changes)
                seq = wave.commit()
            except ExpectationFailed:
                # Somebody committed meanwhile: look again at a state that has it.
                self._committer.publication.wait(self._committer.last_seq)
                continue
            self._committer.publication.wait(seq)
            answered.update(wave.statuses)
            return wave.postponed
        raise Conflict("the rows of this upload keep changing; send it again")


class _Wave:
    """One evaluation of changes with distinct rows on one View, and its commit."""

    def __init__(
        self,
        committer: Committer,
        rows: Rows,
        query: QueryEngine,
        defaults: Defaults,
        user: str,
        source: str,
        changes: Sequence[_Change],
    ) -> None:
        self._committer = committer
        self._view: View = committer.publication.view
        self._defaults = defaults
        self._user = user
        self._source = source
        self._owner = user_owner(user)
        self._names = f"{quote(user, safe='')}/{quote(source, safe='')}"
        foreseen: dict[int, list[Key]] = {}
        for change in changes:
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
        self.statuses: dict[int, sync.Status] = {}
        self.postponed: list[_Change] = []

    def evaluate(self, changes: Sequence[_Change]) -> None:
        """Try each change; one that waits for a parent of this very upload is tried again after it."""
        waiting = list(changes)
        while waiting:
            orphans = [change for change in waiting if not self._try(change)]
            if len(orphans) == len(waiting):
                return
            waiting = orphans

    def commit(self) -> int:
        """Commit rows and receipts; return the seq that covers all answers of this wave."""
        batch = self._write.batch
        if not batch.rows and not batch.records:
            return self._view.seq
        change_id_max = max((row.change_id or 0 for row in batch.rows), default=0)
        known = self._view.hot.find_record(Kind.SOURCE, self._names)
        known_max = msgspec.msgpack.decode(known, type=SourceState).change_id_max if known else 0
        if change_id_max > known_max:
            state = msgspec.msgpack.encode(SourceState(change_id_max))
            batch.records.append(RecordWrite(Kind.SOURCE, self._names, state))
        return self._committer.apply(batch)

    def _try(self, change: _Change) -> bool:
        """Answer a change; False if it lacks a parent that may still come."""
        if self._write.is_staged(change.table, self._owner, change.key):
            self.postponed.append(change)
            return True
        savepoint = self._write.savepoint() if change.op is Op.DELETE else None
        try:
            self.statuses[change.index] = self._apply(change)
        except ParentMissing as missing:
            self.statuses[change.index] = _fk_missing(change, missing)
            return False
        except (ChildrenLeft, ConstraintViolation) as refusal:
            reason = "has_children" if isinstance(refusal, ChildrenLeft) else "constraint_violation"
            self.statuses[change.index] = _not_applied(change, reason, str(refusal))
            if savepoint:
                self._write.roll_back(savepoint)
        except _Refused as refused:
            self.statuses[change.index] = refused.status
        return True

    def _apply(self, change: _Change) -> sync.Status:
        current = self._write.current(change.table, self._owner, change.key)
        receipt = self._receipt(change)
        if receipt is not None and receipt.digest == change.digest:
            return _duplicate(change, current)
        version = current.count if current else 0
        if change.base != version and not self._made_by_this_id(change, receipt, version):
            return self._behind(change, current)
        if change.op is Op.DELETE:
            return self._delete(change, current)
        return self._upsert(change, current)

    def _upsert(self, change: _Change, current: Version | None) -> sync.Status:
        table = change.table
        before = current.row if current is not None else None
        row = list(before) if before is not None else self._new_row(table)
        for index, value in change.values.items():
            row[index] = value
        row[table.key_index] = change.key
        origin = Origin(self._source, change.id, kept_text(table, row, change.text))
        if before is None:
            self._write.insert(table, self._owner, row, origin)
        else:
            self._write.update(table, self._owner, change.key, row, origin)
        return self._applied(change, current)

    def _new_row(self, table: Table) -> Row:
        return self._defaults.row(table.columns, user=self._user, now_us=self._defaults.now_us())

    def _delete(self, change: _Change, current: Version | None) -> sync.Status:
        if current is None or current.row is None:
            self._keep_receipt(change, 0)
            return _duplicate(change, current, duplicate=None)
        origin = Origin(self._source, change.id, None)
        self._write.delete(change.table, self._owner, [change.key], origin)
        return self._applied(change, current)

    def _applied(self, change: _Change, current: Version | None) -> sync.Status:
        version = (current.count if current else 0) + 1
        self._keep_receipt(change, version)
        return sync.Status(source_change_id=change.id, status="applied", new_server_version=version)

    def _behind(self, change: _Change, current: Version | None) -> sync.Status:
        """Answer a change whose base version isn't the current one."""
        if current is None:
            if change.op is Op.DELETE:
                return sync.Status(source_change_id=change.id, status="applied")
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

    def _receipt_name(self, change: _Change) -> str:
        return f"{self._names}/{change.id}"

    def _receipt(self, change: _Change) -> Receipt | None:
        record = self._view.hot.find_record(Kind.RECEIPT, self._receipt_name(change))
        return msgspec.msgpack.decode(record, type=Receipt) if record else None

    def _made_by_this_id(self, change: _Change, receipt: Receipt | None, version: int) -> bool:
        """Whether the row's newest version was made by this very change id with other content."""
        return (
            receipt is not None
            and receipt.version == version > 0
            and (receipt.table, receipt.key) == (change.table.id, shown(change.key))
        )

    def _keep_receipt(self, change: _Change, version: int) -> None:
        receipt = Receipt(change.digest, change.table.id, shown(change.key), version)
        self._write.batch.records.append(
            RecordWrite(Kind.RECEIPT, self._receipt_name(change), msgspec.msgpack.encode(receipt))
        )


def _key(change: sync.UploadChange, table: Table) -> Key:
    if table.columns[table.key_index].type is SqlType.UUID:
        try:
            return str(uuid.UUID(change.pk.strip()))
        except ValueError as error:
            raise _Refused(_bad_payload(change, f"invalid UUID format: {change.pk}")) from error
    if not change.pk:
        raise _Refused(_bad_payload(change, "the primary key is empty"))
    return change.pk


def _digest(change: sync.UploadChange, parsed: _Change, payload: bytes) -> bytes:
    content = (parsed.table.id, shown(parsed.key), parsed.op.value, change.server_version, payload)
    return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()


def _invalid(
    change: sync.UploadChange, reason: str, message: str, details: bytes | None = None
) -> sync.Status:
    return sync.Status(
        source_change_id=change.source_change_id,
        status="invalid",
        message=message,
        invalid=sync.Invalid(
            reason=reason, details=msgspec.Raw(details or msgspec.json.encode({"error": message}))
        ),
    )


def _bad_payload(change: sync.UploadChange, message: str) -> sync.Status:
    return _invalid(change, sync.BAD_PAYLOAD, message)


def _not_applied(change: _Change, reason: str, message: str) -> sync.Status:
    return sync.Status(
        source_change_id=change.id,
        status="invalid",
        message=message,
        invalid=sync.Invalid(reason=reason, details=msgspec.Raw(msgspec.json.encode({"error": message}))),
    )


def _fk_missing(change: _Change, missing: ParentMissing) -> sync.Status:
    details = msgspec.json.encode({"missing": [missing.missing]})
    return sync.Status(
        source_change_id=change.id,
        status="invalid",
        invalid=sync.Invalid(reason=sync.FK_MISSING, details=msgspec.Raw(details)),
    )


def _too_large(change: sync.UploadChange, count: int, limit: int) -> sync.Status:
    return _invalid(change, sync.BATCH_TOO_LARGE, f"batch too large: changes={count} limit={limit}")


def _duplicate(change: _Change, current: Version | None, *, duplicate: bool | None = True) -> sync.Status:
    return sync.Status(
        source_change_id=change.id,
        status="applied",
        current_server_version=current.count if current else None,
        current_deleted=current.row is None if current else None,
        duplicate=duplicate,
    )
