"""What the device sync tests share: a namespace of synced tables, devices that speak the wire by hand, and
phones with real SQLite files whose wire can lose answers, edit them, or act while a request is under way.
"""

import itertools
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import jwt

from upwell.client import Client, connect
from upwell.device import Device, HttpTransport, Request, Response, Unreachable
from upwell.testing import ServerProcess, wait_until
from upwell.testing.wire import PASSWORD, Wire

Json = dict[str, Any]
JOB_S_MAX = 30.0
_numbers = itertools.count(1)

TABLES = (
    "users (id UUID PRIMARY KEY, name TEXT NOT NULL, email TEXT)",
    "posts (id UUID PRIMARY KEY, title TEXT NOT NULL, author UUID REFERENCES {ns}.users(id))",
    "comments (id UUID PRIMARY KEY, body TEXT, post UUID REFERENCES {ns}.posts(id) ON DELETE CASCADE,"
    " author UUID REFERENCES {ns}.users(id) ON DELETE SET NULL)",
    "nodes (id UUID PRIMARY KEY, up UUID REFERENCES {ns}.nodes(id), side UUID REFERENCES {ns}.nodes(id))",
    "notes (id TEXT PRIMARY KEY, body TEXT)",
    "things (id UUID PRIMARY KEY, flag BOOLEAN, small SMALLINT, number INT, big BIGINT, real DOUBLE,"
    " text TEXT, moment TIMESTAMP, ref UUID, doc JSON, data BYTES)",
)
SQLITE = """
CREATE TABLE users (id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT);
CREATE TABLE posts (
    id TEXT PRIMARY KEY, title TEXT NOT NULL,
    author TEXT REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE comments (
    id TEXT PRIMARY KEY, body TEXT,
    post TEXT REFERENCES posts (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    author TEXT REFERENCES users (id) ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED);
"""


def key(number: int) -> str:
    """A UUID whose order is that of the numbers."""
    return f"00000000-0000-4000-8000-{number:012d}"


def upsert(number: int, table: str, pk: str, base: int = 0, /, op: str | None = None, **columns: Any) -> Json:
    """An INSERT (base 0) or UPDATE with change id `number`, whose payload has the key and `columns`."""
    return {
        "source_change_id": number,
        "table": table,
        "op": op or ("UPDATE" if base else "INSERT"),
        "pk": pk,
        "server_version": base,
        "payload": {"id": pk, **columns},
    }


def delete(number: int, table: str, pk: str, base: int) -> Json:
    """A DELETE with change id `number`."""
    return {"source_change_id": number, "table": table, "op": "DELETE", "pk": pk, "server_version": base}


def applied(number: int, version: int) -> Json:
    """The status of a change that made a version."""
    return {"source_change_id": number, "status": "applied", "new_server_version": version}


def repeated(number: int, version: int, *, deleted: bool = False, made: int | None = None) -> Json:
    """The status of a change that had been applied before, as `made`, on a row that is at `version` now."""
    return {
        "source_change_id": number,
        "status": "applied",
        "current_server_version": version,
        "current_deleted": deleted,
        "duplicate": True,
        "applied_server_version": version if made is None else made,
    }


def invalid(number: int, reason: str, message: str) -> Json:
    """The status of a refused change whose details repeat the message."""
    return {
        "source_change_id": number,
        "status": "invalid",
        "message": message,
        "invalid": {"reason": reason, "details": {"error": message}},
    }


def orphan(number: int, *missing: str) -> Json:
    """The status of a change that lacks parents."""
    return {
        "source_change_id": number,
        "status": "invalid",
        "invalid": {"reason": "fk_missing", "details": {"missing": list(missing)}},
    }


def hydrated_rows(page: Json) -> list[Json]:
    """The rows of a hydration page, in its order: where each is, its version and its payload."""
    return [
        {
            "schema": table["schema"],
            "table": table["table"],
            "pk": row[0],
            "server_version": version,
            "payload": table.get("exact", {}).get(str(index), dict(zip(table["columns"], row, strict=False))),
        }
        for table in page["tables"]
        for index, (row, version) in enumerate(zip(table["rows"], table["versions"], strict=True))
    ]


