"""What the server is, as rows: stats, settings, its log, its types, the cluster of one node (contract, 4).

Law: a number is measured when it is asked for; what isn't known is left out or NULL, never made up.
"""

import os
import platform
import socket
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from upwell import __version__
from upwell.clock import Clock
from upwell.engine.refusal import QUERY_BYTES_MAX
from upwell.engine.rows import Rows as TierRows
from upwell.engine.view import View
from upwell.feeds.live import LiveFeed
from upwell.feeds.registry import Registry
from upwell.jobs.queue import load_jobs
from upwell.logs import recent_lines
from upwell.process import physical_cores
from upwell.session.fleet import Layout, Rows
from upwell.session.manifest import MANIFEST, manifests
from upwell.session.policy import Principal
from upwell.storage.arrow import arrow_type
from upwell.types import SqlType

NODE_ID = 1
GROUP_ID = 1
_TEXT, _BIG, _INT, _SMALL, _BOOL, _FLOAT, _JSON = (
    SqlType.TEXT, SqlType.BIGINT, SqlType.INT, SqlType.SMALLINT, SqlType.BOOLEAN, SqlType.FLOAT, SqlType.JSON,
)  # fmt: skip
_STATS: Layout = [("metric_name", _TEXT), ("metric_value", _TEXT)]
_SETTINGS: Layout = [("name", _TEXT), ("value", _TEXT), ("description", _TEXT), ("category", _TEXT)]
ENGINE_SETTINGS: Layout = [("name", _TEXT), ("value", _TEXT), ("description", _TEXT)]
_SERVER_LOGS: Layout = [
    ("timestamp", _TEXT), ("level", _TEXT), ("thread", _TEXT), ("target", _TEXT), ("line", _BIG),
    ("message", _TEXT),
]  # fmt: skip
_DATATYPES: Layout = [
    ("arrow_type", _TEXT), ("kalam_type", _TEXT), ("sql_name", _TEXT), ("description", _TEXT),
]  # fmt: skip
_CLUSTER: Layout = [
    ("cluster_id", _TEXT), ("node_id", _BIG), ("role", _TEXT), ("status", _TEXT), ("rpc_addr", _TEXT),
    ("api_addr", _TEXT), ("is_self", _BOOL), ("is_leader", _BOOL), ("groups_leading", _INT),
    ("total_groups", _INT), ("current_term", _BIG), ("last_applied_log", _BIG),
    ("leader_last_log_index", _BIG), ("snapshot_index", _BIG), ("catchup_progress_pct", _SMALL),
    ("replication_lag", _BIG), ("hostname", _TEXT), ("version", _TEXT), ("memory_mb", _BIG),
    ("memory_usage_mb", _BIG), ("cpu_usage_percent", _FLOAT), ("uptime_seconds", _BIG),
    ("uptime_human", _TEXT), ("os", _TEXT), ("arch", _TEXT),
]  # fmt: skip
_CLUSTER_GROUPS: Layout = [
    ("cluster_id", _TEXT), ("node_id", _BIG), ("group_id", _BIG), ("group_type", _TEXT),
    ("current_term", _BIG), ("vote", _JSON), ("last_log_index", _BIG), ("last_applied", _BIG),
    ("snapshot", _BIG), ("purged", _BIG), ("committed", _BIG), ("state", _TEXT), ("current_leader", _BIG),
    ("millis_since_quorum_ack", _BIG),
]  # fmt: skip
_SESSIONS: Layout = [
    ("session_id", _TEXT), ("backend_pid", _BIG), ("current_schema", _TEXT), ("state", _TEXT),
    ("transaction_id", _TEXT), ("transaction_state", _TEXT), ("transaction_has_writes", _BOOL),
    ("client_addr", _TEXT), ("transport", _TEXT), ("opened_at", SqlType.TIMESTAMP),
    ("last_seen_at", SqlType.TIMESTAMP), ("last_method", _TEXT),
]  # fmt: skip
_TOPICS: Layout = [
    ("topic_id", _TEXT), ("name", _TEXT), ("alias", _TEXT), ("partitions", _INT),
    ("retention_seconds", _BIG), ("retention_max_bytes", _BIG), ("routes", _JSON),
    ("created_at", SqlType.TIMESTAMP), ("updated_at", SqlType.TIMESTAMP),
]  # fmt: skip
_TOPIC_OFFSETS: Layout = [
    ("topic_id", _TEXT), ("group_id", _TEXT), ("partition_id", _INT), ("last_acked_offset", _BIG),
    ("updated_at", SqlType.TIMESTAMP),
]  # fmt: skip
_DONE: Layout = [
    ("action", _TEXT), ("group_id", _BIG), ("success", _BOOL), ("error", _TEXT), ("snapshot_index", _BIG),
    ("target_node_id", _BIG), ("upto", _BIG),
]  # fmt: skip
_MIB = 1 << 20
_DESCRIPTIONS = {
    SqlType.BOOLEAN: "true or false; also BOOL",
    SqlType.SMALLINT: "integer of 16 bits; also INT2",
    SqlType.INT: "integer of 32 bits; also INTEGER, INT4",
    SqlType.BIGINT: "integer of 64 bits, a string in JSON; also INT8, SERIAL, BIGSERIAL, SIGNED, UNSIGNED",
    SqlType.FLOAT: "number of 32 bits; also REAL, FLOAT4",
    SqlType.DOUBLE: "number of 64 bits; also DOUBLE PRECISION, FLOAT8",
    SqlType.DECIMAL: "exact number DECIMAL(p, s) of up to 38 digits, a string in JSON; also NUMERIC",
    SqlType.TEXT: "text in UTF-8; also VARCHAR(n), CHAR, STRING (lengths aren't kept)",
    SqlType.TIMESTAMP: "moment in UTC, microseconds since 1970 in JSON",
    SqlType.DATETIME: "moment with a zone, kept in UTC; also TIMESTAMPTZ, TIMESTAMP WITH TIME ZONE",
    SqlType.DATE: "day, in JSON days since 1970-01-01",
    SqlType.TIME: "time of day, in JSON microseconds since midnight",
    SqlType.UUID: "UUID, in JSON dashed and lower case",
    SqlType.JSON: "JSON document, in JSON a string with its text; also JSONB",
    SqlType.BYTES: "bytes, an array of numbers in JSON; also BYTEA, BLOB, BINARY, VARBINARY",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is shown: secrets are masked."""

    name: str
    value: str
    description: str
    category: str


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What doesn't change while the server runs."""

    cluster_id: str
    api_address: str
    started_us: int
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Server:
    """Computes the rows; any thread may ask."""

    facts: ServerFacts
    clock: Clock
    feed: LiveFeed
    registry: Registry
    rows: TierRows

    def find(self, name: str, view: View, principal: Principal) -> tuple[Layout, Rows] | None:
        """Return a table of `SERVER_LAYOUTS` as the principal sees it, None if there is none of that name."""
        if name == "manifest":
            return MANIFEST, manifests(view, self.rows, principal)
        build = _TABLES.get(name)
        return None if build is None else (SERVER_LAYOUTS[name], build(self, view))

    def cluster_done(self, view: View, action: str, target: int | None) -> tuple[Layout, Rows]:
        """Answer a CLUSTER statement: the state at a seq is always on disk, and there is nobody to lead."""
        is_snapshot = action == "snapshot"
        error = None if is_snapshot else f"this server is one node: there is nothing to {action}"
        upto = target if action == "purge" else None
        node = target if action == "transfer-leader" else None
        row = (action, GROUP_ID, is_snapshot, error, view.seq if is_snapshot else None, node, upto)
        return _DONE, [row]

    def _uptime_s(self) -> int:
        return max(0, (self.clock.now_us() - self.facts.started_us) // 1_000_000)

    def _stats(self, view: View) -> Rows:
        jobs = [job.status.value for job in load_jobs(view.hot)]
        resident, virtual = _memory_bytes()
        files = _open_files()
        cores = physical_cores()
        found: dict[str, object] = {
            "server_uptime_seconds": self._uptime_s(),
            "server_version": __version__,
            "node_id": NODE_ID,
            "cluster_mode": "false",
            "cpu_logical_cores": os.cpu_count() or 1,
            "cpu_usage_percent": round(100 * time.process_time() / max(1, self._uptime_s()), 1),
            "server_workers_configured": 1,
            "server_workers_effective": 1,
            "datafusion_query_parallelism": 1,
            "datafusion_max_partitions": 1,
            "datafusion_memory_limit_mb": QUERY_BYTES_MAX // _MIB,
            "schema_registry_size": len(view.catalog.tables) + len(view.catalog.queries),
            "threads_total": threading.active_count(),
            "memory_usage_mb": resident // _MIB,
            "memory_rss_mb": resident // _MIB,
            "memory_virtual_mb": virtual // _MIB,
            "allocator_name": platform.libc_ver()[0] or "system",
            "open_files_total": files.total(),
            "open_files_regular": files[stat.S_IFREG],
            "open_files_directories": files[stat.S_IFDIR],
            "total_users": len(view.catalog.users),
            "total_namespaces": len(view.catalog.namespaces),
            "total_tables": len(view.catalog.tables),
            "total_storages": len(view.catalog.storages) or 1,
            "total_jobs": len(jobs),
            "jobs_running": jobs.count("running"),
            "jobs_queued": jobs.count("queued") + jobs.count("new"),
            "jobs_failed": jobs.count("failed"),
            "total_live_queries": self.feed.total,
            "active_subscriptions": self.feed.total,
            "active_subscriptions_peak": self.feed.running.peak,
            "active_connections": self.feed.sockets.count,
            "active_connections_peak": self.feed.sockets.peak,
            "websocket_sessions": self.feed.sockets.count,
            "websocket_sessions_peak": self.feed.sockets.peak,
            "sync_devices": len(self.registry.devices(None)),
            "last_seq": view.seq,
        }
        if cores is not None:
            found["cpu_physical_cores"] = cores
        return [(name, str(value)) for name, value in found.items()]

    def _settings(self, view: View) -> Rows:
        return [(each.name, each.value, each.description, each.category) for each in self.facts.settings]

    def engine_settings(self) -> Rows:
        """Return the rows of `information_schema.df_settings`: they are set for all of the server."""
        return [(each.name, each.value, each.description) for each in self.facts.settings]

    def _server_logs(self, view: View) -> Rows:
        return [
            (line.timestamp, line.level, line.thread, line.target, line.line, line.message)
            for line in recent_lines()
        ]

    def _cluster(self, view: View) -> Rows:
        uptime_s, seq = self._uptime_s(), view.seq
        return [
            (
                self.facts.cluster_id, NODE_ID, "leader", "active", "", self.facts.api_address, True, True,
                1, 1, 1, seq, seq, seq, 100, 0, socket.gethostname(), __version__, _machine_bytes() // _MIB,
                _memory_bytes()[0] // _MIB, None, uptime_s, str(timedelta(seconds=uptime_s)), sys.platform,
                platform.machine(),
            )
        ]  # fmt: skip

    def _cluster_groups(self, view: View) -> Rows:
        seq = view.seq
        return [
            (
                self.facts.cluster_id, NODE_ID, GROUP_ID, "meta", 1, None, seq, seq, seq, None, seq, "leader",
                NODE_ID, 0,
            )
        ]  # fmt: skip

    def _datatypes(self, view: View) -> Rows:
        return [(_arrow_name(kind), kind.value, kind.name, text) for kind, text in _DESCRIPTIONS.items()]

    def _nothing(self, view: View) -> Rows:
        # Sessions are those of the PostgreSQL protocol, which this server doesn't speak; it has no topics.
        return []


SERVER_LAYOUTS: dict[str, Layout] = {
    "manifest": MANIFEST,
    "stats": _STATS,
    "settings": _SETTINGS,
    "server_logs": _SERVER_LOGS,
    "cluster": _CLUSTER,
    "cluster_groups": _CLUSTER_GROUPS,
    "datatypes": _DATATYPES,
    "sessions": _SESSIONS,
    "topics": _TOPICS,
    "topic_offsets": _TOPIC_OFFSETS,
}
_TABLES: dict[str, Callable[[Server, View], Rows]] = {
    "stats": Server._stats,
    "settings": Server._settings,
    "server_logs": Server._server_logs,
    "cluster": Server._cluster,
    "cluster_groups": Server._cluster_groups,
    "datatypes": Server._datatypes,
    "sessions": Server._nothing,
    "topics": Server._nothing,
    "topic_offsets": Server._nothing,
}


def _arrow_name(kind: SqlType) -> str:
    return "decimal128(p, s)" if kind is SqlType.DECIMAL else str(arrow_type(kind))


def _memory_bytes() -> tuple[int, int]:
    """Return the resident and the virtual size of this process, 0 where the system doesn't tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            virtual, resident, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, virtual * page


def _machine_bytes() -> int:
    names: Sequence[str] = tuple(os.sysconf_names)
    if "SC_PHYS_PAGES" not in names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _open_files() -> Counter[int]:
    """Return how many files of which kind (`stat.S_IF…`) are open; none where the system doesn't tell."""
    found: Counter[int] = Counter()
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found[stat.S_IFMT(os.fstat(int(name)).st_mode)] += 1
    return found
