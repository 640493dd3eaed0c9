"""The gate: the ASGI application that uvicorn calls; hot routes by a dictionary, the rest by Starlette.

Law: the last catch is here: what is no domain error is logged with its traceback and answered without
one. A hot path that is asked with another method gets 405.
"""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from itertools import count, repeat

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from upwell.edge.cors import Cors
from upwell.edge.http import Receive, Reply, Scope, Send, header, headers_of, respond
from upwell.edge.metrics import Traffic
from upwell.edge.packet import exchange_of
from upwell.edge.peer import address
from upwell.logs import Origin, begin_request, fields
from upwell.protocol.sync import WATCH_PATH

log = logging.getLogger("upwell.edge")

REQUEST_ID = b"x-request-id"
_ASKED_METHOD = b"access-control-request-method"
REQUEST_ID_CHARS_MAX = 128
_FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})
_ID = re.compile(r"[\x21-\x7e]+")
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
_INTERNAL = (
    b'{"status":"error","results":[],"took":0.0,"error":{"code":"INTERNAL_ERROR","message":"'
    b'the server met an unexpected state; its log has the details"}}'
)
_WRONG_METHOD = b'{"error":"method_not_allowed","message":"this path takes POST"}'


class Gate:
    """Routes `hot` paths (and their methods) to bare handlers, everything else to `rest`."""

    def __init__(
        self,
        hot: Mapping[tuple[str, str], Handler],
        any_method: Mapping[str, Handler],
        live: Handler,
        rest: Handler,
        traffic: Traffic,
        *,
        slow_request_s: float,
        cors: Cors,
    ) -> None:
        self._cors = cors
        self._traffic = traffic
        self._slow_request_s = slow_request_s
        self._hot = hot
        self._hot_paths = frozenset(path for _, path in hot)
        self._any_method = any_method
        self._live = live
        self._rest = rest
        self._next_id = map("{}-{:x}".format, repeat(uuid.uuid4().hex[:8]), count(1)).__next__
        self._forwarded = ProxyHeadersMiddleware(self._serve)  # type: ignore[arg-type]

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve a request; what a proxy says of it counts only if the proxy runs on this machine."""
        if not _FORWARDED.isdisjoint(headers_of(scope)):
            return self._forwarded(scope, receive, send)  # type: ignore[arg-type]
        return self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            begin_request(Origin(self._next_id(), address(scope)))
            may = self._cors.may(header(scope, b"origin"))
            await (self._live if may else _foreign)(scope, receive, send)
            return
        path = scope["path"]
        request = _request_id(scope) or self._next_id()
        begin_request(Origin(request, address(scope)))
        headers = [(REQUEST_ID, request.encode()), *self._cors.headers(header(scope, b"origin"))]
        reply = Reply(send, exchange_of(scope), headers)
        began = time.perf_counter()
        try:
            await self._handler(scope)(scope, receive, reply)
        except Exception:
            log.exception("Request failed unexpectedly", extra=fields(method=scope["method"], path=path))
            if not reply.status:
                await respond(reply, 500, _INTERNAL)
        finally:
            self._note(scope["method"], path, reply.status, time.perf_counter() - began)

    def _handler(self, scope: Scope) -> Handler:
        method, path = scope["method"], scope["path"]
        handler = self._hot.get((method, path))
        if handler is not None:
            return handler
        if method == "OPTIONS" and header(scope, _ASKED_METHOD) is not None:
            return self._preflight
        return self._any_method.get(path) or (_wrong_method if path in self._hot_paths else self._rest)

    async def _preflight(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [*self._cors.preflight()]})
        await send({"type": "http.response.body", "body": b""})

    def _note(self, method: str, path: str, status: int, seconds: float) -> None:
        self._traffic.note(path, status, seconds)
        is_slow = seconds > self._slow_request_s and path != WATCH_PATH  # which lasts on purpose
        if is_slow or log.isEnabledFor(logging.DEBUG):
            found = fields(method=method, path=path, status=status, ms=round(seconds * 1000, 3))
            log.log(
                logging.INFO if is_slow else logging.DEBUG,
                "Slow request" if is_slow else "Request served",
                extra=found,
            )


async def _foreign(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a socket that a page of another origin opens."""
    await receive()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"Origin not allowed"})


async def _wrong_method(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, 405, _WRONG_METHOD)


def _request_id(scope: Scope) -> str | None:
    """Return the id that the sender gave its request, if it is one that may stand in a log."""
    given = header(scope, REQUEST_ID)
    return given if given and len(given) <= REQUEST_ID_CHARS_MAX and _ID.fullmatch(given) else None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return
