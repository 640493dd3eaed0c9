"""Scenario 03, a shopping cart: users in parallel with the same keys, filtered live queries, flush."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from upwell.testing import cold
from upwell.testing.websocket import PING, Frame, Socket, Watched
from upwell.testing.wire import Site, Wire

USERS = 10
ITEMS = (
    "(id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(), cart_id BIGINT NOT NULL, product_name TEXT NOT NULL,"
    " quantity INT NOT NULL, price DOUBLE, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
    " WITH (TYPE = 'USER')"
)


@pytest.fixture
def items(site: Site, namespace: str) -> str:
    """A fresh USER table of cart items."""
    site.root.run(f"CREATE TABLE {namespace}.cart_items {ITEMS}")
    return f"{namespace}.cart_items"


def put(wire: Wire, table: str, cart: int, *ids: int) -> None:
    values = ", ".join(f"({n}, {cart}, 'product {n}', 1)" for n in ids)
    assert wire.run(
        f"INSERT INTO {table} (id, cart_id, product_name, quantity) VALUES {values}"
    ).count == len(ids)


def test_ten_users_fill_their_carts_in_parallel(site: Site, items: str, namespace: str) -> None:
    """Each has 45 rows, quantities of 155 and prices of 9890.10, under the very same keys as the others."""
    site.root.run(f"CREATE TABLE {namespace}.carts (id BIGINT PRIMARY KEY, name TEXT) WITH (TYPE = 'USER')")
    accounts = [site.account() for _ in range(USERS)]

    def shop(wire: Wire) -> None:
        columns = "id, cart_id, product_name, quantity, price"
        with Socket(wire.port, wire.token) as socket, Wire(wire.port, wire.token) as own:
            watched = Watched(socket, f"SELECT * FROM {items} WHERE cart_id = 1", options={}).snapshot()
            assert watched.rows == {}
            statements = [f"INSERT INTO {namespace}.carts VALUES (1, 'cart of {wire.token}')"]
            statements += [
                f"INSERT INTO {items} ({columns}) VALUES ({n}, 1, 'product {n}', {n % 5 + 1}, {n * 9.99})"
                for n in range(50)
            ]
            statements += [f"UPDATE {items} SET quantity = quantity + 1 WHERE id = {n}" for n in range(20)]
            statements += [f"DELETE FROM {items} WHERE id = {n}" for n in range(45, 50)]
            for statement in statements:
                assert own.run(statement).count == 1
                socket.send(Frame(PING))
            totals = f"SELECT COUNT(*), SUM(quantity), SUM(price) FROM {items} WHERE cart_id = 1"
            ((count, quantity, price),) = own.run(totals).rows
            assert (count, quantity, round(price, 2)) == ("45", "155", 9890.10)
            put(own, items, 1, 1000)
            assert watched.until(1000) == (
                [("insert", str(n)) for n in range(50)]
                + [("update", str(n)) for n in range(20)]
                + [("delete", str(n)) for n in range(45, 50)]
            )
            assert watched.rows == own.run(f"SELECT * FROM {items} WHERE cart_id = 1 LIMIT 1000").by_key
            assert own.run(f"DELETE FROM {items} WHERE id = 1000").count == 1

    with ThreadPoolExecutor(USERS) as pool:
        list(pool.map(shop, [wire for _, wire in accounts]))
    site.flush(items)
    for user, wire in accounts:
        assert wire.run(f"SELECT name FROM {namespace}.carts").cell == f"cart of {wire.token}"
        partition = cold.find_partition(site.server.data_dir / "storage", items, user)
        assert partition is not None
        stored = {row["id"]: row["quantity"] for row in cold.rows(partition, "id")}
        assert stored == {n: n % 5 + 1 + (n < 20) for n in range(45)}
        ((count, quantity),) = wire.run(f"SELECT COUNT(*), SUM(quantity) FROM {items}").rows
        assert (count, quantity) == ("45", "155")


def test_a_filter_lets_through_its_cart_only(alice: Wire, items: str) -> None:
    put(alice, items, 1, *range(1, 6))
    put(alice, items, 2, *range(6, 11))
    with Socket(alice.port, alice.token) as socket:
        watched = Watched(socket, f"SELECT * FROM {items} WHERE cart_id = 1", options={}).snapshot()
        assert watched.keys() == [1, 2, 3, 4, 5]
        for key, cart in {11: 2, 12: 1, 13: 1}.items():
            put(alice, items, cart, key)
        assert [watched.change() for _ in range(2)] == [("insert", "12"), ("insert", "13")]


def test_a_row_moves_from_cart_to_cart(alice: Wire, items: str) -> None:
    """Who asks for a view sees rows enter and leave; who doesn't sees each change whose new row matches."""
    put(alice, items, 1, 1, 2)
    put(alice, items, 2, 3, 4)
    sql = f"SELECT id, cart_id FROM {items} WHERE cart_id = 1"
    with Socket(alice.port, alice.token) as socket:
        view = Watched(socket, sql, id="view", options={"view": True}).snapshot()
        plain = Watched(socket, sql, id="plain", options={}).snapshot()
        live = Watched(socket, sql, id="live")
        alice.run(f"UPDATE {items} SET cart_id = 2 WHERE id = 1")
        alice.run(f"UPDATE {items} SET cart_id = 1 WHERE id = 3")
        alice.run(f"DELETE FROM {items} WHERE id = 1")
        alice.run(f"DELETE FROM {items} WHERE id = 4")
        put(alice, items, 1, 5)
        assert view.until(5) == [("delete", "1"), ("insert", "3")]
        assert plain.until(5) == live.until(5) == [("update", "3")]
        assert view.keys() == [2, 3, 5]
        alice.run(f"DELETE FROM {items} WHERE id = 3")
        for watched in (view, plain, live):
            assert watched.change() == ("delete", "3")
        assert view.rows == alice.run(sql).by_key


