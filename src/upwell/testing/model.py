"""A model of a table: what SQL says its rows are, in a few dictionaries.

Law: a statement that fails changes nothing; no owner sees or touches another owner's rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

Row = dict[str, object]
Key = tuple[object, ...]
Where = Callable[[Row], bool] | Mapping[str, object] | None


class ModelError(Exception):
    """SQL refuses this statement."""


class DuplicateKey(ModelError):
    """A row with this primary key exists."""


class NullKey(ModelError):
    """A primary key column has no value."""


class TableModel:
    """Rows by owner and primary key. The owner is a user's name, or None for a shared table.

    `where` is a predicate on rows, a mapping of columns to the values that they must equal (NULL equals
    nothing), or None for all rows.
    """

    def __init__(self, pk: str | Sequence[str], columns: Iterable[str] = ()) -> None:
        self.pk: tuple[str, ...] = (pk,) if isinstance(pk, str) else tuple(pk)
        self.columns = tuple(columns)
        self._rows: dict[str | None, dict[Key, Row]] = {}

    def insert(self, owner: str | None, *rows: Mapping[str, object]) -> int:
        """Add all rows or none; columns not given are NULL. Raise `DuplicateKey` or `NullKey`."""
        after = dict(self._rows.get(owner, {}))
        for row in rows:
            self._add(after, dict.fromkeys(self.columns) | dict(row))
        self._rows[owner] = after
        return len(rows)

    def update(
        self,
        owner: str | None,
        values: Mapping[str, object] | Callable[[Row], Mapping[str, object]],
        where: Where = None,
    ) -> int:
        """Set `values`, which may be computed from the old row; return how many rows matched."""
        before = self._rows.get(owner, {})
        matched = {key: row for key, row in before.items() if _matches(row, where)}
        after = {key: row for key, row in before.items() if key not in matched}
        for row in matched.values():
            self._add(after, row | dict(values(dict(row)) if callable(values) else values))
        self._rows[owner] = after
        return len(matched)

    def delete(self, owner: str | None, where: Where = None) -> int:
        """Remove the rows that match; return how many."""
        before = self._rows.get(owner, {})
        self._rows[owner] = {key: row for key, row in before.items() if not _matches(row, where)}
        return len(before) - len(self._rows[owner])

    def rows(self, owner: str | None, where: Where = None) -> list[Row]:
        """Return copies of the rows that match, in primary-key order."""
        rows = self._rows.get(owner, {})
        return [dict(rows[key]) for key in sorted(rows) if _matches(rows[key], where)]

    def find_row(self, owner: str | None, *key: object) -> Row | None:
        row = self._rows.get(owner, {}).get(key)
        return None if row is None else dict(row)

    def count(self, owner: str | None, where: Where = None) -> int:
        return sum(_matches(row, where) for row in self._rows.get(owner, {}).values())

    def owners(self) -> list[str | None]:
        """Return the owners that have rows, the shared one first."""
        owners = [owner for owner, rows in self._rows.items() if rows]
        return sorted(owners, key=lambda owner: (owner is not None, owner or ""))

    def copy(self) -> "TableModel":
        """Return a model with the same rows, independent from here on: the state a rollback goes back to."""
        twin = TableModel(self.pk, self.columns)
        twin._rows = {owner: dict(rows) for owner, rows in self._rows.items()}
        return twin

    def _add(self, rows: dict[Key, Row], row: Row) -> None:
        key = tuple(row.get(column) for column in self.pk)
        if None in key:
            raise NullKey(f"a primary key column of {row!r} is NULL")
        if key in rows:
            raise DuplicateKey(f"a row with primary key {key!r} exists")
        rows[key] = row


def _matches(row: Row, where: Where) -> bool:
    if where is None:
        return True
    if callable(where):
        return where(dict(row))
    return all(value is not None and row.get(column) == value for column, value in where.items())
