"""A model of a database: tables with typed columns, who may do what, and what definitions and changes do.

Law: it is written from the rules of SQL and of the product's papers, in plain Python. A statement that it
refuses has changed nothing; `Refused.kinds` names the errors that may be the reason.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from upwell.testing.phrases import INTEGERS, Cells, Meaning, Named, Undefined, family

KEY = 1
"""The id of each table's primary key column, whose name is `id`."""

CALLER = "CURRENT_USER()"
Rows = dict[Any, dict[int, Any]]
WIDENINGS = {
    "SMALLINT": ("INT", "BIGINT", "FLOAT", "DOUBLE"), "INT": ("BIGINT", "DOUBLE"), "FLOAT": ("DOUBLE",),
    "UUID": ("TEXT",), "JSON": ("TEXT",),
}  # fmt: skip
WHOLE_DIGITS = {"SMALLINT": 5, "INT": 10, "BIGINT": 19}


class Refused(Exception):
    """SQL refuses this; it says why with an error of one of these classes."""

    def __init__(self, *kinds: str) -> None:
        super().__init__(*kinds)
        self.kinds = frozenset(kinds)


@dataclass
class ColumnModel:
    """A column; `default` is a value of its type, `CALLER`, or None."""

    id: int
    name: str
    type: str
    nullable: bool = True
    default: Any = None


@dataclass
class Effect:
    """What a change did: how many rows changed, and those that RETURNING is about."""

    count: int
    rows: list[dict[int, Any]] = field(default_factory=list)


@dataclass
class TableState:
    """One table. Rows of a shared one belong to the owner None."""

    name: str
    is_shared: bool
    columns: list[ColumnModel]
    is_public: bool = True
    rows: dict[str | None, Rows] = field(default_factory=dict)
    ids: int = KEY

    @property
    def names(self) -> list[Named]:
        return [Named(each.id, each.name, each.type) for each in self.columns]

    @property
    def has_rows(self) -> bool:
        return any(self.rows.values())

    def find(self, name: str) -> ColumnModel | None:
        return next((each for each in self.columns if each.name == name), None)

    def owned(self, account: str) -> Rows:
        return self.rows.setdefault(None if self.is_shared else account, {})

    def shown(self, account: str) -> list[tuple[Any, ...]]:
        """Return the rows that an account sees, by key, as an answer has them."""
        rows = self.owned(account)
        return [tuple(shown(rows[key][each.id], each.type) for each in self.columns) for key in sorted(rows)]

    def require(self, account: str, *, writes: bool) -> None:
        """Raise `Refused` if the account, `root` or one of role user, may not read or write."""
        if self.is_shared and account != "root" and (writes or not self.is_public):
            raise Refused("PermissionDenied")

    def insert(self, account: str, given: Sequence[dict[int, Any]], meets: "OnConflict | None") -> Effect:
        """Add rows: columns not given have their default, a key that is there is refused or `meets` it."""
        rows = self.owned(account)
        after, before, met, effect, wrong = dict(rows), set(rows), set(), Effect(0), Wrong()
        for cells in given:
            row = {each.id: self._cell(each, cells, account, wrong) for each in self.columns}
            key = row[KEY]
            if key in after and meets is not None:
                wrong.check(meets.settings and key in met, "ConstraintViolation")
                if key in before:
                    meets.settle(self, after, row, effect, wrong)
            elif key in after:
                wrong.add("AlreadyExists")
            else:
                self._check_nulls(row, wrong)
                after[key] = row
                effect.count += 1
                effect.rows.append(row)
            met.add(key)
        wrong.stop()
        self.rows[None if self.is_shared else account] = after
        return effect

    def update(self, account: str, where: Meaning, settings: Sequence[tuple[int, Meaning]]) -> Effect:
        """Set columns of the rows that match to what they were computed to, all at once."""
        rows, wrong = self.owned(account), Wrong()
        matched = {key: row for key, row in rows.items() if where(row) is True}
        after = {key: row for key, row in rows.items() if key not in matched}
        effect = Effect(0)
        for row in matched.values():
            new = self.changed(row, settings, row, wrong)
            wrong.check(new[KEY] in after, "AlreadyExists")
            after[new[KEY]] = new
            effect.count += new != row
            effect.rows.append(new)
        wrong.stop()
        self.rows[None if self.is_shared else account] = after
        return effect

    def delete(self, account: str, where: Meaning) -> Effect:
        """Take away the rows that match."""
        rows = self.owned(account)
        gone = {key: row for key, row in rows.items() if where(row) is True}
        self.rows[None if self.is_shared else account] = {k: row for k, row in rows.items() if k not in gone}
        return Effect(len(gone), list(gone.values()))

    def changed(
        self, row: Cells, settings: Sequence[tuple[int, Meaning]], source: Cells, wrong: "Wrong"
    ) -> dict[int, Any]:
        """Return a row with columns set to what `settings` say of `source`."""
        new = dict(row)
        for number, meaning in settings:
            column = next(each for each in self.columns if each.id == number)
            new[number] = wrong.value(lambda m=meaning, c=column: fit(m(source), c.type))  # type: ignore[misc]
        self._check_nulls(new, wrong)
        return new

    def _cell(self, column: ColumnModel, cells: dict[int, Any], account: str, wrong: "Wrong") -> Any:
        if column.id in cells:
            return wrong.value(lambda: fit(cells[column.id], column.type))
        return account if column.default == CALLER else column.default

    def _check_nulls(self, row: Cells, wrong: "Wrong") -> None:
        for column in self.columns:
            wrong.check(row[column.id] is None and not column.nullable, "ConstraintViolation")


