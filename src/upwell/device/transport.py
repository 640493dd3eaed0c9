"""How a request reaches the server: one call that takes a request and returns the answer.

Law: a transport either returns a complete answer or raises `Unreachable`. A stream, which never is complete,
ends with empty bytes or raises `Unreachable`; a transport without streams is polled.
"""

import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

import httpx
import msgspec

from upwell.device.failures import AnswerRefused, RequestRefused, Unreachable
from upwell.protocol.sync import SyncError

CONNECT_S_MAX = 10.0
ANSWER_S_MAX = 120.0
EVENT_STREAM = "text/event-stream"

_ANSWER_TIMEOUT = httpx.Timeout(ANSWER_S_MAX, connect=CONNECT_S_MAX)


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


class Stream(Protocol):
    """An answer that goes on; one thread opens, reads and closes, any thread may abort."""

    def open(self) -> None: ...

    def read(self) -> bytes: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


@runtime_checkable
class StreamTransport(Transport, Protocol):
    """Can hold a stream besides; `abort`, from any thread, makes what is under way fail: `Unreachable`."""

    def stream(self, request: Request, silence_s_max: float) -> Stream: ...

    def abort(self) -> None: ...


class AsyncTransport(Protocol):
    """Sends one request at a time, on an event loop."""

    async def send(self, request: Request) -> Response: ...

    async def close(self) -> None: ...


class AsyncStream(Protocol):
    """An answer that goes on."""

    async def open(self) -> None: ...

    async def read(self) -> bytes: ...

    async def close(self) -> None: ...


@runtime_checkable
class AsyncStreamTransport(AsyncTransport, Protocol):
    """Can hold a stream besides."""

    def stream(self, request: Request, silence_s_max: float) -> AsyncStream: ...


class HttpTransport:
    """Real HTTP through httpx; closes only a client that it made itself."""

    def __init__(self, url: str, client: httpx.Client | None = None) -> None:
        self._url = url.rstrip("/")
        self._is_own = client is None
        self._client = client or httpx.Client(timeout=_ANSWER_TIMEOUT)
        self._sockets = _Sockets()

    def send(self, request: Request) -> Response:
        """Send and wait for the whole body."""
        built = _build(self._client, self._url, request)
        built.extensions["trace"] = self._sockets.trace
        try:
            answer = self._client.send(built)
        except httpx.HTTPError as cause:
            raise _unreachable(request, cause) from cause
        return Response(answer.status_code, answer.content)

    def stream(self, request: Request, silence_s_max: float) -> "HttpStream":
        """Return the stream that `request` opens, not yet opened."""
        return HttpStream(self._client, _build(self._client, self._url, request, silence_s_max), request)

    def abort(self) -> None:
        """Break what is under way."""
        self._sockets.shut()

    def close(self) -> None:
        """Close the connections."""
        if self._is_own:
            self._client.close()


class AsyncHttpTransport:
    """Real HTTP through httpx, on an event loop; closes only a client that it made itself."""

    def __init__(self, url: str, client: httpx.AsyncClient | None = None) -> None:
        self._url = url.rstrip("/")
        self._is_own = client is None
        self._client = client or httpx.AsyncClient(timeout=_ANSWER_TIMEOUT)

    async def send(self, request: Request) -> Response:
        """Send and wait for the whole body."""
        try:
            answer = await self._client.send(_build(self._client, self._url, request))
        except httpx.HTTPError as cause:
            raise _unreachable(request, cause) from cause
        return Response(answer.status_code, answer.content)

    def stream(self, request: Request, silence_s_max: float) -> "AsyncHttpStream":
        """Return the stream that `request` opens, not yet opened."""
        return AsyncHttpStream(self._client, _build(self._client, self._url, request, silence_s_max), request)

    async def close(self) -> None:
        """Close the connections."""
        if self._is_own:
            await self._client.aclose()


