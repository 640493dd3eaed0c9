"""One table name over two tiers: whatever was flushed, compacted and altered when, the answers are those of a
plain model."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from upwell.errors import AlreadyExists
from upwell.testing import DuplicateKey, TableModel, cold
from upwell.testing.embedded import Embedded, memory_store

KEYS = st.integers(1, 9)
USERS = st.sampled_from(["ann", "bob"])
MINE, OURS = "app.mine", "app.ours"
COLUMNS = "(id INT PRIMARY KEY, n BIGINT NOT NULL, s TEXT)"
# Each table with the owners in the model, and the account that sees an owner's rows.
PLACES = [(MINE, "ann", "ann"), (MINE, "bob", "bob"), (OURS, None, "root")]
PLACE = st.sampled_from(PLACES)
Place = tuple[str, str | None, str]


class Tiers(RuleBasedStateMachine):
    """Statements, flushes and restarts in any order, against `TableModel`."""

    on_rocks: bool

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="upwell-tiers-"))
        self.db = Embedded(self.directory, store=None if self.on_rocks else memory_store())
        self.db.run(
            f"CREATE NAMESPACE app; CREATE TABLE {MINE} {COLUMNS} WITH (TYPE = 'USER');"
            f"CREATE TABLE {OURS} {COLUMNS} WITH (TYPE = 'SHARED')"
        )
        self.models = {name: TableModel("id", ("id", "n", "s")) for name in (MINE, OURS)}
        self.added: dict[str, dict[str, object]] = {MINE: {}, OURS: {}}
        self.serial = 0

    @initialize(mode=st.sampled_from(["hot", "cold", "mixed"]))
    def choose(self, mode: str) -> None:
        """Nothing is ever flushed, everything is at once, or flushes come as they come."""
        self.mode = mode

    @rule(place=PLACE, keys=st.lists(KEYS, min_size=1, max_size=4))
    def insert(self, place: Place, keys: list[int]) -> None:
        table, owner, user = place
        values = ", ".join(f"({key}, {self.tick()}, 'new')" for key in keys)
        rows: list[dict[str, object]] = [
            {"id": key, "n": self.serial - len(keys) + index, "s": "new"} | self.added[table]
            for index, key in enumerate(keys, 1)
        ]
        try:
            self.models[table].insert(owner, *rows)
        except DuplicateKey:
            with pytest.raises(AlreadyExists):
                self.db.change(f"INSERT INTO {table} (id, n, s) VALUES {values}", user=user)
        else:
            assert self.db.change(f"INSERT INTO {table} (id, n, s) VALUES {values}", user=user) == len(keys)
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS, null=st.booleans())
    def update_one(self, place: Place, key: int, null: bool) -> None:
        table, owner, user = place
        text = None if null else f"v{self.tick()}"
        expected = self.models[table].update(
            owner, lambda row: {"n": int(str(row["n"])) + 1, "s": text}, {"id": key}
        )
        changed = self.db.change(f"UPDATE {table} SET n = n + 1, s = $1 WHERE id = {key}", [text], user)
        assert changed == expected
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS)
    def update_many(self, place: Place, key: int) -> None:
        table, owner, user = place
        above = self.models[table].update(
            owner, lambda row: {"n": int(str(row["n"])) * -1 - 1}, lambda row: int(str(row["id"])) > key
        )
        assert self.db.change(f"UPDATE {table} SET n = n * -1 - 1 WHERE id > {key}", user=user) == above
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS, other=KEYS)
    def move(self, place: Place, key: int, other: int) -> None:
        """A changed primary key is a deletion and an insertion."""
        table, owner, user = place
        sql = f"UPDATE {table} SET id = {other}, n = {self.tick()} WHERE id = {key}"
        try:
            moved = self.models[table].update(owner, {"id": other, "n": self.serial}, {"id": key})
        except DuplicateKey:
            with pytest.raises(AlreadyExists):
                self.db.change(sql, user=user)
        else:
            assert self.db.change(sql, user=user) == moved
        self.flush_if_cold(table)

    @rule(place=PLACE, key=KEYS)
    def delete_one(self, place: Place, key: int) -> None:
        table, owner, user = place
        gone = self.models[table].delete(owner, {"id": key})
        assert self.db.change(f"DELETE FROM {table} WHERE id = {key}", user=user) == gone
        self.flush_if_cold(table)

    @rule(place=PLACE, low=KEYS, width=st.integers(0, 9))
    def delete_range(self, place: Place, low: int, width: int) -> None:
        table, owner, user = place
        high = low + width
        gone = self.models[table].delete(owner, lambda row: low <= int(str(row["id"])) <= high)
        sql = f"DELETE FROM {table} WHERE id BETWEEN {low} AND {high}"
        assert self.db.change(sql, user=user) == gone
        self.flush_if_cold(table)

    @precondition(lambda self: self.mode == "mixed")
    @rule(table=st.sampled_from([MINE, OURS]))
    def flush(self, table: str) -> None:
        """Afterwards nothing is hot, and the files alone hold the truth."""
        self.db.flush(table)
        assert self.db.flush(table) == {}
        assert self.db.cold_problems() == []
        for name, owner, _ in PLACES:
            if name == table:
                assert self.cold_rows(table, owner) == self.models[table].rows(owner)

    @precondition(lambda self: self.mode != "hot")
    @rule(table=st.sampled_from([MINE, OURS]), whole=st.booleans())
    def compact(self, table: str, whole: bool) -> None:
        """What the files say is the same, in at most one segment a partition if it was wanted."""
        before = [self.cold_rows(table, owner) for name, owner, _ in PLACES if name == table]
        self.db.compact(table, whole=whole)
        assert self.db.cold_problems() == []
        assert [self.cold_rows(table, owner) for name, owner, _ in PLACES if name == table] == before
        if whole:
            found = cold.partitions(self.db.cold_root, table_id=table) if self.db.cold_root.exists() else []
            assert all(len(each.segments) <= 1 and not each.hidden for each in found)

    @precondition(lambda self: len(self.added[MINE]) + len(self.added[OURS]) < 3)
    @rule(table=st.sampled_from([MINE, OURS]), has_default=st.booleans())
    def add_column(self, table: str, has_default: bool) -> None:
        """Rows from before read the default, in whatever segment they are and come to be."""
        name, value = f"c{len(self.added[table])}", self.tick() if has_default else None
        self.db.run(f"ALTER TABLE {table} ADD COLUMN {name} INT" + (f" DEFAULT {value}" if value else ""))
        self.added[table][name] = value
        for _, owner, _ in PLACES:
            self.models[table].update(owner, {name: value})

    @rule(place=PLACE, key=KEYS)
    def update_added(self, place: Place, key: int) -> None:
        table, owner, user = place
        for name in self.added[table]:
            expected = self.models[table].update(owner, {"n": self.tick(), name: None}, {"id": key})
            sql = f"UPDATE {table} SET n = {self.serial}, {name} = NULL WHERE id = {key}"
            assert self.db.change(sql, user=user) == expected
        self.flush_if_cold(table)

    @rule()
    def restart(self) -> None:
        self.db.reopen()

    @rule(place=PLACE, key=KEYS)
    def aggregate(self, place: Place, key: int) -> None:
        """Predicates come after the tiers are resolved: an old version never matches."""
        table, owner, user = place
        rows = [int(str(row["n"])) for row in self.models[table].rows(owner) if int(str(row["n"])) > key]
        found = self.db.rows(f"SELECT count(*), sum(n), max(n) FROM {table} WHERE n > {key}", user=user)
        assert found == [(len(rows), sum(rows) if rows else None, max(rows, default=None))]

    @invariant()
    def answers_are_those_of_the_model(self) -> None:
        for table, owner, user in PLACES:
            expected = [tuple(row.values()) for row in self.models[table].rows(owner)]
            names = ", ".join(["id", "n", "s", *self.added[table]])
            assert self.db.rows(f"SELECT {names} FROM {table} ORDER BY id", user=user) == expected
            for key in range(1, 10):
                row = self.db.rows(f"SELECT {names} FROM {table} WHERE id = {key}", user=user)
                assert row == [found for found in expected if found[0] == key]

    def cold_rows(self, table: str, owner: str | None) -> list[dict[str, object]]:
        """What the files say; a column that a file doesn't have yet reads what it began with."""
        return [self.added[table] | row for row in self.db.cold_rows(table, owner)]

    def tick(self) -> int:
        self.serial += 1
        return self.serial

    def flush_if_cold(self, table: str) -> None:
        if self.mode == "cold":
            self.flush(table)

    def teardown(self) -> None:
        self.db.close()
        shutil.rmtree(self.directory)


class TiersInMemory(Tiers):
    on_rocks = False


class TiersOnRocks(Tiers):
    on_rocks = True


TestTiersInMemory = TiersInMemory.TestCase
TestTiersInMemory.settings = settings(max_examples=16, stateful_step_count=20)
TestTiersOnRocks = TiersOnRocks.TestCase
TestTiersOnRocks.settings = settings(max_examples=8, stateful_step_count=20)
