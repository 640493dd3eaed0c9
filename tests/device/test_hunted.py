"""What a search for faults brought to light, each as the app meets it."""

import asyncio
import base64
import json
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upwell.device import AsyncDevice, Device, Request, Response, TableRefused, Unreachable
from upwell.testing import wait_until
from upwell.testing.sync_server import FakeServer, FakeTransport

TABLE = "CREATE TABLE t (id TEXT PRIMARY KEY, a, b)"
ANEW = "DROP TABLE t; CREATE TABLE t (id TEXT PRIMARY KEY, a {unique}, b, c)"


def install_t(install: Any, schema: str = TABLE, **options: Any) -> Any:
    """A phone with the synced rows x and y."""
    phone = install(schema=schema, tables=["t"], **options)
    phone.run("INSERT INTO t (id, a, b) VALUES ('x', 1, 1), ('y', 2, 2)")
    phone.device.sync()
    return phone


def token(source: str, user: str = "ada") -> str:
    """An unsigned token with the claims of a device token."""
    claims = base64.urlsafe_b64encode(json.dumps({"sub": user, "did": source}).encode()).decode().rstrip("=")
    return f"e30.{claims}.x"


def by_another(phone: Any, script: str) -> None:
    """Run statements as another program does."""
    with sqlite3.connect(phone.path) as connection:
        connection.executescript(script)
    connection.close()


def rows(phone: Any, table: str = "t") -> dict[str, dict[str, Any]]:
    cursor = phone.device.connection.execute(f"SELECT * FROM {table}")
    names = [column[0] for column in cursor.description]
    return {row[0]: dict(zip(names, row, strict=True)) for row in cursor}


@pytest.mark.parametrize("is_older", [True, False])
def test_what_a_trigger_of_the_app_writes_to_the_same_row_is_captured(
    install: Any, server: FakeServer, is_older: bool
) -> None:
    touch = (
        "CREATE TRIGGER touch AFTER UPDATE ON t WHEN NEW.b IS OLD.b"
        " BEGIN UPDATE t SET b = b + 1 WHERE id = NEW.id; END;"
    )
    phone = install_t(install, f"{TABLE}; {touch}" if is_older else TABLE)
    if not is_older:
        by_another(phone, touch)
    phone.run("UPDATE t SET a = 5 WHERE id = 'x'")
    phone.device.sync()
    assert server.live("t")["x"] == {"id": "x", "a": 5, "b": 2} == rows(phone)["x"]
    phone.run("UPDATE t SET a = 6 WHERE id = 'x'")
    (base,) = phone.run("SELECT base_payload FROM _sync_pending")
    assert json.loads(base[0]) == {"id": "x", "a": 5, "b": 2}


@pytest.mark.parametrize("width", [61, 250, 1000, 1999])
def test_a_table_of_any_width(install: Any, server: FakeServer, width: int) -> None:
    columns = ", ".join(f"c{number}" for number in range(width))
    phone = install(schema=f"CREATE TABLE t (id TEXT PRIMARY KEY, {columns})", tables=["t"])
    phone.run("INSERT INTO t (id, c0, c1) VALUES ('x', 1.5, 'a')")
    phone.run("UPDATE t SET c1 = 'b'")
    phone.device.sync()
    expected = {"id": "x", **{f"c{number}": None for number in range(width)}, "c0": 1.5, "c1": "b"}
    assert server.live("t") == {"x": expected}


@pytest.mark.parametrize("unique", ["", "UNIQUE"])
@pytest.mark.parametrize("is_synced_between", [True, False])
def test_a_table_made_anew_deletes_nothing_and_gets_its_rows_again(
    install: Any, server: FakeServer, unique: str, is_synced_between: bool
) -> None:
    phone = install_t(install, f"CREATE TABLE t (id TEXT PRIMARY KEY, a {unique}, b)")
    phone.run("UPDATE t SET b = 9 WHERE id = 'x'")
    phone.run("DELETE FROM t WHERE id = 'y'")
    phone.run("INSERT INTO t VALUES ('z', 3, 3)")
    drop, create = ANEW.format(unique=unique).split("; ")
    by_another(phone, drop)
    if is_synced_between:
        phone.device.sync()
        assert [c.is_quarantined for c in phone.device.pending()] == [True] * 3
    by_another(phone, create)
    phone.device.register(["t"])
    phone.device.sync()
    phone.device.sync()
    expected = {"x": {"id": "x", "a": 1, "b": 9}, "z": {"id": "z", "a": 3, "b": 3}}
    assert {k: {n: v[n] for n in ("id", "a", "b")} for k, v in server.live("t").items()} == expected
    assert rows(phone) == {key: {**row, "c": None} for key, row in expected.items()}
    assert phone.pending() == {}


