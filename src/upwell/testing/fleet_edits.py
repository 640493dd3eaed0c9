"""What a fleet does to rows at random, in its apps and by SQL, and how its phones settle conflicts.

Law: each value that is written was never written before, so that each edit can be followed.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from upwell.device import client_wins, server_wins
from upwell.device.conflict import Conflict
from upwell.device.schema import Row
from upwell.errors import SqlFailure
from upwell.testing.embedded import Embedded
from upwell.testing.fleet_tables import PARENTS, TABLES, USER, app_key, key
from upwell.testing.ledger import Diary, Ledger

Edit: TypeAlias = tuple[str, int, int, str]
"""Table, number of the row, number of the row that it refers to, what is done to it."""

PHONES_MAX = 3
PHONES = st.integers(0, PHONES_MAX - 1)
TABLE = st.sampled_from(TABLES)
KEYS = st.integers(0, 1)
CIRCULAR = st.sampled_from(["folders", "users", "posts"])
VERBS = st.sampled_from(["value", "note", "both", "replace", "delete"])
EDIT = st.tuples(TABLE, KEYS, KEYS, VERBS)
EDITS = st.lists(EDIT, min_size=1, max_size=5)
EDITS_BEFORE = st.lists(EDIT, max_size=2)


def circle(table: str, number: int, schema: str) -> list[str]:
    """Return statements that make two rows refer to each other, the first one of `table`."""
    other = PARENTS[table]
    first, second = key(table, 0), key(other, 1)
    rows = f"('{first}', 'v{number}', 'n{number}', {{}}), ('{second}', 'w{number}', 'm{number}', '{first}')"
    change = "ON CONFLICT (id) DO UPDATE SET value = excluded.value, note = excluded.note"
    insert = "INSERT INTO {} (id, value, note, parent) VALUES {} {}, parent = excluded.parent"
    if table == other:
        return [insert.format(schema + table, rows.format(f"'{second}'"), change)]
    alone, behind = rows.format("NULL").split(", (")
    return [
        insert.format(schema + table, alone, change).removesuffix(", parent = excluded.parent"),
        insert.format(schema + other, f"({behind}", change),
        f"UPDATE {schema}{table} SET parent = '{second}' WHERE id = '{first}'",
    ]


def no_circle(table: str, schema: str) -> list[str]:
    """Return statements that delete the rows of a circle."""
    other = PARENTS[table]
    first, second = key(table, 0), key(other, 1)
    if table == other:
        return [f"DELETE FROM {schema}{table} WHERE id IN ('{first}', '{second}')"]
    return [
        f"UPDATE {schema}{table} SET parent = NULL WHERE id = '{first}'",
        f"DELETE FROM {schema}{other} WHERE id = '{second}'",
        f"DELETE FROM {schema}{table} WHERE id = '{first}'",
    ]


def merge(conflict: Conflict) -> Row | None:
    """An edit beats a deletion; of two edits each column is taken from who changed it, else from here."""
    base, local, server = conflict.base, conflict.local, conflict.server
    if local is None or server is None:
        return local or server
    return {c: server[c] if base is not None and local[c] == base[c] else local[c] for c in local}


RESOLVERS = (server_wins, client_wins, merge)


class Edits(RuleBasedStateMachine):
    """The edits of a machine that has phones, SQL and what was written so far."""

    db: Embedded
    ledger: Ledger
    diaries: list[Diary]
    numbers: Iterator[int]

    def phone(self, number: int) -> Diary:
        return self.diaries[number % len(self.diaries)]

    def edit_in_app(self, diary: Diary, edit: Edit) -> None:
        """Write or delete one row; what it refers to is there, or nothing is referred to."""
        table, number, _, verb = edit
        run, pk = diary.app.device.connection.execute, app_key(table, number)
        values = self.values(edit)
        if table in PARENTS:
            wanted = self.parent_of(edit)
            found = run(f"SELECT id FROM {PARENTS[table]} WHERE id = ?", (wanted,)).fetchone()
            values["parent"] = found[0] if found else None
        names, marks = ", ".join(["id", *values]), ", ".join("?" * (len(values) + 1))
        update = ", ".join(f"{name} = excluded.{name}" for name in values)
        upsert = f"INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {update}"
        with diary.editing(), suppress(sqlite3.IntegrityError):
            match verb:
                case "delete":
                    run(f"DELETE FROM {table} WHERE id = ?", (pk,))
                case "replace":
                    run(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", (pk, *values.values()))
                case _:
                    run(upsert, (pk, *values.values()))

    def edit_by_sql(self, edit: Edit) -> None:
        """Write or delete one row; what is refused is refused."""
        table, number, _, verb = edit
        pk, values = key(table, number), self.values(edit)
        self.ledger.read(self.db, USER)
        live = self.ledger.live()
        if table in PARENTS:
            wanted = self.parent_of(edit)
            values["parent"] = wanted if (PARENTS[table], wanted) in live else None
        changes = ", ".join(f"{name} = ${index}" for index, name in enumerate(values, 2))
        marks = ", ".join(f"${index}" for index in range(1, len(values) + 2))
        names, row = ", ".join(["id", *values]), [pk, *values.values()]
        with suppress(SqlFailure):
            if verb == "delete":
                self.db.change(f"DELETE FROM app.{table} WHERE id = $1", [pk], user=USER)
            elif (table, pk) in live:
                self.db.change(f"UPDATE app.{table} SET {changes} WHERE id = $1", row, user=USER)
            else:
                self.db.change(f"INSERT INTO app.{table} ({names}) VALUES ({marks})", row, user=USER)

    def parent_of(self, edit: Edit) -> str:
        table, _, parent, _ = edit
        return key(PARENTS[table], parent)

    @rule(table=TABLE)
    def write_all_by_sql(self, table: str) -> None:
        self.db.change(f"UPDATE app.{table} SET note = $1", [f"n{next(self.numbers)}"], user=USER)

    @rule(table=CIRCULAR, is_made=st.booleans(), phone=st.none() | PHONES)
    def go_round(self, table: str, is_made: bool, phone: int | None) -> None:
        """Two rows get to refer to each other, or go: in an app, or by SQL."""
        schema = "app." if phone is None else ""
        statements = circle(table, next(self.numbers), schema) if is_made else no_circle(table, schema)
        if phone is None:
            with suppress(SqlFailure):
                for statement in statements:
                    self.db.change(statement, user=USER)
            return
        diary = self.phone(phone)
        with diary.editing(), suppress(sqlite3.IntegrityError):
            for statement in statements:
                diary.app.device.connection.execute(statement)

    def values(self, edit: Edit) -> dict[str, Any]:
        table, _, _, verb = edit
        columns = (verb,) if verb in ("value", "note") else ("value", "note")
        values: dict[str, Any] = {column: f"{column}-{next(self.numbers)}-" for column in columns}
        if table == "files":
            values["data"] = "".join(values.values()).encode()
        return values
