"""Cleanup: what is left of a dropped table is removed; nobody can name it any more.

Law: table ids are never used again, so a cleanup can be repeated and meets no living table. The commit
that drops a table notes it as dropped; the cleanup's last commit takes the note away.
"""

import time
from collections.abc import Callable

from upwell.engine.catalog import dropped_record
from upwell.engine.commit import Committer
from upwell.errors import InvalidOperation
from upwell.storage.cold import ColdCache, drop_partition
from upwell.storage.hot import Batch, Kind, RecordWrite
from upwell.storage.objects import ObjectStore, Partition
from upwell.types import Owner, TableId

READERS_POLL_S = 0.05
READERS_POLLS_MAX = 100


class Cleanup:
    """Removes rows, log, manifests and files of dropped tables."""

    def __init__(
        self,
        committer: Committer,
        objects: ObjectStore,
        cold: ColdCache,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._pause = pause
        self._committer = committer
        self._objects = objects
        self._cold = cold

    def remove_table(self, table: TableId, *, namespace: str, name: str) -> int:
        """Remove everything; returns how many cold partitions there were.

        Raises `InvalidOperation` if somebody still reads a View that has the table; try again later.
        """
        self._wait_for_readers(table)
        newest = self._committer.newest
        prefix = f"{table:010d}/"
        names = [record for record, _ in newest.scan_records(Kind.MANIFEST, prefix)]
        cold = {Owner(record.removeprefix(prefix)) for record in names}
        # A first flush that failed left files without a record: their owners still have hot rows.
        for owner in sorted(cold.union(newest.owners(table))):
            drop_partition(self._objects.open(Partition(namespace, name, table, owner)))
        newest.forget_table(table)
        self._cold.forget_table(table)
        gone = [RecordWrite(Kind.MANIFEST, each, None) for each in names]
        self._committer.apply(Batch(records=[*gone, dropped_record(table, None)]))
        return len(cold)

    def _wait_for_readers(self, table: TableId) -> None:
        for _ in range(READERS_POLLS_MAX):
            if not any(table in view.catalog.by_id for view in self._committer.publication.views()):
                return
            self._pause(READERS_POLL_S)
        raise InvalidOperation("a query still reads the dropped table")
