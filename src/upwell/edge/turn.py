"""Turns: one long piece of work in each turn of the event loop, so that what is short goes between.

Law: who waits is served in order, and nobody waits while nothing long was done.
"""

import asyncio
from collections import deque


class Turns:
    """Gives one turn of the running event loop after the other away."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def take(self) -> None:
        """Return in a turn of the loop that nobody else has taken."""
        loop = asyncio.get_running_loop()
        if self._is_taken:
            future = loop.create_future()
            self._waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if not future.cancelled():  # its turn had come: it is the next one's now
                    self._pass_on()
                raise
        self._is_taken = True
        loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():  # it was cancelled
                future.set_result(None)
                return
        self._is_taken = False
