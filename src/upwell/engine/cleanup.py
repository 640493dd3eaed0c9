"""Cleanup: what is left of a dropped table is removed; nobody can name it any more.

Law: table ids are never used again, so a cleanup can be repeated and meets no living table. The commit
that drops a table notes it as dropped; the cleanup's last commit takes the note away. Nothing is removed
before that first commit is on the disk. A table that was made again under the name keeps the directories that
it has begun to use.
"""

import gc
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from upwell.effects import NoPoints, Points
from upwell.engine.catalog import Table, dropped_record, find_dropped
from upwell.engine.commit import Committer
from upwell.engine.in_force import decode_manifest_record, spare_name
from upwell.engine.names import resume_prefix
from upwell.engine.partition import PartitionWriter
from upwell.engine.rows import target_of
from upwell.errors import InvalidOperation
from upwell.storage.cold import ColdCache, drop_partition
from upwell.storage.hot import Batch, Kind, RecordWrite
from upwell.storage.place import Partition, Place
from upwell.storage.storages import Storages
from upwell.types import SHARED, Owner, TableId

READERS_POLL_S = 0.05
READERS_POLLS_MAX = 100
GARBAGE_POLLS = 20
"""After how many polls it is made sure that what still has a View isn't garbage."""


class Cleanup:
    """Removes rows, log, manifests and files of dropped tables."""

    def __init__(
        self,
        committer: Committer,
        storages: Storages,
        partitions: PartitionWriter,
        cold: ColdCache,
        pause: Callable[[float], object] = time.sleep,
        points: Points | None = None,
    ) -> None:
        self._points = points or NoPoints()
        self._pause = pause
        self._committer = committer
        self._storages = storages
        self._partitions = partitions
        self._cold = cold

    def remove_table(self, table: TableId, *, namespace: str, name: str) -> int:
        """Remove everything; returns how many cold partitions there were.

        Raises `InvalidOperation` if somebody still reads a View that has the table; try again later.
        """
        self._wait_for_readers(table)
        self._committer.settle_on_disk()
        self._points.reach("cleanup:begin")
        newest = self._committer.newest
        prefix = f"{table:010d}/"
        records = dict(newest.scan_records(Kind.MANIFEST, prefix))
        cold = {Owner(record.removeprefix(prefix)): decode_manifest_record(value).places
                for record, value in records.items()}  # fmt: skip
        remains = find_dropped(newest, table)
        # A first flush that failed left files without a record: their owners still have hot rows.
        for owner in sorted(cold.keys() | set(newest.owners(table))):
            partition = Partition(namespace, name, table, owner)
            # The directory of a user is inside of that of a SHARED table which has the name by now.
            with (
                self._partitions.held(partition.full_name, SHARED) if owner != SHARED else nullcontext(),
                self._partitions.held(partition.full_name, owner),
            ):
                for place in self._places(partition, cold.get(owner, ()), remains):
                    drop_partition(self._storages.open(partition, place))
            self._points.reach("cleanup:partition-removed")
        newest.forget_table(table)
        self._cold.forget_table(table)
        self._points.reach("cleanup:rows-removed")
        resumes = newest.scan_records(Kind.META, resume_prefix(table))
        gone = [RecordWrite(Kind.MANIFEST, each, None) for each in records]
        gone += [RecordWrite(Kind.META, spare_name(each), None) for each in records]
        gone += [RecordWrite(Kind.META, each, None) for each, _ in resumes]
        self._committer.apply(Batch(records=[*gone, dropped_record(table, None)]))
        return len(cold)

    def _places(
        self, partition: Partition, known: tuple[Place, ...], remains: Table | None
    ) -> Iterable[Place]:
        """Return where files may be: the known places, and where a flush that failed has begun to write."""
        begun = [target_of(self._committer.newest_catalog, remains, partition.owner)] if remains else []
        return dict.fromkeys((*(known or (partition.home,)), *begun))

    def _wait_for_readers(self, table: TableId) -> None:
        for poll in range(READERS_POLLS_MAX):
            if not any(table in view.catalog.by_id for view in self._committer.publication.views()):
                return
            if poll == GARBAGE_POLLS:
                # An error and the frames that it came through hold each other, and the View of a statement
                # that failed; on an idle server nothing else would find out that nobody needs them.
                gc.collect()
            self._pause(READERS_POLL_S)
        raise InvalidOperation("a query still reads the dropped table")
