"""Random statements that change rows, each with what it does to a `Database` of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from upwell.testing.database import KEY, ColumnModel, Database, Effect, OnConflict, TableState, Wrong
from upwell.testing.phrases import Constant, Phrase, Phrases, any_value, calculated, compare, family, joined

Piece = str | Constant


@dataclass(frozen=True)
class Statement:
    """A change of a table: its text in pieces, what it does to a model, what RETURNING gives back."""

    table: str
    pieces: tuple[Piece, ...]
    apply: Callable[[Database], Effect]
    returning: tuple[ColumnModel, ...] | None = None

    def written(self) -> str:
        """Return the text with its constants as literals."""
        return "".join(piece if isinstance(piece, str) else piece.literal for piece in self.pieces)

    def bound(self) -> tuple[str, list[Any]]:
        """Return the text with its constants as parameters, and those."""
        values = [piece.parameter for piece in self.pieces if not isinstance(piece, str)]
        numbers = iter(range(1, len(values) + 1))
        return "".join(p if isinstance(p, str) else f"${next(numbers)}" for p in self.pieces), values


class Writer:
    """Writes random statements about the tables that there are."""

    def __init__(self, chance: Random, model: Database, account: str) -> None:
        self.chance = chance
        self.model = model
        self.account = account

    def statement(self) -> Statement:
        table = self.table()
        make = self.chance.choice(
            (self.insert, self.insert, self.upsert, self.insert_query, self.update, self.update, self.delete)
        )
        return self.returned(make(table), table)

    def table(self) -> TableState:
        return self.chance.choice(list(self.model.tables.values()))

    def returned(self, statement: Statement, table: TableState) -> Statement:
        if self.chance.random() < 0.7:
            return statement
        columns = table.columns[:1] + self.chance.sample(table.columns[1:], min(2, len(table.columns) - 1))
        names = ", ".join(column.name for column in columns)
        return replace(
            statement,
            pieces=(*statement.pieces, f" RETURNING {names}"),
            returning=tuple(map(replace, columns)),
        )

    def key(self, table: TableState) -> Any:
        number = self.chance.randint(1, 9)
        return f"k{number}" if table.columns[0].type == "TEXT" else number

    def cells(self, table: TableState, columns: Sequence[ColumnModel]) -> dict[int, Any]:
        cells = {}
        for each in columns:
            null = 0.15 if each.nullable else 0.01
            is_key = each.id == KEY
            cells[each.id] = self.key(table) if is_key else any_value(self.chance, each.type, null=null)
        return cells

    def chosen(self, table: TableState) -> list[ColumnModel]:
        """Return the columns that an INSERT names: the key, and the others or some of them."""
        others = table.columns[1:]
        if self.chance.random() < 0.5:
            others = [each for each in others if self.chance.random() < 0.7]
            self.chance.shuffle(others)
        return [*table.columns[:1], *others]

    def insert(
        self, table: TableState, meets: OnConflict | None = None, clause: Sequence[Piece] = ()
    ) -> Statement:
        columns = self.chosen(table)
        rows = [self.cells(table, columns) for _ in range(self.chance.choice((1, 1, 2, 4)))]
        is_whole = columns == table.columns and self.chance.random() < 0.5
        names = "" if is_whole else f" ({', '.join(each.name for each in columns)})"
        tuples = [
            ("(", *joined([(Constant(row[each.id], each.type),) for each in columns]), ")") for row in rows
        ]
        return Statement(
            table.name,
            (f"INSERT INTO {table.name}{names} VALUES ", *joined(tuples), *clause),
            lambda model: self.writable(model, table).insert(self.account, rows, meets),
        )

    def upsert(self, table: TableState) -> Statement:
        """An INSERT that leaves or changes the rows that are there."""
        if len(table.columns) == 1 or self.chance.random() < 0.4:
            return self.insert(table, OnConflict(), (" ON CONFLICT DO NOTHING",))
        short = table.name.removeprefix("app.")
        pieces, settings = [], []
        for column in self.chance.sample(table.columns[1:], 1):
            number = column.id
            if family(column.type) == "int" and self.chance.random() < 0.5:
                pieces.append((f"{column.name} = {short}.{column.name} + excluded.{column.name}",))
                settings.append((number, lambda row, n=number: _sum(row[n], row[-n])))
            else:
                pieces.append((f"{column.name} = excluded.{column.name}",))
                settings.append((number, lambda row, n=number: row[-n]))
        where: tuple[Piece, ...] = ()
        condition = None
        if self.chance.random() < 0.3:
            wanted = self.key(table)
            where = (f" WHERE {short}.id > ", Constant(wanted, table.columns[0].type))
            condition = lambda row: compare(">", row[KEY], wanted)  # noqa: E731
        clause = (" ON CONFLICT (id) DO UPDATE SET ", *joined(pieces), *where)
        return self.insert(table, OnConflict(settings, condition), clause)

    def insert_query(self, table: TableState) -> Statement:
        """INSERT of what a query gives, of this or another table."""
        same = [each for each in self.model.tables.values() if each.columns[0].type == table.columns[0].type]
        source = self.chance.choice(same)
        phrases = Phrases(self.chance, source.names)
        columns = self.chosen(table)
        is_text = table.columns[0].type == "TEXT"
        step = self.chance.randint(0, 9)
        key = Phrase(("id",), lambda row: row[KEY])
        if step and is_text:
            key = Phrase(("id || ", Constant("+", "TEXT")), lambda row: row[KEY] + "+")
        elif step:
            key = Phrase(("id + ", Constant(step, "INT")), lambda row: row[KEY] + step)
        cells = [(KEY, key), *((each.id, phrases.expression(each.type)) for each in columns[1:])]
        where = self.condition(source)
        names = ", ".join(each.name for each in columns)
        given = joined([(*phrase.pieces, f" AS x{at}") for at, (_, phrase) in enumerate(cells)])
        pieces = (
            f"INSERT INTO {table.name} ({names}) SELECT ",
            *given,
            f" FROM {source.name}",
            *where.pieces,
        )

        def apply(model: Database) -> Effect:
            found = model.table(source.name)
            self.writable(model, table)
            found.require(self.account, writes=False)
            rows = [row for row in found.owned(self.account).values() if where.meaning(row) is True]
            wrong = Wrong()
            made = [{n: wrong.value(partial(phrase.meaning, row)) for n, phrase in cells} for row in rows]
            wrong.stop()
            return model.table(table.name).insert(self.account, made, None)

        return Statement(table.name, pieces, apply)

    def update(self, table: TableState) -> Statement:
        phrases = Phrases(self.chance, table.names)
        columns = self.chance.sample(
            table.columns[1:], min(len(table.columns) - 1, self.chance.choice((1, 1, 2)))
        )
        is_plain = self.chance.random() < 0.4
        settings = [
            (each, phrases.constant(each.type) if is_plain else phrases.expression(each.type))
            for each in columns
        ]
        if not settings or self.chance.random() < 0.15:
            value = self.key(table)
            kind = table.columns[0].type
            settings.insert(0, (table.columns[0], Phrase((Constant(value, kind),), lambda row: value)))
        where = self.where(table)
        pieces = joined([(f"{each.name} = ", *phrase.pieces) for each, phrase in settings])
        return Statement(
            table.name,
            (f"UPDATE {table.name} SET ", *pieces, *where.pieces),
            lambda model: self.writable(model, table).update(
                self.account, where.meaning, [(each.id, phrase.meaning) for each, phrase in settings]
            ),
        )

    def delete(self, table: TableState) -> Statement:
        where = self.where(table)
        return Statement(
            table.name,
            (f"DELETE FROM {table.name}", *where.pieces),
            lambda model: self.writable(model, table).delete(self.account, where.meaning),
        )

    def where(self, table: TableState) -> Phrase:
        """Return what WHERE says, most often of one key or some."""
        kind = table.columns[0].type
        which = self.chance.random()
        if which < 0.4:
            value = self.key(table)
            return Phrase((" WHERE id = ", Constant(value, kind)), lambda row: row[KEY] == value)
        if which < 0.5:
            values = [self.key(table) for _ in range(3)]
            listed = joined([(Constant(each, kind),) for each in values])
            return Phrase((" WHERE id IN (", *listed, ")"), lambda row: row[KEY] in values)
        return self.condition(table)

    def condition(self, table: TableState) -> Phrase:
        if self.chance.random() < 0.1:
            return Phrase((), lambda row: True)
        found = Phrases(self.chance, table.names).condition()
        return Phrase((" WHERE ", *found.pieces), found.meaning)

    def writable(self, model: Database, table: TableState) -> TableState:
        found = model.table(table.name)
        found.require(self.account, writes=True)
        return found


def _sum(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else calculated("+", left, right)
