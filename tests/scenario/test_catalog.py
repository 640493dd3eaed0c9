"""What the catalog says of itself over HTTP: namespaces, DESCRIBE, SHOW, system and information tables."""

import json
from typing import Any

import pytest

from upwell.testing.wire import Site, Wire

DESCRIBED = [
    ("column_name", "Text"), ("ordinal_position", "Int"), ("column_id", "BigInt"), ("data_type", "Text"),
    ("is_nullable", "Boolean"), ("is_primary_key", "Boolean"), ("column_default", "Text"),
    ("column_comment", "Text"), ("schema_version", "Int"),
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["system", "sys", "root", "kalamdb", "kalam", "main", "sql", "ADMIN", "Internal", "information_schema",
     "pg_catalog", "datafusion"],
)  # fmt: skip
def test_reserved_namespaces_are_refused(site: Site, name: str) -> None:
    said = site.root.sql(f"CREATE NAMESPACE IF NOT EXISTS {name}").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Namespace name '{name.lower()}' is reserved" in said


def test_namespaces_come_and_go_and_say_so(site: Site, namespace: str) -> None:
    root, name = site.root, f"{namespace}_x"
    assert root.run(f"CREATE NAMESPACE {name}").message == f"Namespace '{name}' created successfully"
    assert root.run(f"CREATE NAMESPACE IF NOT EXISTS {name}").message == f"Namespace '{name}' already exists"
    said = root.sql(f"CREATE NAMESPACE {name}").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Already exists: Namespace '{name}' already exists" in said
    assert root.run(f"USE NAMESPACE {name}").message == f"Namespace switched to '{name}'"
    root.run(f"ALTER NAMESPACE {name} SET OPTIONS (owner = 'ann', level = 2, open = true)")
    root.run(f"ALTER NAMESPACE {name} SET OPTIONS (level = 3)")
    root.run(f"USE {name}; CREATE TABLE a (id INT PRIMARY KEY); CREATE TABLE b (id INT PRIMARY KEY)")
    shown = {row[0]: row for row in root.run("SHOW NAMESPACES").rows}[name]
    assert (json.loads(shown[3]), shown[4]) == ({"owner": "ann", "level": 3, "open": True}, 2)
    for bad in ("1abc", "a-b", '"a b"', '""'):
        root.sql(f"CREATE NAMESPACE {bad}").refused(400, "INVALID_SQL")
    assert root.run(f"DROP NAMESPACE {name} CASCADE").message == f"Namespace '{name}' dropped successfully"
    assert name not in {row[0] for row in root.run("SELECT namespace_id FROM system.namespaces").rows}
    assert root.run(f"SELECT * FROM system.schemas WHERE namespace_id = '{name}'").rows == []
    assert root.run(f"DROP NAMESPACE IF EXISTS {name}").message == f"Namespace '{name}' does not exist"
    said = root.sql(f"DROP NAMESPACE {name}").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Not found: Namespace '{name}' not found" in said
    said = root.sql(f"CREATE TABLE {name}.t (id INT PRIMARY KEY)").refused(400, "SQL_EXECUTION_ERROR")
    assert f"Create it first with CREATE NAMESPACE {name}" in said


