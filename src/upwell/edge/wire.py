"""The wire under a live socket: ready-made frames straight into the transport.

Law: writing never waits, so that one dead reader delays nobody; who writes looks at `is_full` first.

`RawWS` is uvicorn's sans-I/O protocol with its transport in reach, which is no public interface: what
`find_wire` needs of it is checked on each connection, and without it frames go through ASGI's `send`.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import count
from typing import Any, Protocol

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

EXTENSION = "x.upwell.protocol"
# The kernel's own buffer hides a slow reader: small enough to notice one, large enough for a burst.
SEND_BUFFER_BYTES = 128 * 1024
PONGS_BYTES_MAX = 64 * 1024
"""Bytes that wait for a reader before its pings stay unanswered."""
PINGS_MAX = 100
"""Pings of one reader that wait for an answer; older ones are forgotten."""
_pings = count(1)
_NO_HOST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_OTHER_VERSION = (
    b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\n"
    b"Connection: close\r\nContent-Length: 0\r\n\r\n"
)
# JSON text begins so; gzip and MessagePack maps don't.
_TEXT_START = b"{"
_PING_HEADER = b"\x89\x08"
_NEEDED_OF_TRANSPORT = ("write", "abort", "is_closing", "get_write_buffer_size", "set_write_buffer_limits")


class RawWS(WebSocketsSansIOProtocol):
    """uvicorn's protocol with its transport in reach: `Config(…, ws=RawWS, ws_per_message_deflate=False)`."""

    heard_at = 0.0
    asked: dict[bytes, Callable[[], None]] | None = None

    def when_taken(self, then: Callable[[], None]) -> None:
        """Ping the reader, and call `then` when it answers: so it has read what was written before."""
        asked = self.asked = self.asked or {}
        payload = next(_pings).to_bytes(8, "big")
        asked[payload] = then
        if len(asked) > PINGS_MAX:
            del asked[next(iter(asked))]
        self.transport.write(_PING_HEADER + payload)

    def handle_pong(self, event: Frame) -> None:
        then = self.asked.pop(bytes(event.data), None) if self.asked else None
        if then is not None:
            then()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        super().data_received(data)

    def handle_ping(self) -> None:
        # Who doesn't read gets no more pongs: only the newest ping needs one (RFC 6455, 5.5.3).
        if self.transport.get_write_buffer_size() > PONGS_BYTES_MAX:
            self.conn.data_to_send()
        else:
            super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        # Bytes that are no text are the client's fault: closed with 1007, without a traceback in the log.
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_text(b"".join(self.frames)):
            self.frames = []
            self.conn.send_close(1007)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_connect(self, event: Request) -> None:
        refusal = _refusal(event)
        if refusal:
            self.transport.write(refusal)
            self.transport.close()
            return
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions: dict[str, object] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[EXTENSION] = self
            connected = self.transport.get_extra_info("socket")
            if connected is not None:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)


class Wire(Protocol):
    """The outgoing half of a socket; see `feeds.subscription.Outlet`."""

    @property
    def heard_at(self) -> float:
        """When something was last received, in the loop's time."""
        ...

    @property
    def is_full(self) -> bool: ...

    @property
    def is_gone(self) -> bool:
        """Whether the reader has left, so that what is written goes nowhere."""
        ...

    def write(self, frames: Sequence[bytes]) -> None: ...

    async def drained(self) -> None: ...

    def when_taken(self, then: Callable[[], None]) -> None: ...

    async def handed_over(self) -> None:
        """Return when all that was written is on its way, so that a close frame comes after it."""
        ...

    def hear(self, now: float) -> None:
        """Note that a message was received, or was being worked on until `now`."""
        ...

    def abort(self) -> None:
        """Drop the connection without waiting for the reader, as far as that is possible."""
        ...

    async def close(self) -> None:
        """Release what the wire holds."""
        ...


