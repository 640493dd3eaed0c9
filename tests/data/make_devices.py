"""Makes `devices-1.tar.gz`: a server's directory and the files of two devices, as this release writes them.

    python tests/data/make_devices.py DIRECTORY      (a new one; only to give up a format on purpose)

The phone has edits that it didn't send; the hydration of the other file was cut off.
"""

import sqlite3
import sys
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from upwell.cli import main as command
from upwell.device import Device, HttpTransport, Request, Response, Unreachable
from upwell.testing import ServerProcess
from upwell.testing.wire import PASSWORD, Site

ARCHIVE = Path(__file__).parent / "devices-1.tar.gz"
SCHEMA = """
CREATE TABLE lists (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, head TEXT REFERENCES lists (id));
CREATE TABLE items (
    id TEXT PRIMARY KEY NOT NULL, list TEXT NOT NULL REFERENCES lists (id) ON DELETE CASCADE,
    body TEXT NOT NULL, amount INTEGER NOT NULL DEFAULT 1, data BLOB);
"""
AS_ALICE = "EXECUTE AS USER 'alice' (INSERT INTO shop.lists (id, name, head) VALUES {})"


@dataclass(slots=True)
class Cut:
    """A way to the server that ends after some requests."""

    way: HttpTransport
    left: int

    def send(self, request: Request) -> Response:
        self.left -= 1
        if self.left < 0:
            raise Unreachable("the line is cut")
        return self.way.send(request)

    def close(self) -> None:
        self.way.close()


def install(directory: Path, name: str, server: ServerProcess, *, requests: int = 100) -> Device:
    device = Device.open(
        directory / name,
        schema="shop",
        tables=["lists", "items"],
        dial=lambda url: Cut(HttpTransport(url), requests),
    )
    device.sign_in(server.url, "alice", password=PASSWORD)
    return device


def fill(directory: Path, server: ServerProcess) -> None:
    site = Site(server)
    account = ("--url", server.url, "--user", "root", "--password", server.root_password)
    assert (
        command(["devices", "register", str(directory / "phone.sqlite"), "--namespace", "shop", *account])
        == 0
    )
    site.account(name="alice")
    phone = install(directory, "phone.sqlite", server)
    for number in range(6):
        phone.connection.execute("INSERT INTO lists VALUES (?, ?, NULL)", (f"l{number}", f"list {number}"))
        row = (f"i{number}", f"l{number}", "b", 1, b"\x00\xff")
        phone.connection.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?)", row)
    phone.sync()
    site.root.run(AS_ALICE.format("('a', 'x', 'b'), ('b', 'y', 'a')"))
    site.flush("shop.lists")
    site.root.run(AS_ALICE.format("('c', 'x', 'd'), ('d', 'y', 'c')"))
    # Two to sign in, three pages.
    half = install(directory, "half.sqlite", server, requests=5)
    with suppress(Unreachable):
        half.hydrate(page_rows=3)
    half.connection.execute("INSERT INTO lists VALUES ('h', 'half', NULL)")
    phone.connection.execute("UPDATE items SET amount = 5 WHERE id = 'i3'")
    phone.connection.execute("INSERT INTO lists VALUES ('off', 'offline', 'off')")
    phone.connection.execute("DELETE FROM lists WHERE id = 'l5'")
    for each in (phone, half, site):
        each.close()


def main(directory: Path) -> int:
    (directory / "server").mkdir(parents=True)
    for name in ("phone.sqlite", "half.sqlite"):
        with sqlite3.connect(directory / name) as file:
            file.executescript(SCHEMA)
        file.close()
    with ServerProcess(directory / "server", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        fill(directory, server)
        server.terminate()
    with tarfile.open(ARCHIVE, "w:gz") as archive:
        for name in ("phone.sqlite", "half.sqlite", "server"):
            archive.add(directory / name, name)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
