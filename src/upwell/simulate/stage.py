"""The stage of a scenario: a namespace of its own on the shared server, its users, their devices, its checks.

Law: whatever is opened here is closed when the scenario ends; a place is compared with the model in full:
every row and column, every version, every reference, and the absence of anything else.
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from upwell.client import Client, connect
from upwell.demo.check import Checks
from upwell.demo.phone import ANSWER_S_MAX
from upwell.demo.report import Outcome
from upwell.demo.sql import read_log
from upwell.simulate.app import DOWNLOAD_LIMIT, SERVER_WINS, UPLOAD_LIMIT, App, Rule
from upwell.simulate.model import Account
from upwell.simulate.row import Rows
from upwell.simulate.table import TABLES, Key
from upwell.testing import ServerProcess, wait_until

SEED = 20251009
REQUEST_S_MAX = 20.0
JOB_S_MAX = 30.0


@dataclass
class Person:
    """A user with an account on the server, and what it must hold for them."""

    name: str
    password: str
    client: Client
    account: Account = field(default_factory=Account)


class Stage:
    """One scenario's part of the server and of the directory; `groups` are the checks made so far."""

    def __init__(
        self,
        name: str,
        directory: Path,
        server: ServerProcess,
        root: Client,
        on_group: Callable[[Outcome], None],
    ) -> None:
        self.name = name
        self.namespace = "sim_" + name.replace("-", "_")
        self.server = server
        self.chance = random.Random(f"{SEED} {name}")
        self.rows = Rows(self.chance)
        self.groups: list[Outcome] = []
        self.checks = Checks(lambda check: self.groups[-1].checks.append(check))
        self.stack = ExitStack()
        self._http = self.stack.enter_context(httpx.Client(timeout=ANSWER_S_MAX))
        self._directory = directory
        self._root = root
        self._on_group = on_group

    def open(self) -> None:
        """Create namespace and tables."""
        self._directory.mkdir()
        self._root.execute(f"CREATE NAMESPACE {self.namespace}")
        for table in TABLES.values():
            self._root.execute(table.server_ddl(self.namespace))

    def close(self) -> None:
        """Close every client and device."""
        self.stack.close()

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """A part of the scenario whose checks are reported together."""
        outcome = Outcome(self.name, title)
        self.groups.append(outcome)
        self.checks.phase = title
        began = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.checks.fail("this part ran to its end", f"{type(error).__name__}: {error}")
            raise
        finally:
            outcome.seconds = round(time.perf_counter() - began, 3)
            self._on_group(outcome)

    def fail(self, error: Exception) -> None:
        """Record that the scenario broke between its groups."""
        with suppress(type(error)), self.group("between its parts"):
            raise error

    def person(self, name: str) -> Person:
        """Create an account."""
        password = f"the password of {name}"
        self._root.execute(f"CREATE USER '{name}' WITH PASSWORD '{password}' ROLE user")
        client = connect(self.server.url, user=name, password=password, request_s=REQUEST_S_MAX)
        return Person(name, password, self.stack.enter_context(client))

    def install(
        self,
        person: Person,
        name: str,
        *,
        source: str | None = None,
        limit: int = UPLOAD_LIMIT,
        download_limit: int = DOWNLOAD_LIMIT,
        rule: Rule = SERVER_WINS,
        seed: Callable[[sqlite3.Connection], object] = lambda _: None,
    ) -> App:
        """Install the app on a fresh file. It insists on `source`; without it the file has one by chance."""
        app = App(
            self._directory / f"{person.name}-{name}.sqlite",
            self.namespace,
            person.account,
            self._http,
            source=source or f"{name}-{self.chance.getrandbits(64):016x}",
            is_source_given=source is not None,
            limit=limit,
            download_limit=download_limit,
            rule=rule,
            seed=seed,
        )
        self.stack.callback(lambda: app.device.close())
        return app

    def sign_in(self, app: App, person: Person, url: str | None = None) -> None:
        """Sign a user in on a device."""
        app.device.sign_in(url or self.server.url, person.name, password=person.password)

    def signed_in(
        self, person: Person, name: str, *, rule: Rule = SERVER_WINS, limit: int = UPLOAD_LIMIT
    ) -> App:
        """Install the app and sign in."""
        app = self.install(person, name, rule=rule, limit=limit)
        self.sign_in(app, person)
        return app

    # --- the back end's writes, by SQL and in the account

    def sql_update(self, person: Person, table: str, key: Key, column: str, text: str) -> None:
        """UPDATE of a text column by the user's own back end."""
        statement = f"UPDATE {self.namespace}.{table} SET {column} = $1 WHERE id = $2"
        person.client.execute(statement, [text, TABLES[table].sql_key(key)])
        person.account.put((table, key), person.account.rows[table, key] | {column: text})

    def sql_delete(self, person: Person, table: str, key: Key) -> None:
        """DELETE by the user's own back end."""
        person.client.execute(
            f"DELETE FROM {self.namespace}.{table} WHERE id = $1", [TABLES[table].sql_key(key)]
        )
        person.account.delete((table, key))

    def flush(self) -> None:
        """Move everything to Parquet, and wait until that is done."""
        for table in TABLES:
            message = self._root.execute(f"STORAGE FLUSH TABLE {self.namespace}.{table}").message or ""
            _, started, job = message.partition("Job ID: ")
            if started:
                wait_until(partial(self._has_ended, job), timeout_s=JOB_S_MAX, what=f"{message} to end")

    def _has_ended(self, job: str) -> bool:
        found = self._root.execute("SELECT status, message FROM system.jobs WHERE job_id = $1", [job]).rows
        status, message = found[0] if found else ("unknown", "")
        assert status not in ("failed", "cancelled"), f"the flush {job}: {message}"
        return status in ("completed", "skipped")

    # --- checks

    def check_all(self, person: Person, *apps: App) -> None:
        """The server and the devices hold what they must, nothing waits, nothing is orphaned."""
        self.check_server(person)
        for app in apps:
            self.check_device(app)
            for table in TABLES.values():
                self.checks.equal(
                    f"{app.path.stem}: {table.name} as in the account",
                    app.account.in_sqlite(table),
                    app.cells(table.name),
                )

    def check_server(self, person: Person) -> None:
        """SELECT over HTTP as that user; the log has each effective change once and nothing else."""
        for table in TABLES.values():
            columns = ", ".join(column.name for column in table.columns)
            found = person.client.execute(
                f"SELECT {columns} FROM {self.namespace}.{table.name} ORDER BY id", raw=True
            )
            self.checks.equal(
                f"{table.name} of {person.name}", person.account.in_sql(table), list(found.rows)
            )
            for column in table.references:
                self.checks.equal(
                    f"{table.name} of {person.name} without {column.name}",
                    0,
                    self._orphan_count(person, table.name, column.name, str(column.parent)),
                )
        entries = sorted((entry.table, entry.key, entry.version) for entry in read_log(person.client))
        self.checks.equal(
            f"log of {person.name}: each change once", person.account.log_entries(self.namespace), entries
        )

    def check_device(self, app: App) -> None:
        """The file holds what its book says, and nothing waits."""
        checks, name = self.checks, app.path.stem
        for table in TABLES.values():
            checks.equal(f"{name}: {table.name}", app.book.in_sqlite(table), app.cells(table.name))
        status = app.device.status()
        checks.equal(f"{name}: rows in _sync_pending", 0, app.pending_count())
        checks.equal(f"{name}: quarantined, withheld", (0, 0), (status.quarantined, status.withheld))
        checks.equal(f"{name}: versions in _sync_row_meta", app.book.in_meta(), app.meta())
        checks.equal(f"{name}: broken references", [], app.run("PRAGMA foreign_key_check"))

    def _orphan_count(self, person: Person, child: str, column: str, parent: str) -> int:
        found = person.client.execute(
            f"SELECT COUNT(*) AS n FROM {self.namespace}.{child} AS c"
            f" LEFT JOIN {self.namespace}.{parent} AS p ON c.{column} = p.id"
            f" WHERE c.{column} IS NOT NULL AND p.id IS NULL",
            raw=True,
        )
        return int(found.rows[0][0])
