"""Scenario 10, tenants: the same names in several namespaces never mix, and what is shared is shared."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from upwell.testing import cold, wait_until
from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

ORDERS = "(id BIGINT PRIMARY KEY, customer_name TEXT NOT NULL, amount DOUBLE) WITH (TYPE = 'USER')"
GONE_S_MAX = 20.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tenants(site: Site) -> tuple[str, str]:
    """Two namespaces with a table of orders each."""
    first, second = site.namespace(), site.namespace()
    for namespace in (first, second):
        site.root.run(f"CREATE TABLE {namespace}.orders {ORDERS}")
    return first, second


def order(wire: Wire, tenant: str, *ids: int, factor: int) -> None:
    values = ", ".join(f"({n}, '{tenant} {n}', {factor * n})" for n in ids)
    assert wire.run(f"INSERT INTO {tenant}.orders VALUES {values}").count == len(ids)


def expected(tenant: str, *ids: int, factor: int) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    for n in ids:
        rows[str(n)] = {"id": str(n), "customer_name": f"{tenant} {n}", "amount": float(factor * n)}
    return rows


def test_one_user_has_the_same_keys_in_two_namespaces(
    site: Site, alice: Wire, tenants: tuple[str, str], stack: ExitStack
) -> None:
    a, b = tenants
    socket = stack.enter_context(Socket(alice.port, alice.token))
    sql = "SELECT * FROM {}.orders WHERE id < 100"
    of_a = Watched(socket, sql.format(a), id="a", options={}).snapshot()
    of_b = Watched(socket, sql.format(b), id="b", options={}).snapshot()
    order(alice, a, *range(1, 6), factor=100)
    order(alice, b, *range(1, 6), factor=50)
    order(alice, b, 6, factor=50)
    order(alice, a, 7, factor=100)
    assert of_a.until(7) == [("insert", str(n)) for n in range(1, 6)]
    assert of_b.until(6) == [("insert", str(n)) for n in range(1, 6)]
    alice.run(f"UPDATE {a}.orders SET amount = 0 WHERE id = 1")
    alice.run(f"DELETE FROM {a}.orders WHERE id IN (2, 7)")
    order(alice, b, 8, factor=50)
    assert [of_a.change() for _ in range(3)] == [("update", "1"), ("delete", "2"), ("delete", "7")]
    assert of_b.until(8) == []
    rows = expected(a, 1, 3, 4, 5, factor=100)
    rows["1"]["amount"] = 0.0
    for tenant, watched, wanted in ((a, of_a, rows), (b, of_b, expected(b, *range(1, 7), 8, factor=50))):
        assert watched.rows == wanted
        assert alice.run(f"SELECT * FROM {tenant}.orders").by_key == wanted
        site.flush(f"{tenant}.orders")
        (partition,) = cold.partitions(site.server.data_dir / "storage", table_id=f"{tenant}.orders")
        assert {str(row["id"]): row["customer_name"] for row in cold.rows(partition, "id")} == {
            key: row["customer_name"] for key, row in wanted.items()
        }
        assert alice.run(f"SELECT * FROM {tenant}.orders").by_key == wanted


def test_two_users_and_what_they_share(site: Site, tenants: tuple[str, str], stack: ExitStack) -> None:
    """Orders are each one's own, even in the other's namespace; the flags are everybody's."""
    (a, b), (_, ann), (_, ben) = tenants, site.account(), site.account()
    flags = f"{a}.feature_flags"
    columns = "(flag_name TEXT PRIMARY KEY, enabled BOOLEAN NOT NULL, description TEXT)"
    site.root.run(f"CREATE TABLE {flags} {columns} WITH (TYPE = 'SHARED', ACCESS_LEVEL = 'PUBLIC')")
    site.root.run(
        f"INSERT INTO {flags} VALUES ('dark', true, NULL), ('beta', false, 'b'), ('chat', true, 'c')"
    )
    order(ann, a, *range(1, 6), factor=100)
    order(ben, b, *range(101, 106), factor=50)
    sockets = [stack.enter_context(Socket(wire.port, wire.token)) for wire in (ann, ben)]
    watched = [
        Watched(socket, f"SELECT * FROM {flags}", id="flags", pk="flag_name", options={}).snapshot()
        for socket in sockets
    ]
    foreign = Watched(sockets[0], f"SELECT * FROM {b}.orders", id="foreign", options={}).snapshot()
    assert foreign.rows == {}
    for wire, tenant, wanted in (
        (ann, a, expected(a, *range(1, 6), factor=100)),
        (ben, a, {}),
        (ann, b, {}),
        (ben, b, expected(b, *range(101, 106), factor=50)),
    ):
        assert wire.run(f"SELECT * FROM {tenant}.orders").by_key == wanted
    site.root.run(f"INSERT INTO {flags} VALUES ('last', true, NULL)")
    for own, wire in zip(watched, (ann, ben), strict=True):
        assert own.change() == ("insert", "last")
        assert len(own.rows) == 4
        assert own.rows == wire.run(f"SELECT * FROM {flags}").by_key
    order(ben, b, 106, factor=50)
    order(ann, b, 1, factor=50)
    assert foreign.change() == ("insert", "1"), "nothing of his came before her own"


