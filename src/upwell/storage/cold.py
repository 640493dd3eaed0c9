"""The cold tier for readers: one partition as one manifest has it.

Law: what is found and scanned is exactly the newest version per key of the segments that the manifest
names, without the `_seq`s that its hidden sets name; tombstones are versions too. A missing or damaged
file is `ColdFileMissing`, never fewer rows; but a key filter and a hidden set follow from the segments,
and are made of them again.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from heapq import merge
from pathlib import Path

from upwell.errors import ColdFileMissing, StorageFailed
from upwell.logs import fields
from upwell.storage.files import Linked, PartitionFiles, Whole
from upwell.storage.groups import GroupCache
from upwell.storage.hot import Version
from upwell.storage.key_filter import KeyFilter
from upwell.storage.manifest import Manifest, Segment, is_lost, load_hidden, load_manifest, remove_copy
from upwell.storage.place import Partition, Place
from upwell.storage.segments import SegmentReader, load_keys
from upwell.storage.storages import Storages
from upwell.types import Column, Key, Owner, TableId

log = logging.getLogger("upwell.cold")

MANIFESTS_OPEN_MAX = 3
"""So many manifests of a partition are kept open: the newest, and those of readers who began before."""


class ColdPartition:
    """A partition at one manifest, in the shape of `columns`. Immutable to its users; thread-safe.

    Segments and filters are opened when they are first needed, hidden sets at once.
    """

    def __init__(
        self,
        files: PartitionFiles,
        manifest: Manifest,
        columns: Sequence[Column],
        *,
        schema: int,
        groups: GroupCache,
    ) -> None:
        self.files = files
        self.manifest = manifest
        self.columns = columns
        self.schema = schema
        self.hidden = frozenset(load_superseded(files, manifest, columns))
        self.visible_count = None if self.hidden else self.row_count_max
        """How many live rows aren't hidden; None until somebody has counted them."""
        self._groups = groups
        self._newest_first = sorted(manifest.segments, key=lambda segment: segment.max_seq, reverse=True)
        self._linked: Linked | None = None
        self._readers: dict[str, SegmentReader] = {}
        self._filters: dict[str, KeyFilter] = {}

    @property
    def row_count_max(self) -> int:
        """An upper bound of the live rows; exact if there is at most one segment and nothing is hidden."""
        return sum(segment.live_count for segment in self.manifest.segments)

    def check(self) -> None:
        """Raise `ColdFileMissing`, naming it, if a segment is missing or damaged; a stat each.

        What isn't on this machine is brought here, and what nobody has looked into yet is read.
        """
        for segment in self.manifest.segments:
            path_of(self.files, segment)

    def check_sizes(self) -> None:
        """Raise `ColdFileMissing` as `check` does, but look into no file."""
        for segment in self.manifest.segments:
            self.files.at(segment.place).whole(segment.path, segment.size_bytes, "")

    def find(self, key: Key) -> Version | None:
        """Return the key's newest version that isn't hidden, a tombstone too; None if there is none."""
        newest: Version | None = None
        for segment in self._newest_first:
            if newest is not None and segment.max_seq <= newest.seq:
                break
            if not self._filter(segment).may_contain(key):
                continue
            found = self._reader(segment).find(key)
            if found is None or found.seq in self.hidden:
                continue
            if newest is None or found.seq > newest.seq:
                newest = found
        return newest

    def is_known_absent(self, key: Key) -> bool:
        """Whether the filters already in memory exclude the key; touches no file."""
        filters = (self._filters.get(segment.path) for segment in self.manifest.segments)
        return all(known is not None and not known.may_contain(key) for known in filters)

    def scan(self, after: Key | None = None) -> Iterator[Version]:
        """Yield the newest version per key, tombstones too, in primary-key order, keys above `after`."""
        segments = [self._unhidden(segment, after) for segment in self.manifest.segments]
        if len(segments) == 1:
            return segments[0]
        return _first_per_key(merge(*segments, key=_by_key_newest_first))

    def links(self) -> Linked:
        """Return a directory with exactly the segments in force, made once per manifest number.

        For a listing table: a directory of its own, so that no file of another manifest is seen. It is made
        again if it isn't what it was, or a segment is another file now.
        """
        found = {segment.path: whole(self.files, segment) for segment in self.manifest.segments}
        linked = self._linked
        if (
            linked is None
            or linked.marks != tuple(each.mark for each in found.values())
            or not linked.is_intact()
        ):
            linked = self._linked = self.files.link_dir(self.manifest.version, found)
        return linked

    def adopt(self, other: "ColdPartition") -> None:
        """Take over what another manifest of the partition has open of the same segments."""
        if (other.schema, other.files.place) != (self.schema, self.files.place):
            return
        theirs = {segment.path: segment for segment in other.manifest.segments}
        for segment in self.manifest.segments:
            if theirs.get(segment.path) != segment:
                continue
            if (reader := other._readers.get(segment.path)) is not None:
                self._readers.setdefault(segment.path, reader)
            if (key_filter := other._filters.get(segment.path)) is not None:
                self._filters.setdefault(segment.path, key_filter)

    def forget_groups(self, others: Iterable["ColdPartition"]) -> None:
        """Let go of the row groups that are kept of segments which none of `others` has open."""
        in_use = {id(reader) for other in others for reader in list(other._readers.values())}
        for reader in list(self._readers.values()):
            if id(reader) not in in_use:
                reader.forget_groups()

    def _reader(self, segment: Segment) -> SegmentReader:
        reader = self._readers.get(segment.path)
        if reader is None:
            files = self.files.at(segment.place)
            reader = SegmentReader(
                files.path(segment.path),
                self.columns,
                schema=self.schema,
                cache=self._groups,
                ready=partial(path_of, self.files, segment),
            )
            if reader.row_count != segment.row_count:
                raise ColdFileMissing(
                    f"cold file {files.shown(segment.path)} has {reader.row_count} rows, "
                    f"not {segment.row_count}: it is damaged"
                )
            self._readers[segment.path] = reader
        return reader

    def _filter(self, segment: Segment) -> KeyFilter:
        key_filter = self._filters.get(segment.path)
        if key_filter is None:
            key_filter = load_filter(self.files, segment, self.columns)
            self._filters[segment.path] = key_filter
        return key_filter

    def _unhidden(self, segment: Segment, after: Key | None) -> Iterator[Version]:
        for version in self._reader(segment).scan(after):
            if version.seq not in self.hidden:
                yield version