def test_after_a_dropped_column_the_app_only_writes_on(install: Any, server: FakeServer) -> None:
    """On a connection that reads nothing: SQLite would go on refusing by the triggers of before."""
    phone = install_t(install)
    phone.run("PRAGMA legacy_alter_table = 1")
    phone.run("ALTER TABLE t DROP COLUMN b")
    phone.device.register([])
    phone.run("UPDATE t SET a = 7 WHERE id = 'x'")
    phone.run("INSERT INTO t (id, a) VALUES ('z', 9)")
    phone.device.upload()
    assert {key: row["a"] for key, row in server.live("t").items()} == {"x": 7, "y": 2, "z": 9}


def test_a_renamed_table_keeps_its_edits_and_holds_nobody_up(install: Any, server: FakeServer) -> None:
    phone = install_t(install)
    phone.run("UPDATE t SET b = 5 WHERE id = 'x'")
    by_another(phone, "ALTER TABLE t RENAME TO u; UPDATE u SET b = 6 WHERE id = 'y'")
    phone.device.register(["u"])
    phone.run("UPDATE u SET b = 7 WHERE id = 'y'")
    phone.device.wait_until_synced(timeout_s=10)
    assert (
        server.live("u")
        == rows(phone, "u")
        == {
            "x": {"id": "x", "a": 1, "b": 5},
            "y": {"id": "y", "a": 2, "b": 7},
        }
    )
    assert {(c.table, c.key, c.is_quarantined, c.reason) for c in phone.device.pending()} == {
        ("t", "x", True, "table_gone"),
        ("t", "y", True, "table_gone"),
    }
    assert {row[0] for row in phone.run("SELECT name FROM sqlite_master WHERE type = 'trigger'")} == {
        "trg_u_ai",
        "trg_u_au",
        "trg_u_ad",
    }


def test_a_reference_to_a_table_that_is_not_there_stops_nothing(install: Any, server: FakeServer) -> None:
    phone = install(schema="CREATE TABLE t (id TEXT PRIMARY KEY, a REFERENCES nowhere (id))", tables=["t"])
    server.write("t", "x", {"id": "x", "a": "1"})
    phone.device.sync()
    assert rows(phone) == {"x": {"id": "x", "a": "1"}}


@pytest.mark.parametrize(
    ("schema", "table", "message"),
    [
        ("CREATE VIEW v AS SELECT 'x' AS id", "v", "'v' is a view"),
        ("CREATE TABLE t (id PRIMARY KEY)", "t", "primary key of type none: declare one TEXT"),
        ("CREATE TABLE t (id NUMERIC PRIMARY KEY)", "t", "primary key of type NUMERIC: declare one TEXT"),
        ("CREATE TABLE t (id REAL PRIMARY KEY)", "t", "primary key of type REAL: declare one TEXT"),
        ("CREATE TABLE t (id TEXT PRIMARY KEY); INSERT INTO t VALUES (NULL)", "t", "rows without a key"),
        ("CREATE TABLE t (id TEXT PRIMARY KEY)", "_sync_client_info", "isn't the app's"),
    ],
)
def test_what_cannot_be_synced_is_refused_by_name(
    install: Any, schema: str, table: str, message: str
) -> None:
    with pytest.raises(TableRefused, match=message):
        install(schema=schema, tables=[table])


def test_a_name_beyond_ascii(install: Any, server: FakeServer) -> None:
    phone = install(schema='CREATE TABLE "Ärger" (id TEXT PRIMARY KEY)', tables=["Ärger"])
    phone.run("""INSERT INTO "Ärger" VALUES ('x')""")
    phone.device.sync()
    by_another(phone, 'ALTER TABLE "Ärger" ADD COLUMN a DEFAULT 1')
    phone.run("""INSERT INTO "Ärger" (id, a) VALUES ('y', 2)""")
    phone.device.sync()
    assert server.live("ärger") == {"x": {"id": "x"}, "y": {"id": "y", "a": 2}}


def test_what_a_resolver_raised_is_told(install: Any, server: FakeServer) -> None:
    def resolver(_: object) -> None:
        raise ZeroDivisionError("no decision")

    phone = install_t(install, resolver=resolver)
    server.write("t", "x", {"id": "x", "a": 5, "b": 5})
    phone.run("UPDATE t SET a = 6 WHERE id = 'x'")
    with pytest.raises(ZeroDivisionError):
        phone.device.sync()
    assert (phone.device.status().last_error, phone.device.status().pending) == ("no decision", 1)


