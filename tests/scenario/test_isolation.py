"""Isolation: a user's rows are nobody else's, whatever the users and namespaces are called.

Written from the reference contract, sections 3.8, 5.5, 5.6, and scenarios 03, 10, A9–A15, M21.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from upwell.testing.wire import Site, Wire, quoted

ODD_NAMES = (
    "shared",
    "s:",
    "u:",
    "u:shared",
    "../x",
    "a/b",
    "a",
    "b",
    "a\\b",
    ".",
    "..",
    "%2e",
    "a%2Fb",
    "ünï",
    "ü",
    "日本",
    "x y",
    "x'y",
    'x"y',
    "A",
    "user=x",
    "null",
    "0",
    "\N{ZERO WIDTH SPACE}",
    "a:b",
    "*",
    "😀",
    "\n",
)


@pytest.fixture(scope="module")
def odd(site: Site) -> dict[str, Wire]:
    """Accounts with names that a key or a path could mistake for another."""
    return {name: site.account("user", name)[1] for name in ODD_NAMES}


def test_users_with_odd_names_have_their_own_rows_in_both_tiers(
    site: Site, odd: dict[str, Wire], namespace: str
) -> None:
    table = f"{namespace}.notes"
    site.root.run(f"CREATE USER TABLE {table} (id TEXT PRIMARY KEY, v TEXT)")
    site.root.run(
        f"CREATE SHARED TABLE {namespace}.s (id TEXT PRIMARY KEY, v TEXT) WITH (ACCESS_LEVEL = 'PUBLIC')"
    )
    site.root.run(f"INSERT INTO {namespace}.s VALUES ('1', 'everybody')")
    for name, wire in odd.items():
        wire.run(f"INSERT INTO {table} VALUES ('1', $1), ('2', 'second')", name)

    def check(second: str) -> None:
        for name, wire in odd.items():
            assert wire.run(f"SELECT id, v FROM {table} ORDER BY id").rows == [["1", name], ["2", second]], (
                name
            )
            assert wire.run(f"SELECT v FROM {table} WHERE id = '1'").cell == name
            assert wire.run("SELECT CURRENT_USER()").cell == name
            assert wire.run(f"SELECT v FROM {namespace}.s").cell == "everybody"
        assert site.root.run(f"SELECT * FROM {table}").rows == []

    check("second")
    site.flush(table)
    check("second")
    for name, wire in odd.items():
        assert wire.run(f"UPDATE {table} SET v = $1 WHERE id = '2'", "changed").count == 1, name
    check("changed")
    site.flush(table)
    check("changed")
    odd["shared"].run(f"DELETE FROM {table}")
    assert odd["shared"].run(f"SELECT * FROM {table}").rows == []
    assert [wire.run(f"SELECT COUNT(*) FROM {table}").cell for wire in odd.values()].count("2") == len(
        odd
    ) - 1


def test_odd_names_stay_inside_the_data_directory(site: Site, odd: dict[str, Wire], namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY)")
    outside = set(site.server.data_dir.parent.iterdir())
    for wire in odd.values():
        wire.run(f"INSERT INTO {table} VALUES (1)")
    site.flush(table)
    assert set(site.server.data_dir.parent.iterdir()) == outside
    cold = [path for path in site.server.data_dir.rglob("*.parquet") if namespace in str(path)]
    assert len(cold) == len(odd)


def test_the_same_key_by_two_users(site: Site, namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE USER TABLE {table} (id BIGINT PRIMARY KEY, v INT)")
    (ada_name, ada), (_, bob) = site.account(), site.account()
    for wire in (ada, bob):
        wire.run(f"INSERT INTO {table} VALUES (1, 1)")
        message = wire.sql(f"INSERT INTO {table} VALUES (1, 2)").refused(400, "SQL_EXECUTION_ERROR")
        assert "Primary key violation" in message
    assert ada.run(f"UPDATE {table} SET v = 2").count == 1
    assert bob.run(f"SELECT v FROM {table}").cell == 1
    assert bob.run(f"DELETE FROM {table}").count == 1
    assert ada.run(f"SELECT v FROM {table}").cell == 2
    # The owner is no column that a query could name.
    for column in ("user_id", "_owner", "owner", "_user_id"):
        assert ada.sql(f"SELECT {column} FROM {table}").status == 400
        assert bob.sql(f"SELECT * FROM {table} WHERE {column} = {quoted(ada_name)}").status == 400


def test_manifests_show_bounds_of_own_rows_only(site: Site, namespace: str) -> None:
    """A manifest has the least and greatest value of each column: those of others are others' rows."""
    own, private, public = f"{namespace}.own", f"{namespace}.private", f"{namespace}.public"
    site.root.run(f"CREATE USER TABLE {own} (id INT PRIMARY KEY, v TEXT)")
    site.root.run(f"CREATE SHARED TABLE {private} (id INT PRIMARY KEY, v TEXT)")
    site.root.run(f"CREATE SHARED TABLE {public} (id INT PRIMARY KEY, v TEXT) WITH (ACCESS_LEVEL = 'PUBLIC')")
    (ada_name, ada), (bob_name, bob), (_, service) = site.account(), site.account(), site.account("service")
    ada.run(f"INSERT INTO {own} VALUES (1, 'of ada')")
    bob.run(f"INSERT INTO {own} VALUES (1, 'of bob')")
    for table in (private, public):
        site.root.run(f"INSERT INTO {table} VALUES (1, 'shared')")
    for table in (own, private, public):
        site.flush(table)

    def shown(wire: Wire) -> set[object]:
        return {row[0] for row in wire.run("SHOW MANIFEST").rows if row[1] == namespace}

    of_ada, of_bob = f"{namespace}:own:{ada_name}", f"{namespace}:own:{bob_name}"
    of_private, of_public = f"{namespace}:private:shared", f"{namespace}:public:shared"
    assert shown(ada) == {of_ada, of_public}
    assert shown(bob) == {of_bob, of_public}
    assert shown(service) == {of_private, of_public}
    assert shown(site.root) == {of_ada, of_bob, of_private, of_public}


