"""A request leaves nothing behind: the next one of its connection needs no collection of garbage for that."""

import asyncio
import gc
import weakref
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from upwell.edge.packet import ExchangeProtocol, exchange_of

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Sent(asyncio.Transport):
    """What was written, and nobody at the other end."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: Any) -> None:
        self.data += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


async def test_an_answered_request_is_let_go_of() -> None:
    cycles: list[weakref.ref[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        cycles.append(weakref.ref(receive.__self__))
        exchange = exchange_of(scope)
        assert exchange is not None
        assert exchange.answer(200, [(b"content-length", b"2")], b"ok")

    config = uvicorn.Config(app, http=ExchangeProtocol, log_config=None)
    config.load()
    state, sent = ServerState(), Sent()
    protocol = ExchangeProtocol(config, state, {})
    protocol.connection_made(sent)
    gc.disable()
    try:
        for _ in range(3):
            protocol.data_received(REQUEST)
            await asyncio.gather(*state.tasks)
        assert sent.data.count(b"\r\n\r\nok") == 3
        assert [cycle() is None for cycle in cycles] == [True, True, False], (
            "the last one is the connection's"
        )
    finally:
        gc.enable()
        protocol.connection_lost(None)
