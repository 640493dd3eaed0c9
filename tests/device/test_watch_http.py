"""The watch stream over real sockets: whatever breaks it ends the wait for it, as `Unreachable`."""

import asyncio
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from upwell.device import (
    AnswerRefused,
    AsyncDevice,
    AsyncHttpTransport,
    Device,
    HttpTransport,
    NotSynced,
    Pace,
    Request,
    RequestRefused,
    Response,
    Unreachable,
)
from upwell.testing import wait_until

WAIT_S_MAX = 20.0
WATCH = Request("GET", "/sync/watch", (("after", "7"),), token="secret")
# An unsigned token whose one claim is that it is of device "phone".
TOKEN = "e30.eyJkaWQiOiJwaG9uZSJ9.x"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
EVENT = b'event: log\ndata: {"max_server_id": 8}\n\n'


class Site:
    """Answers each connection with the same bytes, and then holds it, or closes it at the end."""

    def __init__(self) -> None:
        self.answer = HEAD + b"\r\n" + EVENT
        self.is_held = True
        self.requests: list[bytes] = []
        self._held: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def drop(self) -> None:
        """Close what is held."""
        for connection in self._held:
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.drop()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(connection)
            request = b""
            while (received := connection.recv(65_536)) and b"\r\n\r\n" not in request + received:
                request += received
            if received:
                self.requests.append(request + received)
                connection.sendall(self.answer)
            if not self.is_held:
                connection.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def follow(url: str, silence_s_max: float) -> tuple[bytes, Exception | None]:
    """Read a stream of the blocking transport to its end; return what came, and how it ended."""
    transport, read = HttpTransport(url), b""
    stream = transport.stream(WATCH, silence_s_max)
    try:
        stream.open()
        while chunk := stream.read():
            read += chunk
    except Exception as failure:  # noqa: BLE001
        return read, failure
    else:
        return read, None
    finally:
        stream.close()
        transport.close()


def follow_async(url: str, silence_s_max: float) -> tuple[bytes, Exception | None]:
    """The same with the asynchronous transport."""

    async def main() -> tuple[bytes, Exception | None]:
        transport, read = AsyncHttpTransport(url), b""
        stream = transport.stream(WATCH, silence_s_max)
        try:
            await stream.open()
            while chunk := await stream.read():
                read += chunk
        except Exception as failure:  # noqa: BLE001
            return read, failure
        else:
            return read, None
        finally:
            await stream.close()
            await transport.close()

    return asyncio.run(main())


@pytest.fixture(params=[follow, follow_async])
def read_all(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_stream_that_the_server_ends(site: Site, read_all: Any) -> None:
    site.is_held = False
    assert read_all(site.url, WAIT_S_MAX) == (EVENT, None)
    request = site.requests[0].lower()
    assert request.startswith(b"get /sync/watch?after=7 http/1.1\r\n")
    assert b"\r\nauthorization: bearer secret\r\n" in request
    assert b"\r\naccept: text/event-stream\r\n" in request


def test_silence_is_a_broken_stream(site: Site, read_all: Any) -> None:
    read, failure = read_all(site.url, 1.0)
    assert read == EVENT
    assert isinstance(failure, Unreachable)
    assert "/sync/watch" in str(failure)


def test_a_lost_connection_is_a_broken_stream(site: Site, read_all: Any) -> None:
    site.is_held = False
    site.answer = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(EVENT), EVENT)
    read, failure = read_all(site.url, WAIT_S_MAX)
    assert (read, type(failure)) == (EVENT, Unreachable)


def test_a_server_that_is_not_there(read_all: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert isinstance(read_all(f"http://127.0.0.1:{port}", WAIT_S_MAX)[1], Unreachable)


def test_a_server_without_the_path(site: Site, read_all: Any) -> None:
    body = b'{"error":"not_found","message":"no such path"}'
    site.answer = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    _, failure = read_all(site.url, WAIT_S_MAX)
    assert isinstance(failure, RequestRefused)
    assert (failure.status, failure.code) == (404, "not_found")


def test_an_answer_that_is_no_stream(site: Site, read_all: Any) -> None:
    site.answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\n<html"
    _, failure = read_all(site.url, WAIT_S_MAX)
    assert isinstance(failure, AnswerRefused)
    assert "text/html" in str(failure)


@pytest.mark.parametrize("is_answered", [True, False])
def test_another_thread_ends_the_wait(site: Site, is_answered: bool) -> None:
    if not is_answered:
        site.answer = b""
    transport = HttpTransport(site.url)
    stream = transport.stream(WATCH, 3600.0)
    ended: list[object] = []

    def wait() -> None:
        try:
            stream.open()
            while stream.read():
                ended.append("read")
        except Unreachable as failure:
            ended.append(failure)
        # Without a length, the end of the connection is the end of the stream.
        ended.append("end")

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(
        lambda: ended == ["read"] if is_answered else site.requests, timeout_s=WAIT_S_MAX, what="the wait"
    )
    stream.abort()
    thread.join()
    assert ended[-1] == "end"
    assert len(ended) == 2
    stream.close()
    transport.close()


def test_a_stream_that_was_aborted_before_it_was_opened_fails(site: Site) -> None:
    site.answer = b""
    transport = HttpTransport(site.url)
    stream = transport.stream(WATCH, 3600.0)
    stream.abort()
    with pytest.raises(Unreachable):
        stream.open()
    stream.close()
    transport.close()


def test_a_request_under_way_is_broken_and_the_next_one_works(site: Site) -> None:
    site.answer = b""
    transport = HttpTransport(site.url)
    ended: list[object] = []

    def send() -> None:
        try:
            transport.send(Request("GET", "/sync/download"))
        except Unreachable as failure:
            ended.append(failure)

    thread = threading.Thread(target=send)
    thread.start()
    wait_until(lambda: site.requests, timeout_s=WAIT_S_MAX, what="the request")
    transport.abort()
    thread.join()
    assert [type(end) for end in ended] == [Unreachable]
    site.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    assert transport.send(Request("GET", "/")) == Response(200, b"hi")
    transport.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with a table."""
    path = tmp_path / "app.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (id TEXT PRIMARY KEY)")
    connection.close()
    return path


def test_stopping_breaks_a_round_that_gets_no_answer(site: Site, path: Path) -> None:
    site.answer = b""
    with Device.open(path, schema="app", tables=["users"], source="phone", pace=Pace(grace_s=0.01)) as device:
        device.sign_in(site.url, "ada", token=TOKEN)
        device.connection.execute("INSERT INTO users VALUES ('a')")
        device.start()
        wait_until(lambda: len(site.requests) >= 2, timeout_s=WAIT_S_MAX, what="a request and a stream")
        device.stop()
        assert [t.name for t in threading.enumerate() if t.name.startswith("upwell")] == []
        status = device.status()
        assert (status.pending, status.is_running, status.is_signed_in) == (1, False, True)


async def test_stopping_cancels_a_round_that_gets_no_answer(site: Site, path: Path) -> None:
    site.answer = b""
    async with AsyncDevice.open(path, schema="app", tables=["users"], source="phone") as device:
        await device.sign_in(site.url, "ada", token=TOKEN)
        device.connection.execute("INSERT INTO users VALUES ('a')")
        await device.start()
        await asyncio.to_thread(
            wait_until, lambda: len(site.requests) >= 2, timeout_s=WAIT_S_MAX, what="a request and a stream"
        )
        await device.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(NotSynced, match="the round has not ended"):
            await device.wait_until_synced(0.05)
        assert (await device.status()).pending == 1
