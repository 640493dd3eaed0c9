"""The stock client (go-oversync, generation A) works with our server as it is, weaknesses included.

Written from the device sync contract, sections 4.4, 5, 12 and 13; the client is `upwell.testing.stock`, which
knows nothing of ours. What the server can make good, it must: reused ids, lost answers, conflicts in batches.
"""

import json
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from upwell.client import Client, connect
from upwell.device import Device
from upwell.testing import ServerProcess, wait_until
from upwell.testing.stock import StockClient
from upwell.testing.stock_answers import StockError
from upwell.testing.sync_world import Handset, key

SCHEMA = "business"
CREATED_AT = 1_760_000_000
SERVER_TABLES = (
    "users (id UUID PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, created_at TIMESTAMP,"
    " updated_at TIMESTAMP)",
    "posts (id UUID PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL,"
    " author_id UUID REFERENCES business.users(id), created_at TIMESTAMP, updated_at TIMESTAMP)",
    "files (id UUID PRIMARY KEY, name TEXT NOT NULL, data BYTES NOT NULL)",
    "file_reviews (id UUID PRIMARY KEY, review TEXT NOT NULL, file_id UUID REFERENCES business.files(id))",
)
LOCAL_TABLES = """
CREATE TABLE IF NOT EXISTS users (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, created_at INTEGER, updated_at INTEGER);
CREATE TABLE IF NOT EXISTS posts (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL,
    author_id TEXT REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED,
    created_at INTEGER, updated_at INTEGER);
CREATE TABLE IF NOT EXISTS files (id BLOB PRIMARY KEY, name TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS file_reviews (
    id BLOB PRIMARY KEY, review TEXT NOT NULL,
    file_id BLOB REFERENCES files (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
"""
TABLES = ("users", "posts", "files", "file_reviews")


class Business:
    """A server with the reference's example tables, and the installations of its app."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    def root(self) -> Client:
        return connect(self.server.url, user="root", password=self.server.root_password)

    def sql(self, user: str, statement: str) -> list[dict[str, Any]]:
        """Run a statement on behalf of `user`."""
        with self.root() as root:
            return root.query(f"EXECUTE AS USER '{user}' ({statement})", raw=True)

    def count(self, user: str, table: str) -> int:
        (row,) = self.sql(user, f"SELECT count(*) AS n FROM business.{table}")
        return int(row["n"])

    def log(self, user: str) -> list[dict[str, Any]]:
        """The user's whole log, as a device without changes of its own sees it."""
        token = jwt.encode({"sub": user, "did": "onlooker"}, self.server.jwt_secret, "HS256")
        with httpx.Client(base_url=self.server.url) as http:
            return Handset(http, token, SCHEMA).log()


Install = Callable[..., StockClient]


@pytest.fixture(scope="module")
def business(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Business]:
    """One server for this module; its users never meet."""
    directory = tmp_path_factory.mktemp("stock") / "data"
    env = {"UPWELL_BCRYPT_COST": "4", "UPWELL_AUTH_ATTEMPTS_PER_S_MAX": "1000000"}
    with ServerProcess(directory, env=env) as server:
        yield opened(server)
        assert "Traceback" not in server.log_text(), server.log_tail()


def opened(server: ServerProcess) -> Business:
    """Create the tables on a fresh server."""
    business = Business(server)
    with business.root() as root:
        root.execute("CREATE NAMESPACE business")
        for table in SERVER_TABLES:
            root.execute(f"CREATE TABLE business.{table} WITH (TYPE='USER', SYNC=TRUE)")
    return business


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def install(business: Business, tmp_path: Path, user: str) -> Iterator[Install]:
    """Install the app on a fresh file (or reopen one) and sign in, unless told otherwise."""
    clients: list[StockClient] = []

    def install(
        source: str = "phone", *, name: str | None = None, signs_in: bool = True, **options: Any
    ) -> StockClient:
        options.setdefault("secret", business.server.jwt_secret)
        options.setdefault("base_url", business.server.url)
        client = StockClient(
            tmp_path / f"{name or source}.sqlite",
            user=options.pop("user", user),
            source=source,
            schema=SCHEMA,
            tables=TABLES,
            ddl=LOCAL_TABLES,
            **options,
        )
        clients.append(client)
        if signs_in:
            client.bootstrap()
        return client

    yield install
    for client in clients:
        client.close()