def test_notifications_are_each_users_own(site: Site, namespace: str) -> None:
    """Of a STREAM table nothing is flushed, and nobody is told of others' carts."""
    table = f"{namespace}.notifications"
    site.root.run(f"CREATE STREAM TABLE {table} (id BIGINT PRIMARY KEY, body TEXT) TTL 60")
    users = [site.account() for _ in range(2)]
    with ExitStack() as stack:
        sockets = [stack.enter_context(Socket(wire.port, wire.token)) for _, wire in users]
        watched = [Watched(socket, f"SELECT * FROM {table}", options={}).snapshot() for socket in sockets]
        for user, wire in users:
            wire.run(f"INSERT INTO {table} VALUES (1, '{user} paid'), (2, '{user} left')")
        for (user, wire), own in zip(users, watched, strict=True):
            assert [own.change(), own.change()] == [("insert", "1"), ("insert", "2")]
            assert own.rows == wire.run(f"SELECT * FROM {table}").by_key
            assert [row["body"] for row in own.rows.values()] == [f"{user} paid", f"{user} left"]
    assert "STREAM" in site.root.sql(f"STORAGE FLUSH TABLE {table}").refused(400, "SQL_EXECUTION_ERROR")
    assert cold.partitions(site.server.data_dir / "storage", table_id=table) == []


def test_every_user_has_files_of_their_own(site: Site, items: str) -> None:
    users = [site.account() for _ in range(2)]
    for first, (_, wire) in zip((1, 101), users, strict=True):
        put(wire, items, 1, *range(first, first + 20))
    site.flush(items)
    root = site.server.data_dir / "storage"
    files = {part.user_id: part.files() for part in cold.partitions(root, table_id=items)}
    assert set(files) == {user for user, _ in users}
    for first, (user, wire) in zip((1, 101), users, strict=True):
        partition = cold.find_partition(root, items, user)
        assert partition is not None
        assert sorted(row["id"] for row in cold.versions(partition)) == list(range(first, first + 20))
        assert wire.run(f"SELECT COUNT(*) FROM {items}").cell == "20"
        with Socket(wire.port, wire.token) as socket:
            watched = Watched(socket, f"SELECT * FROM {items}", options={"batch_size": 8}).snapshot()
            assert len(watched.batches) == 3
            assert watched.keys() == list(range(first, first + 20))
    site.flush(items)
    again = {part.user_id: part.files() for part in cold.partitions(root, table_id=items)}
    assert again == files, "nothing new, no new file"
