"""Spellings: what is SQL everywhere and the query engine reads in other words only.

Law: the text means the same. `TIME '…'` has microseconds, as columns have; a character that LIKE names as its
ESCAPE stands where the engine takes a backslash; SELECT DISTINCT is ordered by the number of an expression in
its list; the column of a series in FROM has the name of the series.
"""

from collections.abc import Iterator

from upwell.engine.source import TABLE_FUNCTIONS
from upwell.sql.lex import string_value
from upwell.sql.query import SETS, Edit, Query
from upwell.sql.source import sources

_DIRECTIONS = frozenset({"ASC", "DESC", "NULLS"})
_SERIES = [[name] for name in TABLE_FUNCTIONS]


def with_own_spellings(query: Query) -> Query:
    """Return the query with times and escapes as the engine reads them."""
    edits: list[Edit] = []
    for at, token in enumerate(query.tokens):
        following = query.at(at + 1)
        if following.kind != "string":
            continue
        if token.word == "TIME" and query.word(at - 1) not in (".", "AS"):
            edits.append((token.start, following.end, f"arrow_cast({following.text}, 'Time64(µs)')"))
        elif token.word == "ESCAPE":
            pattern = _escaped(query, at)
            if pattern is not None:
                edits.append((query.at(at - 1).start, following.end, pattern))
    return query.edited(edits)


def _escaped(query: Query, escape: int) -> str | None:
    """Return the pattern in front of ESCAPE with backslashes for its character; None: the engine decides."""
    pattern, character = query.at(escape - 1), string_value(query.at(escape + 1))
    if pattern.kind != "string" or query.word(escape - 2) not in ("LIKE", "ILIKE") or len(character) != 1:
        return None
    written: list[str] = []
    characters = iter(string_value(pattern))
    for each in characters:
        if each == character:
            following = next(characters, None)
            if following is None:
                return None
            written.append("\\" + following if following in "%_\\" else following)
        else:
            written.append("\\\\" if each == "\\" else each)
    return "'" + "".join(written).replace("'", "''") + "'"


def with_ordered_distinct(query: Query) -> Query:
    """Return the query with expressions of a DISTINCT list by their numbers in its ORDER BY."""
    edits: list[Edit] = []
    for select in query.selects:
        if query.word(select + 1) != "DISTINCT" or query.word(select + 2) == "ON":
            continue
        items = query.items(select)
        listed = [query.words(item.begin, item.expression_end) for item in items]
        if any(item.is_all for item in items):
            continue
        for begin, end in _order(query, select):
            said = query.words(begin, end)
            if len(said) > 1 and said in listed:
                number = listed.index(said) + 1
                edits.append((query.at(begin).start, query.at(end - 1).end, str(number)))
    return query.edited(edits)


def _order(query: Query, select: int) -> Iterator[tuple[int, int]]:
    """Yield where the expressions are by which the query of a SELECT is ordered, without their directions."""
    for at in query.outside(select):
        if query.word(at) in SETS:
            return
        if query.word(at) == "ORDER" and query.word(at + 1) == "BY":
            for item in query.items(at + 1):
                places = range(item.begin, item.end)
                yield item.begin, next((each for each in places if query.word(each) in _DIRECTIONS), item.end)
            return


def with_named_series(query: Query) -> Query:
    """Return the query with `generate_series(…) AS n` in a FROM as `generate_series(…) AS n(n)`."""
    edits: list[Edit] = []
    for source in (source for select in query.selects for source in sources(query, select, with_joined=True)):
        if not source.is_call or [part.name for part in source.path] not in _SERIES or source.columns:
            continue
        name = source.alias or source.path[0]
        given = f"({name.text})" if source.alias else f" AS {name.text}({name.text})"
        end = (source.alias or query.at(query.closings.get(source.begin + 1, source.begin))).end
        edits.append((end, end, given))
    return query.edited(edits)
