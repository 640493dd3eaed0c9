"""A real S3 endpoint over HTTP in the test's own process (moto's server), and a proxy in front that fails it.

Law: the proxy passes on every request and answer as it is but for those that a fault takes, and notes them
all, in the order in which they came. A fault takes the requests that it names, as often as it says.
"""

import http.client
import http.server
import logging
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Self

HOST = "127.0.0.1"
ANSWER_S_MAX = 30.0
_RESETS = struct.pack("ii", 1, 0)
"""Of a socket that is closed so (SO_LINGER) the other side hears of a reset."""
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "expect"})
# Who it is, is enough for moto; it doesn't verify signatures.
_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=kit/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>injected for {}</Message></Error>'


class S3Server:
    """moto's server; `with` starts and stops it. Buckets are made and read past every proxy.

    moto keeps its buckets per process: at the end they are forgotten, so that the next one begins empty.
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("POST", "/moto-api/reset")
        finally:
            self._server.stop()

    @property
    def port(self) -> int:
        return int(self._server.get_host_and_port()[1])

    def make_bucket(self, name: str) -> None:
        self._call("PUT", f"/{name}")

    def remove_bucket(self, name: str) -> None:
        """Remove a bucket and all that is in it."""
        for key in self.keys(name):
            self.remove(name, key)
        self._call("DELETE", f"/{name}")

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the keys of all objects below `prefix`, sorted."""
        from xml.etree import ElementTree

        query = urllib.parse.urlencode({"list-type": "2", "prefix": prefix})
        tree = ElementTree.fromstring(self._call("GET", f"/{bucket}?{query}"))
        return sorted(element.text or "" for element in tree.iter() if element.tag.endswith("Key"))

    def read(self, bucket: str, key: str) -> bytes:
        return self._call("GET", f"/{bucket}/{urllib.parse.quote(key)}")

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self._call("PUT", f"/{bucket}/{urllib.parse.quote(key)}", content)

    def remove(self, bucket: str, key: str) -> None:
        self._call("DELETE", f"/{bucket}/{urllib.parse.quote(key)}")

    def download(self, bucket: str, directory: Path, prefix: str = "") -> Path:
        """Write all objects below `prefix` as files; return the directory that stands for the prefix.

        One that a server removes meanwhile is left out.
        """
        for key in self.keys(bucket, prefix):
            status, content = self._ask("GET", f"/{bucket}/{urllib.parse.quote(key)}")
            if status == 404:
                continue
            path = directory / key.removeprefix(prefix).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return directory

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        status, content = self._ask(method, path, body)
        assert status < 300, f"{method} {path}: {status} {content[:300]!r}"
        return content

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_S_MAX)
        try:
            connection.request(method, path, body, {"Authorization": _SIGNED})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


class Harm(Enum):
    """What happens to a request that a fault takes."""

    REFUSE = "answered with the fault's status; it never reaches the server"
    CUT_UPLOAD = "only half of its body reaches the server"
    LOSE_ANSWER = "the server does it, but the connection ends without an answer"
    RESET = "the connection is reset; it never reaches the server"
    REPEAT = "it reaches the server twice, and the second answer counts"
    HOLD = "it reaches nobody until the fault ends"
    FORGET_CONDITION = "it reaches the server without If-None-Match, as if that were unknown there"


@dataclass
class Fault:
    """Takes requests of `method` (any: '') whose path contains `path`, but for the first `after` of them;

    `times` None: all the others.
    """

    harm: Harm
    method: str = ""
    path: str = ""
    after: int = 0
    times: int | None = None
    status: int = 503
    code: str = "SlowDown"
    passed: int = 0
    taken: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def takes(self, method: str, path: str) -> bool:
        if self.over.is_set() or (self.times is not None and self.taken >= self.times):
            return False
        if self.method not in ("", method) or self.path not in path:
            return False
        self.passed += 1
        if self.passed <= self.after:
            return False
        self.taken += 1
        return True


class FaultProxy:
    """An HTTP proxy in front of a server on loopback; `with` starts and stops it."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        """(method, path with query) of all requests, in order."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer((HOST, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}"

    def heal(self) -> None:
        """End all faults."""
        with self._lock:
            for fault in self._faults:
                fault.over.set()
            self._faults.clear()

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[Fault]:
        """Let `fault` take requests inside the block."""
        with self._lock:
            self._faults.append(fault)
        try:
            yield fault
        finally:
            self.heal()

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            return next((fault for fault in self._faults if fault.takes(method, path)), None)

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(HOST, self._upstream_port, timeout=ANSWER_S_MAX)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body go as two packets: the second would wait for the other side's delayed answer to the first.
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        fault = self.proxy.fault_for(self.command, self.path)
        match fault.harm if fault else None:
            case Harm.REFUSE:
                assert fault is not None, "the fault that was matched"
                self._answer(fault.status, {}, _ERROR.format(fault.code, self.path).encode())
                return
            case Harm.HOLD:
                assert fault is not None, "the fault that was matched"
                fault.over.wait(ANSWER_S_MAX)
                self.close_connection = True
                return
            case Harm.RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)
                self.close_connection = True
                return
            case Harm.REPEAT:
                self.proxy.forward(self.command, self.path, headers, body)
            case Harm.CUT_UPLOAD:
                body = body[: len(body) // 2]
            case Harm.FORGET_CONDITION:
                headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
            case _:
                pass
        status, answered, content = self.proxy.forward(self.command, self.path, headers, body)
        if fault is not None and fault.harm is Harm.LOSE_ANSWER:
            self.close_connection = True
            return
        self._answer(status, answered, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
