"""The gate: what every request gets, whoever serves it."""

import logging
from typing import Any

import pytest

from upwell.edge.gate import Gate
from upwell.edge.http import respond
from upwell.edge.metrics import Traffic
from upwell.logs import origin


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request"}


async def _served(gate: Gate, path: str, **headers: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": named, "client": ("192.0.2.1", 1)}
    await gate(scope, _nothing, send)
    return sent


async def _well(scope: Any, receive: Any, send: Any) -> None:
    found = origin()
    assert found is not None
    await respond(send, 200, f'"{found.request_id} {found.address}"'.encode())


async def _broken(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("a secret of the server")


def _gate(traffic: Traffic, slow_request_s: float = 60) -> Gate:
    return Gate({("GET", "/hot"): _well}, {}, _well, _broken, traffic, slow_request_s=slow_request_s)


async def test_work_knows_its_request() -> None:
    start, body = await _served(_gate(Traffic(["/hot"])), "/hot", x_request_id="mine")
    assert (b"x-request-id", b"mine") in start["headers"]
    assert body["body"] == b'"mine 192.0.2.1"'


async def test_what_is_unexpected_is_answered_without_details(caplog: pytest.LogCaptureFixture) -> None:
    traffic = Traffic(["/hot"])
    with caplog.at_level(logging.ERROR, "upwell.edge"):
        start, body = await _served(_gate(traffic), "/elsewhere")
    assert start["status"] == 500
    assert b"secret" not in body["body"]
    assert traffic.requests == {("other", 500): 1}
    assert "a secret of the server" in caplog.text


async def test_a_slow_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "upwell.edge"):
        await _served(_gate(Traffic(["/hot"])), "/hot")
        assert caplog.records == []
        await _served(_gate(Traffic(["/hot"]), slow_request_s=0), "/hot")
    (record,) = caplog.records
    assert record.getMessage() == "Slow request"
    found: dict[str, Any] = record.__dict__["fields"]
    assert (found["method"], found["path"], found["status"]) == ("GET", "/hot", 200)
