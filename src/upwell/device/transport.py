"""How a request reaches the server: one call that takes a request and returns the answer.

Law: a transport either returns a complete answer or raises `Unreachable`.
"""

from dataclasses import dataclass
from typing import Protocol

import httpx
import msgspec

from upwell.device.failures import RequestRefused, Unreachable
from upwell.protocol.sync import SyncError

ANSWER_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; `body` is JSON."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer."""

    status: int
    body: bytes


class Transport(Protocol):
    """Sends one request at a time."""

    def send(self, request: Request) -> Response: ...

    def close(self) -> None: ...


class HttpTransport:
    """Real HTTP through httpx; closes only a client that it made itself."""

    def __init__(self, url: str, client: httpx.Client | None = None) -> None:
        self._url = url.rstrip("/")
        self._is_own = client is None
        self._client = client or httpx.Client(timeout=ANSWER_S_MAX)

    def send(self, request: Request) -> Response:
        """Send and wait for the whole body."""
        headers = {"content-type": "application/json"} if request.body is not None else {}
        if request.token is not None:
            headers["authorization"] = f"Bearer {request.token}"
        try:
            answer = self._client.request(
                request.method,
                self._url + request.path,
                params=dict(request.query) or None,
                content=request.body,
                headers=headers,
            )
        except httpx.HTTPError as cause:
            raise Unreachable(f"{request.method} {request.path}: {cause}") from cause
        return Response(answer.status_code, answer.content)

    def close(self) -> None:
        """Close the connections."""
        if self._is_own:
            self._client.close()


def refusal(response: Response) -> RequestRefused:
    """Turn an answer that is not 200 into the error to raise; plain-text bodies are allowed."""
    try:
        error = msgspec.json.decode(response.body, type=SyncError)
    except msgspec.MsgspecError:
        text = response.body.decode("utf-8", "replace").strip()
        return RequestRefused(response.status, "http_error", text[:200])
    return RequestRefused(response.status, error.error, error.message)
