"""The stock client, observed: what go-oversync's SQLite client (oversqlite, generation A) does, in Python.

It has that client's weaknesses on purpose, and none is to be repaired here: it cancels insert + delete to
nothing and forgets delete + insert + delete (D4, D6), leaves the old row after a primary-key change (D7),
starts at version 0 after INSERT OR REPLACE (D8), hands out late change ids without keeping the counter
(D5), drops edits made during an upload or after a lost answer (D10, D11), replaces rows on download, which
fires cascades and resets absent columns (D13, D14), takes every payload key for a column (D15), ends a
hydration at a short page (D16), reads BLOBs by guessing and sends a NULL one as "" (D17), sends orphans
first for ever (D18), is wedged by a deleted parent of an unsent child (D19), and reads all numbers as
doubles (D20). Left out is its deadlock on a pool of one connection (D12): it behaves as it does with a
larger pool.

Law: written from the wire contract alone, it shares no code with Upwell's server or device package; so what
it can digest, an app in the field can.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import jwt

from upwell.testing.stock_answers import DownloadAnswer, StockError, UploadAnswer, checked
from upwell.testing.stock_file import NOW, Json, Pending, StockFile, decode_row, encode

# (table, local key, the whole server_row, local row) → (row to keep, keep the local one)
Resolver = Callable[[str, str, Json, Json], tuple[Json, bool]]

TOKEN_S = 24 * 3600
HTTP_S_MAX = 120.0
DRAIN_PAGES_MAX = 50
DROPPED_REASONS = frozenset({"bad_payload", "unregistered_table"})


def server_wins(table: str, pk: str, server: Json, local: Json) -> tuple[Json, bool]:
    """The resolver that the stock client has unless the app brings one."""
    return local, False


class StockClient:
    """One SQLite file of one user and one source; nothing runs but what is called.

    `requests` has path and parameters or body of every request, `answers` each answer of an upload, in order.
    `on_answer` is called when an upload was answered and before the client looks at the answer.
    """

    def __init__(
        self,
        path: Path,
        *,
        base_url: str,
        secret: str,
        user: str,
        source: str,
        schema: str,
        tables: Sequence[str],
        ddl: str = "",
        upload_limit: int = 200,
        download_limit: int = 1000,
        resolver: Resolver = server_wins,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.user, self.source, self.schema = user, source, schema
        self.upload_limit, self.download_limit = upload_limit, download_limit
        self.requests: list[tuple[str, Json]] = []
        self.answers: list[Json] = []
        self.on_answer: Callable[[], object] = lambda: None
        self._secret = secret
        self._resolver = resolver
        self._http = httpx.Client(base_url=base_url, timeout=HTTP_S_MAX, transport=transport)
        self._file = StockFile(path, ddl, tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.db.close()
        self._http.close()

    def run(self, sql: str, *parameters: object) -> list[Any]:
        """Run one statement as the app does."""
        return self._file.run(sql, *parameters)

    def pending(self) -> list[Pending]:
        """What waits, in the order in which it will be sent."""
        return self._file.pending()

    def meta(self, table: str, pk: str) -> tuple[int, bool]:
        """(server version, is deleted) of a row by its local key; (0, False) for an unknown one."""
        return self._file.meta(table, pk)

    def bootstrap(self) -> None:
        """Sign in: remember user and source, unless they are known."""
        insert = "INSERT OR IGNORE INTO _sync_client_info (user_id, source_id) VALUES (?, ?)"
        self.run(insert, self.user, self.source)

    def upload_once(self) -> int:
        """Send one window of what waits, then drain downloads; return how many changes were sent."""
        seen = self._file.info("last_server_seq_seen")
        window = self._numbered(self._file.pending(self.upload_limit))
        size, at = self.upload_limit, 0
        while at < len(window):
            chunk = window[at : at + size]
            answer = self._post([self._wire_change(change) for change in chunk], seen=seen)
            if _is_too_large(answer) and len(chunk) > 1:
                size = len(chunk) // 2
                continue
            with self._file.transaction():
                self._process(chunk, answer)
            seen = answer["highest_server_seq"]
            at += len(chunk)
        for _ in range(DRAIN_PAGES_MAX):
            if self.download_once() == 0:
                break
        return len(window)

    def upload_all(self, *, rounds_max: int = 100) -> int:
        """Do what the background loop does until nothing waits; return the rounds it took."""
        for number in range(rounds_max):
            if not self._file.pending(1):
                return number
            self.upload_once()
        raise AssertionError(f"still pending after {rounds_max} rounds: {self._file.pending(3)}")

    def download_once(self, limit: int | None = None, *, until: int = 0, include_self: bool = False) -> int:
        """Fetch and apply one page; return how many changes were applied."""
        page = self._fetch(limit or self.download_limit, until=until, include_self=include_self)
        with self._file.transaction():
            return self._apply_page(page, include_self=include_self, skips_superseded=not until)

    def download_all(self, limit: int | None = None) -> int:
        """Fetch pages until one applies nothing; return how many changes were applied."""
        return sum(iter(lambda: self.download_once(limit), 0))

    def hydrate(self, *, include_self: bool = True, limit: int | None = None) -> int:
        """Replay the whole log in one transaction, until a page applies fewer changes than it may."""
        limit, total = limit or self.download_limit, 0
        with self._file.transaction():
            self.run("UPDATE _sync_client_info SET last_server_seq_seen = 0")
            while True:
                page = self._fetch(limit, include_self=include_self)
                applied = self._apply_page(page, include_self=include_self)
                if include_self and applied:
                    self._learn_change_ids(page)
                total += applied
                if applied < limit:
                    return total

    # --- upload

    def _numbered(self, window: list[Pending]) -> list[Pending]:
        if all(change.change_id is not None for change in window):
            return window
        # The counter itself is not advanced (D5).
        ids = itertools.count(self._file.info("next_change_id"))
        update = "UPDATE _sync_pending SET change_id = ? WHERE table_name = ? AND pk_uuid = ?"
        for change in window:
            if change.change_id is None:
                self.run(update, next(ids), change.table, change.pk)
        return self._file.pending(self.upload_limit)

    def _wire_change(self, change: Pending) -> Json:
        shape = self._file.shapes[change.table]
        sent: Json = {
            "source_change_id": change.change_id,
            "schema": self.schema,
            "table": change.table,
            "op": change.op,
            "pk": shape.wire_pk(change.pk),
            "server_version": change.base_version,
        }
        if change.op != "DELETE":
            has_payload = change.payload is not None
            row = decode_row(change.payload or "") if has_payload else self._file.row(shape, change.pk)
            sent["payload"] = {name: shape.to_wire(name, value) for name, value in (row or {}).items()}
        return sent

    def _post(self, changes: list[Json], *, seen: int) -> Json:
        body = {"last_server_seq_seen": seen, "changes": changes}
        self.requests.append(("/sync/upload", body))
        headers = {**self._headers(), "Content-Type": "application/json"}
        response = self._http.post("/sync/upload", content=encode(body).encode(), headers=headers)
        self.on_answer()
        answer = checked(response, UploadAnswer)
        if len(answer["statuses"]) != len(changes):
            raise StockError(f"{len(answer['statuses'])} statuses for {len(changes)} changes")
        self.answers.append(answer)
        return answer

    def _process(self, chunk: list[Pending], answer: Json) -> None:
        for change, status in zip(chunk, answer["statuses"], strict=True):
            match status["status"]:
                case "applied":
                    self._file.drop(change.table, change.pk)
                    if version := status.get("new_server_version"):
                        is_deleted = change.op == "DELETE"
                        self._file.set_meta(change.table, change.pk, version, is_deleted=is_deleted)
                case "conflict":
                    self._resolve(change, status["server_row"])
                case "invalid" if (status.get("invalid") or {}).get("reason") in DROPPED_REASONS:
                    self._file.drop(change.table, change.pk)
                case _:
                    pass  # kept, and sent again at the head of the next window
        seen = "UPDATE _sync_client_info SET current_window_until = max(current_window_until, ?)"
        self.run(seen, answer["highest_server_seq"])

    def _resolve(self, change: Pending, server: Json) -> None:
        """Settle a conflict, with the triggers on: what is written here is captured, too."""
        version, local = server["server_version"], self._file.row(self._file.shapes[change.table], change.pk)
        row, keeps_local = (
            (server, False) if local is None else self._resolver(change.table, change.pk, server, local)
        )
        if not keeps_local:
            self._upsert(change.table, change.pk, server["payload"], version)
            self._file.drop(change.table, change.pk)
            return
        self._file.replace(self._file.shapes[change.table], row)
        self.run(
            f"UPDATE _sync_pending SET base_version = ?, queued_at = {NOW}"
            " WHERE table_name = ? AND pk_uuid = ?",
            *(version, change.table, change.pk),
        )

    # --- download

    def _fetch(self, limit: int, *, until: int = 0, include_self: bool) -> Json:
        after = self._file.info("last_server_seq_seen")
        query: Json = {"after": after, "limit": limit, "schema": self.schema}
        if include_self:
            query["include_self"] = "true"
        if until:
            query["until"] = until
        self.requests.append(("/sync/download", query))
        return checked(
            self._http.get("/sync/download", params=query, headers=self._headers()), DownloadAnswer
        )

    def _apply_page(self, page: Json, *, include_self: bool, skips_superseded: bool = True) -> int:
        self.run("PRAGMA defer_foreign_keys = ON")
        self.run("UPDATE _sync_client_info SET apply_mode = 1")
        changes: list[Json] = page["changes"]
        upserted = {(c["table"], c["pk"]): c["server_version"] for c in changes if c["op"] != "DELETE"}
        applied = 0
        for change in changes:
            newest = upserted.get((change["table"], change["pk"]), 0)
            is_superseded = (
                change["op"] == "DELETE" and newest > change["server_version"] and skips_superseded
            )
            is_own = change["source_id"] == self.source and not include_self
            if not is_own and not is_superseded:
                self._apply(change)
                applied += 1
        cursor = "last_server_seq_seen = max(last_server_seq_seen, ?)"
        self.run(f"UPDATE _sync_client_info SET {cursor}, apply_mode = 0", page["next_after"])
        return applied

    def _apply(self, change: Json) -> None:
        table, version = change["table"], change["server_version"]
        pk = self._file.shapes[table].local_pk(change["pk"])
        if change["op"] == "DELETE":
            self._apply_delete(table, pk, version)
        else:
            self._upsert(table, pk, change["payload"], version)

    def _upsert(self, table: str, pk: str, payload: Json | None, version: int) -> None:
        """Write a row of the server; of a deleted one there are no columns: the statement is no SQL."""
        known, is_deleted = self._file.meta(table, pk)
        is_kept_deleted = is_deleted and known >= version
        if not is_kept_deleted:
            self._file.replace(self._file.shapes[table], payload or {})
        self._file.set_meta(table, pk, version, is_deleted=is_kept_deleted)

    def _apply_delete(self, table: str, pk: str, version: int) -> None:
        waits = "SELECT 1 FROM _sync_pending WHERE table_name = ? AND pk_uuid = ? AND op = 'INSERT'"
        if self.run(waits, table, pk):
            return
        # An edit that waits stays: its conflict finds the row deleted, and ends it.
        self._file.delete(self._file.shapes[table], pk)
        self._file.set_meta(table, pk, version, is_deleted=True)

    def _learn_change_ids(self, page: Json) -> None:
        own = [c["source_change_id"] for c in page["changes"] if c["source_id"] == self.source]
        learn = "UPDATE _sync_client_info SET next_change_id = max(next_change_id, ?)"
        self.run(learn, max(own, default=0) + 1)

    def _headers(self) -> dict[str, str]:
        now = int(time.time())
        claims = {
            "sub": self.user,
            "did": self.source,
            "iss": "go-oversync",
            "iat": now,
            "exp": now + TOKEN_S,
        }
        return {"Authorization": f"Bearer {jwt.encode(claims, self._secret, 'HS256')}"}


def _is_too_large(answer: Json) -> bool:
    reasons = {(status.get("invalid") or {}).get("reason") for status in answer["statuses"]}
    return not answer["accepted"] and "batch_too_large" in reasons
