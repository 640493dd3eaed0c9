"""Who may do what: role × statement × access level, judged before anything happens.

Written from the reference contract, sections 3.1, 3.6, 5.5, and scenarios A6–A16 and 05.
"""

from contextlib import ExitStack

import pytest

from upwell.testing.websocket import Socket, Watched
from upwell.testing.wire import Site, Wire

ROLES = ("user", "service", "dba", "system")
LEVELS = ("public", "private", "restricted", "dba")
READS = {
    "public": "user service dba system",
    "private": "service dba system",
    "restricted": "service dba system",
    "dba": "dba system",
}
WRITES = {level: "dba system" if level == "dba" else "service dba system" for level in LEVELS}


@pytest.fixture(scope="module")
def people(site: Site) -> dict[str, Wire]:
    """A connection of each role."""
    return {role: site.account(role)[1] for role in ROLES}


def _may(wire: Wire, text: str) -> bool:
    answer = wire.sql(text)
    if answer.status == 200:
        return True
    answer.refused(403, "PERMISSION_DENIED")
    return False


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_matrix_of_shared_tables(
    site: Site, people: dict[str, Wire], namespace: str, role: str, level: str
) -> None:
    table = f"{namespace}.t"
    site.root.run(
        f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, v INT) WITH (ACCESS_LEVEL = '{level.upper()}')"
    )
    site.root.run(f"INSERT INTO {table} VALUES (1, 1), (2, 2)")
    wire = people[role]
    reads, writes = role in READS[level].split(), role in WRITES[level].split()
    before = site.root.run(f"SELECT * FROM {table}").rows
    assert _may(wire, f"SELECT * FROM {table}") == reads
    assert _may(wire, f"SELECT v FROM {table} WHERE id = 1") == reads
    assert _may(wire, f"SELECT 1 WHERE EXISTS (SELECT 1 FROM {table})") == reads
    assert _may(wire, f"WITH x AS (SELECT * FROM {table}) SELECT COUNT(*) FROM x") == reads
    assert _may(wire, f"SELECT 1; SELECT * FROM {table}") == reads
    assert _may(wire, f"UPDATE {table} SET v = v + 1 WHERE id = 1") == writes
    assert _may(wire, f"UPDATE {table} SET v = v + 1 WHERE v > 100") == writes
    assert _may(wire, f"DELETE FROM {table} WHERE v = 2 AND id > 1") == writes
    assert _may(wire, f"INSERT INTO {table} VALUES (3, 3)") == writes
    assert _may(wire, f"INSERT INTO {table} SELECT 4, 2 + 2") == writes
    after = site.root.run(f"SELECT id, v FROM {table}").rows
    if writes:
        assert after == [[1, 2], [3, 3], [4, 4]]
    else:
        assert site.root.run(f"SELECT * FROM {table}").rows == before


def test_a_denied_write_says_why(site: Site, people: dict[str, Wire], namespace: str) -> None:
    site.root.run(f"CREATE SHARED TABLE {namespace}.t (id INT PRIMARY KEY) WITH (ACCESS_LEVEL = 'PUBLIC')")
    message = people["user"].sql(f"INSERT INTO {namespace}.t VALUES (1)").refused(403, "PERMISSION_DENIED")
    assert "Shared table write denied (access_level=Public" in message


def test_shared_tables_are_private_unless_they_say_otherwise(
    site: Site, people: dict[str, Wire], namespace: str
) -> None:
    site.root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY)")
    people["user"].sql(f"SELECT * FROM {namespace}.t").refused(403, "PERMISSION_DENIED")
    assert people["service"].run(f"SELECT * FROM {namespace}.t").rows == []


