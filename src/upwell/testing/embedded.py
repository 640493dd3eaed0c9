"""A whole engine inside a test's process, without sockets: SQL through the session layer, tiers, jobs.

What the server wires around an event loop is wired here around a test: the same parts, on either hot
store, with effects that the test chooses.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self

from upwell.clock import Clock, SystemClock
from upwell.effects import Files, NoPoints, OsFiles, Points
from upwell.engine.backup import Backup
from upwell.engine.catalog import Role, Table
from upwell.engine.changelog import TAIL_CHANGES_MAX, Changelog
from upwell.engine.cleanup import Cleanup
from upwell.engine.commit import Committer, Durability
from upwell.engine.compact import Compact, Compacted
from upwell.engine.defaults import Defaults
from upwell.engine.expiry import Expiry
from upwell.engine.flush import Flush, Flushed
from upwell.engine.in_force import find_spare
from upwell.engine.overlay import Overlay
from upwell.engine.partition import PartitionWriter
from upwell.engine.query import QueryEngine
from upwell.engine.references import Children
from upwell.engine.restore import Restore
from upwell.engine.result import result_rows
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.engine.storages import StorageSchema
from upwell.engine.trim import LogLimits, LogTrim
from upwell.engine.view import View
from upwell.engine.write import Write
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.feeds.resume import Resumes
from upwell.ids import Snowflakes
from upwell.jobs.job import Job
from upwell.jobs.kinds import Kinds
from upwell.jobs.queue import JobQueue, load_jobs
from upwell.jobs.retention import JobRetention
from upwell.jobs.runner import JobRunner, Work
from upwell.session.audit import AuditLog
from upwell.session.auth import Authenticator
from upwell.session.engine import Engine
from upwell.session.outcome import Answer, Changed, Outcome, PointAnswer, StatementFailed
from upwell.session.policy import Principal
from upwell.session.server import ServerFacts
from upwell.session.session import Sessions
from upwell.session.signin import SignIns
from upwell.session.threads import QueryThreads
from upwell.sql.prepare import Preparer
from upwell.storage.cold import ColdCache
from upwell.storage.hot import HotStore, Kind
from upwell.storage.memory import MemoryStore
from upwell.storage.objects import Bucket
from upwell.storage.rocks import RocksStore, WalSync
from upwell.storage.storages import OpenBucket, Storages
from upwell.testing import cold
from upwell.testing.wait import wait_until
from upwell.types import Owner, Value

ROOT = "root"
RETENTION_S = 3_600.0
LOG_BYTES_MAX = 1 << 30
"""How long the log and jobs are kept: move the clock by more, and what is older may go."""
JOBS_KEPT_MAX = 100

JOBS_S_MAX = 60.0

GRACE_S = 60.0
"""How long the ends of expired rows stay in the log."""

Tuples = list[tuple[Value, ...]]


class Embedded:
    """One engine on one directory; `with` closes it. `store` None opens a `RocksStore` in the directory."""

    def __init__(
        self,
        directory: Path,
        *,
        store: HotStore | None = None,
        clock: Clock | None = None,
        files: Files | None = None,
        points: Points | None = None,
        wal_sync: WalSync | None = None,
        durability: Durability = Durability.GROUP,
        grace_s: float = 0.0,
        open_bucket: OpenBucket = Bucket,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
        shapes: bool = True,
        tail_changes_max: int = TAIL_CHANGES_MAX,
    ) -> None:
        self.grace_s = grace_s
        self._open_bucket = open_bucket
        self._loop_factory = loop_factory
        self._shapes = shapes
        self._tail_changes_max = tail_changes_max
        self.directory = directory
        self.clock = clock or SystemClock()
        self.files = files or OsFiles()
        self.points = points or NoPoints()
        self._wal_sync = wal_sync
        self._durability = durability
        self._given = store
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def view(self) -> View:
        return self.committer.publication.view

    @property
    def cold_root(self) -> Path:
        return self.directory / "storage"

    def _open(self) -> None:
        hot = self.directory / "hot"
        self.store: HotStore = self._given or RocksStore(hot, clock=self.clock, wal_sync=self._wal_sync)
        self.committer = Committer(self.store, points=self.points, durability=self._durability)
        self.committer.changelog = Changelog(
            floor=self.committer.last_seq, tail_changes_max=self._tail_changes_max
        )
        self.schema = Schema(self.committer, self.clock)
        self.registry = Registry(self.committer, self.clock)
        self._open_tiers()
        self._open_jobs()
        self.engine = self._make_engine()
        self.schema.ensure_default_namespace()
        StorageSchema(self.committer, self.clock).ensure_local(str(self.cold_root))
        self.threads = ThreadPoolExecutor(4, "test-query")
        self.runner = asyncio.Runner(loop_factory=self._loop_factory)
        self.growth = Growth(self.committer.publication, self.runner.get_loop())
        self.sessions = self._make_sessions(self.growth)

    def _open_tiers(self) -> None:
        self.storages = Storages(
            self.cold_root,
            self.files,
            find=partial(self.store.find_record, Kind.STORAGE),
            find_spare=partial(find_spare, self.store),
            server="test",
            open_bucket=self._open_bucket,
        )
        self.cold = ColdCache(self.storages, partitions_max=1000, group_bytes_max=1 << 24)
        self.rows_by_key = Rows(self.cold)
        self.overlay = Overlay(self.committer.changelog)
        self.query = QueryEngine(self.rows_by_key, self.overlay)
        self.partitions = PartitionWriter(
            self.committer, self.storages, clock=self.clock, points=self.points, grace_s=self.grace_s
        )
        self.flusher = Flush(self.committer, self.partitions, points=self.points)
        self.compactor = Compact(self.committer, self.partitions, points=self.points)

    def _open_jobs(self) -> None:
        committer, clock, points = self.committer, self.clock, self.points
        self.jobs = JobQueue(committer, clock, points=points)
        self.cleanup = Cleanup(committer, self.storages, self.partitions, self.cold, points=points)
        limits = LogLimits(RETENTION_S, LOG_BYTES_MAX)
        self.trim = LogTrim(committer, clock, limits, self.registry.slowest_cursor, points)
        self.retention = JobRetention(self.jobs, clock, RETENTION_S, JOBS_KEPT_MAX)
        self.expiry = Expiry(committer, clock, GRACE_S)
        open_store = partial(RocksStore, clock=clock)
        self.kinds = Kinds(
            committer,
            self.flusher,
            self.compactor,
            self.cleanup,
            self.trim,
            self.retention,
            self.expiry,
            Backup(committer, self.partitions, self.storages, open_store, clock, points, self.files),
            Restore(self.directory, open_store, points, self.files),
            self.jobs,
            clock,
            points,
        )

    def _make_engine(self) -> Engine:
        defaults = Defaults(self.clock, Snowflakes(self.clock, worker=1))
        return Engine(
            facts=ServerFacts("embedded", "http://127.0.0.1", self.clock.now_us()),
            committer=self.committer,
            rows=self.rows_by_key,
            query=self.query,
            schema=self.schema,
            storages=self.storages,
            flush=self.flusher,
            jobs=self.jobs,
            defaults=defaults,
            clock=self.clock,
            audit=AuditLog(self.committer, self.clock, defaults.next_id, retention_days=1),
            sign_ins=SignIns(self.committer, self.clock),
        )

    def close(self) -> None:
        """Close all but a store that was given."""
        self.runner.close()
        self.threads.shutdown()
        self.committer.close()
        if self._given is None:
            self.store.close()

    def reopen(self) -> None:
        """Close and open again: nothing is left but what the store and the files hold."""
        self.close()
        self._open()

    def session(self, loop: asyncio.AbstractEventLoop, threads: Executor | None = None) -> Sessions:
        """Return a session layer of another event loop's own, with other threads if there are any."""
        return self._make_sessions(Growth(self.committer.publication, loop), threads)

    def _make_sessions(self, growth: Growth, threads: Executor | None = None) -> Sessions:
        threads = threads or self.threads
        authenticator = Authenticator(
            secret="a-secret-of-a-test-with-more-than-32-bytes",
            clock=self.clock,
            expiry_hours=1,
            device_expiry_hours=1,
            bcrypt_cost=4,
        )
        queries = QueryThreads(threads, slots=4, timeout_s=60)
        feed = LiveFeed(self.committer.changelog, growth, self.query, threads, Resumes(self.committer))
        return Sessions(
            self.engine,
            growth,
            Preparer(shapes=self._shapes),
            authenticator,
            queries,
            threads,
            self.registry,
            feed,
        )

    async def outcomes(self, sql: str, params: Sequence[Value] = (), user: str = ROOT) -> list[Outcome]:
        """Run SQL as `user`; raise the error of the statement that failed."""
        try:
            return await self.sessions.execute(principal(user), sql, params, "default")
        except StatementFailed as failure:
            cause = failure.cause
        try:
            raise cause
        finally:
            del cause  # it holds this frame

    def run(self, sql: str, params: Sequence[Value] = (), user: str = ROOT) -> Outcome:
        """Run SQL to its end and return the outcome of its last statement."""
        # Not by the runner, which would set a signal handler each time.
        loop = self.runner.get_loop()
        task = loop.create_task(self.outcomes(sql, params, user))
        loop.run_until_complete(asyncio.wait([task]))
        try:
            return task.result()[-1]
        finally:
            del task  # a failure holds this frame: it would hold itself, and the View that it was met on

    def change(self, sql: str, params: Sequence[Value] = (), user: str = ROOT) -> int:
        """Run INSERT, UPDATE or DELETE; return how many rows changed."""
        result = self.run(sql, params, user).result
        assert isinstance(result, Changed), result
        return result.count

    def rows(self, sql: str, params: Sequence[Value] = (), user: str = ROOT) -> Tuples:
        """Run a SELECT and return its rows."""
        return answer_rows(self.run(sql, params, user))

    def table(self, full_name: str) -> Table:
        """Return a table of the View in force by its `namespace.name`."""
        namespace, name = full_name.split(".")
        return self.view.catalog.get_table(namespace, name)

    def flush(self, full_name: str) -> dict[Owner, Flushed]:
        """Flush all partitions of a table now, in this thread; return when the cleanup is visible."""
        table = self.table(full_name)
        owners = self.flusher.pending(self.view, table)
        flushed = {owner: self.flusher.flush_partition(table, owner) for owner in owners}
        self.settle()
        return flushed

    def compact(self, full_name: str, *, whole: bool = True) -> dict[Owner, Compacted]:
        """Compact all partitions of a table now, or those that are due, and remove what they replaced."""
        table = self.table(full_name)
        owners = self.compactor.owners(self.view, table, due_only=not whole)
        done = {owner: self.compactor.compact_partition(table, owner, whole=whole) for owner in owners}
        wait_until(self.collect, timeout_s=60, what="the last reader of replaced files")
        return done

    def collect(self) -> bool:
        """Remove cold files that were replaced; return whether none is left that somebody still needs."""
        self.partitions.collect_due()
        self.settle()
        return not any(name.startswith("collect/") for name in self.record_names(Kind.META))

    def work_off(self, work: Work | None = None, *, jobs_max: int = 1) -> list[Job]:
        """Run what is queued, or was interrupted, to its end as a server does; return all jobs."""

        async def run() -> list[Job]:
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()

            def look() -> None:
                if not any(job.is_open for job in load_jobs(self.view.hot)):
                    loop.call_soon_threadsafe(ended.set)

            stop_listening = self.committer.publication.listen(look)
            with ThreadPoolExecutor(jobs_max) as threads:
                runner = JobRunner(self.jobs, work or self.kinds.run, threads, jobs_max=jobs_max)
                task = asyncio.create_task(runner.run())
                look()
                try:
                    await asyncio.wait_for(ended.wait(), JOBS_S_MAX)
                finally:
                    stop_listening()
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            return load_jobs(self.view.hot)

        return self.runner.run(run())

    def settle(self) -> View:
        """Return a View of all that was applied so far."""
        return self.committer.publication.wait(self.committer.last_seq)

    def write(self, view: View | None = None, *, may_block: bool = True) -> Write:
        """Begin an evaluation on `view` (by default the one in force)."""
        view = view or self.view
        return Write(
            self.rows_by_key,
            view.hot,
            view.catalog,
            may_block=may_block,
            find_children=Children(self.query, view),
            view_seq=view.seq,
        )

    def record_names(self, kind: Kind) -> list[str]:
        """Return the names of the records of a kind, in the newest state."""
        return [name for name, _ in self.committer.newest.scan_records(kind)]

    def cold_problems(self, pk: str = "id") -> list[str]:
        """Return what the independent reader finds wrong with the cold files."""
        if not self.cold_root.exists():
            return []
        partitions = cold.partitions(self.cold_root)
        hidden = [problem for partition in partitions for problem in cold.audit_hidden(partition, pk)]
        return cold.audit(self.cold_root) + hidden

    def cold_rows(self, full_name: str, user: str | None = None, pk: str = "id") -> list[dict[str, Any]]:
        """Return what the independent reader sees of one partition."""
        partition = cold.find_partition(self.cold_root, full_name, user)
        return cold.rows(partition, pk) if partition else []


def principal(user: str) -> Principal:
    """Return `root` with role system, everybody else with role user."""
    return Principal(user, Role.SYSTEM if user == ROOT else Role.USER)


def answer_rows(outcome: Outcome) -> Tuples:
    """Return the rows of a SELECT's outcome."""
    match outcome.result:
        case Answer(table):
            return list(result_rows(table))
        case PointAnswer(_, rows):
            return [tuple(row) for row in rows]
        case other:
            raise AssertionError(f"not a SELECT: {other}")


def memory_store(clock: Clock | None = None) -> MemoryStore:
    return MemoryStore(clock=clock or SystemClock())