def add_user(client: StockClient, number: int, name: str | None = None) -> None:
    row = (key(number), name or f"Complex User {number}", f"u{number}@example.com", CREATED_AT, CREATED_AT)
    client.run("INSERT INTO users VALUES (?, ?, ?, ?, ?)", *row)


def add_post(client: StockClient, number: int, author: int) -> None:
    row = (key(10_000 + number), f"Post {number}", "content", key(author), CREATED_AT, CREATED_AT)
    client.run("INSERT INTO posts VALUES (?, ?, ?, ?, ?, ?)", *row)


def rename(client: StockClient, number: int, name: str) -> None:
    client.run("UPDATE users SET name = ? WHERE id = ?", name, key(number))


def contents(client: StockClient) -> dict[str, list[Any]]:
    return {table: client.run(f"SELECT * FROM {table} ORDER BY id") for table in TABLES}


def names(client: StockClient) -> dict[str, str]:
    return dict(client.run("SELECT id, name FROM users"))


def statuses(client: StockClient) -> list[dict[str, Any]]:
    """All statuses that the client ever got."""
    return [status for answer in client.answers for status in answer["statuses"]]


def check(client: StockClient) -> None:
    """Nothing waits, all references hold, and the triggers are on."""
    assert client.pending() == []
    assert client.run("PRAGMA foreign_key_check") == []
    assert client.run("SELECT apply_mode FROM _sync_client_info") == [(0,)]


# --- the literal scenario


def create(client: StockClient, *, users_done_first: bool) -> None:
    """Phase 1: 60 users, 120 posts, 4 updates of each of 30 users, 10 users deleted with their 20 posts."""
    for number in range(1, 61):
        add_user(client, number)
        if not users_done_first:
            add_posts_of(client, number)
    for number in range(1, 31):
        for update in range(1, 5):
            rename(client, number, f"Updated User {number} (Update #{update})")
    if users_done_first:
        for number in range(1, 61):
            add_posts_of(client, number)
    for number in range(51, 61):
        client.run("DELETE FROM posts WHERE author_id = ?", key(number))
        client.run("DELETE FROM users WHERE id = ?", key(number))


def add_posts_of(client: StockClient, number: int) -> None:
    add_post(client, 2 * number, number)
    add_post(client, 2 * number + 1, number)


