"""Devices that an earlier release signed in and filled go on with this server and this SDK.

`devices-1.tar.gz` was written before entries of the log were joined and pages had an order: a server that was
stopped, a phone with edits that nobody has, and a file whose hydration was cut off behind its third page.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.device import Device
from upwell.testing import ServerProcess
from upwell.testing.wire import PASSWORD, Site

ARCHIVE = Path(__file__).parents[1] / "data" / "devices-1.tar.gz"
LISTS = [
    *[("a", "x", "b"), ("b", "y", "a"), ("c", "x", "d"), ("d", "y", "c"), ("h", "half", None)],
    *[(f"l{number}", f"list {number}", None) for number in range(5)],
    ("off", "offline", "off"),
]
ITEMS = [(f"i{number}", f"l{number}", "b", 5 if number == 3 else 1, b"\x00\xff") for number in range(5)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("devices")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture(scope="module")
def site(directory: Path) -> Iterator[Site]:
    with ServerProcess(directory / "server", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        site = Site(server)
        yield site
        site.close()


def open_file(directory: Path, name: str, site: Site) -> Device:
    device = Device.open(
        str(directory / f"{name}.sqlite"), schema="shop", tables=["lists", "items"], download_limit=1
    )
    device.sign_in(site.server.url, "alice", password=PASSWORD)
    return device


def test_they_send_what_they_have_and_get_all(directory: Path, site: Site) -> None:
    with open_file(directory, "phone", site) as phone, open_file(directory, "half", site) as half:
        assert (phone.status().pending, half.status().pending) == (4, 1)
        assert phone.sync().upload.applied == 4
        report = half.sync()
        assert report.hydrate is not None, "it begins again: its cursor names no order of tables"
        assert report.upload.applied == 1
        for device in (phone, half):
            device.sync()
            assert device.connection.execute("SELECT * FROM lists ORDER BY id").fetchall() == LISTS
            assert device.connection.execute("SELECT * FROM items ORDER BY id").fetchall() == ITEMS
            status = device.status()
            assert (status.pending, status.withheld, status.conflicts, status.lag) == (0, 0, 0, 0)
    asked = "EXECUTE AS USER 'alice' (SELECT id, name, head FROM shop.lists ORDER BY id)"
    assert [tuple(row) for row in site.root.run(asked).rows] == LISTS
