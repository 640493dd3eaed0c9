"""HTTP clients of the benchmarks that cost next to nothing themselves: keep-alive, one write a request.

`Connection` is one blocking connection; `Crowd` keeps many requests in flight over several connections.
"""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import cast
from urllib.parse import urlsplit


class Connection:
    """One keep-alive connection that sends SQL as one user."""

    def __init__(self, url: str, user: str, password: str) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._socket = socket.create_connection(self.address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.token = ""
        answer = self._ask("/v1/api/auth/login", {"user": user, "password": password})
        self.token = str(answer["access_token"])

    def sql(self, text: str) -> dict[str, object]:
        return self._ask("/v1/api/sql", {"sql": text})

    def send(self, request: bytes) -> bytes:
        """Send one request and return the body of its answer."""
        self._socket.sendall(request)
        data = self._socket.recv(262_144)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._socket.recv(262_144)
        length = content_length(data[:end])
        parts, have = [data[end + 4 :]], len(data) - end - 4
        while have < length:
            parts.append(self._socket.recv(262_144))
            have += len(parts[-1])
        body = b"".join(parts)
        if b" 200 " not in data[:16]:
            raise SystemExit(f"{data[:end].decode()}\n{body.decode()[:300]}")
        return body

    def request(self, sql: str) -> bytes:
        """Return the bytes of a request."""
        return encoded("/v1/api/sql", {"sql": sql}, self.token)

    def _ask(self, path: str, body: object) -> dict[str, object]:
        answer: dict[str, object] = json.loads(self.send(encoded(path, body, self.token)))
        return answer


def encoded(path: str, body: object, token: str) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def content_length(head: bytes) -> int:
    at = head.lower().index(b"content-length:") + 15
    return int(head[at:].split(b"\r\n", 1)[0])


class _Lane(asyncio.Protocol):
    """One connection of a crowd: takes the next request as soon as the last one is answered."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._done = done
        self._data = b""
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or len(self._data) - end - 4 < content_length(self._data[:end]):
            return
        self.failures += b" 200 " not in self._data[:16]
        self._data = b""
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
        elif not self._done.done():
            self._transport.close()
            self._done.set_result(None)


async def crowd(address: tuple[str, int], requests: list[bytes], connections: int) -> int:
    """Send all requests, one in flight on each connection; return how many failed."""
    loop = asyncio.get_running_loop()
    shared = iter(requests)
    lanes = []
    waiting = []
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        _, lane = await loop.create_connection(lambda done=done: _Lane(shared, done), *address)
        lanes.append(lane)
        waiting.append(done)
    await asyncio.gather(*waiting)
    return sum(lane.failures for lane in lanes)
