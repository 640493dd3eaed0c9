"""Turns: a long write that shorter ones keep overtaking gets one, and those of its table wait meanwhile.

Law: nobody waits for more than one turn, nor longer than `TURN_S_MAX`; nothing is locked.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from upwell.types import TableId

TURN_S_MAX = 1.0
"""So long a write waits for the turn of another; what takes longer gets none: others would overtake it."""


class Turns:
    """Whose turn it is to write, table by table; of one event loop."""

    def __init__(self) -> None:
        self._taken: dict[TableId, asyncio.Event] = {}

    async def wait(self, *tables: TableId) -> None:
        """Return when the turns that are taken now are over."""
        if not self._taken:
            return
        ends = [self._taken[table] for table in tables if table in self._taken]
        with suppress(TimeoutError):
            async with asyncio.timeout(TURN_S_MAX):
                for end in ends:
                    await end.wait()

    @asynccontextmanager
    async def taken(self, table: TableId) -> AsyncIterator[None]:
        """Have the turn of a table, after those who have it."""
        while (other := self._taken.get(table)) is not None:
            await other.wait()
        end = self._taken[table] = asyncio.Event()
        try:
            yield
        finally:
            del self._taken[table]
            end.set()