def test_references_tell_no_keys_of_tables_that_one_may_not_read(site: Site, namespace: str) -> None:
    """Whether INSERT finds the parent would say whether a key is there."""
    private, public = f"{namespace}.private", f"{namespace}.public"
    site.root.run(f"CREATE SHARED TABLE {private} (id INT PRIMARY KEY, v INT)")
    site.root.run(f"CREATE SHARED TABLE {public} (id INT PRIMARY KEY, v INT) WITH (ACCESS_LEVEL = 'PUBLIC')")
    user, service = site.account()[1], site.account("service")[1]
    child = f"CREATE USER TABLE {namespace}.{{}} (id INT PRIMARY KEY, v INT, {{}})"
    single = f"p INT REFERENCES {private} (id)"
    double = f"p INT, FOREIGN KEY (p, v) REFERENCES {private} (id, v)"
    for reference in (single, double):
        assert "read denied" in user.sql(child.format("a", reference)).refused(403, "PERMISSION_DENIED")
    user.run(child.format("b", f"p INT REFERENCES {public} (id), q INT REFERENCES {namespace}.b (id)"))
    service.run(child.format("c", single))


def test_parallel_carts_do_not_mix(site: Site, namespace: str) -> None:
    """Scenario 03 with its oracle, all users on the same ids."""
    carts, items = f"{namespace}.carts", f"{namespace}.cart_items"
    site.root.run(
        f"CREATE USER TABLE {carts} (id BIGINT PRIMARY KEY, name TEXT);"
        f"CREATE USER TABLE {items} (id BIGINT PRIMARY KEY, cart_id BIGINT NOT NULL REFERENCES {carts} (id),"
        " product_name TEXT NOT NULL, quantity INT NOT NULL, price DOUBLE)"
    )
    accounts = [site.account() for _ in range(10)]

    def shop(account: tuple[str, Wire]) -> None:
        name, wire = account
        wire.run(f"INSERT INTO {carts} VALUES (1, $1)", name)
        for n in range(50):
            wire.run(f"INSERT INTO {items} VALUES ({n}, 1, 'p{n}', {n % 5 + 1}, {n * 9.99!r})")
        for n in range(20):
            assert wire.run(f"UPDATE {items} SET quantity = quantity + 1 WHERE id = {n}").count == 1
        for n in range(45, 50):
            assert wire.run(f"DELETE FROM {items} WHERE id = {n}").count == 1

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(shop, accounts))
    oracle = f"SELECT COUNT(*), SUM(quantity), SUM(price) FROM {items} WHERE cart_id = 1"

    def check() -> None:
        for name, wire in accounts:
            ((count, quantity, price),) = wire.run(oracle).rows
            assert (count, quantity) == ("45", "155")
            assert price == pytest.approx(9890.10)
            assert wire.run(f"SELECT name FROM {carts}").rows == [[name]]

    check()
    site.flush(items)
    check()
    files = set(site.server.data_dir.rglob("*.parquet"))
    site.flush(items)
    assert set(site.server.data_dir.rglob("*.parquet")) == files


