"""Order of results without ORDER BY: by primary key, up to 100,000 rows.

Law: the same query gives the same rows in the same order wherever the rows lie. Cold rows don't come by
key, and hot ones only as long as they were written so: a query of one table with such rows gets the
ORDER BY that it hasn't.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute

from upwell.engine.result import result_columns
from upwell.engine.source import AnySource, Derived, Source
from upwell.errors import QueryFailure
from upwell.sql.lex import END, Token
from upwell.sql.query import Query

ORDERED_ROWS_MAX = 100_000
# What forms rows anew: there the key of a table can't be asked for any more.
_FORMING = frozenset(
    {"GROUP", "HAVING", "DISTINCT", "UNION", "INTERSECT", "EXCEPT", "JOIN", "WITH", "OVER", "EXPLAIN"}
)
_AGGREGATES = frozenset({"COUNT", "SUM", "AVG", "MIN", "MAX"})
_LIMITING = frozenset({"LIMIT", "OFFSET", "FETCH"})
_KINDS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_CLAUSES = _LIMITING | {"WHERE"}

Run = Callable[[str], pa.Table]


def ordered(
    text: str,
    sources: Sequence[AnySource],
    run: Run,
    *,
    rows_unordered: Callable[[Source], int],
) -> pa.Table:
    """Run the query; without ORDER BY and over one table, in primary-key order.

    `rows_unordered` tells how many rows a source has, 0 if they come by key by themselves.
    """
    source = sources[0] if len(sources) == 1 else None
    tokens = Query(text).tokens
    words = {token.word for token in tokens}
    if not isinstance(source, (Source, Derived)) or "ORDER" in words:
        return run(text)
    if isinstance(source, Derived):
        return run(text) if "order" in source.query.words else _by_key(run(text))
    if words & _FORMING:
        return _by_key(run(text))
    unordered = rows_unordered(source)
    if unordered == 0 or (unordered > ORDERED_ROWS_MAX and words.isdisjoint(_CLAUSES)):
        return run(text)
    with_order = _with_order(text, tokens, source)
    if with_order is None:
        return _by_key(run(text))
    try:
        return run(with_order)
    except QueryFailure:
        # An aggregate that we don't know by name, or a failure that the query has of its own.
        return run(text)


def text_in_order(
    text: str,
    sources: Sequence[AnySource],
    *,
    rows_unordered: Callable[[Source], int],
) -> str:
    """Return the text of a query whose rows come by primary key where that can be said in the text."""
    source = sources[0] if len(sources) == 1 else None
    tokens = Query(text).tokens
    words = {token.word for token in tokens}
    if not isinstance(source, Source) or "ORDER" in words or words & _FORMING:
        return text
    unordered = rows_unordered(source)
    if unordered == 0 or (unordered > ORDERED_ROWS_MAX and words.isdisjoint(_CLAUSES)):
        return text
    return _with_order(text, tokens, source) or text


def _by_key(table: pa.Table) -> pa.Table:
    keys = [index for index, column in enumerate(result_columns(table.schema)) if "pk" in column.flags]
    if len(keys) != 1 or not 1 < table.num_rows <= ORDERED_ROWS_MAX:
        return table
    # Names may repeat in a result: sort by position.
    order = pa.compute.array_sort_indices(_common(table.column(keys[0])).combine_chunks())
    return pa.table([_common(column).take(order) for column in table.columns], schema=_schema(table))


def _common(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column in a form that PyArrow can take rows from: it can't from views of texts."""
    return column.cast(_KINDS.get(column.type, column.type))


def _schema(table: pa.Table) -> pa.Schema:
    return pa.schema([field.with_type(_KINDS.get(field.type, field.type)) for field in table.schema])


def _with_order(text: str, tokens: Sequence[Token], source: Source) -> str | None:
    """Return a plain query (SELECT … FROM table [alias] …) with ORDER BY its key, None for any other."""
    outer = _outer(tokens)
    at = next((index for index, token in enumerate(outer) if token.word == "FROM"), None)
    if at is None or _aggregates(tokens, before=outer[at]):
        return None
    name = _name_in_query(outer[at + 1 :])
    if name is None:
        return None
    end = next((token.start for token in outer[at:] if token.word in _LIMITING), tokens[-1].end)
    table = source.table
    key = table.columns[table.key_index].name if table.has_key else "_seq"
    # A line break: the text may end in a comment.
    return f'{text[:end]}\nORDER BY {name}."{key}" {text[end:]}'


def _outer(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens outside parentheses, and the opening ones."""
    outer: list[Token] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            outer.append(token)
        depth += (token.word in ("(", "[")) - (token.word in (")", "]"))
    return outer


def _aggregates(tokens: Sequence[Token], *, before: Token) -> bool:
    return any(
        token.word in _AGGREGATES and after.word == "("
        for token, after in pairwise(tokens)
        if token.start < before.start
    )


def _name_in_query(tokens: Sequence[Token]) -> str | None:
    """Return the name that the query gives its table; None if what follows FROM is more than a table."""
    rest = [*tokens, END]
    name = None
    while rest[0].kind in ("word", "quoted"):
        name = rest.pop(0)
        if rest[0].word != ".":
            break
        rest.pop(0)
    if rest[0].word == "AS":
        rest.pop(0)
    if rest[0].kind in ("word", "quoted") and rest[0].word not in _CLAUSES:
        name = rest.pop(0)
    ended = rest[0] is END or rest[0].word in _CLAUSES
    return name.text if name is not None and ended else None
