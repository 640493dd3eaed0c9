"""Metrics: what `/metrics` tells Prometheus (text exposition format 0.0.4).

Law: counting a request costs two additions; what is only looked up (sockets, jobs, memory) is looked up when
somebody asks. No label has a user, a table's name or a text: their number is bounded.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from upwell import __version__
from upwell.config import Config
from upwell.edge.peer import is_local
from upwell.edge.ws import LiveSocket
from upwell.engine.commit import Committer
from upwell.feeds.live import LiveFeed

METRICS_PATH = "/metrics"
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OTHER = "other"

Gauges = Mapping[str, tuple[str, Callable[[], float]]]
"""By name: what it is, and what tells it now."""


def gauges(committer: Committer, feed: LiveFeed, live: LiveSocket) -> Gauges:
    """Return what the server has at the moment, for its metrics."""
    view = committer.publication
    return {
        "upwell_read_only": ("Whether a failed sync ended all writing.", lambda: view.failure is not None),
        "upwell_live_sockets": ("Open sockets of live queries.", lambda: live.count),
        "upwell_live_queries": ("Live queries that run.", lambda: feed.total),
        "upwell_namespaces": ("Namespaces.", lambda: len(view.view.catalog.namespaces)),
        "upwell_tables": ("Tables.", lambda: len(view.view.catalog.tables)),
        "upwell_users": ("Accounts.", lambda: len(view.view.catalog.users)),
    }


def counters(committer: Committer) -> Gauges:
    """Return what the server has done since its start, for its metrics."""
    return {
        "upwell_commits": ("Commits since the start.", lambda: committer.commits),
        "upwell_changes": ("Changed rows since the start.", lambda: committer.changes),
        "upwell_log_syncs": ("Syncs of the log that made commits durable.", lambda: committer.syncs),
    }


class Traffic:
    """Requests by route and status, and their seconds by route. Used from the event loop only."""

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = frozenset(routes)
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[int]] = {}
        self.seconds_sum: dict[str, float] = {}

    def note(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        route = path if path in self._routes else OTHER
        self.requests[route, status] += 1
        buckets = self.seconds.get(route)
        if buckets is None:
            buckets = self.seconds[route] = [0] * (len(BOUNDS_S) + 1)
        buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds_sum[route] = self.seconds_sum.get(route, 0.0) + seconds


class _Server(Collector):
    """Collects what the server counts and what it is at the moment."""

    def __init__(self, traffic: Traffic, gauges: Gauges, counters: Gauges) -> None:
        self._traffic = traffic
        self._gauges = gauges
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("upwell_info", "The server's version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        requests = CounterMetricFamily(
            "upwell_http_requests", "Requests that were answered.", labels=["route", "status"]
        )
        for (route, status), count in sorted(self._traffic.requests.items()):
            requests.add_metric([route, str(status)], count)
        yield requests
        yield self._seconds()
        for name, (help_text, value) in self._gauges.items():
            yield GaugeMetricFamily(name, help_text, value())
        for name, (help_text, value) in self._counters.items():
            yield CounterMetricFamily(name, help_text, value())

    def _seconds(self) -> Metric:
        family = HistogramMetricFamily(
            "upwell_http_request_seconds",
            "Seconds from a request to the end of its answer.",
            labels=["route"],
        )
        for route, counts in sorted(self._traffic.seconds.items()):
            total, buckets = 0, []
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric([route], buckets, self._traffic.seconds_sum[route])
        return family


class Metrics:
    """Serves `/metrics` to programs on this machine, and to others if they may ask for its health."""

    def __init__(self, traffic: Traffic, gauges: Gauges, counters: Gauges, config: Config) -> None:
        self._config = config
        self._registry = CollectorRegistry()
        self._registry.register(_Server(traffic, gauges, counters))
        ProcessCollector(registry=self._registry)

    def route(self) -> Route:
        return Route(METRICS_PATH, self.metrics, methods=["GET"])

    async def metrics(self, request: Request) -> Response:
        if not is_local(request.scope) and not self._config.allow_remote_health:
            body = b'{"error":"Access denied. Metrics are localhost-only."}'
            return Response(body, 403, media_type="application/json")
        return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
