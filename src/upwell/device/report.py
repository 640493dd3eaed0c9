"""What the device tells the app: reports of a sync, progress, status, pending changes; all frozen values."""

from dataclasses import dataclass
from typing import Literal

Phase = Literal["hydrate", "upload", "download"]


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` rows of `total`; total is None while the server alone knows it."""

    phase: Phase
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class UploadReport:
    """Counts of changes, over all requests of one upload.

    `duplicates` (known to the server from an unanswered request) are part of `applied`; `deferred` stay
    pending and are tried again by the next upload; `invalid` are quarantined until the app edits the row or
    calls `retry_refused`, or, when the server doesn't know their table, deferred too.
    """

    requests: int = 0
    sent: int = 0
    applied: int = 0
    duplicates: int = 0
    conflicts: int = 0
    invalid: int = 0
    deferred: int = 0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class DownloadReport:
    """Counts of entries of the log; `withheld` wait until a local change of their row is settled."""

    requests: int = 0
    received: int = 0
    applied: int = 0
    withheld: int = 0
    cursor: int = 0


@dataclass(frozen=True, slots=True)
class HydrateReport:
    """Counts of live rows, and of log entries after them; `next_change_id` as the server knows it."""

    requests: int = 0
    rows: int = 0
    entries: int = 0
    next_change_id: int = 1


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One round; `hydrate` is None when the file was up to date."""

    hydrate: HydrateReport | None
    upload: UploadReport
    download: DownloadReport


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A row that waits for upload; `payload` is JSON with BLOBs in hex (of a DELETE: the OLD row)."""

    table: str
    key: str
    op: str
    base_version: int
    payload: str | None
    change_id: int
    queued_at: str
    is_quarantined: bool
    reason: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """Where the file stands; `withheld` server rows and `quarantined` changes need a look by the app.

    `lag` is how many entries of the user's log this file has not read, as far as the server told;
    `last_synced_at` (ISO 8601, UTC) when a full round last succeeded. `last_error` is why the last exchange
    failed, or else which tables of pending changes the server lacks.
    """

    user: str
    source: str
    is_signed_in: bool
    is_running: bool
    is_hydrated: bool
    pending: int
    quarantined: int
    withheld: int
    conflicts: int
    cursor: int
    lag: int
    next_change_id: int
    last_synced_at: str | None
    last_error: str | None
