"""`all_owners('ns.table')`: every user's rows, for administrators only, in both tiers, and never unseen."""

import pytest

from upwell.testing.wire import Site, Wire


@pytest.fixture(scope="module")
def table(site: Site) -> str:
    """A USER table: three users have rows hot, cold, and both; one of a cold row is newer, one is deleted."""
    name = f"{site.namespace()}.t"
    site.root.run(f"CREATE USER TABLE {name} (id INT PRIMARY KEY, v TEXT)")
    for user in ("cold", "both", "o'hara"):
        for row in (1, 2, 3):
            site.root.run(f"EXECUTE AS USER $u${user}$u$ (INSERT INTO {name} VALUES ({row}, '{user[0]}'))")
        if user == "both":
            site.flush(name)
    site.root.run(f"EXECUTE AS USER 'both' (UPDATE {name} SET v = 'new' WHERE id = 1)")
    site.root.run(f"EXECUTE AS USER 'both' (DELETE FROM {name} WHERE id = 2)")
    site.root.run(f"ALTER TABLE {name} ADD COLUMN w INT DEFAULT 7")
    site.root.run(f"EXECUTE AS USER 'late' (INSERT INTO {name} VALUES (9, 'l', 1))")
    return name


EXPECTED = [
    ["both", 1, "new", 7], ["both", 3, "b", 7], ["cold", 1, "c", 7], ["cold", 2, "c", 7], ["cold", 3, "c", 7],
    ["late", 9, "l", 1], ["o'hara", 1, "o", 7], ["o'hara", 2, "o", 7], ["o'hara", 3, "o", 7],
]  # fmt: skip


def test_everybodys_rows_of_both_tiers(site: Site, table: str) -> None:
    text = f"SELECT _owner, id, v, w FROM all_owners('{table}') ORDER BY _owner, id"
    assert site.root.run(text).rows == EXPECTED
    namespace, name = table.split(".")
    assert site.root.run(text.replace(table, name), namespace=namespace).rows == EXPECTED
    _, dba = site.account("dba")
    grouped = dba.run(f"SELECT _owner, COUNT(*) FROM all_owners('{table}') AS x GROUP BY _owner ORDER BY 1")
    assert grouped.rows == [["both", "2"], ["cold", "3"], ["late", "1"], ["o'hara", "3"]]
    joined = dba.run(
        f"WITH a AS (SELECT * FROM ALL_OWNERS ('{table}')) "
        f"SELECT COUNT(*) FROM a JOIN all_owners('{table}') b ON a._owner = b._owner AND a.id = b.id"
    )
    assert joined.cell == "9"
    columns = [column for column, _ in site.root.run(f"SELECT * FROM all_owners('{table}') LIMIT 1").columns]
    assert columns == ["id", "v", "w", "_seq", "_deleted", "_owner"]
    site.flush(table)
    assert site.root.run(text).rows == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM all_owners('N.t')",
        "SELECT COUNT(*) FROM all_owners('N.t')",
        "SELECT 1; SELECT COUNT(*) FROM all_owners('N.t')",
        "WITH x AS (SELECT * FROM all_owners('N.t')) SELECT 1 FROM x",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM all_owners('N.t'))",
        "SELECT id FROM N.t UNION SELECT id FROM all_owners('N.t')",
        "INSERT INTO N.t SELECT id + 100, v, w FROM all_owners('N.t')",
        "DELETE FROM N.t WHERE id IN (SELECT id FROM all_owners('N.t'))",
        'SELECT * FROM system."all_owners:N.t"',
        'INSERT INTO N.t SELECT id + 100, v, w FROM system."all_owners:N.t"',
        "EXPLAIN SELECT * FROM all_owners('N.t')",
    ],
)
@pytest.mark.parametrize("role", ["user", "service"])
def test_ordinary_roles_have_no_way_there(site: Site, table: str, role: str, text: str) -> None:
    wire, text = site.account(role)[1], text.replace("N.t", table)
    if text.startswith(("SELECT", "WITH")) and "system" not in text:
        site.root.run(text)  # what the server remembers of it opens nothing
    answer = wire.sql(text)
    assert answer.status in (400, 403), answer.body
    assert "hara" not in answer.body.decode()
    assert wire.run(f"SELECT COUNT(*) FROM {table}").cell == "0"


