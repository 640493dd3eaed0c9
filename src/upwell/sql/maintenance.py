"""What administrators ask of storages, jobs, files and the server: statements that change no row.

Law: as all statements these are frozen values, and tables are resolved.
"""

from dataclasses import dataclass

from upwell.engine.catalog import Table
from upwell.storage.definition import Storage


@dataclass(frozen=True, slots=True)
class ClusterAction:
    """CLUSTER …; `target` is the node or the log index that it names, `refusal` why it can't be done here."""

    action: str
    target: int | None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class ShowStats:
    table: Table


@dataclass(frozen=True, slots=True)
class FlushTable:
    """STORAGE FLUSH TABLE; `users` None: of all of them."""

    table: Table
    users: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class FlushAll:
    """STORAGE FLUSH ALL; `namespace` None: the session's."""

    namespace: str | None


@dataclass(frozen=True, slots=True)
class CompactTable:
    table: Table


@dataclass(frozen=True, slots=True)
class CompactAll:
    """STORAGE COMPACT ALL; `namespace` None: the session's."""

    namespace: str | None


@dataclass(frozen=True, slots=True)
class CreateStorage:
    storage: Storage


@dataclass(frozen=True, slots=True)
class AlterStorage:
    """What isn't given stays; `config` and `credentials` are JSON, each as a whole."""

    name: str
    new_name: str | None
    description: str | None
    shared_template: str | None
    user_template: str | None
    config: str | None
    credentials: str | None


@dataclass(frozen=True, slots=True)
class DropStorage:
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class CheckStorage:
    name: str
    is_extended: bool


@dataclass(frozen=True, slots=True)
class BackupDatabase:
    path: str


@dataclass(frozen=True, slots=True)
class RestoreDatabase:
    """RESTORE DATABASE FROM 'path'"""

    path: str


@dataclass(frozen=True, slots=True)
class KillLive:
    """KILL LIVE QUERY; `live_id` as `system.live` shows it."""

    live_id: str


@dataclass(frozen=True, slots=True)
class KillJob:
    job_id: str


@dataclass(frozen=True, slots=True)
class RetryJob:
    job_id: str
