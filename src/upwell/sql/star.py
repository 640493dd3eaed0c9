"""Stars: `t.*` of a table that FROM names with its namespace, which the query engine knows by that name only,
and the stars of a query whose rows are stored.

Law: `t.*` are the columns of the table that `t.x` would be one of. What is stored by a star are the columns
that were declared, without `_seq` and `_deleted`.
"""

from collections.abc import Callable, Sequence

from upwell.engine.named_query import quoted
from upwell.errors import InvalidSql
from upwell.sql.query import Edit, Item, Query
from upwell.sql.source import Source, is_merged, sources

ColumnsOf = Callable[[str | None, str], Sequence[str] | None]
"""(namespace or None, name) → the columns that a star of it means; None: all that it has."""


def with_whole_stars(query: Query) -> Query:
    """Return the query with each `t.*` of a table in a namespace as `namespace.t.*`."""
    edits: list[Edit] = []
    for select in query.selects:
        # Of two of one name the first one counts.
        read = {each.path[1].name: each for each in reversed(sources(query, select)) if each.path[1:]}
        for at in (at for item in query.items(select) for at in query.own(item.begin, item.end)):
            table = query.at(at)
            is_star = query.words(at + 1, at + 3) == (".", "*") and query.word(at - 1) != "."
            source = read.get(table.name) if is_star and table.is_name else None
            if source is not None and source.alias is None and not source.is_call:
                edits.append((table.start, table.start, f"{source.path[0].text}."))
    return query.edited(edits)


def with_declared_stars(text: str, columns_of: ColumnsOf) -> str:
    """Return a query with each star of a table, but in EXISTS, as the columns that `columns_of` says."""
    return _with_columns(Query(text), columns_of, stars_kept=0)


def with_stars_once(text: str, columns_of: ColumnsOf) -> str:
    """Return a query with all stars of a list but the first as the columns that `columns_of` says."""
    return _with_columns(Query(text), columns_of, stars_kept=1)


def _with_columns(query: Query, columns_of: ColumnsOf, *, stars_kept: int) -> str:
    if "*" not in query.text:
        return query.text
    edits: list[Edit] = []
    queries = _with_names(query)
    for select in query.selects:
        if query.word(select - 2) == "EXISTS":
            continue
        stars = [each for each in query.items(select) if each.is_all and query.word(each.end - 1) == "*"]
        for item in stars[stars_kept:]:
            read = [(each, _columns(each, queries, columns_of)) for each in sources(query, select)]
            written = _star(query, item, read, is_merged=is_merged(query, select))
            if written is not None:
                edits.append((query.at(item.begin).start, query.at(item.end - 1).end, written))
    return query.edited(edits).text


def _columns(source: Source, queries: frozenset[str], columns_of: ColumnsOf) -> Sequence[str] | None:
    """Return the columns that a star means of a source, None if all that it has."""
    names = [part.name for part in source.path]
    is_query = not names or source.is_call or (len(names) == 1 and names[0] in queries)
    return None if is_query or source.columns else columns_of(names[-2] if names[1:] else None, names[-1])


def _star(
    query: Query, item: Item, read: Sequence[tuple[Source, Sequence[str] | None]], *, is_merged: bool
) -> str | None:
    """Return what a star stands for; None: it stays."""
    if item.end - item.begin > 1:
        wanted = [part.name for part in query.tokens[item.begin : item.end - 2 : 2]]
        found = (
            _qualified(source, columns)
            for source, columns in read
            if columns is not None and [each.name for each in source.qualifier][-len(wanted) :] == wanted
        )
        return next(found, None)
    is_told = all(columns is None for _, columns in read)
    if is_merged or any(source.is_join or not (source.qualifier or is_told) for source, _ in read):
        raise InvalidSql(
            "which columns * gives here, and in which order, can't be told from this FROM; "
            "name them in its place"
        )
    return None if is_told else ", ".join(_qualified(*each) for each in read)


def _qualified(source: Source, columns: Sequence[str] | None) -> str:
    qualifier = ".".join(part.text for part in source.qualifier)
    if columns is None:
        return f"{qualifier}.*"
    return ", ".join(f"{qualifier}.{quoted(name)}" for name in columns)


def _with_names(query: Query) -> frozenset[str]:
    """Return the names of the queries that WITH names."""
    opening_of = {closing: opening for opening, closing in query.closings.items()}
    places = (at for at, token in enumerate(query.tokens) if token.word == "AS" and query.word(at + 1) == "(")
    return frozenset(query.at(opening_of.get(at - 1, at) - 1).name for at in places)
