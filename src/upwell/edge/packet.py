"""Packets: what a request has sent and what it is answered, past the messages of ASGI.

Law: an exchange takes its way only where it means what ASGI's would; else it says so, and that one is taken.
(ASGI's two messages of an answer are two packets, which wake the client twice, and twice the work.)
"""

import select
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any
from weakref import ref

from uvicorn.protocols.http.httptools_impl import (
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_EXCHANGE = "upwell.exchange"
_HANGS_UP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


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

    def is_hung_up(self) -> bool:
        """Whether the client has closed its side, though what it sent ahead isn't read and hides that."""
        cycle = self._running()
        if cycle is None or cycle.disconnected or cycle.transport.is_closing():
            return True
        socket = cycle.transport.get_extra_info("socket")
        if socket is None:
            return False
        asked = select.poll()
        asked.register(socket.fileno(), _HANGS_UP)
        return bool(asked.poll(0))

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

    _open: Sequence[ref[RequestResponseCycle]] = ()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.scope is self.scope:  # an upgrade to a WebSocket has none
            cycle.scope["state"][_EXCHANGE] = Exchange(cycle)
            self._open = (*_unanswered(self._open), ref(cycle))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all requests that are open: uvicorn tells the one that came last only."""
        super().connection_lost(exc)
        for open_ in _unanswered(self._open):
            cycle = open_()
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()


def _unanswered(cycles: Sequence[ref[RequestResponseCycle]]) -> Iterator[ref[RequestResponseCycle]]:
    for each in cycles:
        cycle = each()
        if cycle is not None and not cycle.response_complete:
            yield each


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange | None:
    """Return the exchange of a request, None from a server that knows of none."""
    found: Exchange | None = scope.get("state", {}).get(_EXCHANGE)
    return found
