"""Letters: what the server keeps of changes that it couldn't apply: conflicts and dead letters.

Law: a change that a device may drop on our answer is kept here whole, written in the commit of the wave that
refused it; when the same change is applied after all, its dead letter goes in that commit. What is applied
at once costs nothing but one look for dead letters of its source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from upwell.decodable import decodable
from upwell.engine.names import change_name, source_prefix, user_prefix
from upwell.protocol import sync
from upwell.storage.hot import HotReader, Kind, RecordWrite

LETTERS_PER_USER_MAX = 1_000
"""Conflicts, and dead letters, of one user; the oldest go."""
LETTERS_BYTES_PER_USER_MAX = 64 * 1024 * 1024
"""The same in bytes of their records; the newest stays in any case."""
NAME_CHARS_MAX = 1_000
ERROR_CHARS_MAX = 1_000
_KEPT_BY_DEVICES = frozenset({sync.FK_MISSING, sync.BATCH_TOO_LARGE, sync.TOO_MANY_CHANGES})
_NOT_KEPT = "; it was too large to be kept"


@decodable
class Conflict(msgspec.Struct, frozen=True, array_like=True):
    """A change whose base version wasn't the current one when it came."""

    user: str
    source: str
    change_id: int
    table: str
    pk: str
    op: str
    base_version: int
    server_version: int
    payload: bytes | None
    at_us: int


@decodable
class DeadLetter(msgspec.Struct, frozen=True, array_like=True):
    """A change that was refused as it is; `is_whole` tells whether all of it could be kept."""

    id: int
    user: str
    source: str
    change_id: int
    schema: str
    table: str
    pk: str
    op: str
    base_version: int
    payload: bytes | None
    reason: str
    error: str
    first_seen_us: int
    retry_count: int
    is_whole: bool

    @property
    def attempted_version(self) -> int:
        """The version that the change would have made; a device may send any base version."""
        return min(self.base_version, sync.INT64_MAX - 1) + 1

    def change(self) -> sync.UploadChange:
        """Return what the device sent."""
        return sync.UploadChange(
            source_change_id=self.change_id,
            schema=self.schema,
            table=self.table,
            op=self.op,
            pk=self.pk,
            server_version=self.base_version,
            payload=msgspec.UNSET if self.payload is None else msgspec.Raw(self.payload),
        )


Letter = TypeVar("Letter", Conflict, DeadLetter)


def load_conflicts(reader: HotReader, user: str | None = None) -> list[Conflict]:
    """Return the conflicts of a user, or of all users."""
    return _load(reader, Kind.CONFLICT, Conflict, user)


def load_dead_letters(reader: HotReader, user: str | None = None) -> list[DeadLetter]:
    """Return the dead letters of a user, or of all users."""
    return _load(reader, Kind.DEAD_LETTER, DeadLetter, user)


def letter_name(letter: Conflict | DeadLetter) -> str:
    """Return the name of a letter's record."""
    return change_name(letter.user, letter.source, letter.change_id)


@dataclass(frozen=True, slots=True)
class Answered:
    """A change as it was sent, and its status."""

    change: sync.UploadChange
    status: sync.Status