def test_many_threads_start_one_loop(install: Any) -> None:
    phone = install_t(install)
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        phone.device.start()

    starters = [threading.Thread(target=start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert [t.name for t in threading.enumerate()].count("upwell-sync") == 1
    phone.device.stop()
    assert "upwell-sync" not in [t.name for t in threading.enumerate()]


class Wire:
    """An asynchronous wire that may hold answers back, and whose streams break in an unforeseen way."""

    def __init__(self, server: FakeServer) -> None:
        self.inner = FakeTransport(server, "phone")
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_asked = asyncio.Event()
        self.is_opened = asyncio.Event()
        self.is_closed = False

    async def send(self, request: Request) -> Response:
        self.is_asked.set()
        await self.may_answer.wait()
        return self.inner.send(request)

    def stream(self, request: Request, silence_s_max: float) -> "Wire":
        return self

    async def open(self) -> None:
        self.is_opened.set()
        raise RuntimeError("unforeseen")

    async def read(self) -> bytes:
        return b""

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.is_closed = True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "app.sqlite") as connection:
        connection.executescript(TABLE)
    connection.close()
    return tmp_path / "app.sqlite"


def opening(path: Path, dial: Callable[[str], Any]) -> Any:
    return AsyncDevice.open(path, schema="app", tables=["t"], dial=dial, new_source=lambda: "phone")


def descriptors(path: Path) -> int:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(path)) for link in links if os.path.islink(link))


async def test_an_opening_that_is_cancelled_leaves_nothing_open(path: Path, server: FakeServer) -> None:
    for turns in range(6):
        task = asyncio.ensure_future(_awaited(opening(path, lambda _: Wire(server))))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, AsyncDevice):
            await outcome.close()
        assert descriptors(path) == 0


async def _awaited(opening: Any) -> AsyncDevice:
    device: AsyncDevice = await opening
    return device


async def test_a_sign_in_cancelled_anywhere_leaves_no_wire_open(path: Path, server: FakeServer) -> None:
    for turns in range(40):
        wires: list[Wire] = []

        def dial(_: str, wires: list[Wire] = wires) -> Wire:
            wires.append(Wire(server))
            return wires[-1]

        device = await opening(path, dial)
        await device.sign_in("fake:", "ada", token=token("phone"))
        await device.start()
        task = asyncio.ensure_future(device.sign_in("fake:", "ada", token=token("phone")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await device.close()
        assert [wire.is_closed for wire in wires] == [True] * len(wires)


async def test_closing_ends_a_call_of_another_task_and_may_be_repeated(
    path: Path, server: FakeServer
) -> None:
    wire = Wire(server)
    async with opening(path, lambda _: wire) as device:
        await device.sign_in("fake:", "ada", token=token("phone"))
        wire.may_answer.clear()
        syncing = asyncio.ensure_future(device.sync())
        await wire.is_asked.wait()
        await device.close()
        with pytest.raises(Unreachable, match="signed out"):
            await syncing
    assert descriptors(path) == 0


async def test_a_stream_that_breaks_in_an_unforeseen_way_does_not_end_the_rounds(
    path: Path, server: FakeServer
) -> None:
    wire = Wire(server)
    async with opening(path, lambda _: wire) as device:
        await device.sign_in("fake:", "ada", token=token("phone"))
        await device.start()
        await wire.is_opened.wait()
        device.connection.execute("INSERT INTO t VALUES ('x', 1, 1)")
        await device.wait_until_synced(timeout_s=10)
        assert device.is_running
    assert server.live("t") == {"x": {"id": "x", "a": 1, "b": 1}}


def test_a_blocking_stream_that_breaks_in_an_unforeseen_way_is_opened_again(
    path: Path, server: FakeServer
) -> None:
    opened = threading.Event()

    class Broken:
        def open(self) -> None:
            opened.set()
            raise RuntimeError("unforeseen")

        def read(self) -> bytes:
            return b""

        def close(self) -> None: ...

        def abort(self) -> None: ...

    class Transport(FakeTransport):
        def stream(self, request: Request, silence_s_max: float) -> Broken:
            return Broken()

        def abort(self) -> None: ...

    with Device.open(path, schema="app", tables=["t"], dial=lambda _: Transport(server, "phone"),
                     new_source=lambda: "phone") as device:  # fmt: skip
        device.sign_in("fake:", "ada", token=token("phone"))
        device.start()
        opened.wait(10)
        wait_until(lambda: device.status().last_synced_at, timeout_s=10, what="a round")
        assert "upwell-watch" in [t.name for t in threading.enumerate()]


def test_the_shell_of_sqlite_may_write(install: Any, server: FakeServer) -> None:
    phone = install_t(install)
    script = (
        "UPDATE t SET a = 1.25 WHERE id = 'x'; DELETE FROM t; INSERT OR REPLACE INTO t VALUES ('z', 1, 2);"
    )
    try:
        subprocess.run(["sqlite3", str(phone.path)], input=script, text=True, check=True, capture_output=True)
    except FileNotFoundError:
        by_another(phone, script)
    phone.device.sync()
    assert server.live("t") == {"z": {"id": "z", "a": 1, "b": 2}}