@pytest.mark.parametrize("role", ROLES)
def test_what_only_administrators_may_issue(
    site: Site, people: dict[str, Wire], namespace: str, role: str
) -> None:
    wire, allowed = people[role], role in ("dba", "system")
    site.root.run(
        f"CREATE USER TABLE {namespace}.gone (id INT PRIMARY KEY); CREATE NAMESPACE {namespace}_gone"
    )
    assert _may(wire, f"CREATE NAMESPACE {namespace}_mine") == allowed
    assert _may(wire, f"CREATE NAMESPACE IF NOT EXISTS {namespace}") == allowed
    assert _may(wire, f"DROP NAMESPACE {namespace}_gone") == allowed
    assert _may(wire, "DROP NAMESPACE IF EXISTS nowhere") == allowed
    assert _may(wire, f"CREATE USER {namespace}_u WITH PASSWORD 'x' ROLE user") == allowed
    assert _may(wire, f"DROP TABLE {namespace}.gone") == allowed
    assert _may(wire, f"DROP TABLE IF EXISTS {namespace}.nothing") == allowed
    names = [row[0] for row in site.root.run("SELECT name FROM system.namespaces").rows]
    assert (f"{namespace}_mine" in names) == allowed
    assert (f"{namespace}_gone" in names) != allowed


@pytest.mark.parametrize("role", ROLES)
def test_who_may_create_and_flush_tables(
    site: Site, people: dict[str, Wire], namespace: str, role: str
) -> None:
    wire = people[role]
    assert _may(wire, f"CREATE USER TABLE {namespace}.u (id INT PRIMARY KEY)")
    assert _may(wire, f"CREATE SHARED TABLE {namespace}.s (id INT PRIMARY KEY)") == (role != "user")
    assert _may(wire, f"CREATE TABLE {namespace}.d (id INT PRIMARY KEY)") == (role != "user")
    wire.run(f"INSERT INTO {namespace}.u VALUES (1)")
    assert _may(wire, f"STORAGE FLUSH TABLE {namespace}.u") == (role != "user")


def test_only_system_makes_system(site: Site, people: dict[str, Wire]) -> None:
    answer = people["dba"].sql("CREATE USER emperor WITH PASSWORD 'x' ROLE system")
    assert answer.status in (400, 403)
    assert site.root.run("SELECT COUNT(*) FROM system.users WHERE user_id = 'emperor'").cell == "0"


@pytest.mark.parametrize("role", ROLES)
def test_user_tables_show_everybody_only_their_own_rows(
    site: Site, people: dict[str, Wire], namespace: str, role: str
) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY, v TEXT)")
    site.root.run(f"INSERT INTO {table} VALUES (1, 'root')")
    wire = people[role]
    assert wire.run(f"SELECT * FROM {table}").rows == []
    assert wire.run(f"SELECT * FROM {table} WHERE id = 1").rows == []
    assert wire.run(f"UPDATE {table} SET v = 'x'").count == 0
    assert wire.run(f"DELETE FROM {table} WHERE id = 1").count == 0
    assert wire.run(f"INSERT INTO {table} VALUES (1, 'mine')").count == 1
    assert site.root.run(f"SELECT v FROM {table}").cell == "root"


SYSTEM_READS = (
    "SELECT * FROM system.users",
    "SELECT user_id FROM system.users WHERE user_id = 'root'",
    "SELECT * FROM SYSTEM.USERS",
    'SELECT * FROM "system"."users"',
    "SELECT * FROM system . users",
    "SELECT * FROM upwell.system.users",
    "SELECT 1; SELECT * FROM system.users",
    "SELECT * FROM (SELECT * FROM system.users) AS x",
    "WITH x AS (SELECT * FROM system.users) SELECT * FROM x",
    "WITH system AS (SELECT 1) SELECT * FROM system.users",
    "SELECT 'a' UNION SELECT user_id FROM system.users",
    "SELECT 'a' UNION ALL SELECT user_id FROM system.users",
    "SELECT 'a' EXCEPT SELECT user_id FROM system.users",
    "SELECT 'a' INTERSECT SELECT user_id FROM system.users",
    "SELECT (SELECT COUNT(*) FROM system.users)",
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM system.users)",
    "SELECT 1 WHERE 'root' IN (SELECT user_id FROM system.users)",
    "SELECT * FROM N.t JOIN system.users ON TRUE",
    "SELECT * FROM N.t, LATERAL (SELECT * FROM system.users) AS x",
    "SELECT * FROM system.jobs",
    "SELECT * FROM system.schemas",
    "SELECT * FROM system.tables",
    "INSERT INTO N.t SELECT 1, user_id FROM system.users",
    "INSERT INTO N.t VALUES (1, (SELECT MAX(user_id) FROM system.users))",
    "UPDATE N.t SET v = (SELECT MAX(user_id) FROM system.users)",
    "UPDATE N.t SET v = 'x' WHERE EXISTS (SELECT 1 FROM system.users)",
    "DELETE FROM N.t WHERE v IN (SELECT user_id FROM system.users)",
)


