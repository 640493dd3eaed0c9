"""Nested queries against SQLite: conditions in columns, filters, joins, CTEs, views and subqueries.

What is promised: a condition that is unknown is neither true nor false, wherever it is made and asked for.
Every query is random and the same in every run; `seed` says which.
"""

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from upwell.errors import QueryFailure
from upwell.testing.embedded import Embedded, memory_store

QUERIES = 60
ROWS = 20
VIEWS = 5
TABLES = "pq"
BASE = (("a", "int"), ("b", "int"), ("c", "int"), ("t", "text"))
# What the query engine can't do, and says so.
_NOT_DONE = "Physical plan does not support logical expression"

Columns = Sequence[tuple[str, str]]
"""Names with their kinds."""


class Nest:
    """Makes queries from parts; a name is used once in a query."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._names = 0
        self._has_lists_mostly = False
        self._views: list[tuple[str, Columns]] = []

    def view(self) -> tuple[str, str]:
        """Return the name and the text of a view that later queries may read."""
        name = f"view{len(self._views)}"
        self._names, self._has_lists_mostly = 0, bool(len(self._views) % 2)
        text, columns = self._select(1)
        self._views.append((name, columns))
        return name, text

    def query(self) -> str:
        self._names, self._has_lists_mostly = 0, self._chance.random() < 0.6
        text, columns = self._select(self._chance.choice((0, 1, 1, 2, 2)))
        if self._chance.random() < 0.3:
            within = [(f"w.{name}", kind) for name, kind in columns]
            text = (
                f"WITH w AS ({text}) SELECT w.*, {self._condition(within, 1)} AS z FROM w "
                f"WHERE {self._condition(within, 1)}"
            )
        elif self._chance.random() < 0.15:
            within = [(f"h.{name}", kind) for name, kind in columns]
            groups = [("h.a", "int"), ("COUNT(*)", "int"), ("MAX(h.b)", "int")]
            text = (
                f"SELECT h.a, COUNT(*), MAX(h.b), {self._condition(groups, 1)} AS z FROM ({text}) AS h "
                f"WHERE {self._condition(within, 1)} GROUP BY h.a HAVING {self._condition(groups, 1)}"
            )
        return text

    def _name(self, first: str) -> str:
        self._names += 1
        return f"{first}{self._names}"

    def _select(self, depth: int) -> tuple[str, Columns]:
        source, within = self._source(depth)
        items: list[str] = []
        columns: list[tuple[str, str]] = []
        for name, kind in BASE:
            items.append(f"{self._operand(within, kind)} AS {name}")
            columns.append((name, kind))
        for _ in range(self._chance.choice((0, 1, 1, 2))):
            name = self._name("f")
            items.append(f"{self._condition(within, 2)} AS {name}")
            columns.append((name, "bool"))
        distinct = "DISTINCT " if self._chance.random() < 0.06 else ""
        text = f"SELECT {distinct}{', '.join(items)} FROM {source}"
        if self._chance.random() < 0.7:
            text += f" WHERE {self._condition(within, 2, may_ask=True)}"
        if self._chance.random() < 0.08:
            empty = self._chance.choice(("NULL", "1 = 2", self._condition(within, 1)))
            text += f" UNION ALL SELECT {', '.join(items)} FROM {source} WHERE {empty}"
        return text, columns

    def _source(self, depth: int) -> tuple[str, Columns]:
        kind = self._chance.random()
        if depth == 0 or kind < 0.3:
            source, columns = self._chance.choice(TABLES), BASE
        elif kind < 0.45 and self._views:
            source, columns = self._chance.choice(self._views)
        elif kind < 0.6:
            left, here = self._source(depth - 1)
            right, there = self._source(0)
            join = self._chance.choice(("JOIN", "LEFT JOIN"))
            on = f"{there[self._chance.randint(0, 2)][0]} = {here[self._chance.randint(0, 2)][0]}"
            if self._chance.random() < 0.6:
                on += f" AND ({self._condition([*here, *there], 1)})"
            return f"{left} {join} {right} ON {on}", [*here, *there]
        else:
            text, columns = self._select(depth - 1)
            source = f"({text})"
        name = self._name("s")
        return f"{source} AS {name}", [(f"{name}.{column}", kind) for column, kind in columns]

    def _condition(self, within: Columns, depth: int, *, may_ask: bool = False) -> str:
        kind = self._chance.random()
        if depth == 0 or kind < 0.2:
            return self._asked(within) if may_ask and self._chance.random() < 0.3 else self._atom(within)
        inner = self._condition(within, depth - 1, may_ask=may_ask)
        if kind < 0.32:
            return f"NOT ({inner})"
        if kind < 0.38:
            return f"({inner}) IS {self._chance.choice(('NULL', 'NOT NULL', 'TRUE', 'NOT TRUE', 'FALSE'))}"
        if kind < 0.42:
            return f"CASE WHEN {inner} THEN {self._atom(within)} ELSE {self._atom(within)} END"
        others = [self._condition(within, depth - 1, may_ask=may_ask) for _ in range(2)]
        parts = [f"({part})" if self._chance.random() < 0.6 else part for part in (inner, *others)]
        return self._chance.choice((" AND ", " OR ")).join(parts[: self._chance.choice((2, 3))])

    def _atom(self, within: Columns) -> str:
        flags = [name for name, kind in within if kind == "bool"]
        if flags and self._chance.random() < 0.3:
            flag = self._chance.choice(flags)
            return self._chance.choice((flag, flag, f"NOT {flag}", f"{flag} IS NULL", f"{flag} IS NOT TRUE"))
        of_text = self._chance.random() < 0.12
        item, kind = self._operand(within, "text" if of_text else "int"), self._chance.random()
        if self._has_lists_mostly and not of_text:
            item = next(name for name, each in within if each == "int")
        if kind < 0.5:
            sizes = (1, 2, 2, 3, 4, 5)
            options = [self._option(within, of_text=of_text) for _ in range(self._chance.choice(sizes))]
            return f"{item} {self._chance.choice(('IN', 'IN', 'NOT IN'))} ({', '.join(options)})"
        if kind < 0.8:
            sides = [item, self._option(within, of_text=of_text)]
            self._chance.shuffle(sides)
            return f"{sides[0]} {self._chance.choice(('=', '=', '=', '<>', '<', '>='))} {sides[1]}"
        if kind < 0.88:
            return f"{item} IS {self._chance.choice(('', 'NOT '))}NULL"
        low, high = self._literal(of_text=of_text), self._literal(of_text=of_text)
        return f"{item} {self._chance.choice(('', 'NOT '))}BETWEEN {low} AND {high}"

    def _asked(self, within: Columns) -> str:
        """Return a condition with a subquery, which may read the row around it."""
        name = self._name("q")
        inner = [(f"{name}.{column}", kind) for column, kind in BASE]
        where = self._condition(inner, 0)
        if self._chance.random() < 0.4:
            op = self._chance.choice(("=", "=", "<"))
            where = f"{name}.b {op} {self._chance.choice([n for n, k in within if k == 'int'])} AND ({where})"
        query = f"FROM {self._chance.choice(TABLES)} AS {name} WHERE {where}"
        if self._chance.random() < 0.15:
            return f"{self._chance.choice(('', 'NOT '))}EXISTS (SELECT 1 {query})"
        item = self._operand(within, "int")
        op = self._chance.choice(("IN", "NOT IN"))
        return f"{item} {op} (SELECT {name}.{self._chance.choice('abc')} {query})"

    def _operand(self, within: Columns, kind: str) -> str:
        names = [name for name, each in within if each == kind]
        if not names:
            return self._literal(of_text=kind == "text")
        name = self._chance.choice(names)
        if kind == "text" or self._chance.random() < 0.85:
            return name
        other = self._chance.choice(names)
        return self._chance.choice(
            (f"{name} + {other}", f"abs({name})", f"coalesce({name}, {other})", f"-{name}")
        )

    def _option(self, within: Columns, *, of_text: bool) -> str:
        if self._chance.random() < 0.2:
            names = [name for name, kind in within if kind == ("text" if of_text else "int")]
            return self._chance.choice(names or [self._literal(of_text=of_text)])
        return self._literal(of_text=of_text)

    def _literal(self, *, of_text: bool) -> str:
        if self._chance.random() < 0.07:
            return "NULL"
        return f"'{self._chance.choice('xyz')}'" if of_text else str(self._chance.randint(0, 4))


def _rows(chance: random.Random) -> Iterator[tuple[int | str | None, ...]]:
    for number in range(1, ROWS + 1):
        values = [None if chance.random() < 0.25 else chance.randint(0, 4) for _ in range(3)]
        yield (number, *values, None if chance.random() < 0.2 else chance.choice("xyz"))


class _NotDone(Exception):
    """The query engine says that it can't answer such a query."""


