"""The cable: a TCP line to a port on loopback that can be cut or reset in the middle of anything, or be slow.

Law: while it is cut no byte passes and no connection lives; it never changes what passes. A slow one holds
little back by itself: who sends feels at once that nobody takes it.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65_536
CONNECT_S_MAX = 5.0
END_S_MAX = 5.0
# What the kernel holds at each end of a slow cable; and how evenly its bytes flow.
SLOW_BUFFER_BYTES = 32_768
FLOW_S = 0.02
_NO_LINGER = struct.pack("ii", 1, 0)

_Line = tuple[socket.socket, socket.socket]


class Cable:
    """Listens on a free port and passes every connection on to `port`.

    Each piece of at most 64 KiB takes `latency_s` to the other end, in each direction; `bytes_per_s` bounds
    what passes in one direction of one connection.
    """

    def __init__(
        self,
        port: int,
        *,
        latency_s: float = 0.0,
        bytes_per_s: int | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._port = port
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._pause = pause
        self._listener = socket.create_server((HOST, 0))
        if bytes_per_s is not None:
            # What is accepted inherits it.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        self._lines: set[_Line] = set()
        self._is_cut = False
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept_all, name="cable", daemon=True)
        self._acceptor.start()

    @property
    def port(self) -> int:
        """The server's port as seen through the cable."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The server's address as seen through the cable."""
        return f"http://{HOST}:{self.port}"

    @property
    def line_count(self) -> int:
        """How many connections pass through now."""
        with self._lock:
            return len(self._lines)

    def cut(self) -> int:
        """Break all connections and refuse new ones; return how many were broken."""
        with self._lock:
            self._is_cut = True
            lines, self._lines = self._lines, set()
        for line in lines:
            _break(line)
        return len(lines)

    def reset(self) -> int:
        """Break all connections by a TCP reset at both ends, what is under way is lost; return how many."""
        with self._lock:
            lines, self._lines = self._lines, set()
        for line in lines:
            for end in line:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                    # Wakes who reads, and sends nothing yet.
                    end.shutdown(socket.SHUT_RD)
                end.close()
        return len(lines)

    def mend(self) -> None:
        """Let connections pass again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Cut for good."""
        self.cut()
        # Closing alone would not wake the thread that waits for a connection.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(END_S_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept_all(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        try:
            far = self._dial()
        except OSError:
            near.close()
            return
        line = (near, far)
        with self._lock:
            is_through = not self._is_cut
            if is_through:
                self._lines.add(line)
        if not is_through:
            _break(line)
            return
        for source, target in (line, line[::-1]):
            threading.Thread(
                target=self._pass_on, args=(source, target, line), name="cable", daemon=True
            ).start()

    def _dial(self) -> socket.socket:
        far = socket.socket()
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._bytes_per_s is not None:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
        far.settimeout(CONNECT_S_MAX)
        try:
            far.connect((HOST, self._port))
        except OSError:
            far.close()
            raise
        far.settimeout(None)
        return far

    def _pass_on(self, source: socket.socket, target: socket.socket, line: _Line) -> None:
        rate = self._bytes_per_s
        chunk_bytes = CHUNK_BYTES if rate is None else max(1, int(rate * FLOW_S))
        with suppress(OSError):
            while data := source.recv(chunk_bytes):
                slow_s = self._latency_s + (0.0 if rate is None else len(data) / rate)
                if slow_s:
                    self._pause(slow_s)
                target.sendall(data)
        with self._lock:
            is_ours = line in self._lines
            self._lines.discard(line)
        if is_ours:
            _break(line)


def _break(line: _Line) -> None:
    for end in line:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
