"""Storages on the file system: definitions, rights, where files land, and tables that move."""

from pathlib import Path

import pytest

from upwell.testing import cold
from upwell.testing.wait import wait_until
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
    assert (base / "upwell-storage.json").exists()
    assert root.run("DROP STORAGE IF EXISTS disk-1").message == "Storage 'disk-1' dropped successfully"
    assert list(base.iterdir()) == [], "another server may have the place"
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
        (
            "CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} "
            "'upwell-storage.json/{{namespace}}/{{table}}'",
            "a file of the server",
        ),
        (
            "CREATE STORAGE x TYPE filesystem PATH '{path}' {shared} '{{namespace}}/{{table}}"
            + "/a" * 500
            + "'",
            "512 characters at most",
        ),
        ("CREATE STORAGE x TYPE filesystem PATH '{path}" + "/a" * 1000 + "'", "1024 characters at most"),
        ("CREATE STORAGE x TYPE s3 PATH 's3://key:secret@bucket/x'", "secrets are named in CREDENTIALS"),
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


def test_files_land_where_the_template_says_and_leave_with_their_table(site: Site, tmp_path: Path) -> None:
    root, space, base = site.root, site.namespace(), tmp_path / "base"
    root.run(
        f"CREATE STORAGE {space} TYPE filesystem PATH '{base}' "
        f"SHARED_TABLES_TEMPLATE '{SHARED}' USER_TABLES_TEMPLATE '{USER}'"
    )
    for kind in ("SHARED", "USER"):
        root.run(f"CREATE {kind} TABLE {space}.{kind} (id INT PRIMARY KEY) WITH (STORAGE_ID='{space}')")
        root.run(f"INSERT INTO {space}.{kind} VALUES (1), (2)")
        site.flush(f"{space}.{kind}")
    found = {path.parent.relative_to(base).as_posix() for path in base.rglob("batch-*.parquet")}
    found = {path for path in found if ".links" not in path}
    assert found == {f"ns_{space}/table_shared", f"ns_{space}/tbl_user/usr_root"}
    assert not (site.server.data_dir / "storage" / space).exists(), "nothing in the default storage"
    assert cold.audit(base) == []
    message = root.sql(f"DROP STORAGE {space}").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Cannot drop storage '{space}': 2 table(s) still using it" in message
    root.run(f"DROP TABLE {space}.shared; DROP TABLE {space}.user")
    message = root.run(f"DROP STORAGE {space}").message
    assert message == f"Storage '{space}' dropped successfully", "it waited for the clean-up"
    assert not list(base.rglob("*.parquet"))


def test_another_template_is_for_new_files(site: Site, tmp_path: Path) -> None:
    root, space, base = site.root, site.namespace(), tmp_path / "base"
    table = f"{space}.t"
    root.run(f"CREATE STORAGE {space} TYPE filesystem PATH '{base}'")
    root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY, n INT) WITH (STORAGE_ID='{space}')")
    root.run(f"INSERT INTO {table} VALUES (1, 1), (2, 2)")
    site.flush(table)
    root.run(f"ALTER STORAGE {space} SET SHARED_TABLES_TEMPLATE 'new/{{namespace}}/{{tableName}}'")
    root.run(f"UPDATE {table} SET n = 20 WHERE id = 2; INSERT INTO {table} VALUES (3, 3)")
    site.flush(table)
    expected = [{"id": 1, "n": 1}, {"id": 2, "n": 20}, {"id": 3, "n": 3}]
    rows = root.run(f"SELECT id, n FROM {table} ORDER BY id").rows
    assert [{"id": int(key), "n": int(n)} for key, n in rows] == expected
    partition = cold.find_partition(base, table, roots={space: base})
    assert partition is not None
    directories = [segment.directory.relative_to(base).as_posix() for segment in partition.segments]
    assert directories == [f"{space}/t", f"new/{space}/t"]
    assert cold.rows(partition, "id") == expected
    assert cold.audit(base, {space: base}) == []


def test_two_tables_that_templates_send_to_one_directory_are_refused(site: Site, tmp_path: Path) -> None:
    """A SHARED table and a user's part of a USER table would have one manifest.json."""
    root, space, other, base = site.root, site.namespace(), site.namespace(), tmp_path / "base"
    shared = f"SHARED_TABLES_TEMPLATE '{space}/{{namespace}}/{{tableName}}'"
    root.run(f"CREATE STORAGE {space} TYPE filesystem PATH '{base}' {shared}")
    mine, ours = f"{space}.{other}", f"{other}.root"
    with_storage = f"(id INT PRIMARY KEY) WITH (STORAGE_ID='{space}')"

    def refused(sql: str) -> None:
        message = root.sql(sql).refused(400, "SQL_EXECUTION_ERROR")
        assert "would be in the same directory" in message
        assert f"'{mine}'" in message
        assert f"'{ours}'" in message

    root.run(f"CREATE USER TABLE {mine} {with_storage}")
    refused(f"CREATE SHARED TABLE {ours} {with_storage}")
    root.run(f"CREATE SHARED TABLE {ours} (id INT PRIMARY KEY)")
    refused(f"ALTER TABLE {ours} SET TBLPROPERTIES (STORAGE_ID='{space}')")
    root.run(f"ALTER STORAGE {space} SET SHARED_TABLES_TEMPLATE 'shared/{{namespace}}/{{tableName}}'")
    root.run(f"ALTER TABLE {ours} SET TBLPROPERTIES (STORAGE_ID='{space}')")
    refused(f"ALTER STORAGE {space} SET {shared}")
    for table in (mine, ours):
        root.run(f"INSERT INTO {table} VALUES (1), (2)")
        site.flush(table)
    assert (base / "shared" / other / "root" / "manifest.json").exists()
    assert (base / space / other / "root" / "manifest.json").exists()
    assert cold.audit(base) == []