def test_the_same_names_in_two_namespaces(site: Site) -> None:
    """Scenario 10 with one user in both, and names that are prefixes of one another."""
    spaces = [site.namespace() for _ in range(2)]
    _, wire = site.account()
    tables = [f"{space}.{table}" for space in spaces for table in ("t", "t1", "t_1", "t11")]
    for table in tables:
        site.root.run(f"CREATE USER TABLE {table} (id BIGINT PRIMARY KEY, v TEXT)")
        wire.run(f"INSERT INTO {table} VALUES (1, $1)", table)

    def check(expected: list[str]) -> None:
        assert [wire.run(f"SELECT v FROM {table}").cell for table in expected] == expected

    check(tables)
    for table in tables[::2]:
        site.flush(table)
    check(tables)
    site.root.run(f"DROP NAMESPACE {spaces[0]} CASCADE")
    check(tables[4:])
    for table in tables[:4]:
        wire.sql(f"SELECT v FROM {table}").refused(400, "SQL_EXECUTION_ERROR")
    site.root.run(f"CREATE NAMESPACE {spaces[0]}")
    for table in tables[:4]:
        site.root.run(f"CREATE USER TABLE {table} (id BIGINT PRIMARY KEY, v TEXT)")
        assert wire.run(f"SELECT * FROM {table}").rows == []
        assert wire.run(f"SELECT * FROM {table} WHERE id = 1").rows == []
        assert wire.run(f"INSERT INTO {table} VALUES (1, 'new')").count == 1
    check(tables[4:])


# EXECUTE AS USER


@pytest.mark.parametrize("actor", ["user", "service", "dba", "system"])
@pytest.mark.parametrize("target", ["user", "service", "dba", "system", "self", "nobody"])
def test_the_matrix_of_impersonation(
    site: Site, people: dict[str, tuple[str, Wire]], things: str, actor: str, target: str
) -> None:
    rank = ["user", "service", "dba", "system"]
    name, wire = people[actor]
    other = {"self": name, "nobody": f"nobody_{actor}"}.get(target) or people["other " + target][0]
    role = "user" if target == "nobody" else target
    allowed = target == "self" or (actor != "user" and rank.index(role) <= rank.index(actor))
    answer = wire.sql(
        f"EXECUTE AS USER {quoted(other)} (INSERT INTO {things}.t VALUES ($1, $2))",
        f"{actor} as {target}",
        actor,
    )
    as_other, where = f"EXECUTE AS USER {quoted(other)}", f"WHERE id = '{actor} as {target}'"
    select = f"{as_other} (SELECT id, v, CURRENT_USER() FROM {things}.t {where})"
    if not allowed:
        message = answer.refused(403, "PERMISSION_DENIED")
        assert "EXECUTE AS USER is not authorized" in message
        assert f"actor '{name}' with role {actor.capitalize()} cannot target '{other}'" in message
        wire.sql(select).refused(403, "PERMISSION_DENIED")
        return
    assert answer.result["as_user"] == other
    found = wire.run(select).result
    assert found["rows"] == [[f"{actor} as {target}", actor, other]]
    assert found["as_user"] == other
    own = wire.run(f"SELECT COUNT(*) FROM {things}.t {where}").cell
    assert own == ("1" if target == "self" else "0")
    assert wire.run(f"{as_other} (UPDATE {things}.t SET v = 'new' {where})").count == 1
    assert wire.run(f"{as_other} (DELETE FROM {things}.t {where})").count == 1


