"""The gate: what every request gets, whoever serves it."""

import logging
from typing import Any

import pytest

from upwell.edge.cors import Cors
from upwell.edge.gate import Gate
from upwell.edge.http import respond
from upwell.edge.metrics import Traffic
from upwell.logs import origin


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request"}


async def _served(
    gate: Gate, path: str, method: str = "GET", kind: str = "http", **headers: str
) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": named, "client": ("192.0.2.1", 1)}
    await gate(scope, _nothing, send)
    return sent


async def _well(scope: Any, receive: Any, send: Any) -> None:
    found = origin()
    assert found is not None
    await respond(send, 200, f'"{found.request_id} {found.address}"'.encode())


async def _broken(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("a secret of the server")


def _gate(traffic: Traffic, slow_request_s: float = 60, origins: str = "") -> Gate:
    cors = Cors(origins)
    return Gate(
        {("GET", "/hot"): _well}, {}, _well, _broken, traffic, slow_request_s=slow_request_s, cors=cors
    )


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


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("", "https://any.example", True),
        ("*", "https://any.example", True),
        ("https://app.example, http://localhost:5173/", "https://app.example", True),
        ("https://app.example, http://localhost:5173/", "http://localhost:5173", True),
        ("https://app.example", "https://APP.example", True),
        ("https://app.example", "https://evil.example", False),
        ("https://app.example", "https://app.example.evil.example", False),
        ("https://app.example", "null", False),
    ],
)
async def test_pages_of_allowed_origins_read_the_answer(origins: str, origin: str, allowed: bool) -> None:
    gate = _gate(Traffic(["/hot"]), origins=origins)
    start, _ = await _served(gate, "/hot", origin=origin)
    assert start["status"] == 200
    found = dict(start["headers"])
    assert found.get(b"access-control-allow-origin") == (origin.encode() if allowed else None)
    assert found.get(b"access-control-allow-credentials") == (b"true" if allowed else None)
    asked = {"origin": origin, "access_control_request_method": "POST"}
    start, _ = await _served(gate, "/hot", "OPTIONS", **asked)
    assert start["status"] == 204
    found = dict(start["headers"])
    assert (b"access-control-allow-origin" in found) is allowed
    assert b"POST" in found[b"access-control-allow-methods"]
    assert b"Authorization" in found[b"access-control-allow-headers"]
    socket = await _served(gate, "/v1/ws", kind="websocket", origin=origin)
    refused = socket[0].get("status") == 403
    assert refused is not allowed


async def test_who_is_no_page_is_not_asked_for_an_origin() -> None:
    start, _ = await _served(_gate(Traffic(["/hot"]), origins="https://app.example"), "/hot")
    assert start["status"] == 200
    assert not any(name.startswith(b"access-control") for name, _ in start["headers"])
