"""Storages on the file system: definitions, rights, where files land, and tables that move."""

from pathlib import Path

import pytest

from upwell.testing.wire import Site, Wire

SHARED = "ns_{namespace}/table_{tableName}"
USER = "ns_{namespace}/tbl_{tableName}/usr_{userId}"


def storages(wire: Wire) -> dict[str, dict[str, object]]:
    return wire.run("SHOW STORAGES").by_key


def checked(wire: Wire, name: str, *, extended: bool = False) -> dict[str, object]:
    (row,) = wire.run(f"STORAGE CHECK {name}{' EXTENDED' if extended else ''}").by_key.values()
    return row


def test_local_is_always_there_and_first(site: Site, alice: Wire) -> None:
    found = storages(alice)
    assert next(iter(found)) == "local"
    local = found["local"]
    assert (local["storage_name"], local["storage_type"]) == ("Local", "filesystem")
    assert local["base_directory"] == str(site.server.data_dir / "storage")
    assert local["shared_tables_template"] == "{namespace}/{tableName}"
    assert local["user_tables_template"] == "{namespace}/{tableName}/{userId}"
    assert local["created_at"] is not None
    assert local["updated_at"] is not None
    names = [name for name, _ in site.root.run("SELECT * FROM system.storages").columns]
    assert names == [
        "storage_id", "storage_name", "description", "storage_type", "base_directory", "credentials",
        "config_json", "shared_tables_template", "user_tables_template", "created_at", "updated_at",
    ]  # fmt: skip
    message = site.root.sql("DROP STORAGE local").refused(400, "SQL_EXECUTION_ERROR")
    assert "local" in message
    site.root.sql("SELECT * FROM system.storage_locations").refused(400, "SQL_EXECUTION_ERROR")


def test_a_storage_comes_changes_and_goes(root: Wire, tmp_path: Path) -> None:
    base = tmp_path / "fast"
    message = root.run(f"CREATE STORAGE disk-1 TYPE filesystem PATH '{base}/'").message
    assert message == "Storage 'disk-1' created successfully"
    assert base.is_dir(), "made eagerly"
    assert storages(root)["disk-1"]["storage_name"] == "disk-1"
    message = root.run("ALTER STORAGE disk-1 SET NAME 'Fast' DESCRIPTION 'NVMe'").message
    assert message == "Storage 'disk-1' altered successfully"
    row = storages(root)["disk-1"]
    assert (row["storage_name"], row["description"], row["base_directory"]) == ("Fast", "NVMe", str(base))
    assert root.run("DROP STORAGE disk-1").message == "Storage 'disk-1' dropped successfully"
    assert "disk-1" not in storages(root)
    root.run(f"CREATE STORAGE 'disk-1' TYPE 'filesystem' BASE_DIRECTORY '{base}' NAME 'again'")
    assert root.run("DROP STORAGE IF EXISTS disk-1").message == "Storage 'disk-1' dropped successfully"
    message = root.run("DROP STORAGE IF EXISTS disk-1").message
    assert message == "Storage 'disk-1' does not exist (skipped)"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE STORAGE local TYPE filesystem PATH '{path}'", "Storage 'local' already exists"),
        ("CREATE STORAGE x TYPE filesystem PATH ''", "can't be empty"),
        ("CREATE STORAGE x TYPE filesystem PATH 'relative/x'", "absolute directory"),
        ("CREATE STORAGE x TYPE filesystem PATH '/a/../etc'", "no '..'"),
        ("CREATE STORAGE x TYPE filesystem PATH '{data}'", "inside each other"),
        ("CREATE STORAGE x TYPE filesystem PATH '{data}/hot/x'", "inside each other"),
        ("CREATE STORAGE x TYPE filesystem PATH '/dev/null/x'", "can't use"),
        ("CREATE STORAGE x TYPE tape PATH '{path}'", "no type of storage"),
        ("CREATE STORAGE x TYPE filesystem", "needs one of PATH"),
        ("CREATE STORAGE x PATH '{path}'", "needs TYPE"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' COLOUR 'red'", "expected one of"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' NAME 'a' NAME 'b'", "given twice"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' CONFIG 'no json'", "JSON object"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' CONFIG '{{\"a\":1}}'", "no key 'a'"),
        ("CREATE STORAGE \"a b\" TYPE filesystem PATH '{path}'", "storage id"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' {user} '{{namespace}}/{{tableName}}'", "{{userId}}"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' {user} '{{userId}}'", "{{namespace}}"),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} '../{{namespace}}/{{tableName}}'", "dot"),
        (
            "CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} '/{{namespace}}/{{tableName}}'",
            "relative",
        ),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} '{{namespace}}{{tableName}}'", "two place"),
        (
            "CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} '{{namespace}}/{{tabel}}'",
            "unknown place",
        ),
        (
            "CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} '{{namespace}}/{{table}}/{{userId}}'",
            "no u",
        ),
        ("ALTER STORAGE nowhere SET NAME 'x'", "Storage 'nowhere' not found"),
        ("ALTER STORAGE local SET USER_TABLES_TEMPLATE '{{namespace}}/x'", "{{tableName}}"),
        ("ALTER STORAGE local SET PATH '/x'", "expected one of"),
        ("DROP STORAGE nowhere", "Storage 'nowhere' not found"),
        ("STORAGE CHECK nowhere", "not found"),
        ("CREATE USER TABLE default.x (id INT PRIMARY KEY) WITH (STORAGE_ID='nowhere')", "does not exist"),
    ],
)
def test_what_makes_no_storage(site: Site, tmp_path: Path, statement: str, said: str) -> None:
    text = statement.format(
        path=tmp_path / "x", data=site.server.data_dir,
        user="USER_TABLES_TEMPLATE", shared="SHARED_TABLES_TEMPLATE",
    )  # fmt: skip
    answer = site.root.sql(text)
    assert answer.status == 400, answer.body
    assert said.format() in answer.json["error"]["message"]
    assert "x" not in storages(site.root)


def test_rights(site: Site, alice: Wire, tmp_path: Path) -> None:
    _, service = site.account("service")
    _, dba = site.account("dba")
    for statement in (
        f"CREATE STORAGE y TYPE filesystem PATH '{tmp_path / 'y'}'",
        "ALTER STORAGE local SET NAME 'mine'",
        "DROP STORAGE local",
        "STORAGE CHECK local",
        "SELECT * FROM system.storages",
    ):
        for wire in (alice, service):
            wire.sql(statement).refused(403, "PERMISSION_DENIED")
    assert checked(dba, "local")["status"] == "healthy"
    dba.run(f"CREATE STORAGE y TYPE filesystem PATH '{tmp_path / 'y'}'")
    dba.run("DROP STORAGE y")
