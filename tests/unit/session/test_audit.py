"""A definition and its entry in the audit log are one commit: a crash leaves both, or neither."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from upwell.session.audit import load_entries
from upwell.testing import PointActions
from upwell.testing.embedded import Embedded, memory_store


class Commits:
    """What there is, and what the audit log says, after each commit that changed one of the two."""

    def __init__(self) -> None:
        self.db: Embedded | None = None
        self.steps: list[tuple[object, list[tuple[str, str]]]] = []

    def look(self) -> None:
        if self.db is None:
            return
        catalog = self.db.committer.newest_catalog
        names = (catalog.namespaces, catalog.tables, catalog.users, catalog.dropped_users)
        state = tuple(dict(each) for each in (*names, catalog.storages, catalog.queries))
        entries = [(entry.action, entry.target) for _, entry in load_entries(self.db.committer.newest)]
        if not self.steps or self.steps[-1] != (state, entries):
            self.steps.append((state, entries))


@pytest.fixture
def commits(tmp_path: Path) -> Iterator[Commits]:
    commits = Commits()
    points = PointActions({"commit:after-write": commits.look})
    with Embedded(tmp_path / "data", store=memory_store(), points=points) as db:
        commits.db = db
        commits.look()
        yield commits


DEFINITIONS = [
    ("CREATE NAMESPACE app", "CREATE_NAMESPACE", "app"),
    ("ALTER NAMESPACE app SET OPTIONS (a = 1)", "ALTER_NAMESPACE", "app"),
    ("CREATE SHARED TABLE app.t (id INT PRIMARY KEY)", "CREATE_TABLE", "app.t"),
    ("ALTER TABLE app.t ADD COLUMN v INT", "ALTER_TABLE", "app.t"),
    ("INSERT INTO app.t VALUES (1, 2)", None, None),
    ("ALTER TABLE app.t ALTER COLUMN v SET NOT NULL", "ALTER_TABLE", "app.t"),
    ("CREATE VIEW app.v AS SELECT id FROM app.t", "CREATE_VIEW", "app.v"),
    ("DROP VIEW app.v", "DROP_VIEW", "app.v"),
    ("CREATE USER ann WITH PASSWORD 'wonderland' ROLE user", "CREATE_USER", "ann"),
    ("ALTER USER ann SET PASSWORD 'looking-glass'", "ALTER_USER", "ann"),
    ("DROP USER ann", "DROP_USER", "ann"),
    ("CREATE STORAGE two TYPE 'filesystem' PATH '{path}'", "CREATE_STORAGE", "two"),
    ("ALTER STORAGE two SET DESCRIPTION 'second'", "ALTER_STORAGE", "two"),
    ("DROP STORAGE two", "DROP_STORAGE", "two"),
    ("DROP TABLE app.t", "DROP_TABLE", "app.t"),
    ("DROP NAMESPACE app", "DROP_NAMESPACE", "app"),
]


def test_a_definition_and_its_entry_are_one_commit(commits: Commits, tmp_path: Path) -> None:
    db = commits.db
    assert db is not None
    for sql, action, target in DEFINITIONS:
        before = commits.steps[-1]
        del commits.steps[:-1]
        db.run(sql.replace("{path}", str(tmp_path / "two")))
        if action is None:
            assert commits.steps == [before], sql
            continue
        assert len(commits.steps) == 2, (sql, [entries for _, entries in commits.steps])
        _, (state, entries) = commits.steps
        assert state != before[0], sql
        assert entries == [*before[1], (action, target)], sql


def test_what_changes_nothing_has_no_entry(commits: Commits) -> None:
    db = commits.db
    assert db is not None
    db.run("CREATE NAMESPACE app; CREATE TABLE app.t (id INT PRIMARY KEY)")
    before = commits.steps[-1]
    for sql in (
        "CREATE NAMESPACE IF NOT EXISTS app",
        "CREATE TABLE IF NOT EXISTS app.t (id INT PRIMARY KEY)",
        "ALTER TABLE app.t SET ACCESS LEVEL PRIVATE",
        "DROP TABLE IF EXISTS app.u",
        "DROP VIEW IF EXISTS app.u",
        "DROP NAMESPACE IF EXISTS b",
        "DROP USER IF EXISTS nobody",
        "DROP STORAGE IF EXISTS nothing",
    ):
        db.run(sql)
        assert commits.steps[-1] == before, sql
