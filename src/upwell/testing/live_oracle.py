"""What a live query has to show, as SQLite says it: tables of a few small rows, and predicates by chance.

Law: nothing here has ever heard of Upwell.
"""

import json
import random
import sqlite3
from collections.abc import Iterable
from typing import Any

KINDS = [None, "a", "b", "ab", "B", "a%"]
SIZES = [None, -2, 0, 1, 2, 5]

COLUMNS = "id, kind, size, doc, price"

Row = tuple[int, str | None, int | None]
"""id (the key), kind, size; `derived` has the rest."""


class Oracle:
    """The tables in SQLite, which has never heard of Upwell; shared rows have the owner ''."""

    def __init__(self, tables: Iterable[str]) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("PRAGMA case_sensitive_like = ON")
        for name in tables:
            self.make(name)

    def make(self, name: str) -> None:
        """Make a table, anew if it is there."""
        self._db.execute(f"DROP TABLE IF EXISTS {name}")
        columns = "owner, id INT, kind TEXT, size INT, doc TEXT, price NUMERIC, sent_ms INT, made_ms INT"
        columns += ", PRIMARY KEY (owner, id)"
        self._db.execute(f"CREATE TABLE {name} ({columns})")

    def add_column(self, name: str, column: str) -> None:
        self._db.execute(f"ALTER TABLE {name} ADD COLUMN {column} TEXT DEFAULT 'm'")

    def change(self, sql: str, *values: object) -> int:
        """Run a statement; return how many rows it touched, -1 if a key was taken."""
        try:
            return self._db.execute(sql, values).rowcount
        except sqlite3.IntegrityError:
            return -1

    def select(self, name: str, owner: str, columns: list[str], where: str) -> dict[str, dict[str, Any]]:
        """Return the rows by key, with cells as the wire has them: BIGINT as text."""
        text = f"SELECT {', '.join(columns)} FROM {name} WHERE owner = ? AND ({where})"
        found = [dict(zip(columns, row, strict=True)) for row in self._db.execute(text, (owner,))]
        return {str(row["id"]): row | {"id": str(row["id"])} for row in found}


def literal(value: object) -> str:
    """Return a value as SQL."""
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def derived(kind: str | None, size: int | None) -> tuple[str, str | None]:
    """Return the document and the price of a row of this kind and size."""
    return json.dumps({"kind": kind, "size": size}), None if size is None else f"{size * 1.25:.2f}"


def a_predicate(chance: random.Random, depth: int = 2) -> str:
    """Return a condition of the columns, by chance."""
    form = chance.choice(["one", "one", "and", "or", "not"]) if depth else "one"
    if form == "one":
        return _condition(chance)
    inner = a_predicate(chance, depth - 1)
    return f"NOT ({inner})" if form == "not" else f"({inner} {form.upper()} {a_predicate(chance, depth - 1)})"


def some_rows(chance: random.Random) -> list[Row]:
    """Return rows with different keys."""
    keys = chance.sample(range(1, 7), chance.randint(1, 3))
    return [(key, chance.choice(KINDS), chance.choice(SIZES)) for key in keys]


def _condition(chance: random.Random) -> str:
    kind, other = (literal(chance.choice([kind for kind in KINDS if kind])) for _ in range(2))
    size, more = (chance.choice([size for size in SIZES if size is not None]) for _ in range(2))
    compared = chance.choice(["=", "<>", "<", "<=", ">", ">="])
    forms = [
        f"size {compared} {size}",
        f"kind {compared} {kind}",
        f"id {compared} {chance.randint(1, 6)}",
        f"kind = {kind}",
        f"size BETWEEN {min(size, more)} AND {max(size, more)}",
        f"size NOT IN ({size}, {more})",
        f"kind IN ({kind}, {other})",
        chance.choice(["kind IS NULL", "size IS NOT NULL", "kind LIKE 'a%'", "kind NOT LIKE '_b'"]),
        f"size + id {compared} {size}",
    ]
    return chance.choice(forms if chance.random() < 0.6 else _of_more_words(chance, kind, size, compared))


def _of_more_words(chance: random.Random, kind: str, size: int, compared: str) -> list[str]:
    """Return conditions of more than comparisons; most of them only the query engine decides."""
    return [
        f"CASE WHEN size > {size} THEN kind = {kind} ELSE size IS NOT NULL END",
        f"CASE kind WHEN {kind} THEN {size} ELSE size END {compared} 1",
        f"COALESCE(kind, 'a') {compared} {kind}",
        f"COALESCE(size, id, 0) {compared} {size}",
        f"NULLIF(size, {size}) IS NULL",
        f"CAST(size AS TEXT) {compared} '{size}'",
        f"size IS DISTINCT FROM {size}",
        f"kind IS NOT DISTINCT FROM {chance.choice([kind, 'NULL'])}",
        f"doc ->> 'kind' {compared} {kind}",
        f"doc -> 'kind' = '\"{kind[1:-1]}\"'",
        f"CAST(doc ->> 'size' AS INT) {compared} {size}",
        f"price {compared} {size * 1.25:.2f}",
        f"price BETWEEN 0.5 AND {size * 1.25:.2f}",
        f"LOWER(kind) {compared} 'b'",
        f"LENGTH(kind) + id {compared} 3",
        f"kind || 'x' LIKE '{chance.choice(['%bx', '_x'])}'",
        f"ABS(size) % 2 = 1 AND kind {compared} {kind}",
        f"100 / NULLIF(size, 0) {compared} 20",
    ]
