"""What answers requests: the SQL endpoint, the live sockets, the device sync, accounts, behind one gate."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from starlette.applications import Starlette

from upwell.app.opening import Parts
from upwell.app.pools import Pools
from upwell.edge.accounts import PATHS, Accounts
from upwell.edge.allowance import RateLimit
from upwell.edge.cors import Cors
from upwell.edge.devices import DEVICE_PATHS, BodyLimits, DeviceEndpoints
from upwell.edge.gate import Gate, Handler
from upwell.edge.http import SQL_PATH, SqlEndpoint
from upwell.edge.metrics import Metrics, Traffic, counters, gauges
from upwell.edge.signin import DummySignin
from upwell.edge.stream import LogStreams
from upwell.edge.ws import LiveSocket
from upwell.feeds.cursor import Growth
from upwell.feeds.download import Downloads
from upwell.feeds.failures import Failures
from upwell.feeds.hydrate import Hydrations
from upwell.feeds.live import LiveFeed
from upwell.feeds.lookout import Lookouts
from upwell.feeds.registry import Registry
from upwell.feeds.stock import StockDownloads
from upwell.feeds.upload import UploadLimits, Uploads
from upwell.protocol.sync import SIGNIN_PATH
from upwell.session.accounts import Doorkeeper
from upwell.session.limit import RowLimits
from upwell.session.session import Sessions
from upwell.sql.prepare import Preparer


@dataclass(frozen=True, slots=True)
class Doors:
    """The gate, and those behind it that have tasks or connections of their own to end."""

    sessions: Sessions
    gate: Gate
    live: LiveSocket
    streams: LogStreams


def build_doors(
    parts: Parts, pools: Pools, growth: Growth, feed: LiveFeed, registry: Registry, now: Callable[[], float]
) -> Doors:
    """Return the doors over what is opened; `now` is the event loop's time in seconds."""
    config, engine, authenticator = parts.config, parts.engine, parts.authenticator
    sessions = Sessions(
        engine,
        growth,
        Preparer(shapes=config.shape_cache),
        authenticator,
        pools.queries,
        pools.slow,
        registry,
        feed,
        RowLimits(config.query_limit_default, config.query_limit_max),
    )
    streams = LogStreams(
        growth, parts.committer.changelog, authenticator, streams_max=config.watch_streams_max
    )
    lookouts = Lookouts(feed, growth, engine.defaults.next_id)
    live = LiveSocket(
        feed, growth, authenticator, sessions.context, lookouts, sessions.look, sessions.threads, config
    )
    traffic = Traffic([SQL_PATH, *DEVICE_PATHS, *PATHS])
    metrics = Metrics(traffic, gauges(parts.committer, feed, live), counters(parts.committer), config)
    gate = Gate(
        {("POST", SQL_PATH): _sql_endpoint(parts, sessions, pools, now)},
        _device_routes(parts, streams, registry, pools.devices),
        live,
        _accounts(parts, pools, metrics, now),
        traffic,
        slow_request_s=config.slow_request_s,
        cors=Cors(config.cors_origins),
    )
    return Doors(sessions, gate, live, streams)


def _sql_endpoint(parts: Parts, sessions: Sessions, pools: Pools, now: Callable[[], float]) -> SqlEndpoint:
    config = parts.config
    return SqlEndpoint(
        sessions,
        parts.authenticator,
        parts.committer.publication,
        pools.query,
        body_bytes_max=config.request_body_bytes_max,
        sql_bytes_max=config.sql_bytes_max,
        rate=RateLimit(config.queries_per_s_max, now),
        error_details=config.error_details,
    )


def _accounts(parts: Parts, pools: Pools, metrics: Metrics, now: Callable[[], float]) -> Starlette:
    """Return what serves everything else: accounts, health, metrics, papers."""
    config, engine, publication = parts.config, parts.engine, parts.committer.publication
    doorkeeper = Doorkeeper(
        engine.schema, parts.authenticator, engine.sign_ins, engine.audit, publication, engine.clock
    )
    return Accounts(
        doorkeeper, parts.authenticator, publication, pools.slow, config, now, [metrics.route()]
    ).application()


def _device_routes(
    parts: Parts, streams: LogStreams, registry: Registry, threads: Executor
) -> dict[str, Handler]:
    """Return what serves the paths of the device sync, by path."""
    config, committer, engine = parts.config, parts.committer, parts.engine
    limits = UploadLimits(config.upload_changes_max, config.upload_payload_bytes_max)
    uploads = Uploads(committer, engine.rows, engine.query, engine.defaults, limits)
    endpoints = DeviceEndpoints(
        uploads,
        StockDownloads(committer, engine.rows, Downloads(committer, stream_id=parts.stream_id), registry),
        Hydrations(committer, engine.rows, registry, stream_id=parts.stream_id),
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
