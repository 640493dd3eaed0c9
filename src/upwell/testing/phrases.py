"""Random phrases of SQL (constants, expressions, conditions), each with what it means as a Python function.

Law: a phrase's meaning comes from the rules of SQL alone: NULL makes NULL, AND and OR have three values,
integers divide towards zero, DECIMAL is exact. Who writes a phrase decides how its constants look.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

Cells = Mapping[int, Any]
"""A row by column id."""

Meaning = Callable[[Cells], Any]

INTEGERS = {"SMALLINT": 1 << 15, "INT": 1 << 31, "BIGINT": 1 << 63}
FAMILIES = {"SMALLINT": "int", "INT": "int", "BIGINT": "int", "FLOAT": "float", "DOUBLE": "float"}
TEXTS = ("", "a", "b", "B", "ab", "it's", "a%b", "x_y", "ä", "10", "NULL", "?", "$1", "; --", "/* */", "\\")
DAYS = {19_000: "2022-01-08", 20_000: "2024-10-04", 20_779: "2026-11-22"}
MOMENTS = {1_700_000_000_000_000: "2023-11-14T22:13:20", -1: "1969-12-31T23:59:59.999999"}
IDS = ("00000000-0000-0000-0000-000000000000", "0190163d-8694-739b-aea5-966c26f8ad91")
COMPARED = ("=", "<>", "<", "<=", ">", ">=")


class Undefined(Exception):
    """SQL has no value for this: a division by zero, a number that nothing can hold."""


@dataclass(frozen=True)
class Constant:
    """A value in a text, of the type of the column that it meets."""

    value: Any
    type: str

    @property
    def parameter(self) -> Any:
        """The value as `$n` takes it."""
        match self.type, self.value:
            case "DATE", int() as days:
                return DAYS[days]
            case "TIMESTAMP", int() as moment:
                return MOMENTS[moment]
            case _, Decimal() as number:
                return format(number, "f")
            case _, value:
                return value

    @property
    def literal(self) -> str:
        """The value as SQL writes it."""
        match self.parameter:
            case None:
                return "NULL"
            case bool() as truth:
                return "TRUE" if truth else "FALSE"
            case str() as text if not isinstance(self.value, Decimal):
                return "'" + text.replace("'", "''") + "'"
            case other:
                return str(other)


@dataclass(frozen=True)
class Phrase:
    """Text in pieces, and the value that it has in a row."""

    pieces: tuple[str | Constant, ...]
    meaning: Meaning


@dataclass(frozen=True)
class Named:
    """A column that a phrase may read: its id, name and type."""

    id: int
    name: str
    type: str


def family(kind: str) -> str:
    """Return what a type's values can be mixed with."""
    return "decimal" if kind.startswith("DECIMAL") else FAMILIES.get(kind, kind.lower())


def joined(items: Sequence[Sequence[str | Constant]], between: str = ", ") -> list[str | Constant]:
    """Return the pieces of several phrases with a text between them."""
    pieces: list[str | Constant] = []
    for at, item in enumerate(items):
        pieces += [between, *item] if at else item
    return pieces


def any_value(chance: Random, kind: str, *, null: float = 0.15) -> Any:
    """Return a value of a type, with extremes now and then."""
    if chance.random() < null:
        return None
    match family(kind):
        case "int":
            limit = INTEGERS[kind]
            return chance.choice((limit - 1, -limit)) if chance.random() < 0.03 else chance.randint(-9, 99)
        case "float":
            return chance.choice((0.0, 1.5, -2.25, 3.0, 1e10, 0.5, -7.75))
        case "decimal":
            return Decimal(chance.randint(-9999, 9999)).scaleb(-2)
        case "text":
            return chance.choice(TEXTS)
        case "boolean":
            return chance.random() < 0.5
        case "date":
            return chance.choice(tuple(DAYS))
        case "timestamp":
            return chance.choice(tuple(MOMENTS))
        case "uuid":
            return chance.choice(IDS)
        case "json":
            return chance.choice(('{"a": 1}', "[1, 2]", '"x"'))
        case other:
            raise AssertionError(f"no values of {other}")


