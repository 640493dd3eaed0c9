"""Stock clients of the fleet's user that only read; their apps are deleted and installed again.

Law: no page is ever refused by a file, whose references are checked at the page's end; who reads to the end
has what the server has.

Their own references restrict: a stock client replaces rows, which would fire the actions of others.
"""

import re
from contextlib import suppress
from pathlib import Path

import httpx

from upwell.device import Unreachable
from upwell.device.transport import Request
from upwell.testing.fleet_tables import APP_TABLES, TABLES, USER
from upwell.testing.inprocess import SECRET, SyncServer
from upwell.testing.ledger import Content, Place, contents_of
from upwell.testing.stock import StockClient
from upwell.testing.stock_answers import StockError

HYDRATED_ROWS_MAX = 1_000
_RESTRICTING = re.sub(r" ON DELETE (CASCADE|SET NULL)", "", APP_TABLES)


class Wire(httpx.BaseTransport):
    """What a client of HTTP asks is answered by a `SyncServer`; `lose` the next answers, as many."""

    def __init__(self, server: SyncServer) -> None:
        self._server = server
        self.lose = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request; raise `httpx.TransportError` if none arrives."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        query = tuple(request.url.params.multi_items())
        try:
            answer = self._server.answer(
                Request(request.method, request.url.path, query, request.read(), token)
            )
        except Unreachable as cause:
            raise httpx.ConnectError(str(cause)) from cause
        if self.lose:
            self.lose -= 1
            raise httpx.ReadError("the answer was lost (injected)")
        return httpx.Response(answer.status, content=answer.body)


class StockPhone:
    """An installed app with a stock client."""

    def __init__(self, server: SyncServer, directory: Path, source: str, limit: int) -> None:
        self.source = source
        self._wire = Wire(server)
        self._limit = limit
        self._path = directory / f"{source}.sqlite"
        self._client = self._install()

    def _install(self) -> StockClient:
        client = StockClient(
            self._path, base_url="http://inprocess", secret=SECRET, user=USER, source=self.source,
            schema="app", tables=TABLES, ddl=_RESTRICTING, transport=self._wire,
        )  # fmt: skip
        client.bootstrap()
        return client

    def read(self, pages: int, *, lost: int = 0) -> bool:
        """Read so many pages, of which the first answers get lost; return whether that was all."""
        self._wire.lose = lost
        with suppress(httpx.TransportError):
            return any(self._read_page() == 0 for _ in range(pages))
        return False

    def reinstall(self) -> None:
        """Go on with an empty file."""
        self._client.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._client = self._install()

    def contents(self) -> dict[Place, Content]:
        """Return all rows of the file."""
        return contents_of(self._client.run, TABLES)

    def close(self) -> None:
        """Close the file."""
        self._client.close()

    def _read_page(self) -> int:
        try:
            return self._client.download_once(self._limit)
        except StockError as refusal:
            if refusal.status != 409:
                raise
        # In one transaction and, so that it doesn't end too early (D16), on one page.
        return self._client.hydrate(limit=HYDRATED_ROWS_MAX) + 1
