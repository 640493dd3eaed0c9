"""Constraints: what the values of a row must satisfy, and how a foreign key is violated.

Law: a violation of a foreign key names the rows that it is about, so that an upload can try again later.
"""

from collections.abc import Sequence

from upwell.engine.catalog import Reference, Table
from upwell.engine.operation import VALUE_BYTES_MAX, size_bytes
from upwell.errors import ConstraintViolation
from upwell.types import Key, Owner, Row

ROW_BYTES_MAX = VALUE_BYTES_MAX
KEY_BYTES_MAX = 16_384
"""Of a primary key: it stands in cursors, which have to fit into a request line."""
Place = tuple[int, Owner, Key]
"""A row by its table's id, its owner and its key."""


class ParentMissing(ConstraintViolation):
    """Foreign keys point at no live row: `missing` as `namespace.table:value`, `places` where they look."""

    def __init__(self, table: Table, reference: Reference, missing: Sequence[tuple[str, Place]]) -> None:
        columns = ", ".join(table.columns[index].name for index in reference.columns)
        with_values = " with the values of the other columns" if reference.others else ""
        super().__init__(
            f"foreign key '{columns}' of {table.full_name} refers to {missing[0][0]}, which does not "
            f"exist{with_values}; insert the parent first"
        )
        self.missing = [name for name, _ in missing]
        self.places = [place for _, place in missing]


class ChildrenLeft(ConstraintViolation):
    """A parent row can't be deleted while the rows of `child` at `places` refer to it.

    With `columns` it can't be changed in those: they refer to its old values.
    """

    def __init__(
        self, parent: Table, key: str, child: Table, places: Sequence[Place], columns: Sequence[int] = ()
    ) -> None:
        names = ", ".join(parent.columns[index].name for index in columns)
        what = f"the values ({names}) of row '{key}'" if columns else f"row '{key}'"
        verb, to_do = ("are", "change") if columns else ("is", "delete")
        super().__init__(
            f"{what} of {parent.full_name} {verb} still referenced by {child.full_name}; "
            f"{to_do} those rows first"
        )
        self.places = places


def check_values(table: Table, row: Row) -> None:
    """Raise `ConstraintViolation` for a NULL where none may be, and for a row or key that is too large."""
    for index in table.required:
        if row[index] is None:
            raise ConstraintViolation(
                f"NOT NULL constraint violation: column '{table.columns[index].name}' cannot be NULL"
            )
    key = row[table.key_index]
    if isinstance(key, (str, bytes)) and len(key) * 4 > KEY_BYTES_MAX and _key_bytes(key) > KEY_BYTES_MAX:
        raise ConstraintViolation(
            f"a key of {table.full_name} can have at most {KEY_BYTES_MAX} bytes, got {_key_bytes(key)}"
        )
    if (size := size_bytes(row)) > ROW_BYTES_MAX:
        raise ConstraintViolation(
            f"a row of {table.full_name} can hold at most {ROW_BYTES_MAX} bytes of values, got {size}"
        )


def _key_bytes(key: str | bytes) -> int:
    return len(key.encode()) if isinstance(key, str) else len(key)
