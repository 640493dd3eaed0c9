"""The only wiring: builds a server from its settings, starts it, stops it.

Law: what is built first is closed last, and nothing below knows who uses it.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import uvicorn
import uvloop

from upwell.clock import Clock, SystemClock
from upwell.config import Config, descriptions, shown
from upwell.edge.accounts import PATHS, Accounts
from upwell.edge.allowance import RateLimit
from upwell.edge.cors import Cors
from upwell.edge.devices import DEVICE_PATHS, BodyLimits, DeviceEndpoints
from upwell.edge.gate import Gate, Handler
from upwell.edge.http import SQL_PATH, SqlEndpoint
from upwell.edge.metrics import Metrics, Traffic, counters, gauges
from upwell.edge.packet import OnePacket
from upwell.edge.signin import DummySignin
from upwell.edge.stream import LogStreams
from upwell.edge.wire import RawWS
from upwell.edge.ws import LiveSocket
from upwell.effects import Files, OsFiles, Points, points_from_environment
from upwell.engine.backup import Backup
from upwell.engine.catalog import Role, User
from upwell.engine.cleanup import Cleanup
from upwell.engine.commit import Committer, Durability
from upwell.engine.compact import Compact
from upwell.engine.defaults import Defaults
from upwell.engine.expiry import Expiry
from upwell.engine.flush import Flush
from upwell.engine.flush_policy import FlushPace, parse_policy
from upwell.engine.history import running, server_id, stream_id
from upwell.engine.overlay import Overlay
from upwell.engine.partition import PartitionWriter
from upwell.engine.query import QueryEngine
from upwell.engine.restore import Restore, adopt_restored, return_elsewhere
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.engine.storages import StorageSchema
from upwell.engine.trim import LogLimits, LogTrim
from upwell.errors import StartRefused
from upwell.feeds.cursor import Growth
from upwell.feeds.download import Downloads
from upwell.feeds.failures import Failures
from upwell.feeds.hydrate import Hydrations
from upwell.feeds.live import LiveFeed
from upwell.feeds.lookout import Lookouts
from upwell.feeds.registry import Registry
from upwell.feeds.stock import StockDownloads
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.ids import Snowflakes
from upwell.jobs.compaction import watch_replaced
from upwell.jobs.kinds import Kinds
from upwell.jobs.queue import JobQueue
from upwell.jobs.retention import JobRetention
from upwell.jobs.runner import JobRunner
from upwell.jobs.schedule import (
    Schedule,
    watch_dropped,
    watch_expired,
    watch_flush,
    watch_jobs,
    watch_log,
    watch_log_size,
    watch_rows,
)
from upwell.logs import fields
from upwell.protocol.sync import SIGNIN_PATH
from upwell.session.accounts import Doorkeeper
from upwell.session.audit import AuditLog
from upwell.session.auth import Authenticator
from upwell.session.limit import RowLimits
from upwell.session.server import ServerFacts, Setting
from upwell.session.session import Engine, Sessions
from upwell.session.signin import SignIns
from upwell.session.threads import QueryThreads
from upwell.session.trust import Trust
from upwell.sql.prepare import Preparer
from upwell.storage.cache import KEEP_S, FileCache
from upwell.storage.cold import ColdCache
from upwell.storage.hot import Kind
from upwell.storage.rocks import RocksStore
from upwell.storage.storages import Storages
from upwell.storage.volume import Secrets

log = logging.getLogger("upwell.app")

COLD_PARTITIONS_MAX = 10_000
COLD_GROUP_BYTES_MAX = 256 * 1024 * 1024
DEVICE_THREADS = 4
SLOW_THREADS = 2
QUERY_THREAD = "upwell-query"
# For statements whose time is over but whose thread goes on.
SPARE_THREADS = 4
SWITCH_INTERVAL_S = 0.0005
# How often the schedule looks for jobs to forget, and for dropped tables whose clean-up has failed.
JOBS_INTERVAL_S = 60.0
DROPPED_INTERVAL_S = 60.0
BACKLOG = 2_048
KEEP_ALIVE_S = 75
# SNOWFLAKE_ID() has a worker number of its own, so that its ids and `_seq`s never meet.
_DEFAULT_IDS_WORKER = 1


@dataclass(frozen=True, slots=True)
class Parts:
    """The opened engine, before any event loop or socket."""

    config: Config
    stream_id: str
    committer: Committer
    engine: Engine
    cold: ColdCache
    storages: Storages
    partitions: PartitionWriter
    authenticator: Authenticator
    points: Points


@contextmanager
def opened(config: Config, *, clock: Clock, files: Files, points: Points) -> Iterator[Parts]:
    """Open everything that lives in the data directory; close it in reverse order."""
    adopt_restored(config.data_dir, partial(RocksStore, clock=clock), points)
    with ExitStack() as stack:
        store = RocksStore(config.data_dir / "hot", clock=clock, files=files)
        stack.callback(store.close)
        stack.enter_context(running(store, Durability(config.durability)))
        history = stream_id(store)
        committer = Committer(
            store, points=points, durability=Durability(config.durability), pace=_flush_pace(config)
        )
        stack.callback(committer.close)
        storages = Storages(
            config.data_dir / "storage",
            files,
            find=partial(store.find_record, Kind.STORAGE),
            cache=FileCache(
                config.data_dir / "cache",
                bytes_max=config.cold_cache_bytes_max,
                keep_s=max(KEEP_S, 2 * config.statement_timeout_s),
                clock=clock,
            ),
            secrets=Secrets(os.environ, config.secrets_dir),
            server=server_id(store),
        )
        cold = ColdCache(storages, partitions_max=COLD_PARTITIONS_MAX, group_bytes_max=COLD_GROUP_BYTES_MAX)
        rows = Rows(cold)
        partitions = PartitionWriter(
            committer, storages, clock=clock, points=points, grace_s=config.cold_grace_s
        )
        defaults = Defaults(clock, Snowflakes(clock, worker=_DEFAULT_IDS_WORKER))
        engine = Engine(
            facts=ServerFacts(
                server_id(store), f"http://{config.host}:{config.port}", clock.now_us(), _settings(config)
            ),
            committer=committer,
            rows=rows,
            query=QueryEngine(rows, Overlay(committer.changelog)),
            schema=Schema(committer, clock),
            storages=storages,
            flush=Flush(committer, partitions, points=points),
            jobs=JobQueue(committer, clock, points=points),
            defaults=defaults,
            clock=clock,
            audit=AuditLog(committer, clock, defaults.next_id, retention_days=config.audit_retention_days),
            sign_ins=SignIns(committer, clock),
        )
        authenticator = Authenticator(
            secret=config.jwt_secret,
            clock=clock,
            expiry_hours=config.jwt_expiry_hours,
            device_expiry_hours=config.device_token_expiry_hours,
            bcrypt_cost=config.bcrypt_cost,
            is_strict=config.enforce_password_complexity,
            trust=Trust(config.issuers, engine.schema.provision_user, clock),
        )
        engine.schema.ensure_default_namespace()
        StorageSchema(committer, clock).ensure_local(str(storages.root.absolute()))
        return_elsewhere(config.data_dir, storages, committer.newest_catalog)
        _ensure_root(engine, authenticator, config.root_password)
        yield Parts(config, history, committer, engine, cold, storages, partitions, authenticator, points)


def _settings(config: Config) -> tuple[Setting, ...]:
    """Return the settings as `system.settings` shows them."""
    texts = descriptions()
    return tuple(
        Setting(name, value, texts.get(name, ""), name.split("_")[0]) for name, value in shown(config).items()
    )


def run(config: Config, *, files: Files | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. `files` make the calls on the file system."""
    config.refuse_unsafe()
    try:
        points = points_from_environment(os.environ)
    except ValueError as error:
        raise StartRefused(str(error)) from error
    with (
        opened(config, clock=SystemClock(), files=files or OsFiles(), points=points) as parts,
        asyncio.Runner(loop_factory=_new_loop) as runner,
    ):
        runner.run(_serve(parts))
    if any(thread.name.startswith(QUERY_THREAD) for thread in threading.enumerate()):
        # All is closed; a query that can't be interrupted would only keep the process from ending.
        logging.shutdown()
        os._exit(0)
    return 0


