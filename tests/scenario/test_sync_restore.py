"""RESTORE DATABASE under devices: they come to the restored state; what they had newer is decided or kept."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from upwell.device import Unreachable, client_wins
from upwell.testing import ServerProcess
from upwell.testing.sync_world import Phone, World, key

NAMES = {number: f"name {number}" for number in range(1, 9)}


def names(phone: Phone) -> dict[str, str]:
    return {pk: name for pk, name, _ in phone.contents("users")["users"]}


def fill(phone: Phone, *others: Phone) -> None:
    for number, name in NAMES.items():
        phone.run("INSERT INTO users VALUES (?, ?, NULL)", key(number), name)
    for each in (phone, *others):
        each.device.sync()


def rename(phone: Phone, number: int, name: str) -> None:
    phone.run("UPDATE users SET name = ? WHERE id = ?", name, key(number))


def delete(phone: Phone, number: int) -> None:
    phone.run("DELETE FROM users WHERE id = ?", key(number))


def check(world: World, user: str, expected: dict[int, str], *phones: Phone) -> None:
    rows = {key(number): name for number, name in expected.items()}
    found = world.sql(user, "SELECT id, name FROM {ns}.users")
    assert {row["id"]: row["name"] for row in found} == rows
    for phone in phones:
        phone.check()
        assert names(phone) == rows


def test_devices_come_to_the_restored_state(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """One user's devices take the server's rows, another's defend their own: each app's rule decides."""
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    with World(server) as world:
        ada, bob = world.user(), world.user()
        phone, laptop = (world.phone(tmp_path, ada, name) for name in ("phone", "laptop"))
        first, stale = (world.phone(tmp_path, bob, name, resolver=client_wins) for name in ("first", "stale"))
        fill(phone, laptop)
        fill(first, stale)
        delete(first, 3)
        rename(first, 4, "later, before the backup")
        first.device.sync()
        world.job(f"BACKUP DATABASE TO '{tmp_path / 'backup'}'")

        # What the restore takes back: edits, deletions and rows, of devices and of SQL.
        for each in (phone, first):
            rename(each, 1, "later")
            delete(each, 2)
            each.run("INSERT INTO users VALUES (?, 'new', NULL)", key(20))
            each.device.sync()
        world.sql(ada, f"UPDATE {{ns}}.users SET name = 'by SQL' WHERE id = '{key(3)}'")
        world.sql(ada, f"DELETE FROM {{ns}}.users WHERE id = '{key(4)}'")
        for each in (phone, laptop):
            each.device.sync()
        # What no server ever saw, and a hydration that has only begun.
        rename(phone, 5, "unsent")
        delete(laptop, 6)
        laptop.run("INSERT INTO users VALUES (?, 'unsent', NULL)", key(21))
        job = world.job(f"RESTORE DATABASE FROM '{tmp_path / 'backup'}'")
        tablet = world.phone(tmp_path, ada, "tablet")
        tablet.line.on_answer = lambda _: server.kill()
        with suppress(Unreachable):
            tablet.device.hydrate(page_rows=2)
        assert not tablet.device.status().is_hydrated
        server.start()

        [restore] = world.root.query("SELECT status, message FROM system.jobs")
        assert restore["status"] == "completed", restore
        assert f"replaced-{job}" in restore["message"], "where what was lost can still be read"
        for _ in range(2):
            for each in (phone, laptop, tablet, stale, first):
                each.device.sync()
        expected = {**NAMES, 5: "unsent", 20: "new", 21: "unsent"}
        del expected[6]
        check(world, ada, expected, phone, laptop, tablet)
        lost = phone.run("SELECT pk_uuid, local_payload ->> 'name', decision FROM _sync_conflicts ORDER BY 1")
        assert lost == [
            (key(1), "later", "server"),
            (key(2), None, "server"),
            (key(3), "by SQL", "server"),
            (key(4), None, "server"),
        ]
        defended = {**NAMES, 1: "later", 4: "later, before the backup", 20: "new"}
        del defended[2], defended[3]
        check(world, bob, defended, first, stale)