@pytest.mark.parametrize("text", SYSTEM_READS)
@pytest.mark.parametrize("role", ["user", "service"])
def test_no_way_leads_to_system_tables(
    site: Site, people: dict[str, Wire], things: str, role: str, text: str
) -> None:
    text = text.replace("N.", f"{things}.")
    if not text.startswith(("INSERT", "UPDATE", "DELETE")):
        site.root.run(text)  # what the server remembers of a text must not open it to others
    answer = people[role].sql(text)
    answer.refused(403, "PERMISSION_DENIED")
    assert "root" not in answer.body.decode()


@pytest.fixture(scope="module")
def things(site: Site) -> str:
    """A namespace with an empty USER table `t`."""
    space = site.namespace()
    site.root.run(f"CREATE USER TABLE {space}.t (id INT PRIMARY KEY, v TEXT)")
    return space


@pytest.mark.parametrize(
    "text", ["EXPLAIN SELECT * FROM system.users", "SHOW USERS", "SELECT * FROM system/**/.users"]
)
def test_other_statements_do_not_lead_there_either(people: dict[str, Wire], text: str) -> None:
    assert people["user"].sql(text).status in (400, 403)


def test_administrators_read_system_tables_without_secrets(people: dict[str, Wire]) -> None:
    for role in ("dba", "system"):
        answer = people[role].run("SELECT * FROM system.users WHERE user_id = 'root'")
        assert len(answer.rows) == 1
        assert "$2b$" not in answer.body.decode()


def test_everybody_may_show_and_describe(people: dict[str, Wire], things: str) -> None:
    for wire in people.values():
        assert [things] in [row[:1] for row in wire.run("SHOW NAMESPACES").rows]
        assert ["t"] in [row[1:2] for row in wire.run(f"SHOW TABLES IN {things}").rows]
        described = wire.run(f"DESCRIBE TABLE {things}.t").rows
        assert [row[0] for row in described] == ["id", "v"]


def test_everybody_reads_the_log_of_their_own_rows(site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY, v TEXT)")
    (_, ada), (_, bob) = site.account(), site.account()
    ada.run(f"INSERT INTO {namespace}.t VALUES (1, 'ada')")
    bob.run(f"INSERT INTO {namespace}.t VALUES (1, 'bob')")
    question = 'SELECT table_name, key, operation, "values" FROM system.changes'
    assert ada.run(question).rows == [[f"{namespace}.t", "1", "INSERT", '{"id":1,"v":"ada"}']]
    assert bob.run(question).rows == [[f"{namespace}.t", "1", "INSERT", '{"id":1,"v":"bob"}']]


# Scenario 05: private activity beside public reference rows


