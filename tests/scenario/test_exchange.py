"""However a request arrives, in pieces or with others behind it, each gets its own whole answer, in order."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import IO

import pytest

from upwell.testing.wire import SQL, Site

Answered = tuple[int, dict[str, str], bytes]


class Line:
    """One TCP connection, on which bytes are sent as a test says."""

    def __init__(self, site: Site) -> None:
        self._socket = socket.create_connection(
            (site.server.url.split("//")[1].split(":")[0], site.server.port)
        )
        self._socket.settimeout(20)
        self._answers: IO[bytes] = self._socket.makefile("rb")
        self._token = site.root.token

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def head(self, *lines: str, version: str = "1.1") -> bytes:
        always = (f"POST {SQL} HTTP/{version}", "Host: x", f"Authorization: Bearer {self._token}")
        return "\r\n".join([*always, *lines, "", ""]).encode()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> Answered:
        """Return the next answer: status, headers, body."""
        status = int(self._answers.readline().split()[1])
        headers = {}
        while (line := self._answers.readline().decode().strip()) != "":
            name, _, value = line.partition(": ")
            headers[name] = value
        return status, headers, self._answers.read(int(headers.get("content-length", 0)))

    def is_closed(self) -> bool:
        return self._answers.read(1) == b""


@pytest.fixture
def line(site: Site) -> Iterator[Line]:
    line = Line(site)
    yield line
    line.close()


def body(number: int) -> bytes:
    return json.dumps({"sql": f"SELECT {number} AS n"}).encode()


def number_in(answered: Answered) -> int:
    status, headers, content = answered
    assert status == 200, content
    assert headers["content-type"] == "application/json"
    assert headers["date"]
    assert headers["x-request-id"]
    number: int = int(json.loads(content)["results"][0]["rows"][0][0])
    return number


def test_requests_behind_each_other_are_answered_in_order(line: Line) -> None:
    whole = [line.head(f"Content-Length: {len(body(n))}") + body(n) for n in range(5)]
    line.send(b"".join(whole))
    assert [number_in(line.read()) for _ in whole] == [0, 1, 2, 3, 4]


def test_a_body_may_come_in_pieces(line: Line) -> None:
    content = body(7)
    line.send(line.head("Expect: 100-continue", f"Content-Length: {len(content)}"))
    assert line.read()[0] == 100
    for at in range(0, len(content), 9):
        line.send(content[at : at + 9])
    assert number_in(line.read()) == 7
    line.send(line.head("Transfer-Encoding: chunked") + b"5\r\n" + content[:5] + b"\r\n")
    line.send(b"%x\r\n" % (len(content) - 5) + content[5:] + b"\r\n0\r\n\r\n")
    assert number_in(line.read()) == 7


@pytest.mark.parametrize(("version", "said"), [("1.1", ["Connection: close"]), ("1.0", [])])
def test_a_connection_ends_when_it_is_asked_to(line: Line, version: str, said: list[str]) -> None:
    line.send(line.head(*said, f"Content-Length: {len(body(3))}", version=version) + body(3))
    assert number_in(line.read()) == 3
    assert line.is_closed()


def test_what_is_refused_before_its_body_is_read_leaves_the_connection_in_order(line: Line) -> None:
    content = body(1)
    stranger = f"POST {SQL} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    line.send(stranger + content + line.head(f"Content-Length: {len(content)}") + content)
    status, _, refused = line.read()
    assert (status, json.loads(refused)["error"]["code"]) == (401, "MISSING_AUTHORIZATION")
    assert number_in(line.read()) == 1


def test_a_head_request_gets_no_body(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=20)
    connection.request("HEAD", SQL)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (405, b"")
    connection.close()
