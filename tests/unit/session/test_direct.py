"""Promise: a read that Arrow answers from the overlay gives what the query engine gives: rows, order, schema.

Each query runs both ways over hot rows with NULLs, −0.0, extremes and text of many scripts. What is not
ordered comes by primary key both ways; an ORDER BY that leaves rows equal is completed by the key.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from upwell.engine.result import result_columns
from upwell.engine.source import Source
from upwell.session.call import Call
from upwell.session.direct import INLINE_KEYS_MAX, find_direct, find_keys
from upwell.session.outcome import Answer
from upwell.sql.prepare import Preparer
from upwell.sql.statements import Delete, Select
from upwell.testing.embedded import ROOT, Embedded, memory_store, principal
from upwell.types import SHARED

QUERIES = 250
COLUMNS = (
    *("id", "small", "whole", "big", "real", "word", "flag", "at", "tiny", "price", "day"),
    *("_seq", "_deleted"),
)
_WORDS = ("", "a", "B", "ä", "Z", "zz", "ß", "日本", "\U0001f600", "a b", "it''s", "é", "e\u0301", "\uffff")
_VALUES = {
    "id": ("0", "7", "-3", "2147483647", "3000000000", "2.5", "7.0"),
    "small": ("0", "-32768", "32767", "40000", "1.5"),
    "whole": ("0", "-1", "2147483647", "-2147483648", "2147483648"),
    "big": ("0", "9007199254740993", "9007199254740992.0", "-9223372036854775807", "5"),
    "real": ("0", "-0.0", "0.0", "1.5", "-1e300", "3", "9007199254740993", "1e-300"),
    "word": tuple(f"'{word}'" for word in _WORDS),
    "flag": ("TRUE", "FALSE"),
    "at": ("'2026-01-02T03:04:05Z'",),
    "tiny": ("1.5", "0"),
    "price": ("1.50", "2"),
    "day": ("'2026-01-02'",),
    "_seq": ("0", "5"),
    "_deleted": ("FALSE", "TRUE"),
}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    chance = random.Random(1)
    directory: Path = tmp_path_factory.mktemp("direct")
    with Embedded(directory, store=memory_store()) as db:
        db.run("CREATE NAMESPACE app")
        columns = (
            "id INT PRIMARY KEY, small SMALLINT, whole INT, big BIGINT, real DOUBLE, word TEXT, "
            "flag BOOLEAN, at TIMESTAMP, tiny FLOAT, price DECIMAL(10, 2), day DATE"
        )
        for name in ("t", "zero"):
            db.run(f"CREATE TABLE app.{name} ({columns})")
            keys = chance.sample(range(-40, 400), 90)
            for start in range(0, 90, 30):
                db.change(
                    f"INSERT INTO app.{name} VALUES "
                    + ", ".join(_row(chance, key, name) for key in keys[start : start + 30])
                )
                db.rows(f"SELECT COUNT(*) FROM app.{name}")
            db.change(f"DELETE FROM app.{name} WHERE id > 350")
            db.change(f"UPDATE app.{name} SET whole = whole WHERE id < 0")
        yield db


def _row(chance: random.Random, key: int, table: str) -> str:
    fitting = {
        "small": ("0", "-32768", "32767", "5"),
        "whole": ("0", "-1", "2147483647", "-2147483648"),
        "big": ("0", "9007199254740993", "9007199254740992", "-9223372036854775807", "9223372036854775807"),
        "real": ("0.0", "1.5", "-1e300", "3", "1e-300") + (("-0.0",) if table == "zero" else ()),
        "word": _VALUES["word"],
        "flag": _VALUES["flag"],
        "at": ("'2026-01-02T03:04:05Z'", "'1969-12-31T23:59:59.999999Z'", "'0001-01-01T00:00:00Z'"),
        "tiny": ("1.5", "-0.0", "0.0"),
        "price": ("1.50", "-3.25", "0.00"),
        "day": ("'2026-01-02'", "'1969-12-31'"),
    }
    cells = (chance.choice((*values, "NULL")) for values in fitting.values())
    return f"({key}, {', '.join(cells)})"


def _query(chance: random.Random, table: str) -> str:
    what = chance.choice(("*", "COUNT(*)", "COUNT(*) AS n", "columns", "columns"))
    if what == "columns":
        names = chance.sample(COLUMNS, chance.randint(1, 4))
        what = ", ".join(name + chance.choice(("", "", f" AS {name}_out")) for name in names)
    text = f"SELECT {what} FROM app.{table}"
    if chance.random() < 0.7:
        text += " WHERE " + " AND ".join(_comparison(chance) for _ in range(chance.randint(1, 3)))
    if not what.startswith("COUNT"):
        text += _tail(chance)
    return text


def _comparison(chance: random.Random) -> str:
    column = chance.choice(COLUMNS)
    sides = [column, chance.choice(_VALUES[column])]
    if chance.random() < 0.2:
        sides.reverse()
    return f" {chance.choice(('=', '!=', '<>', '<', '<=', '>', '>='))} ".join(sides)


def _tail(chance: random.Random) -> str:
    tail = ""
    if chance.random() < 0.6:
        keys = [
            chance.choice(COLUMNS)
            + chance.choice(("", " ASC", " DESC"))
            + chance.choice(("", " NULLS FIRST", " NULLS LAST"))
            for _ in range(chance.randint(1, 2))
        ]
        # The engine may give rows that are equal in any order; completed, the order is one.
        tail = f" ORDER BY {', '.join([*keys, 'id'])}"
    if chance.random() < 0.5:
        tail += f" LIMIT {chance.choice((0, 1, 10, 1000))}"
        if chance.random() < 0.4:
            tail += f" OFFSET {chance.choice((0, 3, 200))}"
    return tail


def _both(db: Embedded, text: str, *, shapes: bool) -> tuple[pa.Table | None, pa.Table | None]:
    view = db.settle()
    statement, values = Preparer(shapes=shapes).prepare(text, view.catalog, "default")
    assert isinstance(statement, Select)
    if statement.direct is None:
        return None, None
    source = Source(statement.direct.table, SHARED)
    direct = find_direct(statement.direct, values, source, view, db.query, inline=False)
    call = Call(principal(ROOT), values, "default", lambda: db.sessions.context(principal(ROOT)))
    planned = db.runner.run(db.sessions._dispatch.reader.select(call, replace(statement, direct=None)))
    assert isinstance(planned, Answer)
    return direct, planned.table


def _columns_told(db: Embedded, text: str) -> object:
    statement, _ = Preparer().prepare(text, db.view.catalog, "default")
    assert isinstance(statement, Select)
    assert statement.direct is not None
    return statement.direct.result_columns


@pytest.mark.parametrize("table", ["t", "zero"])
def test_whatever_is_asked_both_ways_give_the_same(db: Embedded, table: str) -> None:
    chance = random.Random(table)
    answered = 0
    for number in range(QUERIES):
        text = _query(chance, table)
        direct, planned = _both(db, text, shapes=number % 2 == 0)
        if direct is None or planned is None:
            continue
        answered += 1
        assert direct.schema.equals(planned.schema, check_metadata=True), (
            f"{text}\n{direct.schema}\n{planned.schema}"
        )
        assert repr(direct.to_pylist()) == repr(planned.to_pylist()), text
        assert _columns_told(db, text) == tuple(result_columns(planned.schema)), text
    assert answered > QUERIES / 2, "most queries are answered directly"


def test_the_event_loop_takes_on_only_what_changes_few_rows(db: Embedded) -> None:
    count = 2 * INLINE_KEYS_MAX
    db.run("CREATE TABLE many (id INT PRIMARY KEY, n INT)")
    db.run("INSERT INTO many VALUES " + ", ".join(f"({key}, {key})" for key in range(count)))
    assert len(db.rows("SELECT * FROM many WHERE n >= 0")) == count  # the overlay has them by now
    view = db.settle()

    def found(below: int, *, inline: bool) -> set[object] | None:
        text = f"DELETE FROM many WHERE n < {below}"
        statement, values = Preparer().prepare(text, view.catalog, "default")
        assert isinstance(statement, Delete)
        assert statement.matching is not None
        source = Source(statement.table, SHARED)
        keys = find_keys(statement.matching, values, source, view, db.query, inline=inline)
        return None if keys is None else set(keys)

    assert found(INLINE_KEYS_MAX, inline=True) == set(range(INLINE_KEYS_MAX))
    assert found(INLINE_KEYS_MAX + 1, inline=True) is None
    assert found(count, inline=False) == set(range(count))
    assert db.change(f"DELETE FROM many WHERE n < {count - 1}") == count - 1
    assert db.rows("SELECT id FROM many") == [(count - 1,)]
