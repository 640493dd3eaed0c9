"""The socket: uvicorn with the server's own signals, and its shutdown."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from upwell.config import Config
from upwell.edge.gate import Gate
from upwell.edge.packet import ExchangeProtocol
from upwell.edge.stream import LogStreams
from upwell.edge.wire import RawWS
from upwell.edge.ws import LiveSocket
from upwell.errors import StartRefused
from upwell.logs import fields

log = logging.getLogger("upwell.app")

SWITCH_INTERVAL_S = 0.0001
"""The thread that syncs needs the interpreter twice a commit; beside readers it waits so long each time."""
GC_ALLOCATIONS = 10_000
BACKLOG = 2_048
KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process with the signal."""

    def __init__(self, config: uvicorn.Config, live: LiveSocket, streams: LogStreams) -> None:
        super().__init__(config)
        self._live = live
        self._streams = streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._streams.close()
        await self._live.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        log.info("Stopping: finishing what is under way")
        self.should_exit = True


async def listen(config: Config, gate: Gate, live: LiveSocket, streams: LogStreams) -> None:
    """Serve the gate on the configured address until SIGTERM or SIGINT; raise `StartRefused` if it can't."""
    server = _Server(
        uvicorn.Config(
            gate,
            host=config.host,
            port=config.port,
            interface="asgi3",
            http=ExchangeProtocol,
            proxy_headers=False,  # the gate looks after them
            server_header=False,
            ws=RawWS,
            ws_per_message_deflate=False,
            # Who says nothing is closed by us; who reads slowly says enough, though its pongs come late.
            ws_ping_interval=None,
            lifespan="off",
            access_log=False,
            log_config=None,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(config.drain_s)),
        ),
        live,
        streams,
    )
    # Fewer long pauses: what exists now stays, and a thread that computes hands over soon.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log.info("Upwell starts", extra=fields(host=config.host, port=config.port, data_dir=str(config.data_dir)))
    try:
        await server.serve()
    except SystemExit as error:  # uvicorn's way to say that it can't listen
        raise StartRefused(f"can't listen on {config.host}:{config.port}; is the port taken?") from error
    log.info("Upwell stopped")
