"""Two devices with different conflict rules, a back end with SQL, flushes, lost answers, and a server that is
killed in between: at the end all agree, nothing is doubled, foreign keys hold.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from upwell.client import ServerError
from upwell.device import Unreachable, client_wins, server_wins
from upwell.testing import ServerProcess
from upwell.testing.sync_world import Phone, World, key

STEPS = 120
RESTARTS = (40, 80)
SEEDS = (1, 2, 3)
USERS = [key(number) for number in range(6)]
POSTS = [key(100 + number) for number in range(8)]
COMMENTS = [key(200 + number) for number in range(8)]


class Fleet:
    """Random edits everywhere, from one seed."""

    def __init__(self, world: World, user: str, phones: list[Phone], chance: random.Random) -> None:
        self.world = world
        self.user = user
        self.phones = phones
        self.chance = chance

    def step(self) -> None:
        """One edit, exchange or flush."""
        actions: list[tuple[int, Callable[[], object]]] = [
            (8, self.edit_on_phone), (5, self.edit_by_sql), (7, self.talk), (2, self.edit_in_flight),
            (1, self.flush),
        ]  # fmt: skip
        weights, choices = zip(*actions, strict=True)
        self.chance.choices(choices, weights)[0]()

    def edit_on_phone(self) -> None:
        self.edit(self.chance.choice(self.phones).run)

    def edit(self, run: Callable[..., Any]) -> None:
        pick, name = self.chance.choice, str(self.chance.randint(0, 999))
        user, post, comment = pick(USERS), pick(POSTS), pick(COMMENTS)
        match self.chance.randint(0, 7):
            case 0 | 1:
                upsert = (
                    "INSERT INTO users (id, name) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET name = ?2"
                )
                run(upsert, user, name)
            case 2 | 3:
                run("INSERT OR REPLACE INTO posts SELECT ?, ?, id FROM users WHERE id = ?", post, name, user)
            case 4:
                run(
                    "INSERT OR REPLACE INTO comments SELECT ?, ?, p.id, u.id FROM posts p, users u"
                    " WHERE p.id = ? AND u.id = ?",
                    comment, name, post, user,
                )  # fmt: skip
            case 5:
                run("DELETE FROM comments WHERE id = ?", comment)
            case 6:
                run("DELETE FROM posts WHERE id = ?", post)
            case _:
                run("DELETE FROM users WHERE id = ?1 AND id NOT IN (SELECT author FROM posts)", user)

    def edit_by_sql(self) -> None:
        pick, name = self.chance.choice, str(self.chance.randint(1000, 1999))
        user, post = pick(USERS), pick(POSTS)
        statement = pick(
            [
                f"UPDATE {{ns}}.users SET name = '{name}' WHERE id = '{user}'",
                f"INSERT INTO {{ns}}.users VALUES ('{user}', '{name}', 'sql')",
                f"INSERT INTO {{ns}}.posts VALUES ('{post}', '{name}', '{user}')",
                f"UPDATE {{ns}}.posts SET author = '{user}' WHERE title < '{name}'",
                f"DELETE FROM {{ns}}.posts WHERE id = '{post}'",
                f"DELETE FROM {{ns}}.users WHERE id = '{user}'",
                "DELETE FROM {ns}.comments WHERE body LIKE '%7'",
            ]
        )
        # Taken keys, missing parents and living children are refused, as they should be.
        with suppress(ServerError):
            self.world.sql(self.user, statement)

    def talk(self) -> None:
        phone = self.chance.choice(self.phones)
        phone.line.drop = self.chance.choice((0, 0, 1))
        with suppress(Unreachable):
            getattr(phone.device, self.chance.choice(("sync", "upload", "download")))()
        phone.line.drop = 0

    def edit_in_flight(self) -> None:
        phone = self.chance.choice(self.phones)
        edit = self.chance.choice((lambda _: self.edit(phone.run), lambda _: self.edit_by_sql()))
        setattr(phone.line, self.chance.choice(("on_send", "on_answer")), edit)
        phone.device.sync()
        phone.line.on_send = phone.line.on_answer = None

    def flush(self) -> None:
        self.world.flush("users", "posts", "comments")

    def converge(self) -> None:
        for _ in range(4):
            for phone in self.phones:
                phone.device.sync()

    def check(self) -> None:
        """Phones, SQL, hydration and the replayed log have the same rows and versions."""
        reader = self.world.handset(self.user, "reader")
        rows, _ = reader.hydrate(3)
        server = {(row["table"], row["pk"]): (row["server_version"], row["payload"]) for row in rows}
        log: dict[tuple[str, str], list[Any]] = {}
        for change in reader.log(7):
            log.setdefault((change["table"], change["pk"]), []).append(change)
        for place, changes in log.items():
            # Each version once and in order: nothing skipped, nothing doubled, nothing half.
            assert [change["server_version"] for change in changes] == list(range(1, len(changes) + 1)), place
        replayed = {place: (c[-1]["server_version"], c[-1]["payload"]) for place, c in log.items()}
        assert {place: found for place, found in replayed.items() if found[1] is not None} == server
        for table in ("users", "posts", "comments"):
            by_sql = self.world.sql(self.user, f"SELECT * FROM {{ns}}.{table} ORDER BY id")
            wanted = [tuple(v for k, v in row.items() if not k.startswith("_")) for row in by_sql]
            assert [pk for (t, pk) in server if t == table] == [row[0] for row in wanted]
            for phone in self.phones:
                assert phone.contents(table)[table] == wanted, (table, phone.device.status())
        versions = {pk: version for (_, pk), (version, _) in server.items()}
        for phone in self.phones:
            phone.check()
            assert {pk: v for pk, (v, deleted) in phone.versions().items() if not deleted} == versions
        users, posts = ({pk for (t, pk) in server if t == table} for table in ("users", "posts"))
        assert {p["author"] for (t, _), (_, p) in server.items() if t == "posts"} <= users | {None}
        assert {p["post"] for (t, _), (_, p) in server.items() if t == "comments"} <= posts | {None}


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server of our own, to be killed."""
    return start_server(env={"UPWELL_BCRYPT_COST": "4"})


def test_all_agree_in_the_end(server: ServerProcess, tmp_path: Path) -> None:
    with World(server) as world:
        fleets = []
        for seed in SEEDS:
            user = world.user()
            directory = tmp_path / str(seed)
            directory.mkdir()
            phones = [
                world.phone(directory, user, "phone", resolver=server_wins, upload_limit=4),
                world.phone(directory, user, "laptop", resolver=client_wins, download_limit=3),
            ]
            fleets.append(Fleet(world, user, phones, random.Random(seed)))
        for step in range(STEPS):
            if step in RESTARTS:
                server.restart()
            for seed, fleet in zip(SEEDS, fleets, strict=True):
                with_seed(seed, step, fleet.step)
        for seed, fleet in zip(SEEDS, fleets, strict=True):
            with_seed(seed, STEPS, fleet.converge)
            with_seed(seed, STEPS, fleet.check)


def with_seed(seed: int, step: int, act: Callable[[], None]) -> None:
    """Act; a failure says how to replay it: this seed alone gives the same run."""
    try:
        act()
    except BaseException as error:
        error.add_note(f"seed {seed}, step {step}: set SEEDS to this seed to replay it")
        raise
