"""Packets: what a request has sent and what it is answered, past the messages of ASGI.

Law: an exchange takes its way only where it means what ASGI's would; else it says so, and that one is taken.
(ASGI's two messages of an answer are two packets, which wake the client twice, and twice the work.)
"""

from collections.abc import MutableMapping, Sequence
from typing import Any
from weakref import ref

from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_EXCHANGE = "upwell.exchange"


class Exchange:
    """One request and its answer, as uvicorn has them as long as it runs the application.

    The cycle holds the scope, and so us: were it held, too, each request would have to wait for a collection.
    """

    __slots__ = ("_running",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._running = ref(cycle)

    @property
    def _cycle(self) -> RequestResponseCycle:
        cycle = self._running()
        assert cycle is not None, "uvicorn keeps the cycle of a request until it has been answered"
        return cycle

    def take_body(self) -> bytes | None:
        """Take the whole body if it is there by now, so that `receive` only waits for the end."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        cycle.message_event.clear()
        cycle.flow.resume_reading()
        return body

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole answer, its `content-length` among the headers; whether it could be done."""
        cycle = self._cycle
        is_plain = cycle.keep_alive and not cycle.response_started and cycle.scope["method"] != "HEAD"
        if not is_plain or cycle.disconnected or cycle.flow.write_paused:
            return False
        lines = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        if HEADER_VALUE_RE.search(b"".join(lines[3::4])):
            return False
        lines += (b"\r\n", body)
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write(b"".join(lines))
        cycle.message_event.set()
        cycle.on_response()
        return True


class ExchangeProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with an `Exchange` in each request's scope: `Config(…, http=ExchangeProtocol)`."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.scope is self.scope:  # an upgrade to a WebSocket has none
            cycle.scope["state"][_EXCHANGE] = Exchange(cycle)


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange | None:
    """Return the exchange of a request, None from a server that knows of none."""
    found: Exchange | None = scope.get("state", {}).get(_EXCHANGE)
    return found