def test_each_version_is_kept_and_ordinals_keep_gaps(site: Site, namespace: str) -> None:
    root, table = site.root, f"{namespace}.t"
    root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY, a TEXT, b BIGINT DEFAULT 7) WITH "
             "(FLUSH_POLICY = 'rows:10')")  # fmt: skip
    root.run(f"ALTER TABLE {table} ADD c JSON NOT NULL DEFAULT '[]'")
    root.run(f"ALTER TABLE {table} DROP COLUMN a; ALTER TABLE {table} RENAME b TO n")
    answer = root.run(f"DESC TABLE {table}")
    assert answer.columns == DESCRIBED
    assert answer.rows == [
        ["id", 1, "1", "INT", False, True, None, None, 4],
        ["n", 3, "3", "BIGINT", True, False, "7", None, 4],
        ["c", 4, "4", "JSON", False, False, "[]", None, 4],
    ]
    history = root.run(f"DESCRIBE TABLE {table} HISTORY").rows
    assert [(row[8], row[0], row[1]) for row in history] == [
        (1, "id", 1), (1, "a", 2), (1, "b", 3),
        (2, "id", 1), (2, "a", 2), (2, "b", 3), (2, "c", 4),
        (3, "id", 1), (3, "b", 3), (3, "c", 4),
        (4, "id", 1), (4, "n", 3), (4, "c", 4),
    ]  # fmt: skip
    versions = root.run(
        "SELECT table_id, schema_version, is_latest, table_type, options, columns FROM system.schemas "
        f"WHERE namespace_id = '{namespace}' ORDER BY schema_version"
    ).rows
    key = f"{namespace}:t"
    assert [row[:3] for row in versions] == [
        [f"{key}:1", 1, False], [f"{key}:2", 2, False], [f"{key}:3", 3, False], [key, 4, True],
    ]  # fmt: skip
    assert json.loads(versions[3][4]) == {"TYPE": "USER", "STORAGE_ID": "local", "FLUSH_POLICY": "rows:10"}
    found: list[dict[str, Any]] = json.loads(versions[3][5])
    assert [(each["column_name"], each["data_type"]) for each in found] == [
        ("id", "Int"), ("n", "BigInt"), ("c", "Json"),
    ]  # fmt: skip
    assert [row[1:4] + row[5:6] for row in root.run(f"SHOW TABLES IN {namespace}").rows] == [
        ["t", namespace, "user", 4]
    ]
    root.run(f"DROP TABLE {table}")
    assert root.run(f"SELECT * FROM system.schemas WHERE namespace_id = '{namespace}'").rows == []


def test_the_access_level_is_in_the_catalog(site: Site, namespace: str) -> None:
    root, table = site.root, f"{namespace}.t"
    question = "SELECT access_level, options FROM system.schemas WHERE is_latest AND namespace_id = "
    question += f"'{namespace}'"
    root.run(f"CREATE TABLE {table} (id INT PRIMARY KEY)")
    assert root.run(question).rows[0][0] == "private"
    said = root.run(f"ALTER TABLE {table} SET ACCESS LEVEL PUBLIC").message
    assert said == f"Table {table} altered successfully: SET ACCESS LEVEL Public (version 2)"
    root.run(f"ALTER TABLE {table} SET TBLPROPERTIES (ACCESS_LEVEL='RESTRICTED')")
    ((level, options),) = root.run(question).rows
    assert (level, json.loads(options)["ACCESS_LEVEL"]) == ("restricted", "restricted")
    said = root.run(f"ALTER TABLE {table} SET ACCESS LEVEL restricted").message
    assert said == f"Table {table} unchanged: SET ACCESS LEVEL Restricted (version 3 - no changes needed)"
    root.run(f"ALTER TABLE {table} SET TBLPROPERTIES (FLUSH_POLICY = 'rows:5,interval:60')")
    assert json.loads(root.run(question).rows[0][1])["FLUSH_POLICY"] == "rows:5,interval:60"


def test_stats_count_what_the_asker_may_see(site: Site, namespace: str, alice: Wire) -> None:
    table = f"{namespace}.t"
    site.root.run(f"CREATE USER TABLE {table} (id INT PRIMARY KEY)")
    site.root.run(f"INSERT INTO {table} VALUES (1), (2), (3)")
    site.flush(table)
    site.root.run(f"INSERT INTO {table} VALUES (4); DELETE FROM {table} WHERE id = 1")
    alice.run(f"INSERT INTO {table} VALUES (1)")
    answer = site.root.run(f"SHOW STATS FOR TABLE {table}")
    names = ["table_name", "namespace", "schema_version", "logical_rows", "flushed_segments"]
    assert [name for name, _ in answer.columns] == [*names, "active_streams", "memory_bytes"]
    assert answer.rows[0][:6] == ["t", namespace, 1, "4", "1", "0"]
    assert alice.run(f"SHOW STATS FOR TABLE {table}").rows[0][:6] == ["t", namespace, 1, "1", "0", "0"]
    site.root.run(f"CREATE TABLE {namespace}.s (id INT PRIMARY KEY)")
    alice.sql(f"SHOW STATS FOR TABLE {namespace}.s").refused(403, "PERMISSION_DENIED")


