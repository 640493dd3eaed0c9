"""Scenario 06: background work is observable and safe to repeat; readers never notice it."""

import itertools
import json
import threading
from typing import Any

from upwell.testing import cold, wait_until
from upwell.testing.wire import Site, Wire

WAIT_S = 60.0
ENDED = {"completed", "failed", "cancelled", "skipped"}
# What a reader who polls may see after what; a state may be missed, never met again later.
ORDER = ["queued", "running", "completed"]
ROUNDS, ROWS = 100, 50


def created(site: Site, namespace: str, policy: str = "") -> str:
    """Create scenario 06's table."""
    table = f"{namespace}.data"
    option = f", FLUSH_POLICY='{policy}'" if policy else ""
    site.root.run(
        f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, value TEXT NOT NULL) WITH (TYPE='USER'{option})"
    )
    return table


def insert(wire: Wire, table: str, keys: range) -> None:
    values = ", ".join(f"({key}, 'v{key}')" for key in keys)
    assert wire.run(f"INSERT INTO {table} VALUES {values}").count == len(keys)


def flush(site: Site, table: str) -> str:
    """Start a flush; return its job's id."""
    return site.root.run(f"STORAGE FLUSH TABLE {table}").message.split("Job ID: ")[1]


def status(site: Site, job: str) -> str:
    return str(site.root.run(f"SELECT status FROM system.jobs WHERE job_id = '{job}'").cell)


def ended(site: Site, job: str) -> str:
    def look() -> str | None:
        found = status(site, job)
        return found if found in ENDED else None

    return str(wait_until(look, timeout_s=WAIT_S, what=f"job {job} to end"))


def jobs_of(site: Site, table: str) -> list[dict[str, Any]]:
    answer = site.root.run("SELECT job_id, job_type, status, parameters FROM system.jobs ORDER BY created_at")
    found = [
        dict(zip(("job_id", "job_type", "status", "parameters"), row, strict=True)) for row in answer.rows
    ]
    return [job for job in found if json.loads(job["parameters"]).get("table_id") == table]


def test_rows_by_policy_and_by_command_are_there_once(site: Site, namespace: str) -> None:
    """Part a: 20 rows over a policy of 10; whoever flushes what, each key is there once."""
    table = created(site, namespace, "rows:10")
    for key in range(20):
        insert(site.root, table, range(key, key + 1))
    site.root.run(f"STORAGE FLUSH TABLE {table}")
    wait_until(
        lambda: (
            {job["status"] for job in jobs_of(site, table)} <= {"completed", "skipped"}
            and "no pending writes" in site.root.run(f"STORAGE FLUSH TABLE {table}").message
        ),
        timeout_s=WAIT_S,
        what="all rows to be cold",
    )
    assert int(site.root.run(f"SELECT COUNT(*) FROM {table}").cell) == 20
    found = [int(row[0]) for row in site.root.run(f"SELECT id FROM {table} ORDER BY id").rows]
    assert found == list(range(20))
    partition = cold.find_partition(site.server.data_dir / "storage", table, "root")
    assert partition is not None
    assert sorted(row["id"] for row in cold.versions(partition)) == list(range(20))


def test_a_second_flush_finds_nothing_to_do(site: Site, namespace: str) -> None:
    """Part b."""
    table = created(site, namespace)
    insert(site.root, table, range(10))
    assert ended(site, flush(site, table)) == "completed"
    skipped = f"Storage flush skipped: no pending writes for table '{table}'"
    assert site.root.run(f"STORAGE FLUSH TABLE {table}").message == skipped
    assert int(site.root.run(f"SELECT COUNT(*) FROM {table}").cell) == 10
    assert len(jobs_of(site, table)) == 1


def test_jobs_are_found_by_their_type_status_and_id(site: Site, namespace: str) -> None:
    """Part c, and catalogue J1, J9."""
    table = created(site, namespace)
    insert(site.root, table, range(3))
    job = flush(site, table)
    ended(site, job)
    assert ["flush"] in site.root.run("SELECT DISTINCT job_type FROM system.jobs").rows
    [(found_id, job_type, parameters)] = site.root.run(
        "SELECT job_id, job_type, parameters FROM system.jobs "
        f"WHERE status = 'completed' AND job_id = '{job}'"
    ).rows
    assert (found_id, job_type) == (job, "flush")
    assert namespace in parameters
    assert "data" in parameters
    assert site.root.run(f"SELECT 1 FROM system.jobs WHERE status = 'failed' AND job_id = '{job}'").rows == []


def test_the_states_of_a_job_come_in_their_order(site: Site, namespace: str) -> None:
    """Part d, for jobs of several sizes: only legal moves are ever seen, and the last is `completed`."""
    table = created(site, namespace)
    for number in range(5):
        insert(site.root, table, range(number * 1000, number * 1000 + 50 + number * 200))
        job = flush(site, table)
        seen: list[str] = []
        while not seen or seen[-1] not in ENDED:
            seen.append(status(site, job))
        steps = [state for state, _ in itertools.groupby(seen)]
        assert steps == [state for state in ORDER if state in steps], steps
        assert steps[-1] == "completed"


