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
from functools import lru_cache, partial

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.payload import Parsed, parse_payload
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.violation import ROW_BYTES_MAX
from upwell.engine.write import shown
from upwell.errors import Conflict, InvalidValue
from upwell.feeds.letters import Answered, DeadLetter, Letters
from upwell.feeds.wave import UploadedChange, Wave
from upwell.logs import fields
from upwell.protocol import sync
from upwell.storage.hot import ExpectationFailed
from upwell.types import Key, Op, Owner, SqlType, user_owner

log = logging.getLogger("upwell.sync")

ATTEMPTS_MAX = 50
WAVES_MAX = 50
"""Changes of one row in one upload: each of them is a commit of its own."""
_TOO_MANY = f"an upload changes a row at most {WAVES_MAX} times; send the rest again"
SCHEMA_DEFAULT = "public"
_NAME = re.compile(r"[a-z0-9_]+")
_CANONICAL_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OPS = {op.value: op for op in Op}
_NO_PAYLOAD = Parsed({}, "", b"")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Of one upload, and of one change's payload (0: what a row can hold)."""

    changes_max: int
    payload_bytes_max: int


class _Refused(Exception):
    """This change can't be applied; `status` says why."""

    def __init__(self, status: sync.Status) -> None:
        super().__init__(status.status)
        self.status = status


class _NoTable(Exception):
    """No change of this table can be applied."""

    def __init__(self, reason: str, message: str, details: bytes | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.details = details


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
        changes = request.changes or []
        if len(changes) > self._limits.changes_max:
            return self.refuse(user, changes, f"changes={len(changes)} limit={self._limits.changes_max}")
        statuses = self._statuses(user, source, changes, self._letters(user, source, is_retry=False))
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

    def refuse(self, user: str, changes: Sequence[sync.UploadChange], why: str) -> sync.UploadResponse:
        """Answer that the batch is too large: the device sends a half of it."""
        highest = self._highest(user_owner(user))
        statuses = [_invalid(change, sync.BATCH_TOO_LARGE, f"batch too large: {why}") for change in changes]
        return sync.UploadResponse(accepted=False, highest_server_seq=highest, statuses=statuses)

    def retry(self, letter: DeadLetter) -> sync.Status:
        """Try a dead letter again, as an upload of it would be; what is behind by now goes with it."""
        letters = self._letters(letter.user, letter.source, is_retry=True)
        (status,) = self._statuses(letter.user, letter.source, [letter.change()], letters)
        return status

    def _letters(self, user: str, source: str, *, is_retry: bool) -> Letters:
        return Letters(
            user,
            source,
            now_us=self._defaults.now_us,
            next_id=self._defaults.next_id,
            payload_bytes_max=self._limits.payload_bytes_max or ROW_BYTES_MAX,
            is_retry=is_retry,
        )

    def _statuses(
        self, user: str, source: str, changes: Sequence[sync.UploadChange], letters: Letters
    ) -> list[sync.Status]:
        """Apply changes; return their statuses in order."""
        answered: dict[int, sync.Status] = {}
        valid = self._validated(changes, answered)
        refused = [Answered(changes[index], status) for index, status in answered.items()]
        waves = _waves(valid) or [[]]
        for change in (change for wave in waves[WAVES_MAX:] for change in wave):
            answered[change.index] = _invalid(change.sent, sync.TOO_MANY_CHANGES, _TOO_MANY)
        for wave in waves[:WAVES_MAX]:
            self._apply_wave(user, source, wave, answered, letters, refused)
            refused = []
        return [answered[index] for index in range(len(changes))]

    def _highest(self, owner: Owner) -> int:
        return self._committer.publication.view.hot.owner_counter(owner)

    def _validated(
        self, changes: Sequence[sync.UploadChange], answered: dict[int, sync.Status]
    ) -> list[UploadedChange]:
        """Return the changes that can be tried, in the order to try them; answer the others."""
        catalog = self._committer.publication.view.catalog
        table_of = lru_cache(partial(_synced_table, catalog))
        valid: list[UploadedChange] = []
        for index, change in enumerate(changes):
            try:
                valid.append(self._validate(index, change, table_of(change.schema, change.table)))
            except _NoTable as unknown:
                answered[index] = _invalid(change, unknown.reason, str(unknown), unknown.details)
            except _Refused as refused:
                answered[index] = refused.status
        tables = catalog.parents_first({change.table.id: change.table for change in valid}.values())
        rank = {table.id: position for position, table in enumerate(tables)}
        upserts = [change for change in valid if change.op is not Op.DELETE]
        deletes = [change for change in valid if change.op is Op.DELETE]
        upserts.sort(key=lambda change: rank[change.table.id])
        deletes.sort(key=lambda change: -rank[change.table.id])
        return upserts + deletes

    def _validate(self, index: int, change: sync.UploadChange, table: Table) -> UploadedChange:
        op = _OPS.get(change.op.strip().upper())
        if op is None:
            raise _Refused(_bad_payload(change, f"invalid operation: {change.op}"))
        key, payload = _key(change, table), self._payload(change, table, op)
        digest = _digest(table, key, op, change.server_version, payload)
        base = change.server_version
        return UploadedChange(index, change, change.source_change_id, table, op, key, base, payload, digest)

    def _payload(self, change: sync.UploadChange, table: Table, op: Op) -> Parsed:
        payload = b"" if sync.is_null(change.payload) else bytes(change.payload)  # type: ignore[arg-type]
        if op is Op.DELETE:
            if payload:
                raise _Refused(_bad_payload(change, "payload must be absent for DELETE"))
            return _NO_PAYLOAD
        if 0 < self._limits.payload_bytes_max < len(payload):
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
        letters: Letters,
        refused: Sequence[Answered],
    ) -> None:
        """Answer changes with distinct rows, after committing what can be applied, and letters."""
        for _ in range(ATTEMPTS_MAX):
            wave = Wave(self._committer, self._rows, self._query, self._defaults, user, source, changes)
            try:
                wave.evaluate()
                seq = wave.commit(letters, refused)
            except ExpectationFailed:
                # Somebody committed meanwhile: look again at a state that has it.
                self._committer.publication.wait(self._committer.last_seq)
                continue
            self._committer.publication.wait(seq)
            answered.update(wave.statuses)
            return
        raise Conflict("the rows of this upload keep changing; send it again")


def _synced_table(catalog: Catalog, schema: str, table: str) -> Table:
    place = schema.strip().lower() or SCHEMA_DEFAULT, table.strip().lower()
    for kind, text in zip(("schema", "table"), place, strict=True):
        if not _NAME.fullmatch(text):
            raise _NoTable(sync.BAD_PAYLOAD, f'invalid {kind} name "{text}"')
    found = catalog.tables.get(place)
    if found is None or not found.synced:
        details = msgspec.json.encode({"schema": place[0], "table": place[1]})
        raise _NoTable(sync.UNREGISTERED_TABLE, f"table not registered {place[0]}.{place[1]}", details)
    return found


def _key(change: sync.UploadChange, table: Table) -> Key:
    if table.columns[table.key_index].type is SqlType.UUID:
        if _CANONICAL_UUID.fullmatch(change.pk):
            return change.pk
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
