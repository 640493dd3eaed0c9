"""References: which rows point at a row.

Law: the answer is that of one View; whoever relies on it has the commit check that the child's
partition didn't change since.
"""

from collections.abc import Iterable, Sequence

from upwell.engine.catalog import Reference, Table
from upwell.engine.query import QueryEngine
from upwell.engine.source import Source
from upwell.engine.view import View
from upwell.errors import TableNotFound
from upwell.storage.arrow import cells
from upwell.types import Key, Owner, SqlType

_AS_ARROW = {
    SqlType.TIMESTAMP: "arrow_cast({}, 'Timestamp(Microsecond, None)')",
    SqlType.DATETIME: "arrow_cast({}, 'Timestamp(Microsecond, Some(\"UTC\"))')",
    SqlType.TIME: "arrow_cast({}, 'Time64(Microsecond)')",
    SqlType.DATE: "arrow_cast(arrow_cast({}, 'Int32'), 'Date32')",
}


class Children:
    """Finds live children in one View. Keys that are known in advance are looked up together."""

    def __init__(self, query: QueryEngine, view: View, foreseen: dict[int, list[Key]] | None = None) -> None:
        self._query = query
        self._view = view
        self._foreseen = foreseen or {}
        self._known: dict[tuple[int, Reference, Owner], dict[Key, list[Key]]] = {}
        self._asked: dict[tuple[int, Reference, Owner], set[Key]] = {}

    def __call__(
        self, child: Table, owner: Owner, reference: Reference, keys: Sequence[Key]
    ) -> Iterable[tuple[Key, Key]]:
        """Yield (parent key, child key) of the live rows of `child` that refer to one of `keys`."""
        place = (child.id, reference, owner)
        asked = self._asked.setdefault(place, set())
        if not asked.issuperset(keys):
            wanted = {*keys, *self._foreseen.get(reference.parent, ())} - asked
            known = self._known.setdefault(place, {})
            for parent_key, child_key in self._look_up(child, owner, reference, wanted):
                known.setdefault(parent_key, []).append(child_key)
            asked |= wanted
        known = self._known[place]
        return [(key, child_key) for key in keys for child_key in known.get(key, ())]

    def _look_up(
        self, child: Table, owner: Owner, reference: Reference, keys: Iterable[Key]
    ) -> Iterable[tuple[Key, Key]]:
        column, key_column = child.columns[reference.column], child.columns[child.key_index]
        text = (
            f'SELECT "{column.name}", "{key_column.name}" AS child_key '
            f'FROM "{child.namespace}"."{child.name}" '
            f'WHERE "{column.name}" IN ({", ".join(_literal(key, column.type) for key in keys)})'
            # With a NULL among its columns a reference refers to nothing.
            + "".join(f' AND "{child.columns[other].name}" IS NOT NULL' for other, _ in reference.others)
        )
        name = (child.namespace, child.name)

        def resolve(namespace: str, table: str) -> Source:
            if (namespace, table) != name:
                raise TableNotFound(f"{namespace}.{table}")
            return Source(child, owner)

        found = self._query.run(self._view, text, child.namespace, [name], resolve)
        pairs = zip(cells(found[0], column.type), cells(found[1], key_column.type), strict=True)
        return [(parent, key) for parent, key in pairs if parent is not None and key is not None]


def _literal(key: Key, sql_type: SqlType) -> str:
    as_arrow = _AS_ARROW.get(sql_type)
    if as_arrow is not None:
        return as_arrow.format(key)
    match key:
        case bool() | int() | float():
            return repr(key)
        case bytes():
            return f"X'{key.hex()}'"
        case str():
            return "'" + key.replace("'", "''") + "'"
