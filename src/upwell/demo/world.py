"""The world of one run: server, cable, users, devices, watches, and what is expected of them.

Law: whatever is opened here is closed when the run ends, however it ends.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from upwell.client import Client, connect
from upwell.demo.check import Checks
from upwell.demo.expected import NAMESPACE, TABLES, Cells, Expected
from upwell.demo.phone import App
from upwell.demo.sql import BackEnd, read_count
from upwell.demo.watch import Watch
from upwell.testing import ServerProcess
from upwell.testing.cable import Cable

# The names of the document that this scenario comes from.
USER = "user-complex-multi-batch"
SOURCE = "device-complex-001"
STRANGER = "user-somebody-else"
PASSWORDS = {USER: "correct horse battery staple", STRANGER: "another long password"}
REQUEST_S_MAX = 20.0

Counts: TypeAlias = dict[str, int]

_DEFINITIONS = (
    f"CREATE NAMESPACE {NAMESPACE}",
    f"CREATE TABLE {NAMESPACE}.users (id UUID PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL,"
    " created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL) WITH (TYPE='USER', SYNC=TRUE)",
    f"CREATE TABLE {NAMESPACE}.posts (id UUID PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL,"
    f" author_id UUID NOT NULL REFERENCES {NAMESPACE}.users(id),"
    " created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL) WITH (TYPE='USER', SYNC=TRUE)",
    f"CREATE TABLE {NAMESPACE}.ledger (id TEXT PRIMARY KEY, writer INT NOT NULL, body TEXT NOT NULL)"
    " WITH (TYPE='USER')",
)


@dataclass
class World:
    """One run. The phases pass `phone`, `watches` and `gaps` on to each other."""

    directory: Path
    checks: Checks
    server: ServerProcess
    stack: ExitStack
    expected: Expected = field(default_factory=Expected)
    timings_s: dict[str, float] = field(default_factory=dict)
    watches: dict[str, Watch] = field(default_factory=dict)
    gaps: list[range] = field(default_factory=list)
    upload_sizes: list[int] = field(default_factory=list)
    stranger_rows: dict[str, list[Cells]] = field(default_factory=lambda: {table: [] for table in TABLES})
    began_s: float = field(default_factory=time.perf_counter)
    cable: Cable = field(init=False)
    root: Client = field(init=False)
    owner: Client = field(init=False)
    stranger: Client = field(init=False)
    back_end: BackEnd = field(init=False)
    phone: App = field(init=False)

    def elapsed_s(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self.began_s

    def begin(self) -> Counts:
        """Start the server on a fresh directory, define the tables and the users."""
        with self.timed("server_start_s"):
            self.server.start()
        self.root = self.client("root", self.server.root_password)
        for statement in _DEFINITIONS:
            self.root.execute(statement)
        for user, password in PASSWORDS.items():
            self.root.execute(f"CREATE USER '{user}' WITH PASSWORD '{password}' ROLE user")
        self.owner = self.client(USER, PASSWORDS[USER])
        self.stranger = self.client(STRANGER, PASSWORDS[STRANGER])
        self.back_end = BackEnd(self.owner, self.expected)
        self.cable = self.stack.enter_context(Cable(self.server.port))
        self.checks.equal("the server runs", True, self.server.is_alive)
        self.checks.equal(
            "its tables are empty",
            [0] * 3,
            [read_count(self.owner, f"{NAMESPACE}.{table}") for table in (*TABLES, "ledger")],
        )
        return {"users": len(PASSWORDS), "tables": len(TABLES) + 1}

    def client(self, user: str, password: str) -> Client:
        """Return a client that is closed at the end of the run."""
        url = self.server.url
        return self.stack.enter_context(connect(url, user=user, password=password, request_s=REQUEST_S_MAX))

    def watch(self, table: str) -> Watch:
        """Open a live query of the owner on a table, through the cable."""
        client = self.stack.enter_context(connect(self.cable.url, token=self.owner.login()))
        watch = Watch(client, f"{NAMESPACE}.{table}")
        self.stack.callback(watch.close)
        watch.open()
        self.watches[table] = watch
        return watch

    def install(self, name: str, *, source: str | None = None) -> App:
        """Install the app on a device: a fresh SQLite file."""
        path = self.directory / f"{name}.sqlite"
        app = self.stack.enter_context(App(path, self.expected, source=source))
        app.wire.sizes = self.upload_sizes
        return app

    def sign_in(self, app: App, user: str = USER) -> None:
        """Sign a user in on a device."""
        app.device.sign_in(self.server.url, user, password=PASSWORDS[user])

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a block."""
        began = time.perf_counter()
        yield
        self.timings_s[name] = round(time.perf_counter() - began, 3)