class ColdCache:
    """Opened partitions, bounded in number, least recently used first out. Thread-safe.

    Of a partition the last `MANIFESTS_OPEN_MAX` manifests that were read are kept, in whatever shapes; they
    share what they have open. What falls out stays usable for whoever holds it: nothing in it needs closing.
    """

    def __init__(self, storages: Storages, *, partitions_max: int, group_bytes_max: int) -> None:
        self._storages = storages
        self._partitions_max = partitions_max
        self._groups = GroupCache(group_bytes_max)
        self._opened: OrderedDict[tuple[TableId, Owner], OrderedDict[tuple[int, int], ColdPartition]]
        self._opened = OrderedDict()
        self._lock = threading.Lock()

    def open(
        self,
        partition: Partition,
        place: Place | None,
        number: int,
        columns: Sequence[Column],
        *,
        schema: int,
    ) -> ColdPartition:
        """Return the partition at manifest `number`, which is in `place` (None: where it lies by default).

        Raises `ColdFileMissing` if it can't be read.
        """
        of, name = (partition.table_id, partition.owner), (number, schema)
        with self._lock:
            if (known := self._opened.get(of)) is not None and name in known:
                self._opened.move_to_end(of)
                known.move_to_end(name)
                return known[name]
        files = self._storages.open(partition, place)
        manifest = load_manifest(files, number)
        opened = ColdPartition(files, manifest, columns, schema=schema, groups=self._groups)
        with self._lock:
            # Another thread may have opened it meanwhile: all share the first.
            known = self._opened.setdefault(of, OrderedDict())
            for each in known.values():
                opened.adopt(each)
            opened = known.setdefault(name, opened)
            known.move_to_end(name)
            self._opened.move_to_end(of)
            if len(known) > MANIFESTS_OPEN_MAX:
                known.popitem(last=False)[1].forget_groups(known.values())
            if len(self._opened) > self._partitions_max:
                _forget_groups(self._opened.popitem(last=False)[1].values())
        return opened

    def find_open(self, partition: Partition, number: int, *, schema: int) -> ColdPartition | None:
        """Return the partition if it is open already; touches no file."""
        known = self._opened.get((partition.table_id, partition.owner))
        return None if known is None else known.get((number, schema))

    def forget_table(self, table: TableId) -> None:
        """Let go of a dropped table's partitions."""
        with self._lock:
            for of in [of for of in self._opened if of[0] == table]:
                _forget_groups(self._opened.pop(of).values())

    @property
    def group_bytes(self) -> int:
        """What the decoded row groups of all partitions take."""
        return self._groups.size_bytes

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._opened.values()))


