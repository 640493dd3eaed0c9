"""A small server in memory that answers as the sync contract says: the oracle of the device tests.

Rows are per table and key; every applied change is one log entry; a change whose base version isn't the row's
version is a conflict and leaves nothing in the log.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from upwell.device import Request, Response, Unreachable

Json = dict[str, Any]


@dataclass
class Row:
    """The newest version of a row; payload None is a tombstone."""

    version: int
    payload: Json | None


@dataclass
class FakeServer:
    """`references`: child table → {column: parent table}. `batch_limit` 0: unlimited."""

    references: dict[str, dict[str, str]] = field(default_factory=dict)
    batch_limit: int = 0
    has_extensions: bool = True
    known_tables: set[str] | None = None
    stream: str = "stream-1"
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    log: list[Json] = field(default_factory=list)
    receipts: dict[tuple[str, int], Json] = field(default_factory=dict)
    uploads: list[Json] = field(default_factory=list)
    floor: int = 0

    def live(self, table: str) -> dict[str, Json]:
        """The live rows of a table by key."""
        return {pk: r.payload for (t, pk), r in self.rows.items() if t == table and r.payload is not None}

    def write(self, table: str, pk: str, payload: Json | None) -> None:
        """Write a row as the back end does."""
        found = self.rows.get((table, pk))
        version = (found.version if found else 0) + 1
        self.rows[table, pk] = Row(version, payload)
        op = "DELETE" if payload is None else "UPDATE" if version > 1 else "INSERT"
        self.log.append(self._entry(table, pk, op, version, payload, "server", 0))

    def transport(self, source: str) -> "FakeTransport":
        """What one device talks to."""
        return FakeTransport(self, source)

    def answer(self, request: Request, source: str) -> Response:
        """Answer one request of a device."""
        query = dict(request.query)
        match request.method, request.path:
            case "POST", "/sync/upload":
                return self._upload(json.loads(request.body or b""), source)
            case "GET", "/sync/download":
                return self._download(query, source)
            case "GET", "/sync/hydrate":
                return self._hydrate(query, source)
            case _:
                return _json(404, {"error": "not_found", "message": request.path})

    # --- upload

    def _upload(self, body: Json, source: str) -> Response:
        self.uploads.append(body)
        changes = body["changes"]
        if self.batch_limit and len(changes) > self.batch_limit:
            return self._answer([_invalid(change, "batch_too_large") for change in changes])
        statuses_by_index: dict[int, Json] = {}
        for index in sorted(range(len(changes)), key=lambda i: self._order(changes[i])):
            statuses_by_index[index] = self._apply(changes[index], source)
        return self._answer([statuses_by_index[index] for index in range(len(changes))])

    def _answer(self, statuses: list[Json]) -> Response:
        reasons = {status.get("invalid", {}).get("reason") for status in statuses}
        accepted = not reasons & {"unregistered_table", "batch_too_large"}
        return _json(200, {"accepted": accepted, "highest_server_seq": len(self.log), "statuses": statuses})

    def _order(self, change: Json) -> tuple[bool, int]:
        depth = self._depth(change["table"])
        return (True, -depth) if change["op"] == "DELETE" else (False, depth)

    def _depth(self, table: str) -> int:
        parents = {p for p in self.references.get(table, {}).values() if p != table}
        return 1 + max((self._depth(parent) for parent in parents), default=-1)

    def _apply(self, change: Json, source: str) -> Json:
        table, pk, base = change["table"], change["pk"], change["server_version"]
        change_id = change["source_change_id"]
        assert (change["op"] == "DELETE") == ("payload" not in change), (
            "DELETE has no payload, others have one"
        )
        if self.known_tables is not None and table not in self.known_tables:
            return _invalid(change, "unregistered_table")
        content = {k: change.get(k) for k in ("table", "pk", "op", "server_version", "payload")}
        receipt = self.receipts.get((source, change_id))
        row = self.rows.get((table, pk))
        if receipt is not None:
            assert receipt == content, f"change id {change_id} of {source} has two contents"
            return self._repeated(change, row)
        missing = self._missing(change)
        if missing:
            return _invalid(change, "fk_missing", missing=missing)
        if row is None and change["op"] == "DELETE":
            self.receipts[source, change_id] = content
            return {"source_change_id": change_id, "status": "applied"}
        if row is None and base:
            return _invalid(change, "internal_error")
        if (row.version if row else 0) != base:
            assert row is not None
            return {
                "source_change_id": change_id,
                "status": "conflict",
                "server_row": _server_row(change, row),
            }
        if change["op"] == "DELETE" and self._has_children(table, pk):
            return _invalid(change, "has_children")
        self.receipts[source, change_id] = content
        self.rows[table, pk] = Row(base + 1, change.get("payload"))
        payload = change.get("payload")
        self.log.append(self._entry(table, pk, change["op"], base + 1, payload, source, change_id))
        return {"source_change_id": change_id, "status": "applied", "new_server_version": base + 1}

    def _repeated(self, change: Json, row: Row | None) -> Json:
        status: Json = {"source_change_id": change["source_change_id"], "status": "applied"}
        if self.has_extensions:
            status["duplicate"] = True
            status["current_server_version"] = row.version if row else 0
            status["current_deleted"] = row is not None and row.payload is None
        return status

    def _missing(self, change: Json) -> list[str]:
        values = change.get("payload") or {}
        return [
            f"{parent}:{values[column]}"
            for column, parent in self.references.get(change["table"], {}).items()
            if values.get(column) is not None and values[column] not in self.live(parent)
        ]

    def _has_children(self, table: str, pk: str) -> bool:
        return any(
            parent == table and payload.get(column) == pk
            for child, columns in self.references.items()
            for column, parent in columns.items()
            for payload in self.live(child).values()
        )

    # --- download, hydration

    def _entry(
        self, table: str, pk: str, op: str, version: int, payload: Json | None, source: str, cid: int
    ) -> Json:
        return {
            "server_id": len(self.log) + 1,
            "schema": "app",
            "table": table,
            "op": op,
            "pk": pk,
            "payload": payload,
            "server_version": version,
            "deleted": payload is None,
            "source_id": source,
            "source_change_id": cid,
            "ts": "2026-01-01T00:00:00Z",
        }

    def _download(self, query: dict[str, str], source: str) -> Response:
        after, limit = int(query["after"]), int(query["limit"])
        if after < self.floor:
            return _json(409, {"error": "history_pruned", "message": "hydrate"})
        until = int(query.get("until", 0)) or len(self.log)
        own = query.get("include_self") == "true"
        found = [e for e in self.log[after:until] if own or e["source_id"] != source]
        page = found[:limit]
        body = {
            "changes": page,
            "has_more": len(found) > limit,
            "next_after": page[-1]["server_id"] if page else after,
            "window_until": until,
            "stream_id": self.stream,
        }
        return _json(200, body)

    def _hydrate(self, query: dict[str, str], source: str) -> Response:
        *last, began = json.loads(query.get("cursor", f"[{len(self.log)}]"))
        live = sorted((self._depth(t), t, pk) for (t, pk), r in self.rows.items() if r.payload is not None)
        rest = [entry for entry in live if list(entry) > last]
        page = rest[: int(query["limit"])]
        pages = [
            self._table_page(table, [pk for _, _, pk in run])
            for table, run in itertools.groupby(page, lambda entry: entry[1])
        ]
        body = {
            "tables": pages,
            "has_more": len(page) < len(rest),
            "cursor": json.dumps([*(page[-1] if page else last), began]),
            "next_after": began,
            "next_change_id": 1 + max((cid for s, cid in self.receipts if s == source), default=0),
            "stream_id": self.stream,
            "max_server_id": len(self.log),
        }
        return _json(200, body)

    def _table_page(self, table: str, keys: list[str]) -> Json:
        found = [self.rows[table, pk] for pk in keys]
        payloads = [row.payload or {} for row in found]
        columns = next((list(p) for pk, p in zip(keys, payloads, strict=True) if _leads(p, pk)), ["id"])
        # What isn't a row of these very columns travels as it was uploaded.
        exact = {
            str(index): payload
            for index, (pk, payload) in enumerate(zip(keys, payloads, strict=True))
            if list(payload) != columns or not _leads(payload, pk)
        }
        rows = [
            [pk] if str(index) in exact else list(payload.values())
            for index, (pk, payload) in enumerate(zip(keys, payloads, strict=True))
        ]
        return {
            "schema": "app",
            "table": table,
            "columns": columns,
            "rows": rows,
            "versions": [row.version for row in found],
            "exact": exact,
        }


@dataclass
class FakeTransport:
    """The wire between one device and the server, with hooks for faults.

    `drop_answers`: so many next answers are lost after the server has done its work. `on_send` runs while a
    request is in flight. `refuse` answers instead of the server.
    """

    server: FakeServer
    source: str
    drop_answers: int = 0
    on_send: Callable[[Request], None] | None = None
    refuse: Response | None = None
    requests: list[Request] = field(default_factory=list)

    def send(self, request: Request) -> Response:
        self.requests.append(request)
        if self.refuse is not None:
            return self.refuse
        response = self.server.answer(request, self.source)
        if self.on_send is not None:
            self.on_send(request)
        if self.drop_answers:
            self.drop_answers -= 1
            raise Unreachable("the answer was dropped")
        return response

    def close(self) -> None:
        """Nothing is open."""


def _leads(payload: Json, pk: str) -> bool:
    """Tell whether the first member of a payload is the row's key."""
    return bool(payload) and next(iter(payload.values())) == pk


def _json(status: int, body: Json) -> Response:
    return Response(status, json.dumps(body).encode())


def _invalid(change: Json, reason: str, **details: Any) -> Json:
    invalid = {"reason": reason, "details": details}
    return {"source_change_id": change["source_change_id"], "status": "invalid", "invalid": invalid}


def _server_row(change: Json, row: Row) -> Json:
    return {
        "schema_name": "app",
        "table_name": change["table"],
        "id": change["pk"],
        "server_version": row.version,
        "deleted": row.payload is None,
        "payload": row.payload,
    }
