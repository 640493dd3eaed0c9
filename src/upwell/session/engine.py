"""What a session calls: the parts of an opened engine."""

from dataclasses import dataclass

from upwell.clock import Clock
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.flush import Flush
from upwell.engine.query import QueryEngine
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.jobs.queue import JobQueue
from upwell.session.audit import AuditLog
from upwell.session.server import ServerFacts
from upwell.session.signin import SignIns
from upwell.storage.storages import Storages


@dataclass(frozen=True, slots=True)
class Engine:
    """What a session calls; each part is independent of the others' users."""

    committer: Committer
    rows: Rows
    query: QueryEngine
    schema: Schema
    storages: Storages
    flush: Flush
    jobs: JobQueue
    defaults: Defaults
    clock: Clock
    audit: AuditLog
    sign_ins: SignIns
    facts: ServerFacts