def _forget_groups(partitions: Iterable[ColdPartition]) -> None:
    for each in partitions:
        each.forget_groups(())


def path_of(files: PartitionFiles, segment: Segment) -> Path:
    """Return where a segment can be read now; raise `ColdFileMissing` if it isn't what was written.

    `files` are those of its partition in any place.
    """
    return whole(files, segment).path


def whole(files: PartitionFiles, segment: Segment) -> Whole:
    """Return the segment's file as `path_of` does, with what tells it from others."""
    return files.at(segment.place).whole(segment.path, segment.size_bytes, segment.sha256)


def load_filter(files: PartitionFiles, segment: Segment, columns: Sequence[Column]) -> KeyFilter:
    """Return a segment's key filter; one that is lost, or another's, is made again of the segment.

    Where that can't be written now, it is made again the next time: no row depends on it.
    """
    there = files.at(segment.place)
    shown, seal = there.shown(segment.filter or segment.path), segment.seal(files.partition.owner)
    try:
        return KeyFilter.decode(segment.filter_bytes or there.read(segment.filter), seal)
    except ValueError as error:
        reason = f"{shown}: {error}"
    except ColdFileMissing as error:
        if not is_lost(error):
            raise
        reason = str(error)
    keys = [key for key, _ in load_keys(path_of(files, segment), columns, row_count=segment.row_count)]
    key_filter = KeyFilter.build(keys)
    if segment.filter:
        with suppress(OSError, StorageFailed):
            there.replace(segment.filter, key_filter.encode(seal))
    log.warning("A key filter was lost and is made again", extra=fields(file=shown, reason=reason))
    return key_filter


def load_superseded(files: PartitionFiles, manifest: Manifest, columns: Sequence[Column]) -> list[int]:
    """Return the `_seq`s that the manifest hides, sorted.

    What the segments say themselves stands in for a lost file: all but the newest `_seq` of a key are
    hidden, and a deleted one has its tombstone there as long as an older version is.
    """
    try:
        return sorted({seq for entry in manifest.hidden for seq in load_hidden(files.at(entry.place), entry)})
    except ColdFileMissing as error:
        if not is_lost(error):
            raise
        log.warning(
            "A hidden set was lost; until STORAGE COMPACT TABLE writes another the segments are asked",
            extra=fields(table=manifest.table_id, reason=str(error)),
        )
    newest: dict[Key, int] = {}
    superseded: list[int] = []
    for segment in manifest.segments:
        for key, seq in load_keys(path_of(files, segment), columns, row_count=segment.row_count):
            older = newest.get(key)
            if older is not None:
                superseded.append(min(older, seq))
            newest[key] = seq if older is None else max(older, seq)
    return sorted(superseded)


def find_orphans(
    files: PartitionFiles, manifests: Iterable[Manifest], names: Iterable[str] | None = None
) -> list[str]:
    """Return this table's files here that none of `manifests` names.

    `manifests` are the one in force and those that a View still reads; with none, all are orphans. Of the
    numbered manifest files only theirs aren't. `names` are the files here, if they are known already.
    """
    needed: set[str] = set()
    for manifest in manifests:
        needed.update(manifest.names_at(files.place))
    return sorted(set(files.names() if names is None else names) - needed)


def remove_orphans(files: PartitionFiles, orphans: Iterable[str]) -> list[str]:
    """Remove orphans and what was never published, and return the names removed.

    Never while a flush or compaction of the partition runs.
    """
    removed = list(orphans)
    for name in removed:
        files.remove(name)
    return removed + files.remove_temps()


def drop_partition(files: PartitionFiles) -> None:
    """Remove everything that a dropped table has in the directory."""
    files.drop_links(keep=())
    remove_copy(files)
    remove_orphans(files, find_orphans(files, ()))
    files.remove_empty()


def _by_key_newest_first(version: Version) -> tuple[Key, int]:
    return version.key, -version.seq


def _first_per_key(versions: Iterable[Version]) -> Iterator[Version]:
    previous: Version | None = None
    for version in versions:
        if previous is None or version.key != previous.key:
            yield version
        previous = version