class Phrases:
    """Makes phrases over the columns of one table."""

    def __init__(self, chance: Random, columns: Sequence[Named]) -> None:
        self.chance = chance
        self.columns = columns

    def constant(self, kind: str, *, null: float = 0.15) -> Phrase:
        value = any_value(self.chance, kind, null=null)
        return Phrase((Constant(value, kind),), lambda row: value)

    def typed(self, kind: str, value: Any) -> tuple[str | Constant, ...]:
        """Return the pieces of a constant whose type nothing beside it says."""
        found = Constant(value, kind)
        is_clear = kind in ("UUID", "JSON") or (
            value is not None and family(kind) in ("int", "float", "text", "boolean")
        )
        return (found,) if is_clear else ("CAST(", found, f" AS {kind})")

    def column(self, kind: str) -> Phrase | None:
        """Return a column whose values fit `kind`'s family, None if there is none."""
        found = [each for each in self.columns if family(each.type) == family(kind)]
        if not found:
            return None
        column = self.chance.choice(found)
        return Phrase((column.name,), lambda row: row[column.id])

    def expression(self, kind: str, depth: int = 1) -> Phrase:
        """Return something that has a value of `kind`'s family."""
        column = self.column(kind)
        if column is None or self.chance.random() < 0.4:
            value = any_value(self.chance, kind)
            return Phrase(self.typed(kind, value), lambda row: value)
        if depth == 0 or self.chance.random() < 0.3:
            return column
        if self.chance.random() < 0.2:
            return self._case(kind, depth)
        if self.chance.random() < 0.2:
            return self._coalesce(column, kind)
        match family(kind):
            case "int":
                return self._integer(column)
            case "float":
                add = self.chance.choice((1.5, -0.25))
                return self._strict(column, "+", (Constant(add, "DOUBLE"),), lambda value: value + add)
            case "decimal":
                more = self.chance.choice((Decimal("1.25"), Decimal("-0.01")))
                return self._strict(column, "+", self.typed(kind, more), lambda value: value + more)
            case "text":
                return self._text(column)
            case "boolean":
                return Phrase(("NOT ", *column.pieces), lambda row: _not(column.meaning(row)))
            case _:
                return column

    def condition(self, depth: int = 1) -> Phrase:
        """Return something that is true, false or NULL of a row."""
        if depth and self.chance.random() < 0.4:
            left, right = self.condition(depth - 1), self.condition(depth - 1)
            word, decisive = self.chance.choice((("AND", False), ("OR", True)))
            pieces = ("(", *left.pieces, f" {word} ", *right.pieces, ")")
            return Phrase(pieces, lambda row: _junction((left.meaning(row), right.meaning(row)), decisive))
        if depth and self.chance.random() < 0.15:
            inner = self.condition(depth - 1)
            return Phrase(("NOT (", *inner.pieces, ")"), lambda row: _not(inner.meaning(row)))
        column = self.chance.choice(self.columns)
        subject = Phrase((column.name,), lambda row: row[column.id])
        return self._simple(subject, column.type)

    def _simple(self, subject: Phrase, kind: str) -> Phrase:
        which = self.chance.randrange(8)
        if which == 0:
            return Phrase((*subject.pieces, " IS NULL"), lambda row: subject.meaning(row) is None)
        if which == 1:
            return Phrase((*subject.pieces, " IS NOT NULL"), lambda row: subject.meaning(row) is not None)
        if which == 2 and kind not in ("BOOLEAN", "JSON"):
            return self._among(subject, kind)
        if kind == "TEXT" and which == 3:
            return self._like(subject)
        if kind == "BOOLEAN" and which < 6:
            return subject
        if family(kind) in ("int", "float", "decimal", "date") and which == 4:
            low, high = self.constant(kind, null=0), self.constant(kind, null=0)
            return Phrase(
                (*subject.pieces, " BETWEEN ", *low.pieces, " AND ", *high.pieces),
                lambda row: (
                    None
                    if (it := subject.meaning(row)) is None
                    else low.meaning(row) <= it <= high.meaning(row)
                ),
            )
        words = ("=", "<>") if kind in ("BOOLEAN", "JSON", "UUID") else COMPARED
        word = self.chance.choice(words)
        other = (
            self.expression(kind, depth=0) if self.chance.random() < 0.3 else self.constant(kind, null=0.05)
        )
        return Phrase(
            (*subject.pieces, f" {word} ", *other.pieces),
            lambda row: compare(word, subject.meaning(row), other.meaning(row)),
        )

    def _among(self, subject: Phrase, kind: str) -> Phrase:
        options = [self.constant(kind, null=0.1) for _ in range(self.chance.randint(1, 3))]
        is_not = self.chance.random() < 0.3
        pieces = (
            *subject.pieces,
            " NOT IN (" if is_not else " IN (",
            *joined([o.pieces for o in options]),
            ")",
        )

        def meaning(row: Cells) -> bool | None:
            value = subject.meaning(row)
            found = _junction([compare("=", value, option.meaning(row)) for option in options], True)
            return _not(found) if is_not else found

        return Phrase(pieces, meaning)

    def _like(self, subject: Phrase) -> Phrase:
        pattern, test = self.chance.choice(
            (
                ("a%", lambda text: text.startswith("a")),
                ("%b", lambda text: text.endswith("b")),
                ("_", lambda text: len(text) == 1),
                ("%", lambda text: True),
                ("ab", lambda text: text == "ab"),
            )
        )
        return Phrase(
            (*subject.pieces, " LIKE ", Constant(pattern, "TEXT")),
            lambda row: None if (text := subject.meaning(row)) is None else test(text),
        )

    def _case(self, kind: str, depth: int) -> Phrase:
        when, then = self.condition(0), self.expression(kind, depth - 1)
        other = self.column(kind) or self.constant(kind)
        return Phrase(
            ("CASE WHEN ", *when.pieces, " THEN ", *then.pieces, " ELSE ", *other.pieces, " END"),
            lambda row: then.meaning(row) if when.meaning(row) is True else other.meaning(row),
        )

    def _coalesce(self, column: Phrase, kind: str) -> Phrase:
        instead = any_value(self.chance, kind)

        def meaning(row: Cells) -> Any:
            value = column.meaning(row)
            return instead if value is None else value

        return Phrase(("COALESCE(", *column.pieces, ", ", *self.typed(kind, instead), ")"), meaning)

    def _integer(self, column: Phrase) -> Phrase:
        word = self.chance.choice(("+", "-", "*", "/", "%"))
        number = 0 if word in "/%" and self.chance.random() < 0.1 else self.chance.randint(1, 5)
        return self._strict(
            column, word, (Constant(number, "BIGINT"),), lambda it: calculated(word, it, number)
        )

    def _text(self, column: Phrase) -> Phrase:
        which = self.chance.randrange(4)
        if which == 0:
            return Phrase(("upper(", *column.pieces, ")"), _on(column.meaning, str.upper))
        if which == 1:
            return Phrase(("substr(", *column.pieces, ", 1, 2)"), _on(column.meaning, lambda text: text[:2]))
        if which == 2:
            return self._strict(column, "||", (Constant("!", "TEXT"),), lambda text: text + "!")
        return Phrase(
            ("replace(", *column.pieces, ", '!', '')"), _on(column.meaning, lambda it: it.replace("!", ""))
        )

    @staticmethod
    def _strict(
        column: Phrase, word: str, operand: Sequence[str | Constant], combine: Callable[[Any], Any]
    ) -> Phrase:
        return Phrase((*column.pieces, f" {word} ", *operand), _on(column.meaning, combine))


def compare(word: str, left: Any, right: Any) -> bool | None:
    """Return what a comparison says; NULL equals nothing."""
    if left is None or right is None:
        return None
    order: int = (left > right) - (left < right)
    truths = {"=": order == 0, "<>": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0}
    return truths.get(word, order >= 0)


def calculated(word: str, left: int, right: int) -> int:
    """Return what integer arithmetic says; raise `Undefined` where it says nothing."""
    if word in "/%" and right == 0:
        raise Undefined
    quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1) if word in "/%" else 0
    values = {"+": left + right, "-": left - right, "*": left * right, "/": quotient}
    return fitting(values.get(word, left - quotient * right))


def fitting(number: int) -> int:
    """Return a number that a BIGINT holds; raise `Undefined` for another."""
    if not -(1 << 63) <= number < 1 << 63:
        raise Undefined
    return number


def _on(meaning: Meaning, change: Callable[[Any], Any]) -> Meaning:
    def run(row: Cells) -> Any:
        value = meaning(row)
        return None if value is None else change(value)

    return run


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _junction(values: Sequence[bool | None], decisive: bool) -> bool | None:
    if decisive in values:
        return decisive
    return None if None in values else not decisive
