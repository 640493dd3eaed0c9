"""What subscriptions share: projections and conditions, so that each is encoded, and asked for, once.

Law: there is one of each version of a table and text, for as long as somebody follows it.
"""

from weakref import WeakValueDictionary

from upwell.engine.catalog import Table
from upwell.engine.condition import Condition
from upwell.engine.query import QueryEngine
from upwell.feeds.delta import Projection


class Sharing:
    """The projections and conditions of one event loop's subscriptions."""

    def __init__(self, query: QueryEngine) -> None:
        self._query = query
        self._projections: WeakValueDictionary[
            tuple[int, int, tuple[tuple[int, str], ...] | None], Projection
        ] = WeakValueDictionary()
        self._conditions: WeakValueDictionary[tuple[int, int, str], Condition] = WeakValueDictionary()

    def projection(self, table: Table, columns: tuple[tuple[int, str], ...] | None) -> Projection:
        """Return the one projection of these columns, so that encoded changes are shared."""
        place = (table.id, table.version, columns)
        found = self._projections.get(place)
        if found is None:
            found = self._projections[place] = Projection.of(table, columns)
        return found

    def condition(self, table: Table, where: str, names: frozenset[str]) -> Condition:
        """Return the one condition of this text, which reads the columns `names`."""
        place = (table.id, table.version, where)
        found = self._conditions.get(place)
        if found is None:
            found = self._conditions[place] = Condition(self._query, table, where, names)
        return found
