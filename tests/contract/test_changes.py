"""Every form of a change, alone or in a transaction, over hot and cold rows: what a plain model says.

INSERT, ON CONFLICT, UPDATE, DELETE by key, by comparison and by query, RETURNING, `rows`; two users and a
shared table; flushes and restarts in between.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from upwell.errors import UpwellError
from upwell.session.outcome import Answer, Changed, Message, Outcome, PointAnswer, StatementFailed
from upwell.session.request import Asked
from upwell.testing import DuplicateKey, ModelError, TableModel
from upwell.testing.embedded import Embedded, answer_rows, memory_store, principal

KEYS = st.integers(1, 12)
NUMBERS = st.integers(0, 9)
PAIRS = st.lists(st.tuples(KEYS, st.none() | NUMBERS), min_size=1, max_size=4)
# Owner in the model and account; the shared table belongs to nobody.
PLACES = [("mine", "ann", "ann"), ("mine", "bob", "bob"), ("ours", None, "root")]
PLACE = st.sampled_from(PLACES)
Place = tuple[str, str | None, str]
Row = dict[str, Any]
Effect = tuple[int, list[tuple[Any, Any]]]
"""How many rows changed, and what RETURNING id, n gives, by key."""


@dataclass(frozen=True)
class Change:
    """A statement, `{}` for its table, and what it does to a model."""

    sql: str
    apply: Callable[[TableModel, str | None], Effect]


def inserted(pairs: list[tuple[int, int | None]]) -> str:
    return ", ".join(f"({key}, {'NULL' if n is None else n})" for key, n in pairs)


def insert(pairs: list[tuple[int, int | None]]) -> Change:
    def apply(model: TableModel, owner: str | None) -> Effect:
        count = model.insert(owner, *({"id": key, "n": n} for key, n in pairs))
        return count, sorted(pairs)

    return Change(f"INSERT INTO app.{{}} (id, n) VALUES {inserted(pairs)}", apply)


def ignore(pairs: list[tuple[int, int | None]]) -> Change:
    def apply(model: TableModel, owner: str | None) -> Effect:
        fresh: dict[int, int | None] = {}
        for key, n in pairs:
            if model.find_row(owner, key) is None and key not in fresh:
                fresh[key] = n
        model.insert(owner, *({"id": key, "n": n} for key, n in fresh.items()))
        return len(fresh), sorted(fresh.items())

    return Change(f"INSERT INTO app.{{}} (id, n) VALUES {inserted(pairs)} ON CONFLICT DO NOTHING", apply)


def upsert(pairs: list[tuple[int, int | None]]) -> Change:
    def apply(model: TableModel, owner: str | None) -> Effect:
        if len({key for key, _ in pairs}) < len(pairs):
            raise DuplicateKey("a row would change twice")
        count, given = 0, []
        for key, n in pairs:
            row = model.find_row(owner, key)
            if row is None:
                count += model.insert(owner, {"id": key, "n": n})
            else:
                total: Any = None if n is None or row["n"] is None else row["n"] + n  # type: ignore[operator]
                count += total != row["n"]
                model.update(owner, {"n": total}, {"id": key})
                n = total
            given.append((key, n))
        return count, sorted(given)

    clause = "ON CONFLICT (id) DO UPDATE SET n = {0}.n + excluded.n"
    return Change(f"INSERT INTO app.{{0}} (id, n) VALUES {inserted(pairs)} {clause}", apply)


def update(sql: str, matches: Callable[[Row], bool], values: Callable[[Row], Row]) -> Change:
    def apply(model: TableModel, owner: str | None) -> Effect:
        before = model.rows(owner, matches)
        after = [row | values(row) for row in before]
        model.update(owner, values, matches)
        changed = sum(old != new for old, new in zip(before, after, strict=True))
        return changed, sorted((row["id"], row["n"]) for row in after)

    return Change(sql, apply)


def delete(sql: str, matches: Callable[[Row], bool]) -> Change:
    def apply(model: TableModel, owner: str | None) -> Effect:
        gone = model.rows(owner, matches)
        return model.delete(owner, matches), [(row["id"], row["n"]) for row in gone]

    return Change(sql, apply)


def delete_newest() -> Change:
    def apply(model: TableModel, owner: str | None) -> Effect:
        rows = model.rows(owner)
        gone = [(rows[-1]["id"], rows[-1]["n"])] if rows else []
        return model.delete(owner, lambda row: row["id"] == rows[-1]["id"]), gone

    return Change("DELETE FROM app.{0} WHERE id = (SELECT MAX(id) FROM app.{0})", apply)


CHANGES = st.one_of(
    PAIRS.map(insert),
    PAIRS.map(ignore),
    PAIRS.map(upsert),
    st.builds(
        lambda key, n: update(
            f"UPDATE app.{{}} SET n = n + {n} WHERE id = {key}",
            lambda row: row["id"] == key,
            lambda row: {"n": None if row["n"] is None else row["n"] + n},
        ),
        KEYS,
        NUMBERS,
    ),
    st.builds(
        lambda low, n: update(
            f"UPDATE app.{{}} SET n = {n} WHERE n > {low}",
            lambda row: row["n"] is not None and row["n"] > low,
            lambda row: {"n": n},
        ),
        NUMBERS,
        NUMBERS,
    ),
    st.builds(
        lambda keys, n: update(
            f"UPDATE app.{{}} SET n = {n} WHERE id IN ({', '.join(map(str, keys))}) AND n IS NULL",
            lambda row: row["id"] in keys and row["n"] is None,
            lambda row: {"n": n},
        ),
        st.lists(KEYS, min_size=1, max_size=3),
        NUMBERS,
    ),
    st.builds(
        lambda key, to: update(
            f"UPDATE app.{{}} SET id = {to} WHERE id = {key}",
            lambda row: row["id"] == key,
            lambda row: {"id": to},
        ),
        KEYS,
        KEYS,
    ),
    KEYS.map(lambda key: delete(f"DELETE FROM app.{{}} WHERE id = {key}", lambda row: row["id"] == key)),
    NUMBERS.map(lambda n: delete(f"DELETE FROM app.{{}} WHERE n = {n}", lambda row: row["n"] == n)),
    st.just(delete_newest()),
)


class Changes(RuleBasedStateMachine):
    """Changes, transactions, flushes and restarts in any order, against `TableModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="upwell-changes-")
        self.db = Embedded(Path(self.directory.name), store=memory_store())
        columns = "(id INT PRIMARY KEY, n BIGINT)"
        self.db.run(f"CREATE NAMESPACE app; CREATE USER TABLE app.mine {columns}")
        self.db.run(f"CREATE SHARED TABLE app.ours {columns}")
        self.models = {name: TableModel("id", ("id", "n")) for name in ("mine", "ours")}

    @rule(place=PLACE, change=CHANGES, returning=st.booleans())
    def change(self, place: Place, change: Change, returning: bool) -> None:
        table, owner, user = place
        sql = change.sql.format(table) + (" RETURNING id, n" if returning else "")
        after = self.models[table].copy()
        try:
            count, given = change.apply(after, owner)
        except ModelError:
            self.refused(sql, user)
            return
        (outcome,) = self.ran(sql, user)
        if returning:
            assert sorted(answer_rows(outcome)) == given, sql
        else:
            assert isinstance(outcome.result, Changed)
            assert outcome.result.count == count, sql
        self.models[table] = after

    @rule(place=PLACE, changes=st.lists(CHANGES, min_size=1, max_size=4), ends=st.booleans())
    def transaction(self, place: Place, changes: list[Change], ends: bool) -> None:
        table, owner, user = place
        after = self.models[table].copy()
        text = "; ".join(change.sql.format(table) for change in changes)
        batch = f"BEGIN; {text}; SELECT id, n FROM app.{table}; {'COMMIT' if ends else 'ROLLBACK'}"
        try:
            counts = [change.apply(after, owner)[0] for change in changes]
        except ModelError:
            self.refused(batch, user)
            return
        outcomes = self.ran(batch, user)
        seen = [answer_rows(each) for each in outcomes if isinstance(each.result, (Answer, PointAnswer))]
        assert seen == [tuples(after, owner)], batch
        told = [each.result.count for each in outcomes if isinstance(each.result, Changed)]
        assert sum(told) == (sum(counts) if ends else 0), batch
        assert [isinstance(each.result, Message) for each in (outcomes[0], outcomes[-1])] == [True, True]
        if ends:
            self.models[table] = after

    @rule(place=PLACE, pairs=PAIRS)
    def many_rows(self, place: Place, pairs: list[tuple[int, int | None]]) -> None:
        table, owner, user = place
        asked = Asked(f"INSERT INTO app.{table} (id, n) VALUES ($1, $2)", rows=[list(pair) for pair in pairs])
        run = self.db.sessions.run_each(principal(user), [asked], None, atomic=False)
        try:
            self.models[table].insert(owner, *({"id": key, "n": n} for key, n in pairs))
        except DuplicateKey:
            try:
                self.db.runner.run(run)
            except StatementFailed:
                return
            raise AssertionError(f"{pairs} came although one was there") from None
        (outcome,) = self.db.runner.run(run)
        assert outcome.result == Changed("Inserted", len(pairs))

    @rule(table=st.sampled_from(["mine", "ours"]))
    def flush(self, table: str) -> None:
        self.db.flush(f"app.{table}")

    @rule(chance=st.integers(0, 3))
    def restart(self, chance: int) -> None:
        if chance == 0:
            self.db.reopen()

    @rule(place=PLACE)
    def look(self, place: Place) -> None:
        table, owner, user = place
        rows = self.db.rows(f"SELECT id, n FROM app.{table}", user=user)
        assert rows == tuples(self.models[table], owner)

    def teardown(self) -> None:
        for place in PLACES:
            self.look(place)
        self.db.close()
        self.directory.cleanup()

    def ran(self, sql: str, user: str) -> list[Outcome]:
        return self.db.runner.run(self.db.outcomes(sql, (), user))

    def refused(self, sql: str, user: str) -> None:
        try:
            self.ran(sql, user)
        except UpwellError:
            return
        raise AssertionError(f"nobody refused {sql}")


def tuples(model: TableModel, owner: str | None) -> list[tuple[Any, ...]]:
    return [(row["id"], row["n"]) for row in model.rows(owner)]


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=40, stateful_step_count=50, deadline=None, derandomize=True)
