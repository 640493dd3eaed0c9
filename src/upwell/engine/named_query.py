"""Named queries: what CREATE VIEW keeps (the word view is taken: it is the state at a seq).

Law: a named query is text and nothing else. Who reads it reads, with their own rights and rows, what it
names; its columns are those that it had when it was made.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from upwell.errors import InvalidOperation
from upwell.types import Column

LEVELS_MAX = 8
"""How deep named queries may read each other."""
_PLAIN = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

QueryName = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True)
class NamedQuery:
    """A query with a name. Its unqualified names are tables of namespace `home`.

    `columns` are those that it has outside, `inner` their names in its text; `reads` are the tables and
    named queries that it reads, `words` all names in the text.
    """

    namespace: str
    name: str
    text: str
    home: str
    columns: tuple[Column, ...]
    inner: tuple[str, ...]
    reads: tuple[QueryName, ...]
    words: frozenset[str] = frozenset()
    created_at_us: int = 0

    @property
    def full_name(self) -> str:
        return f"{self.namespace}.{self.name}"

    @property
    def place(self) -> QueryName:
        return self.namespace, self.name

    @property
    def selected(self) -> str:
        """The text that gives exactly `columns`, also when `*` in it means more by now."""
        outer = ", ".join(_quoted(column.name) for column in self.columns)
        if not all(map(is_plain, self.inner)):
            return f"SELECT * FROM (\n{self.text}\n) AS {_quoted(self.name)} ({outer})"
        pairs = zip(self.inner, self.columns, strict=True)
        chosen = ", ".join(f"{_quoted(inner)} AS {_quoted(column.name)}" for inner, column in pairs)
        return f"SELECT {chosen} FROM (\n{self.text}\n) AS {_quoted(self.name)}"

    def uses(self, column: str) -> bool:
        """Whether it may name a column of what it reads."""
        return column in self.words or column in self.inner


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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
