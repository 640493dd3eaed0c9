"""Named queries: what CREATE VIEW keeps (the word view is taken: it is the state at a seq).

Law: a named query is text and nothing else. Who reads it reads, with their own rights and rows, what it
names. It means what it meant when it was made: columns that came later, it doesn't see.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from upwell.decodable import decodable
from upwell.errors import InvalidOperation
from upwell.types import Column

LEVELS_MAX = 8
"""How deep named queries may read each other."""
_PLAIN = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

QueryName = tuple[str, str]
"""Namespace and name."""


@decodable
@dataclass(frozen=True)
class NamedQuery:
    """A query with a name. Its unqualified names are tables of namespace `home`.

    `reads` are the tables and named queries that it reads, `seen` the columns that each of them had when it
    was made, `words` all names in the text. If it `takes_all` (`*`, NATURAL), all that it sees matters.
    """

    namespace: str
    name: str
    text: str
    home: str
    columns: tuple[Column, ...]
    reads: tuple[QueryName, ...]
    seen: tuple[tuple[str, ...], ...]
    words: frozenset[str]
    takes_all: bool
    created_at_us: int = 0

    @property
    def full_name(self) -> str:
        return f"{self.namespace}.{self.name}"

    @property
    def place(self) -> QueryName:
        return self.namespace, self.name

    @property
    def selected(self) -> str:
        """The text that gives the columns by the names that they have outside."""
        names = ", ".join(quoted(column.name) for column in self.columns)
        return f"SELECT * FROM (\n{self.text}\n) AS {quoted(self.name)} ({names})"

    def seen_of(self, place: QueryName) -> tuple[str, ...]:
        """Return the columns that a table or named query had when this one was made."""
        return dict(zip(self.reads, self.seen, strict=True))[place]

    def uses(self, place: QueryName, column: str) -> bool:
        """Whether it may depend on a column of `place`, which it reads."""
        return column in self.words or (self.takes_all and column in self.seen_of(place))


def is_plain(name: str) -> bool:
    """Whether a column has a name of its own, not the text of an expression."""
    return _PLAIN.fullmatch(name) is not None


def readers(queries: Mapping[QueryName, NamedQuery], place: QueryName) -> list[NamedQuery]:
    """Return the named queries that read `place` themselves."""
    return sorted((each for each in queries.values() if place in each.reads), key=lambda q: q.full_name)


def refuse_deep(queries: Mapping[QueryName, NamedQuery]) -> None:
    """Raise if a named query reads itself, or too many others one in the other."""
    for query in queries.values():
        level, found = 0, [query]
        while found:
            level += 1
            if level > LEVELS_MAX:
                raise InvalidOperation(
                    f"view {query.full_name} would read itself, or other views more than {LEVELS_MAX} deep"
                )
            places = {place for each in found for place in each.reads}
            found = [queries[place] for place in sorted(places) if place in queries]


def quoted(name: str) -> str:
    """Return a name as the query engine reads it exactly."""
    return '"' + name.replace('"', '""') + '"'
