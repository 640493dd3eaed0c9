"""The audit log: who changed accounts, rights and schemas, and who acted for whom.

Law: a change of an account, a right or a schema and its entry are one commit; nothing else that belongs here
is acknowledged before its entry has reached the disk. No entry holds a password or a row. Entries go when
they are older than the retention.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from upwell.clock import Clock
from upwell.decodable import decodable
from upwell.engine.commit import Committer, Note
from upwell.ids import Seq, snowflake_ms
from upwell.logs import origin
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite

DAY_MS = 24 * 3600 * 1000
EXPIRED_AT_ONCE = 16
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


@decodable
class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry; its id and time are its record's name. `subject` is on whose behalf `actor` acted."""

    actor: str
    action: str
    target: str
    details: str | None = None
    address: str | None = None
    subject: str | None = None


class AuditLog:
    """Writes entries, each with the commit that it tells of or as one of its own. Thread-safe."""

    def __init__(
        self, committer: Committer, clock: Clock, next_id: Callable[[], int], *, retention_days: int
    ) -> None:
        self._committer = committer
        self._clock = clock
        self._next_id = next_id
        self._retention_ms = retention_days * DAY_MS
        self._oldest_ms: int | None = None

    def append(
        self,
        actor: str,
        action: str,
        target: str,
        *,
        details: Mapping[str, object] | None = None,
        subject: str | None = None,
    ) -> Seq:
        """Write down what `actor` did to `target`; return the seq to wait for."""
        with self._committer.lock:
            records = self.note(actor, action, target, details=details, subject=subject)()
            return self._committer.apply(Batch(records=list(records)))

    def note(
        self,
        actor: str,
        action: str,
        target: str,
        *,
        details: Mapping[str, object] | None = None,
        subject: str | None = None,
    ) -> Note:
        """Return what makes the entry, for the commit of what `actor` does to `target`."""
        found = origin()
        text = None if details is None else msgspec.json.encode(details).decode()
        entry = Entry(actor, action, target, text, None if found is None else found.address, subject)
        return partial(self._records, msgspec.json.encode(entry))

    def _records(self, entry: bytes) -> list[RecordWrite]:
        return [RecordWrite(Kind.AUDIT, self._free_name(), entry), *self._expired()]

    def _free_name(self) -> str:
        """Return a name that no entry has, also when the clock has stepped back."""
        while True:
            name = f"{self._next_id():020d}"
            if self._committer.newest.find_record(Kind.AUDIT, name) is None:
                return name

    def _expired(self) -> list[RecordWrite]:
        """Return the removal of a few entries that are too old: more than come in."""
        horizon_ms = self._clock.now_us() // 1000 - self._retention_ms
        if not self._retention_ms or (self._oldest_ms is not None and self._oldest_ms >= horizon_ms):
            return []
        removed: list[RecordWrite] = []
        for name, _ in self._committer.newest.scan_records(Kind.AUDIT):
            self._oldest_ms = snowflake_ms(int(name))
            if self._oldest_ms >= horizon_ms or len(removed) == EXPIRED_AT_ONCE:
                break
            removed.append(RecordWrite(Kind.AUDIT, name, None))
        return removed


def load_entries(reader: HotReader) -> list[tuple[int, Entry]]:
    """Return (id, entry) of all entries, oldest first."""
    return [
        (int(name), msgspec.json.decode(value, type=Entry)) for name, value in reader.scan_records(Kind.AUDIT)
    ]


def audited(statement: object) -> tuple[str, str]:
    """Return the action and the target of a definition: CREATE_TABLE, `ns.table`."""
    action = _WORD.sub("_", type(statement).__name__).upper()
    named = getattr(statement, "table", statement)
    parts = [getattr(named, part, None) for part in ("namespace", "name")]
    return action, ".".join(part for part in parts if isinstance(part, str))
