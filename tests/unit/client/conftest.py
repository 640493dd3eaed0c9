"""A server small enough to read, on a loopback port: one table `app.notes` (id, body), one log, no SQL.

It keeps the protocol's promises about live queries (snapshot, changes, resume with missed deletes), so that
the client's promises can be tested against it; every connection can be cut and every token revoked.
"""

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

SCHEMA = [
    {"name": "id", "data_type": "BigInt", "index": 0, "flags": ["nn", "pk", "uq"]},
    {"name": "body", "data_type": "Text", "index": 1},
    {"name": "_seq", "data_type": "BigInt", "index": 2, "flags": ["nn"]},
    {"name": "_deleted", "data_type": "Boolean", "index": 3, "flags": ["nn"]},
]
ANSWER = {
    "status": "success",
    "results": [{"schema": SCHEMA[:2], "rows": [["1", "hi"]], "row_count": 1, "as_user": "alice"}],
    "took": 0.5,
}


class TinyServer:
    """The log and who is connected. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.frames: list[dict[str, Any]] = []
        self.pings = threading.Semaphore(0)
        self.connections = 0
        self.refuse_sql: dict[str, Any] | None = None
        self.cut_after_frames: int | None = None
        self._log: list[tuple[int, str, dict[str, Any], dict[str, Any] | None]] = []
        self._rows: dict[int, dict[str, Any]] = {}
        self._seqs = itertools.count(1_738_291_029_381_029_888)
        self._changed = asyncio.Event()
        self._cut = asyncio.Event()
        self._numbers = itertools.count(1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            self._app, interface="asgi3", log_level="error", lifespan="off", ws="websockets-sansio"
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="tiny-server")
        self._thread.start()

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        """What SELECT id, body returns, by id."""
        return {int(row["id"]): {"id": int(row["id"]), "body": row["body"]} for row in self._rows.values()}

    def put(self, key: int, body: str | None) -> int:
        """Insert or update a note; return its seq."""
        seq, before = next(self._seqs), self._rows.get(key)
        row = {"id": str(key), "body": body, "_seq": str(seq), "_deleted": False}
        self._rows[key] = row
        if before is None:
            self._append(seq, "insert", row, None)
        else:
            new = {name: cell for name, cell in row.items() if cell is not None}
            old = {"id": str(key), "_seq": before["_seq"], "body": before["body"]}
            self._append(seq, "update", new, old)
        return seq

    def delete(self, key: int) -> int:
        """Delete a note; return its tombstone's seq."""
        seq = next(self._seqs)
        self._append(seq, "delete", {**self._rows.pop(key), "_seq": str(seq), "_deleted": True}, None)
        return seq

    def cut(self) -> None:
        """Break all live connections."""
        self._wake(self._cut)

    def close(self) -> None:
        self._server.should_exit = True
        self.cut()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._listener])

        asyncio.run(run())

    def _append(self, seq: int, kind: str, row: dict[str, Any], old: dict[str, Any] | None) -> None:
        self._log.append((seq, kind, row, old))
        self._wake(self._changed)

    def _wake(self, event: asyncio.Event) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(event.set)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._live(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        raw, more = b"", True
        while more:
            message = await receive()
            raw, more = raw + message.get("body", b""), message.get("more_body", False)
        body = json.loads(raw)
        self.requests.append((scope["path"], body))
        status, answer = self._login(body) if scope["path"].endswith("login") else self._sql(scope)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    def _login(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body != {"user": "alice", "password": "wonderland"}:
            return 401, {"error": "unauthorized", "message": "Invalid credentials"}
        token = f"token-{next(self._numbers)}"
        self.tokens.add(token)
        times = dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00+00:00")
        user = {"id": "alice", "role": "user", "email": None, **times}
        return 200, {
            "user": user,
            "admin_ui_access": False,
            "expires_at": "2026-01-02T00:00:00+00:00",
            "access_token": token,
        }

    def _sql(self, scope: Any) -> tuple[int, dict[str, Any]]:
        if not self._is_signed_in(scope):
            error = {"code": "TOKEN_EXPIRED", "message": "Invalid credentials"}
            return 401, {"status": "error", "error": error, "results": [], "took": 0.1}
        if self.refuse_sql is not None:
            return 400, {"status": "error", "error": self.refuse_sql, "results": [], "took": 0.1}
        return 200, ANSWER

    def _is_signed_in(self, scope: Any) -> bool:
        credentials = dict(scope["headers"]).get(b"authorization", b"").decode()
        return credentials.removeprefix("Bearer ") in self.tokens

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.connections += 1
        if not self._is_signed_in(scope):
            await _frame(send, {"type": "auth_error", "message": "Invalid credentials"})
            await send({"type": "websocket.close", "code": 1008})
            return
        protocol = {"serialization": "json", "compression": "none"}
        await _frame(send, {"type": "auth_success", "user": "alice", "role": "user", "protocol": protocol})
        self._cut.clear()
        tasks = {asyncio.create_task(self._talk(receive, send)), asyncio.create_task(self._cut.wait())}
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            task.result()
        if self._cut.is_set():
            await send({"type": "websocket.close", "code": 1012})

    async def _talk(self, receive: Any, send: Any) -> None:
        frame = await self._next_frame(receive)
        if frame is None:
            return
        subscription = frame["subscription"]
        if "nope" in subscription["sql"]:
            error = {"type": "error", "code": "NOT_FOUND", "message": "no such table"}
            await _frame(send, {**error, "subscription_id": "live"})
            await receive()
            return
        after, size = subscription["options"].get("from"), subscription["options"]["batch_size"]
        seen = self._log[-1][0] if self._log else 0
        budget = self.cut_after_frames
        for row_frame in self._start_frames(after, size, seen):
            number = row_frame.get("batch_control", {}).get("batch_num", 0)
            if number > 0 and await self._next_frame(receive) is None:
                return
            await _frame(send, row_frame)
            if budget is not None and (budget := budget - 1) == 0:
                self.cut_after_frames = None
                self._cut.set()
                return
        changes = asyncio.create_task(self._send_changes(send, seen))
        while await self._next_frame(receive) is not None:
            pass
        changes.cancel()
        await asyncio.wait({changes})

    def _start_frames(self, after: int | None, size: int, until: int) -> Iterator[dict[str, Any]]:
        floor = after or 0
        newer = [row for row in list(self._rows.values()) if int(row["_seq"]) > floor]
        rows = sorted(newer, key=lambda row: int(row["_seq"]))
        pages = [rows[i : i + size] for i in range(0, len(rows), size)] or [[]]
        for number, page in enumerate(pages):
            more = number + 1 < len(pages)
            status = ("loading_batch" if number else "loading") if more else "ready"
            last = int(page[-1]["_seq"]) if page else None
            control = {"batch_num": number, "has_more": more, "status": status, "last_seq_id": last}
            if number == 0:
                ack = {
                    "type": "subscription_ack",
                    "total_rows": 0,
                    "batch_control": control,
                    "schema": SCHEMA,
                }
                yield {**ack, "subscription_id": "live"}
            batch = {"type": "initial_data_batch", "rows": page, "batch_control": control}
            yield {**batch, "subscription_id": "live"}
        if after is not None:
            for seq, kind, row, old in self._log:
                if kind == "delete" and floor < seq <= until and int(row["id"]) not in self._rows:
                    yield _change(kind, row, old)

    async def _send_changes(self, send: Any, seen: int) -> None:
        while True:
            self._changed.clear()
            for seq, kind, row, old in self._log:
                if seq > seen:
                    await _frame(send, _change(kind, row, old))
                    seen = seq
            await self._changed.wait()

    async def _next_frame(self, receive: Any) -> dict[str, Any] | None:
        """Return the next frame that isn't a ping, None when the client is gone."""
        while (message := await receive())["type"] != "websocket.disconnect":
            frame: dict[str, Any] = json.loads(message["text"])
            if frame["type"] != "ping":
                self.frames.append(frame)
                return frame
            self.pings.release()
        return None


def _change(kind: str, row: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    frame: dict[str, Any] = {"type": "change", "subscription_id": "live", "change_type": kind}
    if kind == "delete":
        return {**frame, "old_values": [row]}
    return {**frame, "rows": [row]} if old is None else {**frame, "rows": [row], "old_values": [old]}


async def _frame(send: Any, frame: dict[str, Any]) -> None:
    await send({"type": "websocket.send", "text": json.dumps(frame)})


@pytest.fixture
def server() -> Iterator[TinyServer]:
    """A running server with an empty table and one user: alice, wonderland."""
    tiny = TinyServer()
    yield tiny
    tiny.close()
