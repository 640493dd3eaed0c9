"""Upload: a device's coalesced changes become commits, with a status for each.

Law: statuses stand in request order; rows are written parents first and deleted children first, a row that
is changed twice in the order of its changes. Nothing is answered before it is durable.

Protocol: generation A of the device sync contract, sections 1.6–1.8 and 2.
"""

import hashlib
import logging
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.payload import Parsed, parse_payload
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.write import shown
from upwell.errors import Conflict, InvalidValue
from upwell.feeds.wave import UploadedChange, Wave
from upwell.logs import fields
from upwell.protocol import sync
from upwell.storage.hot import ExpectationFailed
from upwell.types import Key, Op, Owner, SqlType, user_owner

log = logging.getLogger("upwell.sync")

ATTEMPTS_MAX = 50
SCHEMA_DEFAULT = "public"
_NAME = re.compile(r"[a-z0-9_]+")
_OPS = {op.value: op for op in Op}
_NO_PAYLOAD = Parsed({}, "", b"")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    changes_max: int
    payload_bytes_max: int


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
        for wave in _waves(self._validated(changes, answered)):
            self._apply_wave(user, source, wave, answered)
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
    ) -> list[UploadedChange]:
        """Return the changes that can be tried, in the order to try them; answer the others."""
        catalog = self._committer.publication.view.catalog
        valid: list[UploadedChange] = []
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

    def _validate(self, index: int, change: sync.UploadChange, catalog: Catalog) -> UploadedChange:
        schema, name = change.schema.strip().lower() or SCHEMA_DEFAULT, change.table.strip().lower()
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
        key, payload = _key(change, table), self._payload(change, table, op)
        digest = _digest(table, key, op, change.server_version, payload)
        base = change.server_version
        return UploadedChange(index, change.source_change_id, table, op, key, base, payload, digest)

    def _payload(self, change: sync.UploadChange, table: Table, op: Op) -> Parsed:
        payload = b"" if sync.is_null(change.payload) else bytes(change.payload)  # type: ignore[arg-type]
        if op is Op.DELETE:
            if payload:
                raise _Refused(_bad_payload(change, "payload must be absent for DELETE"))
            return _NO_PAYLOAD
        if len(payload) > self._limits.payload_bytes_max:
            raise _Refused(
                _bad_payload(change, f"payload too large: {len(payload)} > {self._limits.payload_bytes_max}")
            )
        try:
            return parse_payload(table, payload)
        except InvalidValue as error:
            raise _Refused(_invalid(change, sync.INVALID_VALUE, str(error))) from error
        except ValueError as error:
            raise _Refused(_bad_payload(change, "invalid JSON payload")) from error

    def _apply_wave(
        self,
        user: str,
        source: str,
        changes: list[UploadedChange],
        answered: dict[int, sync.Status],
    ) -> None:
        """Answer changes with distinct rows, after committing what can be applied."""
        for _ in range(ATTEMPTS_MAX):
            wave = Wave(self._committer, self._rows, self._query, self._defaults, user, source, changes)
            try:
                wave.evaluate(changes)
                seq = wave.commit()
            except ExpectationFailed:
                # Somebody committed meanwhile: look again at a state that has it.
                self._committer.publication.wait(self._committer.last_seq)
                continue
            self._committer.publication.wait(seq)
            answered.update(wave.statuses)
            return
        raise Conflict("the rows of this upload keep changing; send it again")


def _key(change: sync.UploadChange, table: Table) -> Key:
    if table.columns[table.key_index].type is SqlType.UUID:
        try:
            return str(uuid.UUID(change.pk.strip().lower()))
        except ValueError as error:
            raise _Refused(_bad_payload(change, f"invalid UUID format: {change.pk}")) from error
    if not change.pk:
        raise _Refused(_bad_payload(change, "the primary key is empty"))
    return change.pk


def _digest(table: Table, key: Key, op: Op, base: int, payload: Parsed) -> bytes:
    content = (table.id, shown(key), op.value, base, payload.canonical)
    return hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest()


def _waves(changes: Sequence[UploadedChange]) -> list[list[UploadedChange]]:
    """Put the first change of each row into one wave, the second ones into the next, and so on."""
    waves: list[list[UploadedChange]] = []
    counts: Counter[tuple[int, Key]] = Counter()
    for change in changes:
        row = change.table.id, change.key
        if counts[row] == len(waves):
            waves.append([])
        waves[counts[row]].append(change)
        counts[row] += 1
    return waves


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


def _too_large(change: sync.UploadChange, count: int, limit: int) -> sync.Status:
    return _invalid(change, sync.BATCH_TOO_LARGE, f"batch too large: changes={count} limit={limit}")
