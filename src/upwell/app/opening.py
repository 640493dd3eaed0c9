"""Opens everything that lives in a data directory, before any event loop or socket.

Law: what is opened first is closed last.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from upwell.clock import Clock
from upwell.config import Config, descriptions, shown
from upwell.effects import Files, Points
from upwell.engine.catalog import Catalog, Role, User
from upwell.engine.commit import Committer, Durability
from upwell.engine.defaults import Defaults
from upwell.engine.flush import Flush
from upwell.engine.flush_policy import FlushPace, parse_policy
from upwell.engine.history import running, server_id, stream_id
from upwell.engine.in_force import find_spare
from upwell.engine.overlay import Overlay
from upwell.engine.partition import PartitionWriter
from upwell.engine.query import QueryEngine
from upwell.engine.restore import RESTORED, adopt_restored, return_elsewhere
from upwell.engine.rows import Rows
from upwell.engine.schema import Schema
from upwell.engine.storages import StorageSchema
from upwell.errors import StartRefused, UpwellError
from upwell.ids import Snowflakes
from upwell.jobs.queue import JobQueue
from upwell.session.accounts import provisioned
from upwell.session.audit import AuditLog
from upwell.session.auth import Authenticator
from upwell.session.engine import Engine
from upwell.session.server import ServerFacts, Setting
from upwell.session.signin import SignIns
from upwell.session.trust import Trust
from upwell.storage.cache import KEEP_S, FileCache
from upwell.storage.cold import ColdCache
from upwell.storage.hot import Kind
from upwell.storage.rocks import RocksStore
from upwell.storage.storages import Storages
from upwell.storage.volume import Secrets

log = logging.getLogger("upwell.app")

COLD_PARTITIONS_MAX = 10_000
COLD_GROUP_BYTES_MAX = 256 * 1024 * 1024
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
    files: Files


@contextmanager
def opened(config: Config, *, clock: Clock, files: Files, points: Points) -> Iterator[Parts]:
    """Open everything that lives in the data directory; close it in reverse order."""
    adopt_restored(config.data_dir, partial(RocksStore, clock=clock), points, files)
    durability, pace = Durability(config.durability), _flush_pace(config)
    with ExitStack() as stack:
        store = stack.enter_context(closing(RocksStore(config.data_dir / "hot", clock=clock, files=files)))
        stack.enter_context(running(store, durability))
        # The store's name is made before the committer, which is then the only one that writes.
        history = stream_id(store)
        committer = stack.enter_context(
            closing(Committer(store, points=points, durability=durability, pace=pace))
        )
        storages = _storages(config, store, clock, files)
        cold = ColdCache(storages, partitions_max=COLD_PARTITIONS_MAX, group_bytes_max=COLD_GROUP_BYTES_MAX)
        partitions = PartitionWriter(
            committer, storages, clock=clock, points=points, grace_s=config.cold_grace_s
        )
        facts = ServerFacts(server_id(store), config.origin, clock.now_us(), _settings(config))
        engine = _engine(config, facts, committer, storages, Rows(cold), partitions, clock, points)
        authenticator = _authenticator(config, engine, clock)
        engine.schema.ensure_default_namespace()
        StorageSchema(committer, clock).ensure_local(str(storages.root.absolute()))
        _return_elsewhere(config.data_dir, storages, committer.newest_catalog)
        _ensure_root(engine, authenticator, config.root_password)
        yield Parts(
            config, history, committer, engine, cold, storages, partitions, authenticator, points, files
        )


def _storages(config: Config, store: RocksStore, clock: Clock, files: Files) -> Storages:
    cache = FileCache(
        config.data_dir / "cache",
        bytes_max=config.cold_cache_bytes_max,
        keep_s=max(KEEP_S, 2 * config.statement_timeout_s),
        clock=clock,
    )
    return Storages(
        config.data_dir / "storage",
        files,
        find=partial(store.find_record, Kind.STORAGE),
        find_spare=partial(find_spare, store),
        cache=cache,
        secrets=Secrets(os.environ, config.secrets_dir),
        server=server_id(store),
    )


def _engine(
    config: Config,
    facts: ServerFacts,
    committer: Committer,
    storages: Storages,
    rows: Rows,
    partitions: PartitionWriter,
    clock: Clock,
    points: Points,
) -> Engine:
    defaults = Defaults(clock, Snowflakes(clock, worker=_DEFAULT_IDS_WORKER))
    return Engine(
        facts=facts,
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


def _authenticator(config: Config, engine: Engine, clock: Clock) -> Authenticator:
    return Authenticator(
        secret=config.jwt_secret,
        clock=clock,
        expiry_hours=config.jwt_expiry_hours,
        device_expiry_hours=config.device_token_expiry_hours,
        bcrypt_cost=config.bcrypt_cost,
        is_strict=config.enforce_password_complexity,
        trust=Trust(config.issuers, partial(provisioned, engine), clock),
    )


def _settings(config: Config) -> tuple[Setting, ...]:
    """Return the settings as `system.settings` shows them."""
    texts = descriptions()
    return tuple(
        Setting(name, value, texts.get(name, ""), name.split("_")[0]) for name, value in shown(config).items()
    )


def _return_elsewhere(data_dir: Path, storages: Storages, catalog: Catalog) -> None:
    try:
        return_elsewhere(data_dir, storages, catalog)
    except (OSError, UpwellError) as error:
        raise StartRefused(
            f"a backup was restored, and files of it can't be brought back: {error}. Start again when that "
            f"is repaired; what is left to bring is in {data_dir / RESTORED}"
        ) from error


def _flush_pace(config: Config) -> FlushPace:
    try:
        default = parse_policy(config.flush_policy)
    except ValueError as error:
        raise StartRefused(f"flush_policy can't be {config.flush_policy!r}: {error}") from error
    return FlushPace(
        default, config.flush_small_rows, config.flush_small_age_s, config.flush_small_partitions
    )


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
        log.warning(
            "root has no password and can't log in; set UPWELL_ROOT_PASSWORD, or POST /v1/api/auth/setup"
        )