async def _serve(parts: Parts) -> None:
    config, committer, engine = parts.config, parts.committer, parts.engine
    publication = committer.publication
    with ExitStack() as stack:
        slots = max(1, (os.cpu_count() or 1) - 1)
        threads = ThreadPoolExecutor(slots + SPARE_THREADS, QUERY_THREAD)
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        queries = QueryThreads(threads, slots=slots, timeout_s=config.statement_timeout_s)
        slow = stack.enter_context(ThreadPoolExecutor(SLOW_THREADS, "upwell-slow"))
        devices = stack.enter_context(ThreadPoolExecutor(DEVICE_THREADS, "upwell-device"))
        jobs = stack.enter_context(ThreadPoolExecutor(config.jobs_max, "upwell-job"))
        looks = stack.enter_context(ThreadPoolExecutor(1, "upwell-schedule"))
        loop = asyncio.get_running_loop()
        growth = Growth(publication, loop)
        registry = Registry(committer, engine.clock)
        stack.callback(registry.close)
        feed = LiveFeed(committer.changelog, growth, engine.query, threads, lag_s_max=config.ws_lag_s_max)
        preparer = Preparer(shapes=config.shape_cache)
        limits = RowLimits(config.query_limit_default, config.query_limit_max)
        sessions = Sessions(
            engine, growth, preparer, parts.authenticator, queries, slow, registry, feed, limits
        )
        sql = SqlEndpoint(
            sessions,
            parts.authenticator,
            publication,
            threads,
            body_bytes_max=config.request_body_bytes_max,
            sql_bytes_max=config.sql_bytes_max,
            rate=RateLimit(config.queries_per_s_max, loop.time),
            error_details=config.error_details,
        )
        streams = LogStreams(
            growth, committer.changelog, parts.authenticator, streams_max=config.watch_streams_max
        )
        device_routes = _device_routes(parts, streams, registry, devices)
        lookouts = Lookouts(feed, growth, engine.defaults.next_id)
        live = LiveSocket(
            feed, growth, parts.authenticator, sessions.context, lookouts, sessions.look, config
        )
        doorkeeper = Doorkeeper(
            engine.schema, parts.authenticator, engine.sign_ins, engine.audit, publication, engine.clock
        )
        traffic = Traffic([SQL_PATH, *DEVICE_PATHS, *PATHS])
        metrics = Metrics(traffic, gauges(committer, feed, live), counters(committer), config)
        accounts = Accounts(
            doorkeeper, parts.authenticator, publication, slow, config, loop.time, [metrics.route()]
        ).application()
        runner, schedule = _job_loops(parts, registry, jobs, looks)
        gate = Gate(
            {("POST", SQL_PATH): sql},
            device_routes,
            live,
            accounts,
            traffic,
            slow_request_s=config.slow_request_s,
            cors=Cors(config.cors_origins),
        )
        # If one of these fails unexpectedly, the group ends the server rather than go on without it.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(runner.run(), name="jobs"),
                group.create_task(schedule.run(), name="schedule"),
                group.create_task(feed.run(), name="live feed"),
                group.create_task(live.run(), name="live sockets"),
                group.create_task(streams.run(), name="watch streams"),
                group.create_task(
                    registry.run(slow, interval_s=config.device_records_interval_s), name="devices"
                ),
            ]
            await _listen(config, gate, live, streams)
            for task in tasks:
                task.cancel()
        await feed.close()