def test_information_schema_has_the_system_tables_too(site: Site, namespace: str, alice: Wire) -> None:
    site.root.run(f"CREATE TABLE {namespace}.t (id INT PRIMARY KEY, at TIMESTAMP NOT NULL)")
    question = "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
    question += "WHERE table_schema = "
    assert alice.run(f"{question}'{namespace}' ORDER BY ordinal_position").rows == [
        ["id", "INT", "NO"],
        ["at", "TIMESTAMP", "NO"],
    ]
    users = site.root.run(f"{question}'system' AND table_name = 'users'").rows
    assert ["user_id", "TEXT", "YES"] in users
    assert {"default", namespace, "system", "information_schema"} <= {
        row[0] for row in alice.run("SELECT schema_name FROM information_schema.schemata").rows
    }
    described = site.root.run("DESCRIBE system.users").rows
    assert [row[0] for row in described] == [row[0] for row in users]
    for sql in (f"DESCRIBE {namespace}.t", f"SHOW COLUMNS FROM {namespace}.t"):
        assert len(site.root.run(sql).rows) == 2
        assert "Admin privileges" in alice.sql(sql).refused(403, "PERMISSION_DENIED")


SYSTEM_TABLES = (
    "audit_log", "changes", "cluster", "cluster_groups", "columns", "datatypes", "describe", "job_nodes",
    "jobs", "live", "namespaces", "schemas", "server_logs", "sessions", "settings", "stats", "storages",
    "sync_conflicts", "sync_dead_letters", "sync_devices", "table_schemas", "tables", "topic_offsets",
    "topics", "transactions", "users",
)  # fmt: skip