def test_names_that_begin_alike(site: Site, alice: Wire, stack: ExitStack) -> None:
    """Of tables and namespaces whose names are prefixes of one another each has its own rows and files."""
    base = site.namespace()
    spaces = [base, f"{base}1", f"{base}_1"]
    for space in spaces[1:]:
        site.root.run(f"CREATE NAMESPACE {space}")
    tables = [f"{space}.{name}" for space in spaces for name in ("t", "t1", "t_1")]
    socket = stack.enter_context(Socket(alice.port, alice.token))
    watched = {}
    for table in tables:
        site.root.run(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, name TEXT) WITH (TYPE = 'USER')")
        watched[table] = Watched(socket, f"SELECT * FROM {table}", id=table, options={}).snapshot()
    for table in tables:
        alice.run(f"INSERT INTO {table} VALUES (1, '{table}')")
    for table in tables[::2]:
        site.flush(table)
    for table in tables:
        alice.run(f"INSERT INTO {table} VALUES (2, 'fence')")
        assert watched[table].until(2) == [("insert", "1")]
        assert watched[table].rows["1"]["name"] == table
        assert alice.run(f"SELECT * FROM {table}").by_key == watched[table].rows
    dropped = tables[0]
    site.root.run(f"DROP TABLE {dropped}")
    assert watched[dropped].error()[0] == "NOT_FOUND"
    for table in tables[1:]:
        alice.run(f"INSERT INTO {table} VALUES (3, 'still here')")
        assert watched[table].change() == ("insert", "3")
        assert alice.run(f"SELECT * FROM {table}").by_key == watched[table].rows


def test_a_dropped_tenant_leaves_the_other_alone(
    site: Site, alice: Wire, tenants: tuple[str, str], stack: ExitStack
) -> None:
    a, b = tenants
    root = site.server.data_dir / "storage"
    for tenant in tenants:
        order(alice, tenant, 1, 2, 3, factor=10)
        site.flush(f"{tenant}.orders")
        order(alice, tenant, 4, factor=10)
    files = [cold.partitions(root, table_id=f"{tenant}.orders")[0].files() for tenant in tenants]
    socket = stack.enter_context(Socket(alice.port, alice.token))
    of_a = Watched(socket, f"SELECT * FROM {a}.orders", id="a", options={}).snapshot()
    of_b = Watched(socket, f"SELECT * FROM {b}.orders", id="b", options={}).snapshot()
    site.root.run(f"DROP NAMESPACE {a} CASCADE")
    assert of_a.error()[0] == "NOT_FOUND"
    order(alice, b, 5, factor=10)
    assert of_b.change() == ("insert", "5")
    assert of_b.rows == alice.run(f"SELECT * FROM {b}.orders").by_key == expected(b, *range(1, 6), factor=10)
    wait_until(
        lambda: not any(file.exists() for file in files[0]), timeout_s=GONE_S_MAX, what="its files to be gone"
    )
    assert all(file.exists() for file in files[1])
    site.root.run(f"CREATE NAMESPACE {a}")
    assert alice.sql(f"SELECT * FROM {a}.orders").status == 400
    site.root.run(f"CREATE TABLE {a}.orders {ORDERS}")
    assert alice.run(f"SELECT * FROM {a}.orders").rows == [], "no ghost of the old one"
    again = Watched(socket, f"SELECT * FROM {a}.orders", id="a", options={}).snapshot()
    assert again.rows == {}
    order(alice, a, 3, factor=10)
    assert again.change() == ("insert", "3")
    assert again.rows == expected(a, 3, factor=10)
