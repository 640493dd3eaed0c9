"""Health: whether the server lives, can write, and what a cluster of one looks like (contract, 1.1 and 1.7).

Law: what tells of the machine is for programs on it; `/livez` and `/readyz` say yes or no to everybody.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from upwell import __version__, process
from upwell.config import Config
from upwell.edge.json import answer
from upwell.edge.peer import is_local
from upwell.engine.view import Publication
from upwell.protocol.messages import AuthFault, ClusterHealth, ClusterNode, HealthResponse

HEALTH_PATHS = ("/health", "/v1/api/healthcheck", "/v1/api/cluster/health", "/livez", "/readyz")
CLUSTER_ID = "upwell"
NODE_ID = 1


class Health:
    """Handlers of the health routes."""

    def __init__(self, publication: Publication, config: Config) -> None:
        self._publication = publication
        self._config = config

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/api/healthcheck", self.health, methods=["GET"]),
            Route("/v1/api/cluster/health", self.cluster, methods=["GET"]),
            Route("/livez", self.live, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        return self._refusal(request, "Health endpoint") or self._health()

    async def live(self, request: Request) -> Response:
        return self._health()

    async def ready(self, request: Request) -> Response:
        """Ready is who can write."""
        failure = self._publication.failure
        return self._health() if failure is None else answer(AuthFault("read_only", str(failure)), 503)

    async def cluster(self, request: Request) -> Response:
        return self._refusal(request, "Cluster health") or answer(self._cluster())

    def _refusal(self, request: Request, what: str) -> Response | None:
        if is_local(request.scope) or self._config.allow_remote_health:
            return None
        body = b'{"error":"Access denied. %s is localhost-only."}' % what.encode()
        return Response(body, 403, media_type="application/json")

    def _health(self) -> Response:
        status = "healthy" if self._publication.failure is None else "read_only"
        return answer(HealthResponse(status, __version__, "v1", __version__))

    def _cluster(self) -> ClusterHealth:
        used, seq = process.usage(), self._publication.view.seq
        node = ClusterNode(
            node_id=NODE_ID,
            role="leader",
            status="active",
            api_addr=self._config.origin,
            is_self=True,
            is_leader=True,
            replication_lag=0,
            catchup_progress_pct=None,
            hostname=process.hostname(),
            memory_usage_mb=used.memory_mb,
            cpu_usage_percent=used.cpu_percent,
            uptime_seconds=used.uptime_s,
            uptime_human=used.uptime_human,
        )
        return ClusterHealth(
            status="healthy" if self._publication.failure is None else "degraded",
            version=__version__,
            build_date=__version__,
            is_cluster_mode=False,
            cluster_id=CLUSTER_ID,
            node_id=NODE_ID,
            is_leader=True,
            total_groups=1,
            groups_leading=1,
            current_term=1,
            last_applied=seq,
            millis_since_quorum_ack=0,
            nodes=[node],
        )