class Letters:
    """Decides what to keep of one source's changes. `is_retry`: they are dead letters tried again."""

    def __init__(
        self,
        user: str,
        source: str,
        *,
        now_us: Callable[[], int],
        next_id: Callable[[], int],
        payload_bytes_max: int,
        is_retry: bool = False,
    ) -> None:
        self._user = user
        self._source = source
        self._now_us = now_us
        self._next_id = next_id
        self._payload_bytes_max = payload_bytes_max
        self._is_retry = is_retry

    def records(self, reader: HotReader, answers: Sequence[Answered]) -> list[RecordWrite]:
        """Return what to write beside the changes of these answers."""
        prefix = source_prefix(self._user, self._source)
        has_letters = next(reader.scan_records(Kind.DEAD_LETTER, prefix), None) is not None
        if not has_letters and all(answer.status.status == "applied" for answer in answers):
            return []
        found: list[RecordWrite] = []
        conflicts: list[Conflict] = []
        letters: list[DeadLetter] = []
        for answer in answers:
            name = change_name(self._user, self._source, answer.change.source_change_id)
            known = reader.find_record(Kind.DEAD_LETTER, name) if has_letters else None
            if answer.status.status == "applied" or (answer.status.server_row and self._is_retry):
                if known is not None:
                    found.append(RecordWrite(Kind.DEAD_LETTER, name, None))
            elif answer.status.server_row is not None:
                conflicts.append(self._conflict(answer.change, answer.status.server_row))
            elif answer.status.invalid is not None and self._is_kept(answer.status.invalid):
                letters.append(self._letter(answer, known))
        return (
            found
            + _written(reader, Kind.CONFLICT, self._user, conflicts, lambda conflict: conflict.at_us)
            + _written(reader, Kind.DEAD_LETTER, self._user, letters, lambda letter: letter.first_seen_us)
        )

    def _is_kept(self, invalid: sync.Invalid) -> bool:
        return self._is_retry or invalid.reason not in _KEPT_BY_DEVICES

    def _conflict(self, change: sync.UploadChange, row: sync.ServerRow) -> Conflict:
        return Conflict(
            user=self._user,
            source=self._source,
            change_id=change.source_change_id,
            table=f"{row.schema_name}.{row.table_name}",
            pk=row.id,
            op=_op(change),
            base_version=change.server_version,
            server_version=row.server_version,
            payload=_payload(change),
            at_us=self._now_us(),
        )

    def _letter(self, answer: Answered, known: bytes | None) -> DeadLetter:
        change, status = answer.change, answer.status
        before = msgspec.msgpack.decode(known, type=DeadLetter) if known is not None else None
        payload = _payload(change)
        names = (_cut(change.schema), _cut(change.table), _cut(change.pk), _cut(change.op))
        is_large = payload is not None and len(payload) > self._payload_bytes_max
        is_whole = not is_large and names == (change.schema, change.table, change.pk, change.op)
        assert status.invalid is not None, "only invalid changes become dead letters"
        return DeadLetter(
            id=before.id if before else self._next_id(),
            user=self._user,
            source=self._source,
            change_id=change.source_change_id,
            schema=names[0].strip().lower(),
            table=names[1].strip().lower(),
            pk=names[2],
            op=_op(change),
            base_version=change.server_version,
            payload=None if is_large else payload,
            reason=status.invalid.reason,
            error=_error(status, status.invalid) + ("" if is_whole else _NOT_KEPT),
            first_seen_us=before.first_seen_us if before else self._now_us(),
            retry_count=before.retry_count + 1 if before else 0,
            is_whole=is_whole,
        )


def _written(
    reader: HotReader, kind: Kind, user: str, letters: list[Letter], age_us: Callable[[Letter], int]
) -> list[RecordWrite]:
    """Return the letters' records, and the deletion of the user's oldest if there are too many then."""
    made = {letter_name(letter): (age_us(letter), msgspec.msgpack.encode(letter)) for letter in letters}
    if all(reader.find_record(kind, name) is not None for name in made):
        return [RecordWrite(kind, name, value) for name, (_, value) in made.items()]
    letter_type = type(letters[0])
    sizes = {
        name: (age_us(msgspec.msgpack.decode(value, type=letter_type)), len(value))
        for name, value in reader.scan_records(kind, user_prefix(user))
    }
    surplus = _surplus(sizes | {name: (age, len(value)) for name, (age, value) in made.items()})
    return [RecordWrite(kind, name, value) for name, (_, value) in made.items() if name not in surplus] + [
        RecordWrite(kind, name, None) for name in sorted(surplus & sizes.keys())
    ]


def _surplus(letters: Mapping[str, tuple[int, int]]) -> set[str]:
    """Return the names of the oldest letters that are beyond a limit; they are given as (time, bytes)."""
    size_bytes = 0
    surplus: set[str] = set()
    newest_first = sorted(letters, key=lambda name: (letters[name][0], name), reverse=True)
    for count, name in enumerate(newest_first, start=1):
        size_bytes += letters[name][1]
        if count > LETTERS_PER_USER_MAX or (size_bytes > LETTERS_BYTES_PER_USER_MAX and count > 1):
            surplus.add(name)
    return surplus


def _load(reader: HotReader, kind: Kind, letter: type[Letter], user: str | None) -> list[Letter]:
    prefix = "" if user is None else user_prefix(user)
    return [msgspec.msgpack.decode(value, type=letter) for _, value in reader.scan_records(kind, prefix)]


def _payload(change: sync.UploadChange) -> bytes | None:
    return None if isinstance(change.payload, msgspec.UnsetType) else bytes(change.payload)


def _op(change: sync.UploadChange) -> str:
    return _cut(change.op).strip().upper()


def _cut(text: str) -> str:
    return text[:NAME_CHARS_MAX]


def _error(status: sync.Status, invalid: sync.Invalid) -> str:
    message = status.message or bytes(invalid.details).decode()
    return message[:ERROR_CHARS_MAX]