def test_reference_rows_join_with_private_ones(site: Site, namespace: str) -> None:
    plans, activity = f"{namespace}.plans", f"{namespace}.activity"
    site.root.run(
        f"CREATE SHARED TABLE {plans} (id BIGINT PRIMARY KEY, name TEXT NOT NULL, price DOUBLE NOT NULL)"
        " WITH (ACCESS_LEVEL = 'PUBLIC');"
        f"CREATE USER TABLE {activity} (id BIGINT PRIMARY KEY,"
        f" plan_id BIGINT NOT NULL REFERENCES {plans} (id));"
        f"INSERT INTO {plans} VALUES (1, 'Free', 0.0), (2, 'Pro', 9.99), (3, 'Enterprise', 99.99)"
    )
    users = [site.account()[1] for _ in range(2)]
    for wire, plan in zip(users, (2, 1), strict=True):
        wire.run(f"INSERT INTO {activity} VALUES " + ", ".join(f"({n}, {plan})" for n in range(1, 6)))

    def check() -> None:
        for wire, name, counts in zip(
            users, ("Pro", "Free"), (["0", "5", "0"], ["5", "0", "0"]), strict=True
        ):
            joined = f"SELECT a.id, p.name FROM {activity} a JOIN {plans} p ON p.id = a.plan_id ORDER BY a.id"
            assert wire.run(joined).rows == [[str(n), name] for n in range(1, 6)]
            left = (
                f"SELECT p.id, COUNT(a.id) FROM {plans} p LEFT JOIN {activity} a ON a.plan_id = p.id "
                "GROUP BY p.id ORDER BY p.id"
            )
            assert [row[1] for row in wire.run(left).rows] == counts

    check()
    site.flush(activity)
    check()
    site.flush(plans)
    check()
    users[0].sql(f"INSERT INTO {plans} VALUES (99, 'Hack', 0)").refused(403, "PERMISSION_DENIED")
    users[0].sql(f"UPDATE {plans} SET price = 0").refused(403, "PERMISSION_DENIED")
    users[0].sql(f"DELETE FROM {plans}").refused(403, "PERMISSION_DENIED")
    assert users[0].run(f"SELECT id FROM {plans}").rows == [["1"], ["2"], ["3"]]


@pytest.mark.parametrize("level", LEVELS)
def test_the_matrix_of_live_queries(site: Site, people: dict[str, Wire], namespace: str, level: str) -> None:
    """Whoever may read a SHARED table may follow it, nobody else; and only as long as that holds."""
    table = f"{namespace}.t"
    site.root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY) WITH (ACCESS_LEVEL = '{level.upper()}')")
    site.root.run(f"INSERT INTO {table} VALUES (1)")
    with ExitStack() as stack:
        watched = {}
        for role, wire in people.items():
            socket = stack.enter_context(Socket(wire.port, wire.token))
            if role in READS[level].split():
                watched[role] = Watched(socket, f"SELECT * FROM {table}", options={}).snapshot()
                assert watched[role].rows == {1: {"id": 1}}
            else:
                subscription = {"id": "s", "sql": f"SELECT * FROM {table}", "options": {}}
                socket.say(type="subscribe", subscription=subscription)
                error = socket.message("error")
                assert (error["subscription_id"], error["code"]) == ("s", "UNAUTHORIZED")
                assert "read denied" in error["message"]
        site.root.run(f"INSERT INTO {table} VALUES (2)")
        for each in watched.values():
            assert each.change() == ("insert", 2)
        site.root.run(f"ALTER TABLE {table} SET ACCESS LEVEL DBA")
        site.root.run(f"INSERT INTO {table} VALUES (3)")
        for role, each in watched.items():
            if role in ("dba", "system"):
                assert each.change() == ("insert", 3)
            else:
                assert each.error()[0] == "UNAUTHORIZED"


def test_an_account_that_changes_ends_its_sockets(site: Site, namespace: str) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE TABLE {table} (id INT PRIMARY KEY) WITH (TYPE = 'USER')")
    for statement in ("ALTER USER '{}' SET ROLE service", "DROP USER '{}'"):
        user, wire = site.account()
        _, other = site.account()
        with Socket(wire.port, wire.token) as socket, Socket(other.port, other.token) as bystander:
            Watched(socket, f"SELECT * FROM {table}", options={}).snapshot()
            beside = Watched(bystander, f"SELECT * FROM {table}", options={}).snapshot()
            site.root.run(statement.format(user))
            assert socket.message("auth_error")["message"] == "the account was changed; sign in again"
            assert socket.closed() == (1008, b"Authentication failed")
            other.run(f"INSERT INTO {table} VALUES (1)")
            assert beside.change() == ("insert", 1)