def test_of_two_commands_at_once_one_starts_a_job(site: Site, namespace: str) -> None:
    table = created(site, namespace)
    wires = [site.wire(site.root.token) for _ in range(4)]
    for round_ in range(5):
        insert(site.root, table, range(round_ * 100, round_ * 100 + 20))
        together = threading.Barrier(len(wires))
        messages: list[str] = []

        def command(wire: Wire, together: threading.Barrier = together, into: list[str] = messages) -> None:
            together.wait(30)
            into.append(wire.run(f"STORAGE FLUSH TABLE {table}").message)

        threads = [threading.Thread(target=command, args=(wire,)) for wire in wires]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        started = [message for message in messages if "Job ID: " in message]
        others = {message for message in messages if "Job ID: " not in message}
        assert others <= {
            f"Storage flush skipped: a flush is already queued or running for table '{table}'",
            f"Storage flush skipped: no pending writes for table '{table}'",
        }
        assert len(started) >= 1
        statuses = [ended(site, message.split("Job ID: ")[1]) for message in started]
        assert statuses.count("completed") == 1, "a job that came after it had nothing left to do"
        assert set(statuses) <= {"completed", "skipped"}


def test_readers_see_one_count_through_a_hundred_flushes(site: Site, namespace: str) -> None:
    """And after the last of them the files hold each row's newest version once."""
    table = created(site, namespace)
    insert(site.root, table, range(ROWS))
    stop, counts = threading.Event(), [0, 0]
    wrong: list[object] = []

    def read(number: int) -> None:
        wire = site.wire(site.root.token)
        while not stop.is_set():
            found = wire.run(f"SELECT COUNT(*), COUNT(DISTINCT id), SUM(id) FROM {table}").rows[0]
            counts[number] += 1
            if [int(value) for value in found] != [ROWS, ROWS, sum(range(ROWS))]:
                wrong.append(found)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    try:
        for round_ in range(ROUNDS):
            key = round_ * 7 % ROWS
            assert site.root.run(f"UPDATE {table} SET value = 'r{round_}' WHERE id = {key}").count == 1
            assert ended(site, flush(site, table)) == "completed"
    finally:
        stop.set()
        for reader in readers:
            reader.join(30)
    assert wrong == []
    print(f"{sum(counts)} counts through {ROUNDS} flushes")
    expected = {key: f"v{key}" for key in range(ROWS)} | {r * 7 % ROWS: f"r{r}" for r in range(ROUNDS)}
    rows = site.root.run(f"SELECT id, value FROM {table} ORDER BY id").rows
    assert {int(key): value for key, value in rows} == expected
    partition = cold.find_partition(site.server.data_dir / "storage", table, "root")
    assert partition is not None
    assert {row["id"]: row["value"] for row in cold.rows(partition, "id")} == expected


def test_dropping_a_table_is_a_job_too(site: Site, namespace: str) -> None:
    """Catalogue J3 and F23: the table is gone at once, the files of every user soon."""
    table = created(site, namespace)
    people = [site.account() for _ in range(3)]
    for _, wire in people:
        insert(wire, table, range(5))
    ended(site, flush(site, table))
    directory = site.server.data_dir / "storage" / namespace / "data"
    assert sorted(path.name for path in directory.iterdir()) == sorted(name for name, _ in people)
    message = site.root.run(f"DROP TABLE {table}").message
    assert message.startswith(f"Table {table} dropped successfully. Cleanup job: CL-")
    assert "not found" in site.root.sql(f"SELECT * FROM {table}").refused(400, "SQL_EXECUTION_ERROR")
    assert ended(site, message.split("Cleanup job: ")[1]) == "completed"
    assert not directory.exists()


def test_dropping_a_namespace_cleans_up_each_table(site: Site, namespace: str) -> None:
    tables = [f"{namespace}.{name}" for name in ("a", "b")]
    for table in tables:
        site.root.run(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, value TEXT) WITH (TYPE='SHARED')")
        insert(site.root, table, range(4))
        ended(site, flush(site, table))
    site.root.run(f"DROP NAMESPACE {namespace} CASCADE")

    def cleanups() -> list[str]:
        jobs = [job for table in tables for job in jobs_of(site, table) if job["job_type"] == "cleanup"]
        return [job["status"] for job in jobs]

    wait_until(lambda: cleanups() == ["completed"] * 2, timeout_s=WAIT_S, what="both cleanups")
    assert [
        path for path in (site.server.data_dir / "storage" / namespace).rglob("*") if path.is_file()
    ] == []


def test_a_job_that_does_not_exist_and_roles(site: Site, namespace: str, alice: Wire) -> None:
    assert "job 'FL-nowhere'" in site.root.sql("KILL JOB 'FL-nowhere'").refused(400, "SQL_EXECUTION_ERROR")
    table = created(site, namespace)
    insert(site.root, table, range(3))
    job = flush(site, table)
    ended(site, job)
    refusal = site.root.sql(f"KILL JOB '{job}'").refused(400, "SQL_EXECUTION_ERROR")
    assert f"job '{job}' is completed; it is over already" in refusal
    for statement in (f"KILL JOB '{job}'", f"RETRY JOB '{job}'", "SELECT * FROM system.jobs"):
        alice.sql(statement).refused(403, "PERMISSION_DENIED")