def test_two_storages_in_one_place_are_refused(site: Site, tmp_path: Path) -> None:
    """A table that moved from one to the other would take its own files for what it has left behind."""
    root, space, base = site.root, site.namespace(), tmp_path / "base"
    root.run(f"CREATE STORAGE {space} TYPE filesystem PATH '{base}'")
    create = f"CREATE STORAGE {space}_2 TYPE filesystem PATH"
    assert "the same directory" in root.sql(f"{create} '{base}'").refused(400, "SQL_EXECUTION_ERROR")
    templates = "SHARED_TABLES_TEMPLATE 'S/{namespace}/{tableName}'"
    message = root.sql(f"{create} '{base}' {templates}").refused(400, "SQL_EXECUTION_ERROR")
    assert "the same directory" in message, "USER tables still meet"
    templates += " USER_TABLES_TEMPLATE 'U/{namespace}/{tableName}/{userId}'"
    root.run(f"{create} '{base}' {templates}")
    alter = f"ALTER STORAGE {space}_2 SET SHARED_TABLES_TEMPLATE '{{namespace}}/{{tableName}}'"
    assert "the same directory" in root.sql(alter).refused(400, "SQL_EXECUTION_ERROR")
    folded = f"{create.replace('_2', '_4')} '{base}' {templates.replace('S/', 's/').replace('U/', 'u/')}"
    assert "the same directory" in root.sql(folded).refused(400, "SQL_EXECUTION_ERROR"), (
        "some disks fold case"
    )
    root.run(f"CREATE STORAGE {space}_3 TYPE filesystem PATH '{base}/inside'")


def test_two_storages_in_one_place_by_a_link_are_refused(site: Site, tmp_path: Path) -> None:
    root, space, base = site.root, site.namespace(), tmp_path / "base"
    root.run(f"CREATE STORAGE {space} TYPE filesystem PATH '{base}'")
    (tmp_path / "alias").symlink_to(base)
    create = f"CREATE STORAGE {space}_2 TYPE filesystem PATH '{tmp_path}/alias'"
    assert "the same directory" in root.sql(create).refused(400, "SQL_EXECUTION_ERROR")
    apart = (
        "SHARED_TABLES_TEMPLATE 'S/{namespace}/{table}' USER_TABLES_TEMPLATE 'U/{namespace}/{table}/{user}'"
    )
    root.run(f"{create} {apart}")
    alter = f"ALTER STORAGE {space}_2 SET SHARED_TABLES_TEMPLATE '{{namespace}}/{{tableName}}'"
    assert "the same directory" in root.sql(alter).refused(400, "SQL_EXECUTION_ERROR")


def test_a_disk_that_is_not_there_is_not_written_to(site: Site, tmp_path: Path) -> None:
    root, space, base = site.root, site.namespace(), tmp_path / "disk"
    table = f"{space}.t"
    root.run(f"CREATE STORAGE {space} TYPE filesystem PATH '{base}'")
    row = checked(root, space, extended=True)
    assert (row["status"], row["error"]) == ("healthy", None)
    assert int(str(row["total_bytes"])) >= int(str(row["used_bytes"])) > 0
    assert checked(root, space)["total_bytes"] is None
    root.run(f"CREATE SHARED TABLE {table} (id INT PRIMARY KEY) WITH (STORAGE_ID='{space}')")
    root.run(f"INSERT INTO {table} VALUES (1)")
    base.rename(tmp_path / "unmounted")
    base.mkdir()
    row = checked(root, space)
    assert (row["status"], row["writable"]) == ("unreachable", False)
    assert "is the right disk mounted" in str(row["error"])
    job = root.run(f"STORAGE FLUSH TABLE {table}").message.split("Job ID: ")[1]
    question = f"SELECT status, message FROM system.jobs WHERE job_id = '{job}'"
    wait_until(lambda: root.run(question).rows[0][0] == "failed", timeout_s=60, what="the job to fail")
    assert "is the right disk mounted" in root.run(question).rows[0][1]
    assert list(base.iterdir()) == []
    assert root.run(f"SELECT id FROM {table}").status == 200
    base.rmdir()
    (tmp_path / "unmounted").rename(base)
    assert checked(root, space)["status"] == "healthy"
    root.run(f"RETRY JOB '{job}'")
    wait_until(lambda: root.run(question).rows[0][0] == "completed", timeout_s=60, what="the job to complete")
    assert cold.audit(base) == []


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
