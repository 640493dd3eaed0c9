"""Damage: partitions that a job can't work on, since a file of theirs is lost.

Law: they stop no other partition of the table; when those are done, one error names partition and file.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from upwell.engine.catalog import Table
from upwell.errors import ColdFileMissing
from upwell.storage.manifest import is_lost
from upwell.types import Owner, owner_user


class Damage:
    """What a job met of it in one table. Used by several threads."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._found: dict[Owner, ColdFileMissing] = {}

    @contextmanager
    def noted(self, owner: Owner) -> Iterator[None]:
        """Note a lost file of the partition, and go on; what is only out of reach for now is raised."""
        try:
            yield
        except ColdFileMissing as error:
            if not is_lost(error):
                raise
            self._found[owner] = error

    def refuse(self, count: int) -> None:
        """Raise `ColdFileMissing` if any of `count` partitions was damaged."""
        for owner, error in sorted(self._found.items()):
            user = owner_user(owner)
            whose = self._table.full_name if user is None else f"{self._table.full_name} of user '{user}'"
            others = f" ({len(self._found)} of {count} partitions are damaged)" if count > 1 else ""
            raise ColdFileMissing(f"{whose}: {error.args[0]}{others}") from error
