"""Following: what a live query watches after its table was altered.

Law: the columns that were chosen stay chosen, wherever the table has them by now. A query whose columns are
gone, or whose filter means another column or type, can't go on: it ends, and says why.
"""

from collections.abc import Callable
from dataclasses import replace

from upwell.engine.catalog import Table
from upwell.engine.expression import columns_read, moved
from upwell.errors import InvalidOperation
from upwell.feeds.delta import Projection
from upwell.feeds.match import Watch

MakeProjection = Callable[[Table, tuple[tuple[int, str], ...] | None], Projection]


def follow(watch: Watch, table: Table, projection: MakeProjection) -> Watch:
    """Return the watch on the newer `table`; raise `InvalidOperation` if it has become another question."""
    places = {column.id: index for index, column in enumerate(table.columns)}
    now = {index: places.get(column.id) for index, column in enumerate(watch.table.columns)}
    columns = watch.projection.columns
    if columns is not None:
        columns = tuple((_place(now, watch.table, index), name) for index, name in columns)
    predicate = watch.predicate
    if predicate is not None:
        for index in sorted(columns_read(predicate)):
            _check_filter(watch.table, table, index, _place(now, watch.table, index))
        predicate = moved(predicate, lambda index: _place(now, watch.table, index))
    condition = watch.condition
    if condition is not None:
        for index in sorted(condition.columns):
            _check_filter(watch.table, table, index, _place(now, watch.table, index))
        condition = condition.on(table)
    return replace(
        watch,
        table=table,
        projection=projection(table, columns),
        predicate=predicate,
        condition=condition,
    )


def _place(now: dict[int, int | None], before: Table, index: int) -> int:
    place = now.get(index, index)  # `_seq` and `_deleted` stay where they are
    if place is None:
        raise InvalidOperation(
            f"column '{before.columns[index].name}' of {before.full_name} was dropped; subscribe without it"
        )
    return place


def _check_filter(before: Table, table: Table, index: int, place: int) -> None:
    if index < 0:
        return
    old, new = before.columns[index], table.columns[place]
    if (old.name, old.type) != (new.name, new.type):
        raise InvalidOperation(
            f"column '{old.name}' of {before.full_name} was altered, and it is filtered by; subscribe anew"
        )
