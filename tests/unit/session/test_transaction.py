"""Transactions: read your writes, all or nothing, nobody else sees them before COMMIT.

Written from the reference contract, section 3.7, and the catalogue of scenarios (Q11–Q15, L13).
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.errors import Conflict, InvalidOperation, RequestRefused, UpwellError
from upwell.session.outcome import Changed, Message, Outcome
from upwell.session.request import Asked
from upwell.session.transaction import Transactions
from upwell.storage.hot import Change
from upwell.testing.embedded import ROOT, Embedded, Tuples, answer_rows, memory_store, principal

CHANGED = {"Inserted", "Updated", "Deleted"}
ID = r"\(([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})\)"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Embedded]:
    """An engine with USER tables `app.mine` and `app.child`, and a SHARED table `app.ours`."""
    with Embedded(tmp_path, store=memory_store()) as db:
        db.run(
            "CREATE NAMESPACE app;"
            "CREATE USER TABLE app.mine (id INT PRIMARY KEY, n INT, s TEXT NOT NULL DEFAULT '-');"
            "CREATE USER TABLE app.child"
            " (id INT PRIMARY KEY, mine INT REFERENCES app.mine(id) ON DELETE CASCADE);"
            "CREATE SHARED TABLE app.ours (id INT PRIMARY KEY, n INT)"
        )
        yield db


def ran(db: Embedded, sql: str, user: str = ROOT) -> list[Outcome]:
    return db.runner.run(db.outcomes(sql, (), user))


def messages(outcomes: list[Outcome]) -> list[str]:
    return [outcome.result.text for outcome in outcomes if isinstance(outcome.result, Message)]


def counts(outcomes: list[Outcome]) -> list[tuple[str, int]]:
    results = [outcome.result for outcome in outcomes]
    return [(result.verb, result.count) for result in results if isinstance(result, Changed)]


def selected(outcomes: list[Outcome]) -> list[Tuples]:
    return [answer_rows(each) for each in outcomes if not isinstance(each.result, (Message, Changed))]


def log(db: Embedded, table: str, after: int) -> list[Change]:
    return db.view.hot.read_log(db.table(table).id, None, after, None, 1000)


@pytest.mark.parametrize("begin", ["BEGIN", "begin transaction", "BEGIN WORK", "START TRANSACTION"])
@pytest.mark.parametrize("commit", ["COMMIT", "commit work"])
def test_a_transaction_commits_with_its_messages(db: Embedded, begin: str, commit: str) -> None:
    outcomes = ran(
        db, f"{begin}; INSERT INTO app.mine (id) VALUES (1); INSERT INTO app.mine (id) VALUES (2); {commit}"
    )
    started, committed = messages(outcomes)
    assert (number := re.fullmatch(f"Transaction started {ID}", started)) is not None
    assert committed == f"Transaction committed ({number[1]})"
    assert counts(outcomes) == [("Inserted", 1), ("Inserted", 1)]
    assert db.rows("SELECT id FROM app.mine") == [(1,), (2,)]


def test_one_commit_is_one_group_of_the_log(db: Embedded) -> None:
    before = db.view.seq
    ran(
        db,
        "BEGIN; INSERT INTO app.mine (id, n) VALUES (1, 1), (2, 2); UPDATE app.mine SET n = 5 WHERE id = 1;"
        "INSERT INTO app.mine (id) VALUES (3); DELETE FROM app.mine WHERE id = 3; COMMIT",
    )
    changes = log(db, "app.mine", before)
    # One change a row: what came and went within the transaction never was.
    assert [(change.key, change.op, change.before, change.after) for change in changes] == [
        (1, "INSERT", None, [1, 5, "-"]),
        (2, "INSERT", None, [2, 2, "-"]),
    ]
    assert [change.last for change in changes] == [False, True]


def test_rolled_back_changes_are_neither_counted_nor_logged(db: Embedded) -> None:
    before = db.view.seq
    outcomes = ran(
        db,
        "BEGIN; INSERT INTO app.mine (id) VALUES (1); COMMIT;"
        "BEGIN; INSERT INTO app.mine (id) VALUES (2); SELECT id FROM app.mine; ROLLBACK",
    )
    assert [text.split(" (")[0] for text in messages(outcomes)] == [
        "Transaction started",
        "Transaction committed",
        "Transaction started",
        "Transaction rolled back",
    ]
    assert counts(outcomes) == [("Inserted", 1)]
    assert selected(outcomes) == [[(1,), (2,)]]
    assert [change.key for change in log(db, "app.mine", before)] == [1]
    assert db.rows("SELECT id FROM app.mine") == [(1,)]


@pytest.mark.parametrize("flushed", [False, True])
def test_statements_see_what_those_before_them_staged(db: Embedded, flushed: bool) -> None:
    db.run("INSERT INTO app.mine (id, n) VALUES (1, 10), (2, 20), (3, 30), (4, 40)")
    if flushed:
        db.flush("app.mine")
        db.run("UPDATE app.mine SET n = 41 WHERE id = 4")
    outcomes = ran(
        db,
        "BEGIN;"
        "INSERT INTO app.mine (id, n) VALUES (5, 50);"
        "UPDATE app.mine SET n = n + 1 WHERE id = 1;"
        "DELETE FROM app.mine WHERE id = 2;"
        "UPDATE app.mine SET id = 33 WHERE id = 3;"
        "SELECT id, n FROM app.mine;"
        "SELECT n FROM app.mine WHERE id = 5;"
        "SELECT n FROM app.mine WHERE id = 2;"
        "SELECT COUNT(*), SUM(n) FROM app.mine;"
        "UPDATE app.mine SET n = n * 2 WHERE n IN (SELECT MAX(n) FROM app.mine);"
        "DELETE FROM app.mine WHERE n = 30;"
        "INSERT INTO app.mine (id, n) SELECT id + 100, n FROM app.mine WHERE n > 40;"
        "SELECT id, n FROM app.mine ORDER BY id;"
        "COMMIT",
    )
    four = 41 if flushed else 40
    final = [(1, 11), (4, four), (5, 100), (105, 100)] + ([(104, 41)] if flushed else [])
    assert selected(outcomes) == [
        [(1, 11), (4, four), (5, 50), (33, 30)],
        [(50,)],
        [],
        [(4, 11 + four + 50 + 30)],
        sorted(final),
    ]
    assert db.rows("SELECT id, n FROM app.mine ORDER BY id") == sorted(final)
    db.flush("app.mine")
    assert db.rows("SELECT id, n FROM app.mine ORDER BY id") == sorted(final)
    assert db.cold_problems() == []


def test_nobody_else_sees_what_is_staged(db: Embedded) -> None:
    db.run("INSERT INTO app.mine (id, n) VALUES (1, 0)", user="ann")
    sessions = db.sessions

    async def race() -> tuple[Tuples, Tuples]:
        """A second request runs while the first waits for a query thread in its transaction."""
        statement = "BEGIN; INSERT INTO app.mine (id) VALUES (2); {}; COMMIT"
        slow = statement.format("; ".join(["SELECT COUNT(*) FROM app.mine"] * 3))
        first = asyncio.create_task(sessions.execute(principal("ann"), slow, (), None))
        await asyncio.sleep(0)
        other = await sessions.execute(principal("ann"), "SELECT id FROM app.mine", (), None)
        others = await sessions.execute(principal("bob"), "SELECT id FROM app.mine", (), None)
        await first
        return answer_rows(other[0]), answer_rows(others[0])

    seen, foreign = db.runner.run(race())
    assert seen in ([(1,)], [(1,), (2,)])
    assert foreign == []
    assert db.rows("SELECT id FROM app.mine", user="ann") == [(1,), (2,)]


@pytest.mark.parametrize(
    "failing",
    [
        "INSERT INTO app.mine (id) VALUES (1)",
        "INSERT INTO app.mine (id) VALUES (7)",
        "INSERT INTO app.child (id, mine) VALUES (1, 99)",
        "UPDATE app.mine SET s = NULL WHERE id = 1",
        "SELECT 1 / 0",
        "INSERT INTO app.missing VALUES (1)",
        "CREATE USER TABLE app.more (id INT PRIMARY KEY)",
        "STORAGE FLUSH TABLE app.mine",
        "BEGIN",
    ],
)
def test_a_failing_statement_rolls_everything_back(db: Embedded, failing: str) -> None:
    db.run("INSERT INTO app.mine (id) VALUES (1)")
    before = db.settle().seq
    with pytest.raises(UpwellError):
        ran(db, f"BEGIN; INSERT INTO app.mine (id) VALUES (7); UPDATE app.mine SET n = 9; {failing}; COMMIT")
    assert db.settle().seq == before
    assert db.rows("SELECT id, n FROM app.mine") == [(1, None)]
    assert list(db.sessions.transactions) == []


def test_a_key_of_an_earlier_statement_already_exists(db: Embedded) -> None:
    with pytest.raises(UpwellError, match="value '7' already exists in column 'id'"):
        ran(db, "BEGIN; INSERT INTO app.mine (id) VALUES (7); INSERT INTO app.mine (id) VALUES (7); COMMIT")
    with pytest.raises(UpwellError, match="value '7' appears multiple times in"):
        ran(db, "BEGIN; INSERT INTO app.mine (id) VALUES (7), (7); COMMIT")


def test_a_request_that_leaves_its_transaction_open_is_refused(db: Embedded) -> None:
    text = "Request completed with an open explicit transaction; rolled back automatically"
    for sql in ("BEGIN", "BEGIN; INSERT INTO app.mine (id) VALUES (1)"):
        with pytest.raises(RequestRefused, match=text) as failure:
            ran(db, sql)
        assert failure.value.code == "SQL_EXECUTION_ERROR"
    assert db.rows("SELECT id FROM app.mine") == []


def test_commit_and_rollback_need_a_begin(db: Embedded) -> None:
    for word in ("COMMIT", "ROLLBACK"):
        with pytest.raises(InvalidOperation, match=f"{word} requires an active explicit SQL transaction"):
            ran(db, word)
    with pytest.raises(Conflict, match=r"request owner 'sql-req-.*' already has an active transaction '"):
        ran(db, "BEGIN; BEGIN; COMMIT")


def test_writes_to_user_and_shared_tables_dont_mix_after_begin(db: Embedded) -> None:
    both = "INSERT INTO app.mine (id) VALUES (1); {} INSERT INTO app.ours (id) VALUES (1);"
    with pytest.raises(InvalidOperation, match=r"cannot access table 'app\.ours'"):
        ran(db, "BEGIN;" + both.format("") + "COMMIT")
    ran(db, "BEGIN; INSERT INTO app.ours (id) VALUES (1); SELECT * FROM app.mine; COMMIT")
    ran(db, both.format("").replace("(1)", "(2)"))
    assert db.rows("SELECT id FROM app.mine") == [(2,)]
    assert db.rows("SELECT id FROM app.ours") == [(1,), (2,)]


def test_who_was_faster_makes_a_conflict(db: Embedded) -> None:
    db.run("INSERT INTO app.mine (id, n) VALUES (1, 0)")
    sessions = db.sessions
    asked = [Asked("UPDATE app.mine SET n = n + 1 WHERE id = 1"), Asked("SELECT COUNT(*) FROM app.mine")]

    async def race() -> None:
        first = asyncio.create_task(sessions.run(principal(ROOT), asked, None, atomic=True))
        await asyncio.sleep(0)  # it runs up to its SELECT, which waits for a query thread
        await sessions.execute(principal(ROOT), "UPDATE app.mine SET n = 10 WHERE id = 1", (), None)
        await first

    with pytest.raises(Conflict, match="nothing was applied, run it again"):
        db.runner.run(race())
    assert db.rows("SELECT n FROM app.mine") == [(10,)]


def test_children_follow_parents_within_a_transaction(db: Embedded) -> None:
    ran(
        db,
        "BEGIN; INSERT INTO app.mine (id) VALUES (1), (2); INSERT INTO app.child VALUES (10, 1), (20, 2);"
        "DELETE FROM app.mine WHERE id = 1; INSERT INTO app.child VALUES (21, 2); COMMIT",
    )
    assert db.rows("SELECT id FROM app.child") == [(20,), (21,)]
    ran(db, "BEGIN; DELETE FROM app.mine; SELECT * FROM app.child; COMMIT")
    assert db.rows("SELECT id FROM app.child") == []


def test_system_transactions_shows_the_open_ones_to_administrators(db: Embedded) -> None:
    sql = "SELECT write_count, touched_tables_count, origin, state FROM system.transactions"
    outcomes = ran(db, f"BEGIN; {sql}; INSERT INTO app.mine (id) VALUES (1), (2); {sql}; COMMIT; {sql}")
    assert selected(outcomes) == [
        [(0, 0, "sql_batch", "open_read")],
        [(2, 1, "sql_batch", "open_write")],
        [],
    ]
    with pytest.raises(UpwellError, match="Admin privileges"):
        ran(db, sql, "ann")


def test_an_atomic_request_needs_no_begin(db: Embedded) -> None:
    async def run(*texts: str) -> list[Outcome]:
        asked = [Asked(text) for text in texts]
        return await db.sessions.run(principal(ROOT), asked, "app", atomic=True)

    insert = "INSERT INTO mine (id) VALUES (1)"
    outcomes = db.runner.run(run(insert, "INSERT INTO ours (id) VALUES (1)", "SELECT id FROM mine"))
    assert counts(outcomes) == [("Inserted", 1), ("Inserted", 1)]
    assert selected(outcomes) == [[(1,)]]
    for word in ("COMMIT", "ROLLBACK", "BEGIN"):
        with pytest.raises(Exception, match="Statement 2 failed"):
            db.runner.run(run("INSERT INTO mine (id) VALUES (2)", word))
    assert db.rows("SELECT id FROM app.mine") == [(1,)]


def test_impersonated_writes_belong_to_their_users(db: Embedded) -> None:
    ran(
        db,
        "BEGIN; EXECUTE AS USER 'ann' (INSERT INTO app.mine (id) VALUES (1));"
        "INSERT INTO app.mine (id) VALUES (2);"
        "SELECT id FROM app.mine; COMMIT",
    )
    assert db.rows("SELECT id FROM app.mine") == [(2,)]
    assert db.rows("SELECT id FROM app.mine", user="ann") == [(1,)]


@pytest.mark.parametrize(
    "broken",
    [
        "SELEC 1",
        "SELECT id FROM app.mine ORDER BY",
        "INSERT INTO app.mine VALUES (1 +)",
        "UPDATE app.mine SET n = ) WHERE id = 1",
        "DELETE FROM app.mine WHERE id = = 1",
        "INSERT INTO app.mine SELECT id FROM app.mine WHERE",
        "DROP NAMESPACE",
    ],
)
def test_a_syntax_error_anywhere_lets_nothing_of_a_batch_run(db: Embedded, broken: str) -> None:
    for _ in range(2):  # the second time its shape has been seen
        with pytest.raises(UpwellError):
            ran(db, f"INSERT INTO app.mine (id) VALUES (1); {broken}")
    assert db.rows("SELECT id FROM app.mine") == []


@pytest.mark.parametrize(("seconds", "may"), [(299, True), (301, False)])
def test_a_transaction_is_open_for_300_seconds_at_most(db: Embedded, seconds: float, may: bool) -> None:
    clock = ManualClock()
    transactions = Transactions(db.rows_by_key, db.query, clock)
    transaction = transactions.begin("someone", db.view, is_explicit=True)
    clock.advance(seconds)
    with nullcontext() if may else pytest.raises(Conflict, match="open for more than 300 s"):
        transaction.begin_statement()
