"""Definitions and changes in every form, by three accounts, over hot and cold rows: what a model says.

CREATE, DROP and ALTER TABLE; INSERT, INSERT SELECT, ON CONFLICT, UPDATE, DELETE, RETURNING with random
expressions and conditions; alone, in transactions and as `statements`, with literals, parameters or `rows`;
flushes, compactions and restarts in between; with the shape cache and without. After each step each account
reads what the model says, and what the model refuses is refused for its reason.

A program is a seed: `UPWELL_SEEDS=17` runs that one, `UPWELL_SEEDS=1000-4000` many. One that fails is
made shorter before it is shown.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from upwell.errors import UpwellError
from upwell.session.outcome import Changed, Outcome, StatementFailed
from upwell.session.request import Asked
from upwell.testing.database import CALLER, KEY, ColumnModel, Database, Effect, Refused, TableState
from upwell.testing.embedded import Embedded, answer_rows, memory_store, principal
from upwell.testing.fleet import memory_directory
from upwell.testing.phrases import Constant, Phrases, Undefined, any_value, family, joined
from upwell.testing.writer import Statement, Writer

SEEDS = 200
STEPS = 50
PARAMETERS_MAX = 50
ACCOUNTS = ("ann", "bob", "root")
TABLES = ("app.t1", "app.t2", "app.t3")
NAMES = ("a", "b", "c", "d", "e")
KINDS = (
    "SMALLINT", "INT", "BIGINT", "FLOAT", "DOUBLE", "TEXT", "BOOLEAN", "DECIMAL(8,2)", "DATE", "TIMESTAMP",
    "UUID", "JSON",
)  # fmt: skip
KEY_KINDS = ("INT", "INT", "BIGINT", "TEXT")


class Program:
    """Runs the steps of one seed on an engine and on the model."""

    def __init__(self, seed: int) -> None:
        chance = Random(f"begin {seed}")
        self.seed = seed
        self.directory = Path(tempfile.mkdtemp(prefix="upwell-changes-", dir=memory_directory()))
        store = None if seed % 8 == 0 else memory_store()
        self.db = Embedded(self.directory, store=store, shapes=chance.random() < 0.7)
        self.model = Database()
        self.flushes = chance.choice((0, 0, 2, 5))
        self.said: list[str] = []
        self.db.run("CREATE NAMESPACE app")
        for name in TABLES[:2]:
            self.create(chance, name)

    def close(self) -> None:
        self.db.close()
        shutil.rmtree(self.directory)

    def step(self, number: int) -> None:
        """Run one step; which it is depends on the seed and its number alone."""
        chance = Random(f"{self.seed}/{number}")
        weights = {
            self.change: 40, self.several: 14, self.many: 6, self.define: 12, self.query: 10,
            self.aggregate: 5, self.flush: self.flushes, self.compact: self.flushes // 2, self.restart: 2,
        }  # fmt: skip
        (run,) = chance.choices(list(weights), list(weights.values()))
        run(chance)

    def end(self) -> None:
        """All of it is there, and the files are sound, as another reader sees them."""
        self.check_all()
        self.same(self.db.cold_problems(), [])

    # Changes

    def change(self, chance: Random) -> None:
        account = chance.choice(ACCOUNTS)
        statement = Writer(chance, self.model, account).statement()
        asked = asking(statement) if chance.random() < 0.5 else Asked(statement.written())
        after = self.model.copy()
        try:
            effect = statement.apply(after)
        except Refused as refused:
            self.refused(refused, account, [asked])
            return
        (outcome,) = self.ran(account, [asked])
        self.check_effect(statement, effect, outcome)
        self.model = after
        self.check_changed(chance, account, [statement.table])

    def several(self, chance: Random) -> None:
        """Statements that are one: in a text between BEGIN and COMMIT or ROLLBACK, or as `statements`."""
        account = chance.choice(ACCOUNTS)
        writer = Writer(chance, self.model, account)
        form = chance.choice(("text", "text", "atomic", "each"))
        ends = chance.choice(("COMMIT", "COMMIT", "ROLLBACK"))
        table = writer.table()
        makes = (writer.insert, writer.upsert, writer.update, writer.delete)
        statements = []
        for _ in range(chance.randint(1, 4)):
            into = table if form == "text" else writer.table()
            statements.append(writer.returned(chance.choice(makes)(into), into))
        after = self.model.copy()
        effects: list[Effect] = []
        try:
            for statement in statements:
                before = after.copy()
                effects.append(statement.apply(after))
        except Refused as refused:
            asked = self.texts(statements, form, ends)
            number = len(effects) + (2 if form == "text" else 1)
            self.refused(refused, account, asked, atomic=form == "atomic", number=number)
            if form == "each":
                self.model = before
                self.check_changed(chance, account, [each.table for each in statements])
            return
        outcomes = self.ran(account, self.texts(statements, form, ends), atomic=form == "atomic")
        told = sum(each.result.count for each in outcomes if isinstance(each.result, Changed))
        is_done = form != "text" or ends == "COMMIT"
        plain = [
            effect.count for one, effect in zip(statements, effects, strict=True) if one.returning is None
        ]
        self.same(told, sum(plain) if is_done else 0)
        self.model = after if is_done else self.model
        self.check_changed(chance, account, [each.table for each in statements])

    @staticmethod
    def texts(statements: Sequence[Statement], form: str, ends: str) -> list[Asked]:
        if form == "text":
            return [Asked("; ".join(["BEGIN", *(each.written() for each in statements), ends]))]
        return [asking(each) for each in statements]

    def many(self, chance: Random) -> None:
        """One statement with a list of values for each of several rows: one commit or nothing."""
        account = chance.choice(ACCOUNTS)
        writer = Writer(chance, self.model, account)
        table = writer.table()
        make = chance.choice((writer.insert, writer.update, writer.delete))
        # Statements of one text that differ in their values are runs of one program of chance.
        columns = writer.chosen(table)
        rows = [writer.cells(table, columns) for _ in range(chance.randint(1, 5))]
        if make == writer.insert:
            names = ", ".join(each.name for each in columns)
            marks = ", ".join(f"${number}" for number in range(1, len(columns) + 1))
            text = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"
            values = [[Constant(row[each.id], each.type).parameter for each in columns] for row in rows]
            applies = [lambda it: it.insert(account, rows, None)]
        elif make == writer.delete:
            text = f"DELETE FROM {table.name} WHERE id = $1"
            values = [[row[KEY]] for row in rows]
            applies = [partial(_delete_key, account=account, key=row[KEY]) for row in rows]
        else:
            column = chance.choice(table.columns)
            text = f"UPDATE {table.name} SET {column.name} = $2 WHERE id = $1"
            cells = [any_value(chance, column.type) if column.id != KEY else writer.key(table) for _ in rows]
            values = [[r[KEY], Constant(c, column.type).parameter] for r, c in zip(rows, cells, strict=True)]
            applies = [
                partial(_update_key, account=account, key=row[KEY], number=column.id, cell=cell)
                for row, cell in zip(rows, cells, strict=True)
            ]
        asked = Asked(text, rows=values)
        after = self.model.copy()
        try:
            count = 0
            for apply in applies:
                count += apply(writer.writable(after, table)).count
        except Refused as refused:
            self.refused(refused, account, [asked])
            return
        (outcome,) = self.ran(account, [asked])
        self.same(outcome.result.count, count)  # type: ignore[union-attr]
        self.model = after
        self.check_changed(chance, account, [table.name])

    # Definitions

    def create(self, chance: Random, name: str) -> None:
        is_shared = chance.random() < 0.4
        columns = [ColumnModel(KEY, "id", chance.choice(KEY_KINDS), nullable=False)]
        for at, column in enumerate(chance.sample(NAMES, chance.randint(1, 4))):
            columns.append(self.column(chance, column, KEY + 1 + at))
        parts = [f"id {columns[0].type} PRIMARY KEY", *map(_defined, columns[1:])]
        kind, options = ("SHARED", " WITH (ACCESS_LEVEL = 'PUBLIC')") if is_shared else ("USER", "")
        text = f"CREATE {kind} TABLE {name} ({', '.join(parts)}){options}"
        self.defined(text, lambda model: model.create(name, columns, is_shared=is_shared))

    @staticmethod
    def column(chance: Random, name: str, number: int) -> ColumnModel:
        kind = chance.choice(KINDS)
        default = any_value(chance, kind, null=0) if chance.random() < 0.4 else None
        if kind == "TEXT" and chance.random() < 0.2:
            default = CALLER
        return ColumnModel(number, name, kind, nullable=chance.random() < 0.7, default=default)

    def define(self, chance: Random) -> None:
        name = chance.choice(TABLES)
        which = chance.random()
        if which < 0.15:
            self.create(chance, name)
            return
        if which < 0.22 and len(self.model.tables) > 1:
            self.defined(f"DROP TABLE {name}", lambda model: model.drop(name))
            return
        name = chance.choice(list(self.model.tables))
        alter, to = f"ALTER TABLE {name} ", chance.choice(NAMES)
        found = self.model.tables[name].find(chance.choice(NAMES)) or self.model.tables[name].columns[0]
        column = found.name
        match chance.choice(("add", "add", "drop", "rename", "type", "null", "default", "access")):
            case "add":
                made = self.column(chance, to, 0)
                self.defined(
                    f"{alter}ADD COLUMN {_defined(made)}", lambda model: model.add(name, replace(made))
                )
            case "drop":
                self.defined(f"{alter}DROP COLUMN {column}", lambda model: model.drop_column(name, column))
            case "rename" if column != "id":
                text = f"{alter}RENAME COLUMN {column} TO {to}"
                self.defined(text, lambda model: model.rename(name, column, to))
            case "type":
                kind = chance.choice((*KINDS, "DECIMAL(12,3)", "DECIMAL(38,10)"))
                text = f"{alter}MODIFY COLUMN {column} {kind}"
                self.defined(text, lambda model: model.widen(name, column, kind))
            case "null":
                nullable = chance.random() < 0.5
                text = f"{alter}ALTER COLUMN {column} {'DROP' if nullable else 'SET'} NOT NULL"
                self.defined(text, lambda model: model.set_nullable(name, column, nullable=nullable))
            case "default" if column != "id" and found.type in KINDS:
                default = any_value(chance, found.type, null=0.3)
                text = f"{alter}ALTER COLUMN {column} "
                text += (
                    "DROP DEFAULT"
                    if default is None
                    else f"SET DEFAULT {Constant(default, found.type).literal}"
                )
                self.defined(text, lambda model: model.set_default(name, column, default))
            case "access" if self.model.tables[name].is_shared:
                is_public = chance.random() < 0.6
                text = f"{alter}SET ACCESS LEVEL {'PUBLIC' if is_public else 'PRIVATE'}"
                self.defined(text, lambda model: setattr(model.table(name), "is_public", is_public))

    def defined(self, text: str, apply: Callable[[Database], None]) -> None:
        after = self.model.copy()
        try:
            apply(after)
        except Refused as refused:
            self.refused(refused, "root", [Asked(text)])
            return
        self.ran("root", [Asked(text)])
        self.model = after
        self.check_all()

    # Reading

    def query(self, chance: Random) -> None:
        """A query with expressions, a condition, an order and limits."""
        account = chance.choice(ACCOUNTS)
        writer = Writer(chance, self.model, account)
        table = writer.table()
        phrases = Phrases(chance, table.names)
        kinds = [chance.choice(table.columns).type for _ in range(2)]
        given = [phrases.expression(kind) for kind in kinds]
        where = writer.where(table)
        by = chance.choice(table.columns)
        descends, nulls_first = chance.random() < 0.5, chance.random() < 0.5
        limit, offset = chance.choice((None, 0, 1, 3)), chance.choice((0, 0, 2))
        order = f"{'DESC' if descends else 'ASC'} NULLS {'FIRST' if nulls_first else 'LAST'}"
        tail = f" ORDER BY {by.name} {order}, id"
        tail += ("" if limit is None else f" LIMIT {limit}") + (f" OFFSET {offset}" if offset else "")
        columns = joined([(*each.pieces, f" AS x{at}") for at, each in enumerate(given)])
        pieces = ("SELECT id, ", *columns, f" FROM {table.name}", *where.pieces, tail)
        query = Statement(table.name, pieces, lambda model: Effect(0))
        asked = asking(query) if chance.random() < 0.5 else Asked(query.written())
        try:
            table.require(account, writes=False)
            rows = [row for row in table.owned(account).values() if where.meaning(row) is True]
            made = {row[KEY]: (row[KEY], *(each.meaning(row) for each in given)) for row in rows}
            rows.sort(key=lambda row: row[KEY])
            full = [row for row in rows if row[by.id] is not None]
            full.sort(key=lambda row: row[by.id], reverse=descends)
            empty = [row for row in rows if row[by.id] is None]
            rows = [*empty, *full] if nulls_first else [*full, *empty]
            expected = [made[row[KEY]] for row in rows[offset:][:limit]]
        except Refused as refused:
            self.refused(refused, account, [asked])
            return
        except Undefined:
            return  # whether the engine comes to it is its own choice
        (outcome,) = self.ran(account, [asked])
        found = [tuple(map(_value, ("TEXT", *kinds), row)) for row in answer_rows(outcome)]
        self.same(found, expected)

    def aggregate(self, chance: Random) -> None:
        """Totals of a table, by what a column says, and joined with another table."""
        account = chance.choice(ACCOUNTS)
        writer = Writer(chance, self.model, account)
        table, other = writer.table(), writer.table()
        where = writer.condition(table)
        column = chance.choice(table.columns)
        try:
            table.require(account, writes=False)
            rows = [row for row in table.owned(account).values() if where.meaning(row) is True]
        except Refused as refused:
            self.refused(refused, account, [Asked(f"SELECT count(*) FROM {table.name}")])
            return
        sql = Statement(
            table.name,
            (f"SELECT count(*), count({column.name}), max(id) FROM {table.name}", *where.pieces),
            partial(Effect),
        )
        (outcome,) = self.ran(account, [Asked(sql.written())])
        filled = [row for row in rows if row[column.id] is not None]
        self.same(
            answer_rows(outcome), [(len(rows), len(filled), max((row[KEY] for row in rows), default=None))]
        )
        if other.columns[0].type == table.columns[0].type and (
            account == "root" or not other.is_shared or other.is_public
        ):
            there = other.owned(account)
            text = (
                f"SELECT a.id, b.id FROM {table.name} a LEFT JOIN {other.name} b ON a.id = b.id ORDER BY a.id"
            )
            (outcome,) = self.ran(account, [Asked(text)])
            keys = sorted(table.owned(account))
            self.same(answer_rows(outcome), [(key, key if key in there else None) for key in keys])

    # The store

    def flush(self, chance: Random) -> None:
        name = chance.choice(list(self.model.tables))
        self.said.append(f"-- flush {name}")
        self.db.flush(name)
        self.check_table(name)

    def compact(self, chance: Random) -> None:
        name = chance.choice(list(self.model.tables))
        self.said.append(f"-- compact {name}")
        gc.collect()  # the traceback of a refusal holds its View, and so the files that are replaced
        self.db.compact(name, whole=chance.random() < 0.5)
        self.check_table(name)

    def restart(self, chance: Random) -> None:
        self.said.append("-- restart")
        self.db.reopen()
        self.check_all()

    # Running

    def ran(self, account: str, asked: Sequence[Asked], *, atomic: bool = False) -> list[Outcome]:
        self.said.append(
            f"-- {account}\n" + ";\n".join(f"{one.sql}  {one.params or one.rows or ''}" for one in asked)
        )
        sessions, who = self.db.sessions, principal(account)
        if len(asked) == 1 and asked[0].rows is None and not atomic:
            run = sessions.execute(who, asked[0].sql, asked[0].params, "default")
        else:
            run = sessions.run_each(who, asked, "default", atomic=atomic)
        return self.db.runner.run(run)

    def refused(
        self, refused: Refused, account: str, asked: Sequence[Asked], *, atomic: bool = False, number: int = 1
    ) -> None:
        with pytest.raises((StatementFailed, UpwellError)) as caught:
            self.ran(account, asked, atomic=atomic)
        error = caught.value
        if isinstance(error, StatementFailed):
            assert error.number == number, f"statement {error.number} is said to have failed, not {number}"
            error = error.cause
        kinds = {each.__name__ for each in type(error).__mro__}
        assert kinds & refused.kinds, f"{error!r} instead of {set(refused.kinds)}"

    def check_effect(self, statement: Statement, effect: Effect, outcome: Outcome) -> None:
        if statement.returning is None:
            self.same(outcome.result.count, effect.count)  # type: ignore[union-attr]
            return
        expected = [tuple(row[each.id] for each in statement.returning) for row in effect.rows]
        kinds = [each.type for each in statement.returning]
        found = [tuple(map(_value, kinds, row)) for row in answer_rows(outcome)]
        self.same(sorted(found, key=repr), sorted(expected, key=repr))

    def check_changed(self, chance: Random, account: str, names: Iterable[str]) -> None:
        """What an account has changed is what it reads, and somebody's rows elsewhere are what they were."""
        for name in set(names):
            self.check(account, name)
        if chance.random() < 0.5:
            self.check(chance.choice(ACCOUNTS), chance.choice(list(self.model.tables)))

    def check_table(self, name: str) -> None:
        for account in ACCOUNTS:
            self.check(account, name)

    def check_all(self) -> None:
        for name in self.model.tables:
            self.check_table(name)

    def check(self, account: str, name: str) -> None:
        """Compare a table as one account reads it."""
        table = self.model.tables[name]
        try:
            table.require(account, writes=False)
        except Refused as refused:
            self.refused(refused, account, [Asked(f"SELECT * FROM {name}")])
            return
        found = self.db.rows(f"SELECT * FROM {name}", user=account)
        self.same([_typed(row[:-2]) for row in found], [_typed(row) for row in table.shown(account)])

    def same(self, found: object, expected: object) -> None:
        assert found == expected, f"\n{found}\nshould be\n{expected}"


