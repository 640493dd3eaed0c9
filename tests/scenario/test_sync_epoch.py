"""A server that may have lost what it acknowledged says so: a new epoch, and devices read all again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.testing import ServerProcess
from upwell.testing.sync_world import World, key, upsert

EPOCH = 2**32


@pytest.mark.parametrize(
    ("durability", "is_killed", "epoch"),
    [("async", True, 1), ("async", False, 0), ("group", True, 0)],
)
def test_only_an_unclean_end_in_async_durability_begins_an_epoch(
    start_server: Callable[..., ServerProcess], durability: str, is_killed: bool, epoch: int
) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4", "UPWELL_DURABILITY": durability})
    with World(server) as world:
        handset = world.handset()
        handset.put(upsert(1, "users", key(1), name="n"), upsert(2, "users", key(2), name="n"))
        stream = handset.download()["stream_id"]
        if is_killed:
            server.kill()
        else:
            server.terminate()
        server.start()
        handset.put(upsert(3, "users", key(3), name="n"))
        page = handset.download(include_self="true")
        counters = [change["server_id"] for change in page["changes"]]
        assert counters == [1, 2, epoch * EPOCH + (1 if epoch else 3)]
        assert (page["stream_id"] == stream) is (epoch == 0)
        lost = handset.call("GET", "/sync/download", params={"after": 7, "include_self": "true"})
        assert lost.status_code == (409 if epoch else 200)
        known = handset.download(after=2, include_self="true")
        assert [change["pk"] for change in known["changes"]] == [key(3)]


def test_a_device_reads_everything_again_and_gives_back_what_was_lost(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start_server(env={"UPWELL_BCRYPT_COST": "4", "UPWELL_DURABILITY": "async"})
    with World(server) as world:
        user = world.user()
        phone = world.phone(tmp_path, user, "phone")
        phone.run("INSERT INTO users VALUES (?, 'one', NULL), (?, 'two', NULL)", key(1), key(2))
        phone.device.sync()
        server.kill()
        server.start()
        # As if the server had lost the second row and its version: that is what the new epoch is for.
        phone.run("UPDATE users SET email = 'edited' WHERE id = ?", key(2))
        phone.device.sync()
        phone.check()
        rows = world.sql(user, "SELECT id, name, email FROM {ns}.users ORDER BY id")
        expected = [(key(1), "one", None), (key(2), "two", "edited")]
        assert [tuple(row.values()) for row in rows] == phone.contents("users")["users"] == expected