CONTRACT_COLUMNS = {
    "users": (
        "user_id T, password_hash T, role T, email T, auth_type T, auth_data J, storage_mode T, "
        "storage_id T, failed_login_attempts I, locked_until TS, last_login_at TS, created_at TS, "
        "updated_at TS, last_seen TS, deleted_at TS"
    ),
    "namespaces": "namespace_id T, name T, created_at TS, options J, table_count I",
    "schemas": (
        "table_id T, table_name T, namespace_id T, table_type T, created_at TS, schema_version I, columns "
        "J, table_comment T, updated_at TS, options J, access_level T, is_latest Bo, storage_id T, "
        "use_user_storage Bo"
    ),
    "tables": (
        "namespace_id T, table_name T, table_type T, storage_id T, version B, options T, comment T, "
        "updated_at TS, created_at TS"
    ),
    "columns": (
        "namespace_id T, table_name T, version B, column_id B, column_name T, comment T, data_type T, "
        "default_value T, ordinal B, nullable Bo, primary_key Bo, primary_key_pos B"
    ),
    "storages": (
        "storage_id T, storage_name T, description T, storage_type T, base_directory T, credentials J, "
        "config_json J, shared_tables_template T, user_tables_template T, created_at TS, updated_at TS"
    ),
    "jobs": (
        "job_id T, job_type T, status T, leader_status T, parameters J, message T, exception_trace T, "
        "idempotency_key T, queue T, priority I, retry_count S, max_retries S, memory_used B, cpu_used B, "
        "created_at TS, updated_at TS, started_at TS, finished_at TS, node_id B, leader_node_id B"
    ),
    "job_nodes": (
        "job_id T, node_id B, status T, error_message T, created_at TS, started_at TS, finished_at TS, "
        "updated_at TS"
    ),
    "audit_log": (
        "audit_id T, timestamp TS, actor_user_id T, action T, target T, details T, ip_address T, "
        "subject_user_id T"
    ),
    "manifest": (
        "cache_key T, namespace_id T, table_name T, scope T, etag T, last_refreshed TS, last_accessed TS, "
        "in_memory Bo, sync_state T, manifest_json J"
    ),
    "topics": (
        "topic_id T, name T, alias T, partitions I, retention_seconds B, retention_max_bytes B, routes J, "
        "created_at TS, updated_at TS"
    ),
    "topic_offsets": "topic_id T, group_id T, partition_id I, last_acked_offset B, updated_at TS",
    "live": (
        "live_id T, connection_id T, subscription_id T, namespace_id T, table_name T, user_id T, query T, "
        "options J, status T, created_at TS, last_update TS, changes B, node_id B, last_ping_at TS"
    ),
    "sessions": (
        "session_id T, backend_pid B, current_schema T, state T, transaction_id T, transaction_state T, "
        "transaction_has_writes Bo, client_addr T, transport T, opened_at TS, last_seen_at TS, "
        "last_method T"
    ),
    "transactions": (
        "transaction_id T, owner_id T, origin T, state T, age_ms B, idle_ms B, write_count B, write_bytes "
        "B, touched_tables_count B, snapshot_commit_seq B"
    ),
    "stats": "metric_name T, metric_value T",
    "settings": "name T, value T, description T, category T",
    "server_logs": "timestamp T, level T, thread T, target T, line B, message T",
    "cluster": (
        "cluster_id T, node_id B, role T, status T, rpc_addr T, api_addr T, is_self Bo, is_leader Bo, "
        "groups_leading I, total_groups I, current_term B, last_applied_log B, leader_last_log_index B, "
        "snapshot_index B, catchup_progress_pct S, replication_lag B, hostname T, version T, memory_mb B, "
        "memory_usage_mb B, cpu_usage_percent F, uptime_seconds B, uptime_human T, os T, arch T"
    ),
    "datatypes": "arrow_type T, kalam_type T, sql_name T, description T",
}
"""Section 4 of the contract: system tables with the types of their columns."""
TYPES = {
    "T": "Text", "B": "BigInt", "I": "Int", "S": "SmallInt", "TS": "Timestamp", "J": "Json",
    "Bo": "Boolean", "F": "Float",
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRACT_COLUMNS)
def test_system_tables_have_the_columns_of_the_contract(site: Site, name: str) -> None:
    wanted = [each.split(" ") for each in CONTRACT_COLUMNS[name].split(", ")]
    answer = site.root.run(f"SELECT * FROM system.{name} LIMIT 1")
    assert list(answer.columns) == [(column, TYPES[kind]) for column, kind in wanted]


def test_there_are_no_topics_and_they_can_be_asked_for(site: Site) -> None:
    assert site.root.run("SELECT topic_id FROM system.topics WHERE topic_id = 'chat' LIMIT 1").rows == []
    asked = "SELECT COUNT(*) FROM system.topic_offsets WHERE updated_at > TIMESTAMP '1970-01-01 00:00:00'"
    assert site.root.run(asked).rows == [["0"]]


def test_information_schema_has_the_catalog_that_clients_filter_by(site: Site) -> None:
    asked = "SELECT DISTINCT table_name FROM information_schema.columns WHERE table_catalog = 'kalam' "
    asked += "AND table_schema = 'system' AND table_name IN ('users', 'topics', 'topic_offsets') ORDER BY 1"
    assert site.root.run(asked).rows == [["topic_offsets"], ["topics"], ["users"]]


@pytest.mark.parametrize("name", SYSTEM_TABLES)
def test_every_system_table_has_the_columns_that_it_names(site: Site, alice: Wire, name: str) -> None:
    answer = site.root.run(f"SELECT * FROM system.{name}")
    listed = site.root.run(
        "SELECT column_name FROM information_schema.columns "
        f"WHERE table_schema = 'system' AND table_name = '{name}' ORDER BY ordinal_position"
    ).rows
    assert [[column] for column, _ in answer.columns] == listed
    is_everybodys = name in ("changes", "live", "namespaces") or name.startswith("sync_")
    if not is_everybodys:
        assert "Admin" in alice.sql(f"SELECT * FROM system.{name}").refused(403, "PERMISSION_DENIED")