@pytest.fixture(scope="module")
def people(site: Site) -> dict[str, tuple[str, Wire]]:
    """Two accounts of each role."""
    roles = ("user", "service", "dba", "system")
    return {role: site.account(role) for role in roles} | {
        f"other {role}": site.account(role) for role in roles
    }


@pytest.fixture(scope="module")
def things(site: Site) -> str:
    """A namespace with a USER table `t` and a PUBLIC SHARED table `s`."""
    space = site.namespace()
    site.root.run(
        f"CREATE USER TABLE {space}.t (id TEXT PRIMARY KEY, v TEXT);"
        f"CREATE SHARED TABLE {space}.s (id TEXT PRIMARY KEY) WITH (ACCESS_LEVEL = 'PUBLIC')"
    )
    return space


def test_the_impersonated_has_role_user(site: Site, things: str) -> None:
    name, _ = site.account("dba")
    assert site.root.run(f"EXECUTE AS USER '{name}' (SELECT CURRENT_ROLE())").cell == "user"
    site.root.sql(f"EXECUTE AS USER '{name}' (SELECT * FROM system.users)").refused(403, "PERMISSION_DENIED")
    site.root.sql(
        f"EXECUTE AS USER '{name}' (INSERT INTO {things}.t SELECT user_id, '' FROM system.users)"
    ).refused(403, "PERMISSION_DENIED")


@pytest.mark.parametrize(
    "inner",
    [
        "SELECT * FROM N.s",
        "SELECT COUNT(*) FROM N.t JOIN N.s ON TRUE",
        "INSERT INTO N.s VALUES ('x')",
        "UPDATE N.s SET id = 'y'",
        "DELETE FROM N.s",
        "INSERT INTO N.t SELECT id, id FROM N.s",
        "WITH x AS (SELECT * FROM N.s) SELECT * FROM x",
    ],
)
def test_shared_tables_are_never_touched_as_somebody_else(site: Site, things: str, inner: str) -> None:
    text = inner.replace("N.", f"{things}.")
    message = site.root.sql(f"EXECUTE AS USER 'somebody' ({text})").refused(400, "SQL_EXECUTION_ERROR")
    assert f"EXECUTE AS USER is not allowed on SHARED tables (table '{things}.s')" in message
    assert site.root.run(f"SELECT COUNT(*) FROM {things}.s").cell == "0"


def test_names_in_execute_as_are_bare_or_quoted(site: Site, things: str) -> None:
    site.root.run(f"EXECUTE AS USER plain (INSERT INTO {things}.t VALUES ('bare', 'x'))")
    assert site.root.run(f"EXECUTE AS USER 'plain' (SELECT v FROM {things}.t WHERE id = 'bare');").cell == "x"
    site.root.run(f"EXECUTE AS USER 'it''s' (INSERT INTO {things}.t VALUES ('quoted', ') ; --'))")
    found = site.root.run(f"EXECUTE AS USER 'it''s' (SELECT v FROM {things}.t /* ) */)")
    assert (found.cell, found.result["as_user"]) == (") ; --", "it's")


def test_a_batch_may_mix_users(site: Site, things: str) -> None:
    results = site.root.run(
        f"EXECUTE AS USER 'one' (INSERT INTO {things}.t VALUES ('batch', 'one'));"
        f"EXECUTE AS USER 'two' (INSERT INTO {things}.t VALUES ('batch', 'two'));"
        f"EXECUTE AS USER 'one' (SELECT v FROM {things}.t);"
        f"SELECT COUNT(*) FROM {things}.t WHERE id = 'batch'"
    ).results
    assert results[0]["rows"] == [["one"]]
    assert results[0]["as_user"] == "one"
    assert results[1]["rows"] == [["0"]]
    assert results[1]["as_user"] == "root"
    assert results[2]["message"] == "Inserted 2 row(s)"
