"""SIGKILL in the middle of transactions: each is there whole or not at all, and the acknowledged ones are."""

import random
import threading
from pathlib import Path

from upwell.client import Client, ClientError, connect
from upwell.testing import ServerProcess, wait_until

ROWS = 25
LIVES = 3


def client_of(server: ServerProcess) -> Client:
    return connect(server.url, user="root", password=server.root_password)


def write_groups(server: ServerProcess, life: int, acknowledged: list[int]) -> None:
    """Commit groups of rows in two tables until the server is gone."""
    with client_of(server) as client:
        for group in range(life * 10_000, (life + 1) * 10_000):
            keys = range(group * ROWS, (group + 1) * ROWS)
            try:
                with client.transaction() as t:
                    for key in keys:
                        t.execute(f"INSERT INTO k.one (id, g) VALUES ({key}, {group})")
                    t.executemany("INSERT INTO k.two (id, g) VALUES ($1, $2)", [(key, group) for key in keys])
            except ClientError:
                return
            acknowledged.append(group)


def groups_in(client: Client, table: str) -> dict[int, int]:
    found = client.execute(f"SELECT g, COUNT(*) FROM k.{table} GROUP BY g").rows
    return dict(found)


def test_a_transaction_survives_a_kill_whole_or_not_at_all(tmp_path: Path) -> None:
    chance = random.Random(11)
    acknowledged: list[int] = []
    with ServerProcess(tmp_path / "data", env={"UPWELL_BCRYPT_COST": "4"}) as server:
        with client_of(server) as client:
            client.execute("CREATE NAMESPACE k; CREATE USER TABLE k.one (id INT PRIMARY KEY, g INT)")
            client.execute("CREATE USER TABLE k.two (id INT PRIMARY KEY, g INT)")
        for life in range(LIVES):
            writer = threading.Thread(target=write_groups, args=(server, life, acknowledged))
            writer.start()
            enough = len(acknowledged) + chance.randint(3, 15)
            wait_until(lambda: len(acknowledged) >= enough, timeout_s=60, what="acknowledged groups")  # noqa: B023
            server.kill()
            writer.join()
            server.start()
            with client_of(server) as client:
                one, two = groups_in(client, "one"), groups_in(client, "two")
            assert one == two
            assert set(one.values()) == {ROWS}
            assert set(acknowledged) <= set(one)
            assert len(one) <= len(acknowledged) + life + 1, "one a life may have come without an answer"