class Handset:
    """One device of one user, speaking HTTP by hand; `schema` is put into every change that has none."""

    def __init__(self, http: httpx.Client, token: str, schema: str) -> None:
        self.schema = schema
        self._http = http
        self._headers = {"authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, path, headers=self._headers, **options)

    def post(self, *changes: Json, **body: Any) -> Json:
        """Upload; return the whole answer, which has one status per change, in order."""
        sent = [{"schema": self.schema, **change} for change in changes]
        answer = self.call("POST", "/sync/upload", json={"last_server_seq_seen": 0, "changes": sent, **body})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        found: Json = answer.json()
        ids = [status["source_change_id"] for status in found["statuses"]]
        assert ids == [change["source_change_id"] for change in changes]
        return found

    def upload(self, *changes: Json) -> list[Json]:
        """Upload; return the statuses."""
        statuses: list[Json] = self.post(*changes)["statuses"]
        return statuses

    def put(self, *changes: Json) -> list[int]:
        """Upload what has to be applied now; return the new versions."""
        statuses = self.upload(*changes)
        assert [set(s) for s in statuses] == [{"source_change_id", "status", "new_server_version"}] * len(
            changes
        ), statuses
        return [status["new_server_version"] for status in statuses]

    def download(self, **query: Any) -> Json:
        """Fetch one page of the log."""
        answer = self.call("GET", "/sync/download", params=query)
        assert answer.status_code == 200, answer.text
        page: Json = answer.json()
        return page

    def log(self, limit: int = 1000, **query: Any) -> list[Json]:
        """Read the whole log, own changes too, as it is at the first page."""
        changes: list[Json] = []
        after, until = query.pop("after", 0), 0
        while True:
            page = self.download(after=after, until=until, limit=limit, include_self="true", **query)
            changes += page["changes"]
            after, until = page["next_after"], page["window_until"]
            if not page["has_more"]:
                return changes

    def hydrate_page(self, **query: Any) -> Json:
        """Fetch one page of live rows."""
        answer = self.call("GET", "/sync/hydrate", params=query)
        assert answer.status_code == 200, answer.text
        page: Json = answer.json()
        return page

    def hydrate(
        self, limit: int = 1000, between: Callable[[], object] = lambda: None, **query: Any
    ) -> tuple[list[Json], Json]:
        """Read all live rows; return them and the last page. `between` is called after each page."""
        rows: list[Json] = []
        page = self.hydrate_page(limit=limit, **query)
        while True:
            found = hydrated_rows(page)
            assert len(found) <= limit
            rows += found
            between()
            if not page["has_more"]:
                return rows, page
            page = self.hydrate_page(limit=limit, cursor=page["cursor"], **query)

    def live(self, table: str) -> dict[str, Json]:
        """The payloads of a table's live rows by key, by hydration."""
        rows, _ = self.hydrate(schema=self.schema)
        return {row["pk"]: row["payload"] for row in rows if row["table"] == table}


class World:
    """One server with a namespace of synced tables; what is opened here is closed with it."""

    def __init__(self, server: ServerProcess, *, tables: Iterable[str] = TABLES) -> None:
        self.server = server
        self.ns = f"sync{next(_numbers)}_{uuid.uuid4().hex[:6]}"
        self.stack = ExitStack()
        self.http = self.stack.enter_context(httpx.Client(base_url=server.url, timeout=60.0))
        self.root: Client = self.stack.enter_context(
            connect(server.url, user="root", password=server.root_password)
        )
        self.root.execute(f"CREATE NAMESPACE {self.ns}")
        for table in tables:
            self.root.execute(
                f"CREATE TABLE {self.ns}.{table.format(ns=self.ns)} WITH (TYPE='USER', SYNC=TRUE)"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stack.close()

    def user(self) -> str:
        """A user that no other test has; without an account, as an app's own users are."""
        return f"user-{next(_numbers)}-{uuid.uuid4().hex[:6]}"

    def account(self, role: str = "user", name: str | None = None) -> tuple[str, Wire]:
        """Create an account; return its name and a fresh connection of it."""
        name = name or self.user()
        self.root.execute(f"CREATE USER '{name}' WITH PASSWORD '{PASSWORD}' ROLE {role}")
        wire = self.wire()
        wire.token = wire.call("POST", "/v1/api/auth/login", {"user": name, "password": PASSWORD}).json[
            "access_token"
        ]
        return name, wire

    def wire(self, token: str | None = None) -> Wire:
        """Open a connection with a token, or without any."""
        return self.stack.enter_context(Wire(self.server.port, token))

    def token(self, user: str, source: str, **claims: Any) -> str:
        """A device token as an app's own back end signs it."""
        return jwt.encode({"sub": user, "did": source, **claims}, self.server.jwt_secret, "HS256")

    def handset(self, user: str | None = None, source: str = "phone", schema: str | None = None) -> Handset:
        """A device of `user` (a fresh one without)."""
        return Handset(self.http, self.token(user or self.user(), source), schema or self.ns)

    def sql(self, user: str, statement: str) -> list[Json]:
        """Run a statement of the back end on behalf of `user`; `{ns}` is the namespace."""
        return self.root.query(f"EXECUTE AS USER '{user}' ({statement.format(ns=self.ns)})", raw=True)

    def flush(self, *tables: str) -> None:
        """Move what is hot to the cold tier, and wait until that is done."""
        for table in tables or ("users", "posts", "comments", "nodes", "notes", "things"):
            message = self.root.execute(f"STORAGE FLUSH TABLE {self.ns}.{table}").message or ""
            if "Job ID: " in message:
                self._wait_job(message.split("Job ID: ")[1].strip("."))

    def phone(self, directory: Path, user: str, source: str = "phone", **options: Any) -> "Phone":
        """Install the app on a fresh file (or reopen one), signed in."""
        phone = Phone(self, directory / f"{options.pop('name', source)}.sqlite", user, source, **options)
        self.stack.callback(phone.device.close)
        return phone

    def job(self, statement: str) -> str:
        """Run a statement that starts a job, wait until that is done, and return its id."""
        job = (self.root.execute(statement).message or "").split("Job ID: ")[1].split(".")[0]
        self._wait_job(job)
        return job

    def _wait_job(self, job: str) -> None:
        question = f"SELECT status, message FROM system.jobs WHERE job_id = '{job}'"

        def ended() -> Json | None:
            found = self.root.query(question)[0]
            return found if found["status"] in ("completed", "failed", "cancelled", "skipped") else None

        found = wait_until(ended, timeout_s=JOB_S_MAX, what=f"job {job}")
        assert found is not None, "the wait returns what is true"
        assert found["status"] in ("completed", "skipped"), found


class Line:
    """A phone's wire: real HTTP, on which answers get lost or edited and things happen meanwhile.

    `drop` answers of uploads are lost after the server did its work; `on_send` is called before, `on_answer`
    after the server's work, each once; `edit` may replace an answer.
    """

    def __init__(self) -> None:
        self.drop = 0
        self.on_send: Callable[[Request], object] | None = None
        self.on_answer: Callable[[Response], object] | None = None
        self.edit: Callable[[Request, Response], Response] | None = None
        self.requests: list[Request] = []
        self._inner: HttpTransport | None = None

    def dial(self, url: str) -> "Line":
        self._inner = HttpTransport(url)
        return self

    def send(self, request: Request) -> Response:
        assert self._inner is not None
        self.requests.append(request)
        on_send, self.on_send = self.on_send, None
        if on_send is not None:
            on_send(request)
        response = self._inner.send(request)
        on_answer, self.on_answer = self.on_answer, None
        if on_answer is not None:
            on_answer(response)
        if self.drop and request.path == "/sync/upload":
            self.drop -= 1
            raise Unreachable("the answer was lost on purpose")
        return self.edit(request, response) if self.edit is not None else response

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()


class Phone:
    """An installed app: its file, its device and its line."""

    def __init__(
        self,
        world: World,
        path: Path,
        user: str,
        source: str,
        *,
        schema: str = SQLITE,
        tables: Iterable[str] = ("users", "posts", "comments"),
        is_source_given: bool = False,
        **options: Any,
    ) -> None:
        self.line = Line()
        if not path.exists():
            with sqlite3.connect(path) as connection:
                connection.executescript(schema)
            connection.close()
        if is_source_given:
            options["source"] = source
        self.device = Device.open(
            path,
            schema=world.ns,
            tables=list(tables),
            dial=self.line.dial,
            new_source=lambda: source,
            **options,
        )
        self.device.sign_in(world.server.url, user, token=world.token(user, source))

    def run(self, sql: str, *parameters: Any) -> list[Any]:
        """Run one statement as the app does."""
        return self.device.connection.execute(sql, parameters).fetchall()

    def pending(self) -> dict[str, str]:
        """Key → operation of what waits for upload."""
        return {change.key: change.op for change in self.device.pending()}

    def versions(self) -> dict[str, tuple[int, int]]:
        """Key → (server version, deleted)."""
        return {r[0]: r[1:] for r in self.run("SELECT pk_uuid, server_version, deleted FROM _sync_row_meta")}

    def contents(self, *tables: str) -> dict[str, list[Any]]:
        """All rows, by table."""
        return {
            t: self.run(f"SELECT * FROM {t} ORDER BY id") for t in tables or ("users", "posts", "comments")
        }

    def check(self) -> None:
        """Nothing waits any more and all references hold."""
        status = self.device.status()
        assert (status.pending, status.withheld, status.quarantined) == (0, 0, 0), self.device.pending()
        assert self.run("PRAGMA foreign_key_check") == []


def now_s() -> int:
    """The time, for claims of tokens."""
    return int(time.time())