class HttpStream:
    """A stream of server-sent events; made by `HttpTransport.stream`."""

    def __init__(self, client: httpx.Client, built: httpx.Request, request: Request) -> None:
        self._client = client
        self._built = built
        self._request = request
        self._sockets = _Sockets()
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def open(self) -> None:
        """Wait for the head of the answer; raise `RequestRefused` if it isn't a stream."""
        self._built.extensions["trace"] = self._sockets.trace
        try:
            self._response = self._client.send(self._built, stream=True)
            self._sockets.add(self._response.extensions.get("network_stream"))
            if not _is_stream(self._response):
                raise _no_stream(self._response, next(self._response.iter_bytes(), b""))
            self._chunks = self._response.iter_bytes()
        except httpx.HTTPError as cause:
            raise _unreachable(self._request, cause) from cause

    def read(self) -> bytes:
        """Wait for bytes; empty at the end."""
        try:
            return next(self._chunks, b"")
        except httpx.HTTPError as cause:
            raise _unreachable(self._request, cause) from cause

    def close(self) -> None:
        """Give the connection back."""
        if self._response is not None:
            self._response.close()

    def abort(self) -> None:
        """Make whoever opens or reads fail, at once or as soon as there is a connection."""
        self._sockets.shut(forever=True)


class AsyncHttpStream:
    """A stream of server-sent events; made by `AsyncHttpTransport.stream`."""

    def __init__(self, client: httpx.AsyncClient, built: httpx.Request, request: Request) -> None:
        self._client = client
        self._built = built
        self._request = request
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def open(self) -> None:
        """Wait for the head of the answer; raise `RequestRefused` if it isn't a stream."""
        try:
            self._response = await self._client.send(self._built, stream=True)
            if not _is_stream(self._response):
                raise _no_stream(self._response, await anext(self._response.aiter_bytes(), b""))
            self._chunks = self._response.aiter_bytes()
        except httpx.HTTPError as cause:
            raise _unreachable(self._request, cause) from cause

    async def read(self) -> bytes:
        """Wait for bytes; empty at the end."""
        assert self._chunks is not None, "opened before it is read"
        try:
            return await anext(self._chunks, b"")
        except httpx.HTTPError as cause:
            raise _unreachable(self._request, cause) from cause

    async def close(self) -> None:
        """Give the connection back."""
        if self._response is not None:
            await self._response.aclose()


class _Sockets:
    """The sockets of connections under way, for another thread to break: httpx offers no other way."""

    def __init__(self) -> None:
        self._open: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()
        self._is_shut = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note a connection when it is made; httpx calls this (extension "trace")."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self.add(info["return_value"])

    def add(self, network: Any) -> None:
        """Note the socket of a connection of httpcore; one that has none can't be broken."""
        found = network.get_extra_info("socket") if network is not None else None
        if isinstance(found, socket.socket):
            with self._lock:
                self._open.add(found)
                if self._is_shut:
                    _shut(found)

    def shut(self, *, forever: bool = False) -> None:
        """Break all, with `forever` those of later, too."""
        with self._lock:
            self._is_shut = forever
            for found in self._open:
                _shut(found)


def _shut(found: socket.socket) -> None:
    # Not the method of a TLS socket: that one takes away the state that a reader in another thread is using.
    with suppress(OSError):
        socket.socket.shutdown(found, socket.SHUT_RDWR)


def refusal(response: Response) -> RequestRefused:
    """Turn an answer that is not 200 into the error to raise; plain-text bodies are allowed."""
    try:
        error = msgspec.json.decode(response.body, type=SyncError)
    except msgspec.MsgspecError:
        text = response.body.decode("utf-8", "replace").strip()
        return RequestRefused(response.status, "http_error", text[:200])
    return RequestRefused(response.status, error.error, error.message)


def _build(
    client: httpx.Client | httpx.AsyncClient, url: str, request: Request, silence_s_max: float | None = None
) -> httpx.Request:
    headers = {"content-type": "application/json"} if request.body is not None else {}
    if request.token is not None:
        headers["authorization"] = f"Bearer {request.token}"
    if silence_s_max is not None:
        headers["accept"] = EVENT_STREAM
    patience = httpx.Timeout(silence_s_max, connect=CONNECT_S_MAX) if silence_s_max else client.timeout
    return client.build_request(
        request.method,
        url + request.path,
        params=dict(request.query) or None,
        content=request.body,
        headers=headers,
        timeout=patience,
    )


def _is_stream(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "")
    return response.status_code == 200 and kind.startswith(EVENT_STREAM)


def _no_stream(response: httpx.Response, body: bytes) -> RequestRefused | AnswerRefused:
    if response.status_code == 200:
        return AnswerRefused(f"not a stream of events but {response.headers.get('content-type')!r}")
    return refusal(Response(response.status_code, body))


def _unreachable(request: Request, cause: httpx.HTTPError) -> Unreachable:
    return Unreachable(f"{request.method} {request.path}: {str(cause) or type(cause).__name__}")
