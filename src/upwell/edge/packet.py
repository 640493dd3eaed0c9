"""Packets: head and body of an answer leave in one write, where uvicorn makes two.

Law: nothing is held longer than the turn of the event loop in which it was written. (The second write is
a second packet, which wakes the client twice: a fifth of the time of a read by key.)
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class OnePacket(HttpToolsProtocol):
    """uvicorn's protocol: `Config(…, http=OnePacket)`."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle  # an upgrade to a WebSocket has none
        if cycle is not None and not isinstance(cycle.transport, _Joined):
            cycle.transport = _Joined(cycle.transport, self.loop)


class _Joined(asyncio.Transport):
    """A transport that holds the first write until the next one, or until the loop's next turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None
        """None before the first write; empty when nothing is held any more."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._held is None:
            self._held = bytes(data)
            self._loop.call_soon(self._flush)
        elif self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)