def asking(statement: Statement) -> Asked:
    """Return a statement with parameters, if it has not too many."""
    text, values = statement.bound()
    return Asked(text, values) if len(values) <= PARAMETERS_MAX else Asked(statement.written())


def _defined(column: ColumnModel) -> str:
    default = ""
    if column.default is not None:
        text = CALLER if column.default == CALLER else Constant(column.default, column.type).literal
        default = f" DEFAULT {text}"
    return f"{column.name} {column.type}{'' if column.nullable else ' NOT NULL'}{default}"


def _delete_key(table: TableState, account: str, key: Any) -> Effect:
    return table.delete(account, lambda row: row[KEY] == key)


def _update_key(table: TableState, account: str, key: Any, number: int, cell: Any) -> Effect:
    return table.update(account, lambda row: row[KEY] == key, [(number, lambda row: cell)])


def _value(kind: str, cell: Any) -> Any:
    return Decimal(cell) if family(kind) == "decimal" and isinstance(cell, str) else cell


def _typed(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple((type(cell), cell) for cell in row)


def run(seed: int, steps: Sequence[int]) -> tuple[int, str] | None:
    """Run steps of a seed; return after how many of them it failed, and a report."""
    program = Program(seed)
    try:
        for at, number in enumerate(steps):
            try:
                program.step(number)
            except Exception as error:  # noqa: BLE001  whatever goes wrong is shown with what led there
                said = "\n".join(program.said)
                cause = getattr(error, "cause", "")
                return at, f"{said}\n{type(error).__name__}: {error} {cause!r}"
        program.end()
        return None
    finally:
        program.close()


def shortened(seed: int, at: int) -> str:
    """Return the report of the fewest steps found that fail."""
    steps = list(range(at + 1))
    report = ""
    size = max(1, len(steps) // 2)
    while size:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + size :]
            failed = run(seed, fewer)
            if failed is None:
                start += size
            else:
                steps, report = fewer[: failed[0] + 1], failed[1]
        size //= 2
    return report or (run(seed, steps) or (0, "it passes when it runs again"))[1]


def seeds() -> list[int]:
    wanted = os.environ.get("UPWELL_SEEDS")
    if wanted is None:
        return list(range(SEEDS))
    first, _, last = wanted.partition("-")
    return list(range(int(first), int(last or first) + 1))


@pytest.mark.parametrize("seed", seeds())
def test_a_program_does_what_the_model_says(seed: int) -> None:
    failed = run(seed, range(STEPS))
    if failed is not None:
        pytest.fail(f"seed {seed}:\n{shortened(seed, failed[0])}", pytrace=False)