def _answer(db: Embedded, text: str) -> list[tuple[object, ...]]:
    try:
        return _sorted(db.rows(text))
    except QueryFailure as failure:
        if _NOT_DONE in str(failure):
            raise _NotDone from failure
        raise


def _sorted(rows: Sequence[tuple[object, ...]]) -> list[tuple[object, ...]]:
    plain = [tuple(int(cell) if isinstance(cell, bool) else cell for cell in row) for row in rows]
    return sorted(plain, key=repr)


def _written(value: object) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def _fill(db: Embedded, lite: sqlite3.Connection, chance: random.Random, tier: str) -> None:
    for table in TABLES:
        rows = list(_rows(chance))
        lite.execute(f"CREATE TABLE {table} (id INT PRIMARY KEY, a INT, b INT, c INT, t TEXT)")
        lite.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)", rows)
        db.run(f"CREATE TABLE default.{table} (id INT PRIMARY KEY, a INT, b INT, c INT, t TEXT)")
        for part in (rows[: ROWS // 2], rows[ROWS // 2 :]):
            values = ", ".join(f"({', '.join(map(_written, row))})" for row in part)
            db.change(f"INSERT INTO {table} VALUES {values}")
            if tier == "cold" or (tier == "mixed" and part[0] == rows[0]):
                db.flush(f"default.{table}")


@pytest.mark.parametrize(("seed", "tier"), [(1, "hot"), (2, "cold"), (3, "mixed")])
def test_nested_queries_return_the_rows_that_sqlite_returns(tmp_path: Path, seed: int, tier: str) -> None:
    chance = random.Random(seed)
    nest, answered = Nest(chance), 0
    lite = sqlite3.connect(":memory:")
    with Embedded(tmp_path, store=memory_store()) as db:
        _fill(db, lite, chance, tier)
        for name, text in (nest.view() for _ in range(VIEWS)):
            lite.execute(f"CREATE VIEW {name} AS {text}")
            db.run(f"CREATE VIEW default.{name} AS {text}")
        for text in (nest.query() for _ in range(QUERIES)):
            expected = _sorted(lite.execute(text).fetchall())
            with suppress(_NotDone):
                assert _answer(db, text) == expected, f"seed {seed}: {text}"
                answered += 1
    lite.close()
    assert answered > QUERIES * 0.9
