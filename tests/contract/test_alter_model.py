"""ALTER TABLE against a model: alterations, writes, flushes and restarts, rows in every tier.

A model row is a dictionary by column id, so that a column that is dropped and added again, or renamed,
can't be mistaken for another. After each step every read (a scan, each key, an aggregate, Parquet by an
independent reader) shows exactly the model's rows.
"""

import gc
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from upwell.errors import UpwellError
from upwell.testing.embedded import Embedded

NAMES = ("a", "b", "c", "d")
KEYS = st.integers(1, 6)
USERS = st.sampled_from(("ann", "bob"))
TYPES = {
    "SMALLINT": 7, "INT": 70_000, "DOUBLE": 1.5, "TEXT": "t", "BOOLEAN": True, "UUID": "0" * 32,
    "DATE": "1970-01-03", "DECIMAL(6,2)": "1.50", "FLOAT": 0.5,
}  # fmt: skip
SHOWN = {"UUID": "00000000-0000-0000-0000-000000000000", "DATE": 2}
WIDER = {
    "SMALLINT": ("INT", "BIGINT", "DOUBLE"), "INT": ("BIGINT", "DOUBLE"), "UUID": ("TEXT",),
    "FLOAT": ("DOUBLE",),
}  # fmt: skip


@dataclass
class ModelColumn:
    id: int
    name: str
    type: str
    nullable: bool = True
    default: object = None


def literal(value: object) -> str:
    return repr(value) if not isinstance(value, bool) and value is not None else str(value or "NULL").upper()