def test_as_somebody_else_means_as_role_user(site: Site, table: str) -> None:
    text = f"EXECUTE AS USER 'late' (SELECT * FROM all_owners('{table}'))"
    site.root.sql(text).refused(403, "PERMISSION_DENIED")
    hidden = site.root.sql(f'SELECT * FROM system."all_owners:{table}"')
    assert hidden.status == 400, "the name alone would read past the audit log"


@pytest.mark.parametrize(
    "call", ["all_owners('nowhere.t')", "all_owners('S')", "all_owners()", "all_owners(t)"]
)
def test_what_it_cannot_read(site: Site, table: str, call: str) -> None:
    space = table.split(".")[0]
    site.root.run(f"CREATE SHARED TABLE IF NOT EXISTS {space}.s (id INT PRIMARY KEY)")
    answer = site.root.sql(f"SELECT * FROM {call.replace('S', space + '.s')}")
    assert answer.status == 400, answer.body


def test_an_empty_table_has_no_rows_of_anybody(site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.e (id INT PRIMARY KEY)")
    answer = site.root.run(f"SELECT * FROM all_owners('{namespace}.e')")
    assert (answer.rows, [name for name, _ in answer.columns]) == ([], ["id", "_seq", "_deleted", "_owner"])


def test_who_reads_everybodys_rows_is_in_the_audit_log(site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY)")
    name, dba = site.account("dba")
    dba.run(f"SELECT * FROM all_owners('{namespace}.t')")
    site.account("user")[1].sql(f"SELECT * FROM all_owners('{namespace}.t')")
    found = site.root.run(
        "SELECT actor_user_id FROM system.audit_log WHERE action = 'READ_ALL_OWNERS' AND target = $1",
        f"{namespace}.t",
    )
    assert found.rows == [[name]]


# EXECUTE AS in the audit log


def _acted(site: Site, subject: str) -> list[list[str]]:
    return site.root.run(
        "SELECT action, actor_user_id, subject_user_id, details FROM system.audit_log "
        "WHERE subject_user_id = $1 ORDER BY audit_id",
        subject,
    ).rows


def test_who_acts_for_whom_is_in_the_audit_log(site: Site, table: str, alice: Wire) -> None:
    name, service = site.account("service")
    target, _ = site.account("user")
    service.run(f"EXECUTE AS USER '{target}' (INSERT INTO {table} (id) VALUES (1))")
    service.run(f"EXECUTE AS USER {target} (SELECT v FROM {table})")
    service.run(f"EXECUTE AS USER '{name}' (SELECT 1)")
    refused = alice.sql(f"EXECUTE AS USER '{target}' (SELECT v FROM {table})")
    message = refused.refused(403, "PERMISSION_DENIED")
    assert "Unauthorized: EXECUTE AS USER is not authorized: actor" in message
    own = alice.run("SELECT CURRENT_USER()").cell
    assert _acted(site, target) == [
        ["EXECUTE_AS_USER", name, target, '{"statement":"INSERT"}'],
        ["EXECUTE_AS_USER", name, target, '{"statement":"SELECT"}'],
        ["EXECUTE_AS_USER_DENIED", own, target, '{"statement":"SELECT","reason":"role_not_allowed"}'],
    ]
    assert _acted(site, name) == []


def test_a_bare_name_reaches_to_the_parenthesis(site: Site, table: str) -> None:
    site.root.run(f"EXECUTE AS USER al-1@x.org(INSERT INTO {table} (id) VALUES (5))")
    assert site.root.run(f"EXECUTE AS USER 'al-1@x.org' (SELECT id FROM {table})").rows == [[5]]
    site.root.run("CREATE USER al-1@x.org WITH INTERNAL ROLE user; DROP USER al-1@x.org--gone")
