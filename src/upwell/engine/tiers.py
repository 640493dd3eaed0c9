"""Tiers in a plan: what EXPLAIN says of the hot and the cold part of each table, before any predicate.

Law: the numbers are those of the View that the query ran on. What a predicate pruned is in the plan itself.
"""

from collections.abc import Sequence

import pyarrow as pa

from upwell.engine.query import QueryEngine
from upwell.engine.source import AnySource, Source
from upwell.engine.view import View


def with_tiers(plan: pa.Table, query: QueryEngine, view: View, sources: Sequence[AnySource]) -> pa.Table:
    """Return an explained plan with one more row: a line for each table that one owner's rows are read of."""
    lines = [_line(query, view, source) for source in sources if isinstance(source, Source)]
    if not lines:
        return plan
    row = pa.table({"plan_type": ["tiers"], "plan": ["\n".join(lines)]})
    return pa.concat_tables([plan, row.cast(plan.schema)])


def _line(query: QueryEngine, view: View, source: Source) -> str:
    hot, cold = query.parts_of(view, source)
    told = f"{source.table.full_name}: hot {hot.count} row(s)"
    if cold is None:
        return f"{told}, cold nothing"
    rows = sum(segment.row_count for segment in cold.manifest.segments)
    return (
        f"{told}, cold {rows} row(s) in {len(cold.manifest.segments)} segment(s) of manifest "
        f"{cold.manifest.version}, {len(cold.hidden) + len(hot.superseded)} of them superseded"
    )
