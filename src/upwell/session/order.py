"""Order of results without ORDER BY: by primary key, up to 100,000 rows.

Law: the same query gives the same rows in the same order wherever the rows lie. Both tiers keep rows by
key, but their union doesn't, so a query of one table is put in order here.
"""

from collections.abc import Callable, Sequence

import pyarrow as pa

from upwell.engine.query import Source
from upwell.engine.result import result_columns
from upwell.sql.lex import tokenize

ORDERED_ROWS_MAX = 100_000
_NOT_PLAIN = frozenset(
    {"GROUP", "HAVING", "DISTINCT", "UNION", "INTERSECT", "EXCEPT", "JOIN", "WITH", "OVER", "EXPLAIN"}
)


def ordered(
    text: str,
    sources: Sequence["Source | pa.Table"],
    run: Callable[[str], pa.Table],
    *,
    is_split: Callable[[Source], bool],
) -> pa.Table:
    """Run the query; without ORDER BY and over one table, in primary-key order.

    `is_split` tells whether a source's rows lie in both tiers; a plain scan of one keeps its order.
    """
    source = sources[0] if len(sources) == 1 else None
    words = {token.word for token in tokenize(text)}
    if not isinstance(source, Source) or "ORDER" in words:
        return run(text)
    if not is_split(source) and not words & _NOT_PLAIN:
        return run(text)
    if "LIMIT" in words or "OFFSET" in words:
        return run(_before_limit(text, source) or text)
    return _by_key(run(text))


def _by_key(table: pa.Table) -> pa.Table:
    keys = [index for index, column in enumerate(result_columns(table.schema)) if "pk" in column.flags]
    if len(keys) != 1 or not 1 < table.num_rows <= ORDERED_ROWS_MAX:
        return table
    # Names may repeat in a result: sort by position.
    order = pa.compute.array_sort_indices(table.column(keys[0]).combine_chunks())
    return table.take(order)


def _before_limit(text: str, source: Source) -> str | None:
    """Put ORDER BY in front of a plain query's LIMIT; None if the query isn't plain."""
    tokens = tokenize(text)
    depth = 0
    for token in tokens:
        if token.word in _NOT_PLAIN:
            return None
        if token.word == "FROM" and depth == 0:
            break
        if token.word in ("(", "SELECT") and token is not tokens[0]:
            return None  # an expression that may be an aggregate
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token.word, 0)
        if depth == 0 and token.word in ("LIMIT", "OFFSET"):
            key = source.table.columns[source.table.key_index].name
            return f'{text[: token.start]} ORDER BY "{key}" {text[token.start :]}'
    return None