def _device_routes(
    parts: Parts, streams: LogStreams, registry: Registry, threads: Executor
) -> dict[str, Handler]:
    """Return what serves the paths of the device sync, by path."""
    config, committer, engine = parts.config, parts.committer, parts.engine
    limits = UploadLimits(config.upload_changes_max, config.upload_payload_bytes_max)
    uploads = Uploads(committer, engine.rows, engine.query, engine.defaults, limits)
    endpoints = DeviceEndpoints(
        uploads,
        StockDownloads(committer, engine.rows, Downloads(committer, stream_id=parts.stream_id)),
        Hydrations(committer, engine.rows, stream_id=parts.stream_id),
        Failures(committer.publication, uploads),
        streams,
        registry,
        parts.authenticator,
        committer.publication,
        threads,
        limits=BodyLimits(config.upload_batch_bytes_max, config.upload_body_bytes_max),
        schema_version=config.schema_version,
    )
    routes: dict[str, Handler] = dict.fromkeys(DEVICE_PATHS, endpoints)
    if config.dev:
        routes[SIGNIN_PATH] = DummySignin(parts.authenticator, committer.publication, engine.defaults.next_id)
    return routes


def _flush_pace(config: Config) -> FlushPace:
    try:
        default = parse_policy(config.flush_policy)
    except ValueError as error:
        raise StartRefused(f"flush_policy can't be {config.flush_policy!r}: {error}") from error
    return FlushPace(
        default, config.flush_small_rows, config.flush_small_age_s, config.flush_small_partitions
    )


