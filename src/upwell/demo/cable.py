"""The cable: a TCP line to a port on loopback that can be cut in the middle of anything, and mended.

Law: while it is cut no byte passes and no connection lives; it never changes what passes.
"""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65_536
CONNECT_S_MAX = 5.0
END_S_MAX = 5.0


class Cable:
    """Listens on a free port and passes every connection on to `port`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server((HOST, 0))
        self._lines: set[tuple[socket.socket, socket.socket]] = set()
        self._is_cut = False
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept_all, name="cable", daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        """The server's address as seen through the cable."""
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

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
            far = socket.create_connection((HOST, self._port), timeout=CONNECT_S_MAX)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        line = (near, far)
        with self._lock:
            if not self._is_cut:
                self._lines.add(line)
        if line not in self._lines:
            _break(line)
            return
        for source, target in (line, line[::-1]):
            threading.Thread(
                target=self._pass_on, args=(source, target, line), name="cable", daemon=True
            ).start()

    def _pass_on(
        self, source: socket.socket, target: socket.socket, line: tuple[socket.socket, socket.socket]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                target.sendall(data)
        with self._lock:
            self._lines.discard(line)
        _break(line)


def _break(line: tuple[socket.socket, socket.socket]) -> None:
    for end in line:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
