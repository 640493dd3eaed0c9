"""A disk that is full: a real server on a small file system of its own, which a file fills and leaves again.

The file system is in a namespace of mounts that nobody else sees, which a process keeps while the server
restarts.
"""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from upwell.testing import ServerProcess, cold, wait_until
from upwell.testing.wire import Site

SIZE_MB = 64
LEFT_BYTES = 256 * 1024
WAIT_S = 60.0
ROWS = 300
BODY_BYTES = 4_000
MOUNT = f'mount -t tmpfs -o size={SIZE_MB}m upwell "$0" && echo mounted && exec sleep 1000000'


@dataclass
class SmallDisk:
    """The server on its disk, and the disk as it is seen from here."""

    server: ServerProcess
    site: Site
    root_dir: Path

    def fill(self, *, but_bytes: int = 0) -> None:
        """Write until nothing more fits, but for so much."""
        path = self.root_dir / "filler"
        with suppress(OSError), path.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4_096):
                pass
        assert os.statvfs(path).f_bavail == 0, "it is the small disk that is full"
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - but_bytes)

    def free(self) -> None:
        (self.root_dir / "filler").unlink()

    def ended(self, job: str) -> dict[str, Any]:
        """Wait until a job is over; return how."""
        question = f"SELECT status, message FROM system.jobs WHERE job_id = '{job}'"

        def look() -> dict[str, Any] | None:
            found = dict(zip(("status", "message"), self.site.root.run(question).rows[0], strict=True))
            return found if found["status"] in ("completed", "failed") else None

        return wait_until(look, timeout_s=WAIT_S, what=f"the end of {job}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, str(directory)]
    with subprocess.Popen(unshare, stdout=subprocess.PIPE, text=True) as keeper:
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == "mounted\n"
            enter = ["nsenter", "--target", str(keeper.pid), "--user", "--mount", "--preserve-credentials"]
            serve = ["-m", "upwell", "serve", "--data-dir", "{data_dir}", "--port", "{port}"]
            with ServerProcess(
                directory / "data",
                command=[*enter, sys.executable, *serve],
                env={"UPWELL_BCRYPT_COST": "4"},
                log_dir=tmp_path,
            ) as server:
                site = Site(server)
                yield SmallDisk(server, site, Path(f"/proc/{keeper.pid}/root{directory}"))
                site.close()
        finally:
            keeper.kill()


def bodies(count: int) -> list[str]:
    """Return texts that no compression makes small."""
    chance = random.Random(7)
    return [chance.randbytes(BODY_BYTES).hex() for _ in range(count)]


def table_of(disk: SmallDisk) -> str:
    table = f"{disk.site.namespace()}.notes"
    create = f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, body TEXT) WITH (TYPE = 'SHARED')"
    disk.site.root.run(create)
    return table


def test_a_flush_without_room_fails_with_its_cause_and_is_done_when_there_is_some(disk: SmallDisk) -> None:
    root, table = disk.site.root, table_of(disk)
    written = bodies(ROWS)
    for key, body in enumerate(written):
        root.run(f"INSERT INTO {table} VALUES ($1, $2)", key, body)
    disk.fill(but_bytes=LEFT_BYTES)
    job = root.run(f"STORAGE FLUSH TABLE {table}").message.split("Job ID: ")[1]
    end = disk.ended(job)
    assert end["status"] == "failed"
    assert "No space left" in end["message"]
    assert root.run(f"SELECT COUNT(*) FROM {table}").cell == str(ROWS)
    root.run(f"INSERT INTO {table} VALUES ($1, 'a last word')", ROWS)

    disk.free()
    root.run(f"RETRY JOB '{job}'")
    assert disk.ended(job)["status"] == "completed"
    expected = [[str(key), body] for key, body in enumerate([*written, "a last word"])]
    assert root.run(f"SELECT id, body FROM {table} ORDER BY id").rows == expected
    partition = cold.find_partition(disk.root_dir / "data" / "storage", table)
    assert partition is not None
    assert [row["id"] for row in cold.rows(partition, "id")][:ROWS] == list(range(ROWS))
    assert cold.audit(disk.root_dir / "data" / "storage") == []


def test_a_log_without_room_refuses_writes_and_loses_none_that_it_took(disk: SmallDisk) -> None:
    root, table = disk.site.root, table_of(disk)
    disk.fill(but_bytes=LEFT_BYTES)
    taken = []
    for key, body in enumerate(bodies(ROWS)):
        answer = root.sql(f"INSERT INTO {table} VALUES ($1, $2)", key, body)
        if answer.status != 200:
            assert answer.status == 503, answer.body
            assert "restart the server" in answer.json["error"]["message"]
            break
        taken.append([str(key), body])
    assert 0 < len(taken) < ROWS, "there was room for some"
    assert root.run(f"SELECT id, body FROM {table} ORDER BY id").rows == taken

    disk.free()
    disk.server.restart()
    found = root.run(f"SELECT id, body FROM {table} ORDER BY id").rows
    assert found[: len(taken)] == taken
    root.run(f"INSERT INTO {table} VALUES ($1, 'again')", ROWS)