class RawWire:
    """Writes pre-framed bytes to the transport of `RawWS`."""

    def __init__(self, protocol: RawWS, *, lag_bytes_max: int) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._lag_bytes_max = lag_bytes_max
        # Full is then exactly when the transport tells the protocol to pause.
        self._transport.set_write_buffer_limits(high=lag_bytes_max, low=lag_bytes_max // 4)

    @property
    def heard_at(self) -> float:
        return self._protocol.heard_at

    @property
    def is_full(self) -> bool:
        return self._transport.get_write_buffer_size() > self._lag_bytes_max

    @property
    def is_gone(self) -> bool:
        return self._protocol.disconnected or self._transport.is_closing()

    def write(self, frames: Sequence[bytes]) -> None:
        if self._protocol.close_sent or self.is_gone:
            return
        parts: list[bytes] = []
        for frame in frames:
            parts += (_header(len(frame), is_text=frame.startswith(_TEXT_START)), frame)
        self._transport.write(b"".join(parts))

    async def drained(self) -> None:
        await self._protocol.writable.wait()

    def when_taken(self, then: Callable[[], None]) -> None:
        if not self._protocol.close_sent and not self.is_gone:
            self._protocol.when_taken(then)

    async def handed_over(self) -> None:
        pass

    def hear(self, now: float) -> None:
        self._protocol.heard_at = now

    def abort(self) -> None:
        self._transport.abort()

    async def close(self) -> None:
        pass


class QueuedWire:
    """Sends through ASGI: a bounded queue and a task, since `send` may wait for the reader."""

    def __init__(self, send: Send, *, lag_bytes_max: int, now: float) -> None:
        self._heard_at = now
        self._send = send
        self._lag_bytes_max = lag_bytes_max
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._is_gone = False
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._run())

    @property
    def heard_at(self) -> float:
        return self._heard_at

    @property
    def is_full(self) -> bool:
        return self._queued_bytes > self._lag_bytes_max

    @property
    def is_gone(self) -> bool:
        return self._is_gone

    def write(self, frames: Sequence[bytes]) -> None:
        if self._is_gone:
            return
        self._queue.extend(frames)
        self._queued_bytes += sum(map(len, frames))
        self._filled.set()
        self._idle.clear()
        if self.is_full:
            self._emptied.clear()

    async def drained(self) -> None:
        await self._emptied.wait()

    def when_taken(self, then: Callable[[], None]) -> None:
        """Do nothing: ASGI has no ping, so nobody knows."""

    async def handed_over(self) -> None:
        await self._idle.wait()

    def hear(self, now: float) -> None:
        self._heard_at = now

    def abort(self) -> None:
        self._leave()

    async def close(self) -> None:
        self._leave()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _leave(self) -> None:
        self._is_gone = True
        self._queue.clear()
        self._queued_bytes = 0
        self._emptied.set()
        self._idle.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._filled.wait()
                while self._queue:
                    frame = self._queue.popleft()
                    await self._send(_message(frame))
                    self._queued_bytes = max(0, self._queued_bytes - len(frame))
                    if self._queued_bytes <= self._lag_bytes_max // 4:
                        self._emptied.set()
                self._filled.clear()
                self._idle.set()
        except OSError:  # what ASGI raises when the client is gone
            self._leave()


def find_wire(scope: Scope, send: Send, *, lag_bytes_max: int) -> Wire:
    """Return the transport's wire if the server underneath is the one that we know, else ASGI's."""
    protocol = scope.get("extensions", {}).get(EXTENSION)
    if isinstance(protocol, RawWS) and _is_as_expected(protocol):
        return RawWire(protocol, lag_bytes_max=lag_bytes_max)
    return QueuedWire(send, lag_bytes_max=lag_bytes_max, now=asyncio.get_running_loop().time())


def _is_as_expected(protocol: RawWS) -> bool:
    transport = getattr(protocol, "transport", None)
    return (
        all(callable(getattr(transport, name, None)) for name in _NEEDED_OF_TRANSPORT)
        and isinstance(getattr(protocol, "writable", None), asyncio.Event)
        and isinstance(getattr(protocol, "close_sent", None), bool)
        and isinstance(getattr(protocol, "disconnected", None), bool)
        # Our frames are uncompressed: they are only legal if no extension was agreed on.
        and getattr(getattr(protocol, "conn", None), "extensions", None) == []
    )


def _refusal(request: Request) -> bytes:
    """Return the answer to an upgrade that RFC 6455 (4.2) refuses, nothing if it doesn't."""
    if not any(request.headers.get_all("Host")):
        return _NO_HOST
    versions = request.headers.get_all("Sec-WebSocket-Version")
    return _OTHER_VERSION if versions and versions != ["13"] else b""


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _message(frame: bytes) -> dict[str, object]:
    """Return a frame as ASGI's message."""
    if frame.startswith(_TEXT_START):
        return {"type": "websocket.send", "text": frame.decode()}
    return {"type": "websocket.send", "bytes": frame}


def _header(size: int, *, is_text: bool) -> bytes:
    """Return the header of an unfragmented, unmasked frame (RFC 6455, section 5.2)."""
    kind = 0x81 if is_text else 0x82
    if size < 126:
        return bytes((kind, size))
    if size < 1 << 16:
        return bytes((kind, 126)) + size.to_bytes(2, "big")
    return bytes((kind, 127)) + size.to_bytes(8, "big")