def _job_loops(
    parts: Parts, registry: Registry, threads: Executor, looks: Executor
) -> tuple[JobRunner, Schedule]:
    """Return what runs the jobs in `threads`, and what submits those that nobody asks for."""
    config, committer, engine = parts.config, parts.committer, parts.engine
    queue, clock = engine.jobs, engine.clock
    limits = LogLimits(config.log_retention_s, config.log_bytes_max)
    trim = LogTrim(committer, clock, limits, registry.slowest_cursor, parts.points)
    cleanup = Cleanup(committer, parts.storages, parts.cold, points=parts.points)
    expiry = Expiry(committer, clock, config.stream_grace_s)
    retention = JobRetention(queue, clock, config.job_retention_s, config.job_records_max)
    compact = Compact(committer, parts.partitions, points=parts.points)
    open_store = partial(RocksStore, clock=clock)
    backup = Backup(committer, parts.partitions, parts.storages, open_store, clock, parts.points)
    kinds = Kinds(
        committer,
        engine.flush,
        compact,
        cleanup,
        trim,
        retention,
        expiry,
        backup,
        Restore(config.data_dir, open_store, parts.points),
        queue,
        clock,
        parts.points,
    )
    watches = [
        watch_flush(queue, committer, clock, config.flush_check_interval_s),
        watch_log(queue, trim, committer, config.log_trim_interval_s),
        watch_log_size(queue, trim, committer),
        watch_jobs(queue, retention, JOBS_INTERVAL_S),
        watch_dropped(queue, committer, DROPPED_INTERVAL_S),
        watch_rows(expiry, config.stream_expiry_interval_s),
        watch_expired(queue, expiry, config.stream_eviction_interval_s),
        watch_replaced(parts.partitions),
    ]
    return JobRunner(queue, kinds.run, threads, jobs_max=config.jobs_max), Schedule(watches, looks)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process with the signal."""

    def __init__(self, config: uvicorn.Config, live: LiveSocket, streams: LogStreams) -> None:
        super().__init__(config)
        self._live = live
        self._streams = streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.close()
        await self._live.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        log.info("Stopping: finishing what is under way")
        self.should_exit = True


async def _listen(config: Config, gate: Gate, live: LiveSocket, streams: LogStreams) -> None:
    server = _Server(
        uvicorn.Config(
            gate,
            host=config.host,
            port=config.port,
            http=OnePacket,
            ws=RawWS,
            ws_per_message_deflate=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(config.drain_s)),
        ),
        live,
        streams,
    )
    # Fewer long pauses: what exists now stays, and a thread that computes hands over soon.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log.info("Upwell starts", extra=fields(host=config.host, port=config.port, data_dir=str(config.data_dir)))
    try:
        await server.serve()
    except SystemExit as error:  # uvicorn's way to say that it can't listen
        raise StartRefused(f"can't listen on {config.host}:{config.port}; is the port taken?") from error
    log.info("Upwell stopped")


def _new_loop() -> asyncio.AbstractEventLoop:
    return uvloop.new_event_loop()


def _ensure_root(engine: Engine, authenticator: Authenticator, password: str) -> None:
    """Make the account `root`; a configured password that differs from the stored one replaces it."""
    committer, now = engine.committer, engine.clock.now_us()
    root = committer.newest_catalog.users.get("root")
    if root is None:
        root = User("root", Role.SYSTEM, None, "root@localhost", "internal", now, now)
        committer.publication.wait(engine.schema.create_user(root))
    if password and not authenticator.is_password(root, password):
        root = replace(root, password_hash=authenticator.hash_password(password), updated_at_us=now)
        committer.publication.wait(engine.schema.put_user(root))
    if root.password_hash is None:
        log.warning("root has no password and can't log in; set UPWELL_ROOT_PASSWORD")
