"""The fake sync server with its watch stream, for devices that sync in the background.

Law: each stream is told at once and after every growth; `is_down` breaks all streams and answers nothing.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeAlias

from upwell.device import Request, RequestRefused, Response, Unreachable
from upwell.testing.sync_server import FakeServer, FakeTransport, Json

Item: TypeAlias = bytes | Exception


@dataclass
class WatchedServer(FakeServer):
    """`has_watch` False: a server without the path. `opened` counts streams that were asked for."""

    has_watch: bool = True
    opened: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    listeners: list[Callable[[Item], None]] = field(default_factory=list)
    _is_down: bool = False

    @property
    def is_down(self) -> bool:
        """True while the server can't be reached."""
        return self._is_down

    @is_down.setter
    def is_down(self, is_down: bool) -> None:
        with self.lock:
            self._is_down = is_down
            if is_down:
                self.cut()

    def cut(self) -> None:
        """Break all streams."""
        self._tell(Unreachable("the stream was cut"))

    def write(self, table: str, pk: str, payload: Json | None) -> None:
        with self.lock:
            super().write(table, pk, payload)
            self._tell(self._event())

    def transport(self, source: str) -> "WatchedTransport":
        """What one device talks to."""
        return WatchedTransport(self, source)

    def answer(self, request: Request, source: str) -> Response:
        with self.lock:
            if self._is_down:
                raise Unreachable("the server is down")
            before = len(self.log)
            response = super().answer(request, source)
            if len(self.log) > before:
                self._tell(self._event())
            return response

    def listen(self, listener: Callable[[Item], None]) -> None:
        """Open a stream whose bytes go to `listener`."""
        with self.lock:
            self.opened += 1
            if self._is_down:
                raise Unreachable("the server is down")
            if not self.has_watch:
                raise RequestRefused(404, "not_found", "/sync/watch")
            self.listeners.append(listener)
            listener(self._event())

    def leave(self, listener: Callable[[Item], None]) -> None:
        """Close a stream."""
        with self.lock:
            if listener in self.listeners:
                self.listeners.remove(listener)

    def _event(self) -> bytes:
        return b'event: log\ndata: {"max_server_id": %d}\n\n' % len(self.log)

    def _tell(self, item: Item) -> None:
        for listener in self.listeners:
            listener(item)


@dataclass
class WatchedTransport(FakeTransport):
    """A wire of the blocking device."""

    server: WatchedServer

    def stream(self, request: Request, silence_s_max: float) -> "FakeStream":
        return FakeStream(self.server)

    def abort(self) -> None:
        """Nothing that is under way takes long."""


class FakeStream:
    """What one thread reads and any other may abort."""

    def __init__(self, server: WatchedServer) -> None:
        self._server = server
        self._items: SimpleQueue[Item] = SimpleQueue()

    def open(self) -> None:
        self._server.listen(self._items.put)

    def read(self) -> bytes:
        return _unwrap(self._items.get())

    def close(self) -> None:
        self._server.leave(self._items.put)

    def abort(self) -> None:
        self._items.put(Unreachable("aborted"))


class AsyncWatchedTransport:
    """A wire of the asynchronous device."""

    def __init__(self, wire: WatchedTransport) -> None:
        self.wire = wire

    async def send(self, request: Request) -> Response:
        return self.wire.send(request)

    def stream(self, request: Request, silence_s_max: float) -> "AsyncFakeStream":
        return AsyncFakeStream(self.wire.server)

    async def close(self) -> None:
        """Nothing is open."""


class AsyncFakeStream:
    """What one task reads; the server may write from any thread."""

    def __init__(self, server: WatchedServer) -> None:
        self._server = server
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        self._server.listen(self._put)

    async def read(self) -> bytes:
        return _unwrap(await self._items.get())

    async def close(self) -> None:
        self._server.leave(self._put)

    def _put(self, item: Item) -> None:
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)


def _unwrap(item: Item) -> bytes:
    if isinstance(item, Exception):
        raise item
    return item