class AlterMachine(RuleBasedStateMachine):
    """One USER table of two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.db = Embedded(Path(self.directory.name))
        self.columns: list[ModelColumn] = []
        self.rows: dict[str, dict[int, dict[int, object]]] = {"ann": {}, "bob": {}}
        self.ids = itertools.count(2)
        self.version = 1

    @initialize()
    def create(self) -> None:
        self.db.run("CREATE USER TABLE t (id INT PRIMARY KEY)")

    def teardown(self) -> None:
        self.db.close()
        self.directory.cleanup()

    def alter(self, rest: str) -> None:
        self.db.run(f"ALTER TABLE t {rest}")
        self.version += 1

    def refused(self, rest: str, said: str) -> None:
        with pytest.raises(UpwellError, match=said):
            self.db.run(f"ALTER TABLE t {rest}")

    def column(self, pick: int) -> ModelColumn:
        return self.columns[pick % len(self.columns)]

    @property
    def has_rows(self) -> bool:
        return any(self.rows.values())

    @rule(
        name=st.sampled_from(NAMES),
        kind=st.sampled_from(sorted(TYPES)),
        filled=st.booleans(),
        nn=st.booleans(),
    )
    def add(self, name: str, kind: str, filled: bool, nn: bool) -> None:
        default = TYPES[kind] if filled else None
        text = (
            f"ADD {name} {kind}{' NOT NULL' if nn else ''}{f' DEFAULT {literal(default)}' if filled else ''}"
        )
        if any(column.name == name for column in self.columns):
            self.refused(text, "already exists")
        elif nn and not filled and self.has_rows:
            self.refused(text, "cannot be NOT NULL")
        else:
            self.alter(text)
            shown = SHOWN.get(kind, default) if filled else None
            self.columns.append(ModelColumn(next(self.ids), name, kind, not nn, shown))
            for row in itertools.chain(*(rows.values() for rows in self.rows.values())):
                row[self.columns[-1].id] = shown

    @precondition(lambda self: self.columns)
    @rule(pick=st.integers(0, 99))
    def drop(self, pick: int) -> None:
        column = self.column(pick)
        self.alter(f"DROP COLUMN {column.name}")
        self.columns.remove(column)

    @precondition(lambda self: self.columns)
    @rule(pick=st.integers(0, 99), to=st.sampled_from(NAMES))
    def rename(self, pick: int, to: str) -> None:
        column = self.column(pick)
        if any(each.name == to for each in self.columns):
            if column.name != to:
                self.refused(f"RENAME {column.name} TO {to}", "already exists")
        else:
            self.alter(f"RENAME {column.name} TO {to}")
            column.name = to

    @precondition(lambda self: self.columns)
    @rule(pick=st.integers(0, 99), kind=st.sampled_from(("INT", "BIGINT", "DOUBLE", "TEXT", "SMALLINT")))
    def modify(self, pick: int, kind: str) -> None:
        column = self.column(pick)
        if kind == column.type:
            return
        if kind not in WIDER.get(column.type, ()):
            self.refused(f"MODIFY {column.name} {kind}", "only be widened")
        else:
            self.alter(f"MODIFY COLUMN {column.name} {kind}")
            column.type = kind

    @precondition(lambda self: self.columns)
    @rule(pick=st.integers(0, 99), nullable=st.booleans())
    def set_nullable(self, pick: int, nullable: bool) -> None:
        column = self.column(pick)
        if nullable == column.nullable:
            return
        text = f"ALTER COLUMN {column.name} {'DROP' if nullable else 'SET'} NOT NULL"
        everything = itertools.chain(*(rows.values() for rows in self.rows.values()))
        if not nullable and any(row[column.id] is None for row in everything):
            self.refused(text, "cannot be NOT NULL")
        else:
            self.alter(text)
            column.nullable = nullable

    @precondition(lambda self: self.columns)
    @rule(pick=st.integers(0, 99), keep=st.booleans())
    def set_default(self, pick: int, keep: bool) -> None:
        column = self.column(pick)
        if keep == (column.default is not None) or (keep and column.type not in TYPES):
            return
        if keep:
            self.alter(f"ALTER COLUMN {column.name} SET DEFAULT {literal(TYPES[column.type])}")
            column.default = SHOWN.get(column.type, TYPES[column.type])
        else:
            self.alter(f"ALTER COLUMN {column.name} DROP DEFAULT")
            column.default = None

    @rule(user=USERS, key=KEYS)
    def insert(self, user: str, key: int) -> None:
        missing = [c for c in self.columns if not c.nullable and c.default is None]
        if missing or key in self.rows[user]:
            with pytest.raises(UpwellError, match=r"NOT NULL|Primary key violation"):
                self.db.change(f"INSERT INTO t (id) VALUES ({key})", user=user)
        else:
            self.db.change(f"INSERT INTO t (id) VALUES ({key})", user=user)
            self.rows[user][key] = {column.id: column.default for column in self.columns}

    @precondition(lambda self: self.columns)
    @rule(user=USERS, key=KEYS, pick=st.integers(0, 99), null=st.booleans(), by_key=st.booleans())
    def update(self, user: str, key: int, pick: int, null: bool, by_key: bool) -> None:
        column = self.column(pick)
        value = None if null or column.type not in TYPES else TYPES[column.type]
        text = f"UPDATE t SET {column.name} = {literal(value)} WHERE {'id' if by_key else 'id + 0'} = {key}"
        if value is None and not column.nullable and key in self.rows[user]:
            with pytest.raises(UpwellError, match="NOT NULL"):
                self.db.change(text, user=user)
            return
        self.db.change(text, user=user)
        if key in self.rows[user]:
            self.rows[user][key][column.id] = SHOWN.get(column.type, value) if value is not None else None

    @rule(user=USERS, key=KEYS)
    def delete(self, user: str, key: int) -> None:
        found = self.rows[user].pop(key, None)
        assert self.db.change(f"DELETE FROM t WHERE id = {key}", user=user) == (found is not None)

    @rule()
    def flush(self) -> None:
        self.db.flush("default.t")

    @rule(whole=st.booleans())
    def compact(self, whole: bool) -> None:
        gc.collect()  # the traceback of a refusal holds its View, and so the files that are replaced
        self.db.compact("default.t", whole=whole)

    @rule()
    def restart(self) -> None:
        self.db.reopen()

    @rule()
    def read(self) -> None:
        names = ["id", *(column.name for column in self.columns)]
        for user, rows in self.rows.items():
            expected = [
                (key, *(self.widened(row[column.id], column) for column in self.columns))
                for key, row in sorted(rows.items())
            ]
            found = self.db.rows(f"SELECT {', '.join(names)} FROM t ORDER BY id", user=user)
            assert [(*map(typed, row),) for row in found] == [(*map(typed, row),) for row in expected]
            for row in expected:
                (by_key,) = self.db.rows(f"SELECT * FROM t WHERE id = {row[0]}", user=user)
                assert by_key[: len(row)] == row
        assert self.db.table("default.t").version == self.version

    @staticmethod
    def widened(value: object, column: ModelColumn) -> object:
        return float(value) if column.type == "DOUBLE" and isinstance(value, int) else value

    @precondition(lambda self: self.has_rows)
    @rule()
    def files_are_sound(self) -> None:
        assert self.db.cold_problems() == []


def typed(value: object) -> tuple[type, object]:
    return type(value), value


AlterMachine.TestCase.settings = settings(
    max_examples=10,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAlterModel = AlterMachine.TestCase