def test_the_server_tells_what_it_is(site: Site, alice: Wire) -> None:
    stats = dict(site.root.run("SELECT * FROM system.stats").rows)
    assert int(stats["memory_rss_mb"]) > 10
    assert int(stats["total_users"]) >= 2
    assert 0 < int(stats.get("cpu_physical_cores", 1)) <= int(stats["cpu_logical_cores"])
    files = [int(stats[f"open_files_{kind}"]) for kind in ("regular", "directories", "total")]
    assert 0 < files[0] <= files[0] + files[1] < files[2]
    assert (stats["cluster_mode"], stats["node_id"]) == ("false", "1")
    settings = {row[0]: row[1:] for row in site.root.run("SELECT * FROM system.settings").rows}
    assert settings["durability"][0] == '"group"'
    assert settings["jwt_secret"][0] == '"***"'
    assert [name for name, (_, description, _) in settings.items() if not description] == []
    shown = site.root.run("SHOW ALL").rows
    assert [row[0] for row in shown] == sorted(settings)
    assert "Admin" in alice.sql("SHOW ALL").refused(403, "PERMISSION_DENIED")
    logs = site.root.run("SELECT level, target, message FROM system.server_logs").rows
    assert any(target.startswith("upwell") for _, target, _ in logs)
    assert any(message.startswith("Upwell starts ") and "port=" in message for _, _, message in logs)
    ((node, role, status, is_leader),) = site.root.run(
        "SELECT node_id, role, status, is_leader FROM system.cluster"
    ).rows
    assert (node, role, status, is_leader) == ("1", "leader", "active", True)
    names = {row[0] for row in site.root.run("SELECT sql_name FROM system.datatypes").rows}
    assert {"DECIMAL", "DATETIME", "BYTES"} <= names


def test_cluster_statements_answer_for_one_node(site: Site, alice: Wire) -> None:
    assert site.root.run("CLUSTER PURGE --upto 5").rows[0][-1] == "5", "no comment"
    answer = site.root.run("CLUSTER SNAPSHOT")
    assert [name for name, _ in answer.columns][:4] == ["action", "group_id", "success", "error"]
    assert answer.rows[0][:4] == ["snapshot", "1", True, None]
    for action in (
        "PURGE --upto 5",
        "PURGE 5",
        "TRIGGER ELECTION",
        "TRIGGER-ELECTION",
        "TRANSFER-LEADER 2",
        "REBALANCE",
        "STEPDOWN",
        "step-down",
    ):
        ((_, _, success, error, *_),) = site.root.run(f"CLUSTER {action}").rows
        assert success is False
        assert "one node" in error
    for action in ("LIST", "STATUS", "LS"):
        assert "CLI-only" in site.root.sql(f"CLUSTER {action}").refused(400, "INVALID_SQL")
    for action in ("LEAVE", "CLEAR", "JOIN 2 a b", "DANCE"):
        site.root.sql(f"CLUSTER {action}").refused(400, "INVALID_SQL")
    for action in ("SNAPSHOT", "LIST", "LEAVE", "JOIN 2 a b"):
        assert "Admin" in alice.sql(f"CLUSTER {action}").refused(403, "PERMISSION_DENIED")


def test_a_table_in_ones_own_namespace_is_ones_own(site: Site) -> None:
    name, user = site.account()
    site.root.run(f"CREATE NAMESPACE {name}")
    user.run(f"CREATE TABLE {name}.t (id INT PRIMARY KEY) USING parquet")
    site.root.run(f"CREATE TABLE {name}.s (id INT PRIMARY KEY)")
    kinds = site.root.run(
        f"SELECT table_name, table_type FROM system.tables WHERE namespace_id = '{name}'"
    ).rows
    assert sorted(kinds) == [["s", "shared"], ["t", "user"]]
    user.sql("CREATE TABLE default.t_of_mine (id INT PRIMARY KEY)").refused(403, "PERMISSION_DENIED")
    batch = f"SELECT 1; CREATE TABLE {name}.u (id INT PRIMARY KEY)"
    assert user.sql(batch).status == 200
    site.root.sql(f"CREATE TABLE {name}.v (id INT PRIMARY KEY) USING csv").refused(400, "INVALID_SQL")