class Wrong:
    """What is wrong with a statement; which of it is told is the server's choice."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def add(self, *kinds: str) -> None:
        self._kinds.update(kinds)

    def check(self, is_wrong: object, kind: str) -> None:
        if is_wrong:
            self.add(kind)

    def value(self, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except Undefined:
            self.add("QueryFailure", "InvalidValue")
        except Refused as refused:
            self.add(*refused.kinds)
        return None

    def stop(self) -> None:
        """Raise `Refused` if something is wrong."""
        if self._kinds:
            raise Refused(*self._kinds)


@dataclass(frozen=True)
class OnConflict:
    """DO UPDATE with settings and a condition over the row that is there and, by `-id`, the one that came."""

    settings: Sequence[tuple[int, Meaning]] = ()
    where: Meaning | None = None

    def settle(self, table: TableState, rows: Rows, came: Cells, effect: Effect, wrong: Wrong) -> None:
        there = rows[came[KEY]]
        both = there | {-number: value for number, value in came.items()}
        if not self.settings or (self.where is not None and self.where(both) is not True):
            return
        new = table.changed(there, self.settings, both, wrong)
        effect.count += new != there
        effect.rows.append(new)
        rows[came[KEY]] = new


class Database:
    """Tables by name, and the statements that define them."""

    def __init__(self) -> None:
        self.tables: dict[str, TableState] = {}

    def copy(self) -> "Database":
        twin = Database()
        twin.tables = deepcopy(self.tables)
        return twin

    def table(self, name: str) -> TableState:
        """Return a table, raise `Refused` if there is none of that name."""
        if name not in self.tables:
            raise Refused("TableNotFound")
        return self.tables[name]

    def create(self, name: str, columns: Iterable[ColumnModel], *, is_shared: bool) -> None:
        if name in self.tables:
            raise Refused("AlreadyExists")
        made = list(columns)
        self.tables[name] = TableState(name, is_shared, made, ids=len(made))

    def drop(self, name: str) -> None:
        if name not in self.tables:
            raise Refused("NotFound", "TableNotFound")
        del self.tables[name]

    def add(self, name: str, column: ColumnModel) -> None:
        table = self.table(name)
        if table.find(column.name):
            raise Refused("AlreadyExists", "InvalidSql")
        if column.default == CALLER:
            raise Refused("InvalidSql")  # what rows from before would show isn't known
        if not column.nullable and column.default is None and table.has_rows:
            raise Refused("ConstraintViolation")
        table.ids += 1
        column.id = table.ids
        table.columns.append(column)
        for row in all_rows(table):
            row[column.id] = column.default

    def drop_column(self, name: str, column: str) -> None:
        table = self.table(name)
        found = self._column(table, column)
        if found.id == KEY:
            raise Refused("InvalidOperation")
        table.columns.remove(found)
        for row in all_rows(table):
            del row[found.id]

    def rename(self, name: str, column: str, to: str) -> None:
        table = self.table(name)
        found = self._column(table, column)
        if table.find(to) not in (None, found):
            raise Refused("AlreadyExists")
        found.name = to

    def widen(self, name: str, column: str, kind: str) -> None:
        table = self.table(name)
        found = self._column(table, column)
        if found.type == kind:
            return
        if found.id == KEY or not widens(found.type, kind):
            raise Refused("InvalidOperation")
        found.type = kind
        found.default = found.default if found.default == CALLER else fit(found.default, kind)
        for row in all_rows(table):
            row[found.id] = fit(row[found.id], kind)

    def set_nullable(self, name: str, column: str, *, nullable: bool) -> None:
        table = self.table(name)
        found = self._column(table, column)
        if nullable and found.id == KEY:
            raise Refused("InvalidOperation")
        if not nullable and any(row[found.id] is None for row in all_rows(table)):
            raise Refused("ConstraintViolation")
        found.nullable = nullable

    def set_default(self, name: str, column: str, default: Any) -> None:
        self._column(self.table(name), column).default = default

    @staticmethod
    def _column(table: TableState, name: str) -> ColumnModel:
        found = table.find(name)
        if found is None:
            raise Refused("InvalidOperation")
        return found


def all_rows(table: TableState) -> Iterable[dict[int, Any]]:
    """Yield the rows of all owners."""
    return [row for rows in table.rows.values() for row in rows.values()]


def widens(narrow: str, wide: str) -> bool:
    """Whether each value of a type is one of another's, exactly."""
    if family(wide) != "decimal":
        return wide in WIDENINGS.get(narrow, ())
    whole, scale = WHOLE_DIGITS.get(narrow), 0
    if family(narrow) == "decimal":
        precision, scale = digits(narrow)
        whole = precision - scale
    return whole is not None and digits(wide)[0] - digits(wide)[1] >= whole and digits(wide)[1] >= scale


def digits(kind: str) -> tuple[int, int]:
    """Return precision and scale of `DECIMAL(p,s)`."""
    precision, scale = kind.removeprefix("DECIMAL(").removesuffix(")").split(",")
    return int(precision), int(scale)


def fit(value: Any, kind: str) -> Any:
    """Return a value as a column of a type holds it; raise `Refused` if it can't."""
    if value is None:
        return None
    match family(kind):
        case "int":
            if not -INTEGERS[kind] <= value < INTEGERS[kind]:
                raise Refused("InvalidValue", "QueryFailure")
            return value
        case "float":
            return struct.unpack("<f", struct.pack("<f", value))[0] if kind == "FLOAT" else float(value)
        case "decimal":
            precision, scale = digits(kind)
            number = Decimal(value).quantize(Decimal(1).scaleb(-scale), ROUND_HALF_UP)
            if abs(number) >= Decimal(10) ** (precision - scale):
                raise Refused("InvalidValue", "QueryFailure")
            return number
        case _:
            return value


def shown(value: Any, kind: str) -> Any:
    """Return a value as an answer has it."""
    return format(value, "f") if isinstance(value, Decimal) else value