# An edit puts a user behind its posts in this client's queue: small windows need the users done first (D18).
@pytest.mark.parametrize(("limit", "users_done_first"), [(200, False), (200, True), (50, True), (7, True)])
def test_complex_multi_batch(
    business: Business, user: str, install: Install, limit: int, users_done_first: bool
) -> None:
    phone = install("device-complex-001", signs_in=False, upload_limit=limit)
    phone.bootstrap()
    create(phone, users_done_first=users_done_first)
    assert Counter((change.table, change.op, change.base_version) for change in phone.pending()) == {
        ("users", "INSERT", 0): 50,
        ("posts", "INSERT", 0): 100,
    }
    payloads = [json.loads(change.payload or "") for change in phone.pending()]
    assert sum(row.get("name", "").endswith("(Update #4)") for row in payloads) == 30

    rounds = phone.upload_all()

    assert rounds == len(phone.answers) == -(-150 // limit)
    assert [answer["accepted"] for answer in phone.answers] == [True] * rounds
    assert Counter((s["status"], s.get("new_server_version")) for s in statuses(phone)) == {
        ("applied", 1): 150
    }
    check(phone)
    assert [business.count(user, table) for table in ("users", "posts")] == [50, 100]
    log = business.log(user)
    assert len(log) == 150
    assert {change["pk"]: change["payload"] for change in log} == {row["id"]: row for row in payloads}
    dangling = "LEFT JOIN business.users AS u ON p.author_id = u.id WHERE u.id IS NULL"
    assert business.sql(user, f"SELECT p.id FROM business.posts AS p {dangling}") == []
    final = [name for name in names(phone).values() if name.endswith("(Update #4)")]
    assert (len(names(phone)), len(final)) == (50, 30)
    assert {phone.meta("users", key(n)) for n in range(1, 51)} == {(1, False)}
    assert {phone.meta("users", key(n)) for n in range(51, 61)} == {(0, False)}
    before = contents(phone)
    phone.close()

    again = install("device-complex-001", name="again", upload_limit=limit)
    assert {table: rows for table, rows in contents(again).items() if rows} == {}
    assert again.hydrate(limit=max(limit, 40)) == 150
    assert contents(again) == before
    check(again)
    ((next_id,),) = again.run("SELECT next_change_id FROM _sync_client_info")
    assert next_id > max(change["source_change_id"] for change in log)
    add_user(again, 99)
    rename(again, 1, "edited after all")
    assert again.upload_all() == 1
    assert [(s["status"], s["new_server_version"]) for s in statuses(again)] == [
        ("applied", 1),
        ("applied", 2),
    ]
    check(again)


def test_rows_deleted_after_their_upload_leave_tombstones(
    business: Business, user: str, install: Install
) -> None:
    phone, laptop = install(), install("laptop")
    for number in range(1, 21):
        add_user(phone, number)
        add_posts_of(phone, number)
    phone.upload_all()
    laptop.download_all()
    phone.run("DELETE FROM posts WHERE author_id IN (SELECT id FROM users WHERE id > ?)", key(10))
    phone.run("DELETE FROM users WHERE id > ?", key(10))
    assert Counter((change.op, change.base_version) for change in phone.pending()) == {("DELETE", 1): 30}
    phone.upload_all()
    assert {phone.meta("users", key(n)) for n in range(11, 21)} == {(2, True)}
    assert [business.count(user, table) for table in ("users", "posts")] == [10, 20]
    tombstones = business.log(user)[60:]
    assert {(c["op"], c["server_version"], c["deleted"], c["payload"]) for c in tombstones} == {
        ("DELETE", 2, True, None)
    }
    laptop.download_all()
    assert contents(laptop) == contents(phone)
    fresh = install("fresh")
    fresh.hydrate()
    assert contents(fresh) == contents(phone)


def test_its_own_livelock_writes_nothing_and_ends_with_a_larger_window(
    business: Business, user: str, install: Install
) -> None:
    phone = install(upload_limit=50)
    create(phone, users_done_first=False)
    for _ in range(3):
        phone.upload_once()
        reasons = {status["invalid"]["reason"] for status in phone.answers[-1]["statuses"]}
        assert reasons == {"fk_missing"}
    assert (len(phone.pending()), business.log(user)) == (150, [])
    phone.upload_limit = 200
    assert phone.upload_all() == 1
    assert len(business.log(user)) == 150


# --- the app's days


def test_normal_usage(business: Business, user: str, install: Install) -> None:
    phone = install()
    add_user(phone, 1)
    add_post(phone, 1, 1)
    phone.upload_all()
    rename(phone, 1, "second day")
    phone.run("UPDATE posts SET content = 'longer', updated_at = ?", CREATED_AT + 86_400)
    phone.upload_all()
    phone.run("DELETE FROM posts")
    add_user(phone, 2)
    phone.close()
    # The next launch, offline work still waiting in the file.
    phone = install()
    assert [(change.table, change.op) for change in phone.pending()] == [
        ("posts", "DELETE"),
        ("users", "INSERT"),
    ]
    phone.upload_all()
    check(phone)
    assert [(c["table"], c["op"], c["server_version"]) for c in business.log(user)] == [
        ("users", "INSERT", 1), ("posts", "INSERT", 1), ("users", "UPDATE", 2), ("posts", "UPDATE", 2),
        ("users", "INSERT", 1), ("posts", "DELETE", 3),
    ]  # fmt: skip
    assert names(phone) == {key(1): "second day", key(2): "Complex User 2"}
    # Its own changes are not sent back to it, and they don't hold up its cursor.
    assert phone.download_once() == 0
    laptop = install("laptop")
    assert laptop.download_all(2) == 6
    assert contents(laptop) == contents(phone)


@pytest.mark.parametrize("source", ["phone", "phone-after-reinstall"])
def test_a_reinstalled_or_replaced_device_has_everything(user: str, install: Install, source: str) -> None:
    phone = install()
    for number in range(1, 8):
        add_user(phone, number)
        add_posts_of(phone, number)
    phone.upload_all()
    phone.run("DELETE FROM posts WHERE author_id = ?", key(3))
    rename(phone, 4, "edited")
    phone.upload_all()
    before = contents(phone)
    phone.close()

    new = install(source, name="new")
    new.hydrate(include_self=source == "phone")
    assert contents(new) == before
    rename(new, 4, "edited on the new one")
    new.run("DELETE FROM posts WHERE author_id = ?", key(5))
    add_user(new, 8)
    new.upload_all()
    assert {(s["status"], "new_server_version" in s) for s in statuses(new)} == {("applied", True)}
    check(new)


def test_two_devices_take_turns_and_agree(business: Business, user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    for number in range(1, 6):
        add_user(phone, number)
    phone.upload_all()
    laptop.upload_once()
    for number in range(1, 6):
        add_posts_of(laptop, number)
    rename(laptop, 1, "laptop's")
    laptop.upload_all()
    rename(phone, 2, "phone's")
    phone.upload_all()
    laptop.download_all()
    assert contents(phone) == contents(laptop)
    assert (names(phone)[key(1)], names(phone)[key(2)]) == ("laptop's", "phone's")
    assert len(contents(phone)["posts"]) == 10
    check(phone)
    check(laptop)
    assert {(s["status"], "new_server_version" in s) for s in statuses(phone) + statuses(laptop)} == {
        ("applied", True)
    }


def test_users_never_meet(business: Business, user: str, install: Install) -> None:
    phone, other = install(), install("phone", name="other", user=f"{user}-2")
    add_user(phone, 1, "mine")
    add_user(other, 1, "theirs")
    phone.upload_all()
    other.upload_all()
    assert (phone.download_all(), other.download_all()) == (0, 0)
    assert (names(phone), names(other)) == ({key(1): "mine"}, {key(1): "theirs"})
    assert [len(business.log(name)) for name in (user, f"{user}-2")] == [1, 1]


def test_eight_users_at_once(business: Business, tmp_path: Path, user: str) -> None:
    def client(number: int, name: str) -> StockClient:
        return StockClient(
            tmp_path / f"{number}-{name}.sqlite",
            base_url=business.server.url,
            secret=business.server.jwt_secret,
            user=f"{user}-{number}",
            source="phone",
            schema=SCHEMA,
            tables=TABLES,
            ddl=LOCAL_TABLES,
            upload_limit=25,
        )

    def work(number: int) -> None:
        with client(number, "first") as phone, client(number, "again") as again:
            phone.bootstrap()
            for index in range(1, 16):
                add_user(phone, index, f"user {index} of {number}")
                add_posts_of(phone, index)
            phone.upload_all()
            again.bootstrap()
            again.hydrate(limit=10)
            assert contents(again) == contents(phone)
            assert {s["new_server_version"] for s in statuses(phone)} == {1}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_beside_our_sdk(business: Business, user: str, install: Install, tmp_path: Path) -> None:
    """Both clients of one user, on all tables: what one writes the other has, in its own file's form."""
    stock = install()
    path = tmp_path / "ours.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(LOCAL_TABLES)
    connection.close()
    token = jwt.encode({"sub": user, "did": "ours"}, business.server.jwt_secret, "HS256")
    with Device.open(path, schema=SCHEMA, tables=TABLES, source="ours") as device:
        device.sign_in(business.server.url, user, token=token)

        def ours() -> dict[str, list[Any]]:
            return {t: device.connection.execute(f"SELECT * FROM {t} ORDER BY id").fetchall() for t in TABLES}

        def agree() -> None:
            device.sync()
            stock.upload_once()
            device.sync()
            assert contents(stock) == ours()
            assert (stock.pending(), device.pending()) == ([], [])

        for number in (1, 2):
            add_user(stock, number)
            add_posts_of(stock, number)
            photo = bytes(range(number, 40))
            stock.run("INSERT INTO files VALUES (?, 'f', ?)", blob(20 + number), photo)
            stock.run("INSERT INTO file_reviews VALUES (?, 'r', ?)", blob(30 + number), blob(20 + number))
        stock.upload_all()
        agree()
        assert [len(rows) for rows in ours().values()] == [2, 4, 2, 2]
        app = device.connection
        app.execute("UPDATE users SET name = 'ours', updated_at = ? WHERE id = ?", (CREATED_AT + 1, key(1)))
        app.execute("DELETE FROM files WHERE id = ?", (blob(21),))
        app.execute("INSERT INTO files VALUES (?, 'of ours', x'00ff')", (blob(29),))
        app.execute("INSERT INTO file_reviews VALUES (?, 'of ours', ?)", (blob(39), blob(29)))
        rename(stock, 2, "stock's")
        agree()
        assert names(stock) == {key(1): "ours", key(2): "stock's"}
        assert [row[0] for row in contents(stock)["file_reviews"]] == [blob(32), blob(39)]
        # Both edit one row: the first to arrive stays, on both.
        rename(stock, 1, "second")
        app.execute("UPDATE users SET name = 'first' WHERE id = ?", (key(1),))
        agree()
        assert names(stock)[key(1)] == "first"


# --- files: keys and references that are BLOBs


def blob(number: int) -> bytes:
    return uuid.UUID(key(number)).bytes


def test_files_and_their_reviews(business: Business, user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    data = bytes(range(256))
    for number in range(1, 4):
        phone.run("INSERT INTO files VALUES (?, ?, ?)", blob(number), f"file {number}", data[number:])
        phone.run("INSERT INTO file_reviews VALUES (?, 'good', ?)", blob(100 + number), blob(number))
    phone.upload_all()
    assert {s["status"] for s in statuses(phone)} == {"applied"}
    assert {c["pk"]: c["payload"] for c in business.log(user)} == {
        change["pk"]: change["payload"] for change in phone.requests[0][1]["changes"]
    }
    joined = "JOIN business.files AS f ON r.file_id = f.id"
    reviewed = business.sql(user, f"SELECT f.name AS name FROM business.file_reviews AS r {joined}")
    assert sorted(row["name"] for row in reviewed) == ["file 1", "file 2", "file 3"]
    assert laptop.download_all() == 6
    assert contents(laptop) == contents(phone)
    assert laptop.run("SELECT data FROM files WHERE id = ?", blob(2)) == [(data[2:],)]

    # The local cascade captures the reviews too, and the server takes them child first.
    laptop.run("DELETE FROM files WHERE id = ?", blob(2))
    assert {(c.table, c.op, c.pk) for c in laptop.pending()} == {
        ("files", "DELETE", blob(2).hex()), ("file_reviews", "DELETE", blob(102).hex()),
    }  # fmt: skip
    laptop.upload_all()
    assert [(c["table"], c["op"]) for c in business.log(user)[6:]] == [
        ("file_reviews", "DELETE"), ("files", "DELETE"),
    ]  # fmt: skip
    phone.download_all()
    assert contents(phone) == contents(laptop)
    assert [len(rows) for rows in contents(phone).values()] == [0, 0, 2, 2]
    check(phone)
    check(laptop)


def test_a_window_of_photos_gets_through(business: Business, user: str, install: Install) -> None:
    """24 photos of half a megabyte in one request: this client halves it for `batch_too_large` only."""
    phone = install()
    for number in range(24):
        photo = bytes([number]) * (512 * 1024)
        phone.run("INSERT INTO files VALUES (?, 'photo', ?)", blob(number), photo)
    phone.upload_all(rounds_max=3)
    assert {status["status"] for status in phone.answers[-1]["statuses"]} == {"applied"}
    assert business.count(user, "files") == 24


def test_a_blob_that_is_null_comes_up_as_empty_text(business: Business, user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    phone.run("INSERT INTO file_reviews VALUES (?, 'of nothing', NULL)", blob(1))
    phone.upload_all(rounds_max=2)
    assert [s["status"] for s in statuses(phone)] == ["applied"]
    (entry,) = business.log(user)
    assert entry["payload"] == {"id": key(1), "review": "of nothing", "file_id": ""}
    assert business.sql(user, "SELECT review FROM business.file_reviews WHERE file_id IS NULL") == [
        {"review": "of nothing"}
    ]
    laptop.run("PRAGMA foreign_keys = OFF")  # the empty blob is no file: the client's own defect (D17)
    assert laptop.download_all() == 1


# --- what the server makes good


def test_ids_used_again_without_hydration_swallow_nothing(
    business: Business, user: str, install: Install
) -> None:
    phone = install()
    for number in (1, 2, 3):
        add_user(phone, number)
    phone.upload_all()
    again = install("phone", name="again")
    for number in (11, 12, 13):
        add_user(again, number)
    again.upload_all()
    assert [(s["source_change_id"], s["new_server_version"]) for s in statuses(again)] == [
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    assert business.count(user, "users") == 6


def test_more_rows_than_a_window_before_the_first_sign_in(
    business: Business, user: str, install: Install
) -> None:
    phone = install(signs_in=False, upload_limit=3)
    for number in range(1, 11):
        add_user(phone, number)
    assert {change.change_id for change in phone.pending()} == {None}
    phone.bootstrap()
    phone.upload_all()
    assert {s.get("new_server_version") for s in statuses(phone)} == {1}
    assert len({s["source_change_id"] for s in statuses(phone)}) < 10
    assert (business.count(user, "users"), len(business.log(user))) == (10, 10)


@pytest.mark.parametrize("edits", [[], ["edited"], ["edited", "edited again"]])
def test_an_edit_after_a_lost_answer_arrives(
    business: Business, user: str, install: Install, edits: list[str]
) -> None:
    phone = install()
    add_user(phone, 1)
    add_user(phone, 2)
    phone.on_answer = lose
    with pytest.raises(httpx.ReadError):
        phone.upload_once()
    assert len(phone.pending()) == 2
    phone.on_answer = lambda: None
    for name in edits:
        rename(phone, 1, name)
    phone.upload_all()
    assert business.sql(user, "SELECT name FROM business.users ORDER BY id") == [
        {"name": edits[-1] if edits else "Complex User 1"}, {"name": "Complex User 2"},
    ]  # fmt: skip
    assert len(business.log(user)) == 2 + bool(edits)


def lose() -> None:
    raise httpx.ReadError("the answer was lost on purpose")


def test_conflicts_in_batches_leave_nothing_and_the_server_wins(
    business: Business, user: str, install: Install
) -> None:
    phone, laptop = install(), install("laptop")
    for number in range(1, 7):
        add_user(phone, number)
    phone.upload_all()
    laptop.download_all()
    for number in (1, 2, 3):
        rename(phone, number, f"phone {number}")
    for number in (2, 3, 4, 5):
        rename(laptop, number, f"laptop {number}")
    add_user(laptop, 7)
    phone.upload_all()
    laptop.upload_all()
    by_status = Counter(s["status"] for s in statuses(laptop))
    assert by_status == {"conflict": 2, "applied": 3}
    phone.download_all()
    assert names(phone) == names(laptop)
    assert [names(phone)[key(n)] for n in range(1, 6)] == [
        "phone 1",
        "phone 2",
        "phone 3",
        "laptop 4",
        "laptop 5",
    ]
    assert len(business.log(user)) == 6 + 3 + 3
    check(phone)
    check(laptop)


def test_a_kept_local_row_is_applied_under_its_old_id(
    business: Business, user: str, install: Install
) -> None:
    phone = install()
    laptop = install("laptop", resolver=lambda table, pk, server, local: (local, True))
    for number in (1, 2):
        add_user(phone, number)
    phone.upload_all()
    laptop.download_all()
    for number in (1, 2):
        rename(phone, number, f"phone {number}")
        rename(laptop, number, f"laptop {number}")
    phone.upload_all()
    assert laptop.upload_all() == 2
    first, second = laptop.answers
    assert [s["status"] for s in first["statuses"]] == ["conflict", "conflict"]
    assert [(s["status"], s["new_server_version"]) for s in second["statuses"]] == [("applied", 3)] * 2
    assert [s["source_change_id"] for s in first["statuses"]] == [
        s["source_change_id"] for s in second["statuses"]
    ]
    phone.download_all()
    assert names(phone) == {key(1): "laptop 1", key(2): "laptop 2"}
    # Its own download came between and put the others' rows into its table; a hydration repairs that.
    assert names(laptop) == {key(1): "phone 1", key(2): "phone 2"}
    laptop.hydrate()
    assert names(laptop) == names(phone)


def test_an_edit_of_a_row_deleted_elsewhere_ends_with_the_tombstone(user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    add_user(phone, 1)
    phone.upload_all()
    laptop.download_all()
    phone.run("DELETE FROM users")
    phone.upload_all()
    rename(laptop, 1, "too late")
    # This client can't digest a deleted server row; it fails until the download brings the tombstone.
    with pytest.raises(sqlite3.OperationalError):
        laptop.upload_once()
    assert [change.op for change in laptop.pending()] == ["UPDATE"]
    assert laptop.download_once() == 1
    assert [change.op for change in laptop.pending()] == ["UPDATE"]
    laptop.upload_all()
    assert names(laptop) == {}
    check(laptop)


def test_a_deletion_against_an_edit_and_against_a_deletion(user: str, install: Install) -> None:
    phone, laptop = install(), install("laptop")
    for number in (1, 2):
        add_user(phone, number)
    phone.upload_all()
    laptop.download_all()
    rename(phone, 1, "edited")
    phone.run("DELETE FROM users WHERE id = ?", key(2))
    phone.upload_all()
    laptop.run("DELETE FROM users")
    # It can't digest that the row is deleted there, too, until it has read of that.
    with pytest.raises(sqlite3.OperationalError):
        laptop.upload_once()
    laptop.download_all()
    laptop.upload_all()
    # The newer row is back, the deleted one is agreed.
    assert names(phone) == names(laptop) == {key(1): "edited"}
    assert laptop.meta("users", key(2)) == (2, True)
    check(laptop)


def test_a_parent_deleted_here_under_a_child_from_elsewhere_costs_no_row(
    business: Business, user: str, install: Install
) -> None:
    """This client can't go on by itself (the reference answers 500 for ever); a fresh installation can."""
    phone, laptop = install(), install("laptop")
    add_user(phone, 1)
    phone.upload_all()
    laptop.download_all()
    add_post(laptop, 1, 1)
    laptop.upload_all()
    phone.run("DELETE FROM users")
    add_user(phone, 2)
    with pytest.raises(sqlite3.IntegrityError):
        phone.upload_once()
    refused = {
        s["source_change_id"]: s.get("invalid", {}).get("reason") for s in phone.answers[-1]["statuses"]
    }
    assert sorted(map(str, refused.values())) == ["None", "has_children"]
    assert [change.op for change in phone.pending()] == ["DELETE"]
    assert [business.count(user, table) for table in ("users", "posts")] == [2, 1]
    fresh = install("fresh")
    fresh.hydrate()
    check(fresh)
    assert [len(rows) for rows in contents(fresh).values()] == [2, 1, 0, 0]


# --- what the server must not do


def test_payload_keys_are_never_added_renamed_or_retyped(
    business: Business, user: str, install: Install
) -> None:
    phone, laptop = install(), install("laptop")
    add_user(phone, 1)
    add_post(phone, 1, 1)
    phone.run("INSERT INTO files VALUES (?, 'f', ?)", blob(2), b"\x00\xff")
    phone.run("INSERT INTO file_reviews VALUES (?, 'r', ?)", blob(3), blob(2))
    phone.upload_all()
    later = f"later_{user[-6:]}"
    with business.root() as root:
        root.execute(f"ALTER TABLE business.users ADD COLUMN {later} TEXT DEFAULT 'x'")
    business.sql(user, f"UPDATE business.users SET name = 'by the back end' WHERE id = '{key(1)}'")
    sent = {change["pk"]: whole(change["payload"]) for change in phone.requests[0][1]["changes"]}
    log = business.log(user)
    expected = [*(sent[entry["pk"]] for entry in log[:4]), {**sent[key(1)], "name": "by the back end"}]
    # As text, for 1 and 1.0 are equal in Python.
    assert [dumped(entry["payload"]) for entry in log] == [dumped(payload) for payload in expected]
    assert {entry["pk"] for entry in log[:4]} == set(sent)
    laptop.download_all()
    phone.download_all()
    assert contents(phone) == contents(laptop)
    assert names(laptop) == {key(1): "by the back end"}
    assert laptop.run("SELECT created_at, typeof(created_at) FROM users") == [(CREATED_AT, "integer")]


def whole(payload: dict[str, Any]) -> dict[str, Any]:
    """A payload as it was written: whole doubles are integers."""
    return {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in payload.items()}


def dumped(payload: dict[str, Any]) -> str:
    return json.dumps(payload, sort_keys=True)


def test_rows_of_the_back_end_arrive(business: Business, user: str, install: Install) -> None:
    phone = install()
    columns, row = "(id, name, email)", f"('{key(1)}', 'of the back end', 'e')"
    business.sql(user, f"INSERT INTO business.users {columns} VALUES {row}")
    business.sql(user, f"INSERT INTO business.files VALUES ('{key(2)}', 'f', X'00FF')")
    business.sql(user, f"INSERT INTO business.file_reviews VALUES ('{key(3)}', 'r', '{key(2)}')")
    assert phone.download_all() == 3
    assert phone.run("SELECT id, name, email, created_at FROM users") == [
        (key(1), "of the back end", "e", None)
    ]
    assert phone.run("SELECT id, data FROM files") == [(blob(2), b"\x00\xff")]
    assert phone.run("SELECT id, file_id FROM file_reviews") == [(blob(3), blob(2))]
    rename(phone, 1, "edited here")
    phone.upload_all()
    assert [s["new_server_version"] for s in statuses(phone)] == [2]
    assert business.sql(user, "SELECT name FROM business.users") == [{"name": "edited here"}]


# --- failures that are plain


def test_a_refused_token_is_a_plain_401_and_costs_nothing(
    business: Business, user: str, install: Install
) -> None:
    stranger = install("phone", secret="another-secret-with-more-than-32-bytes-in-it")
    add_user(stranger, 1)
    for request in (stranger.upload_once, stranger.download_once, stranger.hydrate):
        with pytest.raises(StockError, match="401") as refused:
            request()
        assert refused.value.status == 401
    assert len(stranger.pending()) == 1
    assert business.log(user) == []
    stranger.close()
    phone = install("phone")
    phone.upload_all()
    assert business.count(user, "users") == 1


def test_a_server_that_restarts_in_the_middle(business: Business, user: str, install: Install) -> None:
    phone, laptop = install(upload_limit=50), install("laptop")
    create(phone, users_done_first=True)
    phone.upload_once()
    business.server.kill()
    with pytest.raises(httpx.TransportError):
        phone.upload_once()
    assert len(phone.pending()) == 100
    business.server.start()
    phone.on_answer = lose_and_restart(business.server)
    with pytest.raises(httpx.ReadError):
        phone.upload_once()
    phone.on_answer = lambda: None
    phone.upload_all()
    assert {s["status"] for s in statuses(phone)} == {"applied"}
    assert [business.count(user, table) for table in ("users", "posts")] == [50, 100]
    assert len(business.log(user)) == 150

    assert laptop.download_once(40) == 40
    business.server.restart()
    assert laptop.download_all(40) == 110
    assert contents(laptop) == contents(phone)
    check(laptop)


def lose_and_restart(server: ServerProcess) -> Callable[[], object]:
    def act() -> None:
        server.restart()
        lose()

    return act


# --- a log that no longer reaches back to the beginning


def test_hydration_from_a_log_that_was_trimmed(
    start_server: Callable[..., ServerProcess], user: str, install: Install
) -> None:
    trims = {"UPWELL_LOG_RETENTION_S": "1", "UPWELL_LOG_TRIM_INTERVAL_S": "0.1"}
    server = start_server(env={"UPWELL_BCRYPT_COST": "4"})
    business = opened(server)
    phone = install(base_url=server.url)
    create(phone, users_done_first=True)
    phone.upload_all()
    tablet = install("tablet", base_url=server.url)
    tablet.download_all()
    phone.run("DELETE FROM posts WHERE author_id IN (?, ?)", key(3), key(4))
    phone.run("DELETE FROM users WHERE id = ?", key(3))
    rename(phone, 5, "edited")
    phone.upload_all()
    assert entries_left(business, user) > 150
    server.restart(env=trims)
    wait_until(lambda: entries_left(business, user) == 0, timeout_s=20, what="the log to be trimmed")
    server.restart()

    again = install("phone", name="again", base_url=server.url)
    again.hydrate()
    assert contents(again) == contents(phone)
    check(again)
    ((next_id,),) = again.run("SELECT next_change_id FROM _sync_client_info")
    assert next_id > max(status["source_change_id"] for status in statuses(phone))
    laptop = install("laptop", base_url=server.url)
    assert laptop.download_once(7) == 7
    # While it is at it, others go on, and the server starts anew.
    rename(again, 6, "edited meanwhile")
    add_user(again, 70)
    again.run("DELETE FROM posts WHERE author_id = ?", key(8))
    again.upload_all()
    assert {s.get("new_server_version") for s in statuses(again)} <= {1, 2}
    server.restart()
    laptop.download_all(7)
    assert contents(laptop) == contents(again)
    check(laptop)
    rename(laptop, 6, "and again")
    laptop.upload_all()
    assert [(s["status"], s["new_server_version"]) for s in statuses(laptop)] == [("applied", 3)]
    # Who was away for longer than the log reaches back is told so, and keeps its edits until it hydrates.
    rename(tablet, 9, "from afar")
    with pytest.raises(StockError, match="history_pruned") as pruned:
        tablet.download_once()
    assert pruned.value.status == 409
    assert [change.op for change in tablet.pending()] == ["UPDATE"]
    tablet.hydrate()
    laptop.download_all()
    live = {table: set(rows) for table, rows in contents(laptop).items()}
    rename(tablet, 9, "from afar")
    tablet.upload_all()
    assert statuses(tablet)[-1]["status"] == "applied"
    laptop.download_all()
    assert names(laptop)[key(9)] == "from afar"
    assert live["posts"] <= set(contents(tablet)["posts"])


def entries_left(business: Business, user: str) -> int:
    """How many entries the user's log still has."""
    (row,) = business.sql(user, "SELECT count(*) AS n FROM system.changes")
    return int(row["n"])
