"""What tests of the SQL wire hold in their hands: bare HTTP, and exact values of what came back.

Nothing here uses Upwell's own client or encoders: it is the contract, read a second time.
"""

import http.client
import itertools
import json
import select
import uuid
from dataclasses import dataclass
from typing import Any, Self

from upwell.testing import ServerProcess

SQL = "/v1/api/sql"
PASSWORD = "a-password-of-a-test"
TIMEOUT_S = 20.0
_SYSTEM_COLUMNS = frozenset({"_seq", "_deleted"})
_names = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict), self.body
        return found

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of a success."""
        assert self.status == 200, self.body
        assert self.json["status"] == "success"
        results: list[dict[str, Any]] = self.json["results"]
        return results

    @property
    def result(self) -> dict[str, Any]:
        """The only result of a success."""
        (result,) = self.results
        return result

    @property
    def rows(self) -> list[list[Any]]:
        rows: list[list[Any]] = self.result["rows"]
        assert self.result["row_count"] == len(rows)
        return rows

    @property
    def by_key(self) -> dict[Any, dict[str, Any]]:
        """The rows as dicts without system columns, by their first column."""
        names = [name for name, _ in self.columns]
        whole = {row[0]: dict(zip(names, row, strict=True)) for row in self.rows}
        assert len(whole) == len(self.rows), "keys are unique"
        return {
            key: {name: value for name, value in row.items() if name not in _SYSTEM_COLUMNS}
            for key, row in whole.items()
        }

    @property
    def cell(self) -> Any:
        """The only cell of the only row."""
        ((cell,),) = self.rows
        return cell

    @property
    def message(self) -> str:
        message: str = self.result["message"]
        return message

    @property
    def count(self) -> int:
        """The rows that a statement changed."""
        count: int = self.result["row_count"]
        return count

    @property
    def columns(self) -> list[tuple[str, Any]]:
        """(name, data_type) in the order of `index`."""
        schema = self.result["schema"]
        assert [column["index"] for column in schema] == list(range(len(schema)))
        return [(column["name"], column["data_type"]) for column in schema]

    def refused(self, status: int, code: str) -> str:
        """Check an error of the SQL endpoint in every part; return its message."""
        shown = self.body.decode()
        assert self.status == status, shown
        body = self.json
        assert body["status"] == "error", shown
        assert body["results"] == [], shown
        assert isinstance(body["took"], float), shown
        assert set(body["error"]) <= {"code", "message", "details"}, shown
        assert body["error"]["code"] == code, shown
        message: str = body["error"]["message"]
        assert message, shown
        for leak in ("Traceback", 'File "', ".py", "site-packages", "panicked", "/tmp", "rust"):
            assert leak not in message, shown
        return message


class Wire:
    """One keep-alive connection of one account to one server."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self.token = token
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
        authorization: str | None = None,
    ) -> Answer:
        """Send one request: `body` as JSON, or `raw` as it is."""
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        self._leave_if_closed()
        sent = {"Content-Type": "application/json", **(headers or {})}
        authorization = authorization or (f"Bearer {self.token}" if self.token else None)
        if authorization:
            sent["Authorization"] = authorization
        try:
            self._connection.request(method, path, content, sent)
            answer = self._connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())
        except (OSError, http.client.HTTPException):
            # What went wrong once must not go on in the next test.
            self._connection.close()
            raise

    def send(self, path: str, body: object, *, headers: dict[str, str]) -> None:
        """Send a request whose answer nobody waits for."""
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}", **headers}
        self._connection.request("POST", path, json.dumps(body).encode(), sent)

    def _leave_if_closed(self) -> None:
        """Let go of a connection that the server has closed meanwhile, as a keep-alive client does."""
        connection = self._connection.sock
        if connection is not None and select.select([connection], [], [], 0)[0]:
            self._connection.close()

    def sql(self, text: str, *params: object, namespace: str | None = None) -> Answer:
        """Run SQL as the contract's JSON body."""
        body: dict[str, object] = {"sql": text}
        if params:
            body["params"] = list(params)
        if namespace is not None:
            body["namespace_id"] = namespace
        return self.call("POST", SQL, body)

    def run(self, text: str, *params: object, namespace: str | None = None) -> Answer:
        """Run SQL that has to succeed."""
        answer = self.sql(text, *params, namespace=namespace)
        assert answer.status == 200, f"{text[:500]}\n{answer.body.decode()}"
        return answer


class Site:
    """A running server with accounts, and names that no other test uses."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._wires: list[Wire] = []
        self.root = self.wire(self.login("root", server.root_password)["access_token"])

    def close(self) -> None:
        for wire in self._wires:
            wire.close()

    def wire(self, token: str | None = None) -> Wire:
        """Open a connection with a token, or without any."""
        wire = Wire(self.server.port, token)
        self._wires.append(wire)
        return wire

    def login(self, user: str, password: str = PASSWORD) -> dict[str, Any]:
        """Log in; return the body."""
        with Wire(self.server.port) as wire:
            answer = wire.call("POST", "/v1/api/auth/login", {"user": user, "password": password})
        assert answer.status == 200, answer.body
        return answer.json

    def account(self, role: str = "user", name: str | None = None) -> tuple[str, Wire]:
        """Create an account; return its name and a connection of it."""
        name = name or f"{role}_{uuid.uuid4().hex[:8]}"
        self.root.run(f"CREATE USER {quoted(name)} WITH PASSWORD '{PASSWORD}' ROLE {role}")
        return name, self.wire(self.login(name)["access_token"])

    def namespace(self) -> str:
        """Create a fresh namespace; return its name."""
        name = f"n{next(_names)}_{uuid.uuid4().hex[:6]}"
        self.root.run(f"CREATE NAMESPACE {name}")
        return name

    def flush(self, table: str) -> None:
        """Flush a table to the cold tier and wait until the job is done."""
        message = self.root.run(f"STORAGE FLUSH TABLE {table}").message
        if "skipped: no pending" in message:
            return
        job = message.split("Job ID: ")[1]
        question = f"SELECT status, message FROM system.jobs WHERE job_id = '{job}'"
        while (found := self.root.run(question).rows[0])[0] in ("new", "queued", "running", "retrying"):
            pass
        assert found[0] in ("completed", "skipped"), found  # skipped: what was pending went meanwhile


def quoted(text: str) -> str:
    """Return a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
