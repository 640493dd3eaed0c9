"""The stage: the newest versions that an evaluation looked up, and the row writes that it staged on them.

Law: each version is looked up once, and the commit is asked to hold exactly what was seen. Of one key
there is one write, whatever was done to it in which order: what the row was before → what it is after.
"""

from collections.abc import Iterator, Sequence

import msgspec

from upwell.engine.catalog import Catalog, Table
from upwell.engine.precedence import ordered
from upwell.engine.rows import Found, Rows
from upwell.engine.stop import Stop
from upwell.engine.violation import Place
from upwell.storage.hot import NO_SEQ, Batch, Expectation, HotReader, RecordWrite, RowWrite, Version
from upwell.types import Key, Op, Owner, Row


class Origin(msgspec.Struct, frozen=True):
    """The device's change behind a write: its source, change id and the payload text to keep."""

    source: str
    change_id: int
    uploaded: str | None


class Savepoint(msgspec.Struct, frozen=True):
    """How much a `Write` had staged at one moment."""

    steps: int
    records: int


class Staged(msgspec.Struct, frozen=True):
    """What is staged of one partition: live rows, and the `_seq`s of the versions that they replace."""

    versions: Sequence[Version]
    replaced: Sequence[int]


class Stage:
    """Row writes on the state of one reader; `may_block` False forbids file access (`WouldBlock`).

    Rows whose time is over at `now_us` are no rows any more.
    """

    def __init__(
        self, rows: Rows, reader: HotReader, catalog: Catalog, *, may_block: bool, now_us: int = 0
    ) -> None:
        self.may_block = may_block
        self.records: list[RecordWrite] = []
        """Records that the caller commits together with the rows."""
        self.stop: Stop | None = None
        """Asks the evaluation to end: it does at its next row, and lets go of its memory."""
        self._rows = rows
        self._reader = reader
        self._catalog = catalog
        self._now_us = now_us
        self._found: dict[Place, Found] = {}
        self._staged: dict[Place, RowWrite] = {}
        self._steps: list[tuple[Place, RowWrite | None]] = []
        self._expectations: list[Expectation] = []
        self._staged_rows: dict[tuple[int, Owner], dict[Key, Row]] = {}
        """Those that may be somebody's children."""
        self._manifests: dict[tuple[int, Owner], bytes | None] = {}
        self._manifests_expected: set[tuple[int, Owner]] = set()

    def current(self, table: Table, owner: Owner, key: Key) -> Version | None:
        """Return the newest version, what this evaluation staged included; None if there never was one."""
        staged = self._staged.get((table.id, owner, key))
        if staged is None:
            return self._look_up(table, (table.id, owner, key)).version
        return Version(key, 0, staged.count, staged.schema, staged.after, (), staged.uploaded)

    def find_live(self, table: Table, owner: Owner, key: Key) -> Version | None:
        """Return the newest version if the row exists, else None."""
        version = self.current(table, owner, key)
        return version if version is not None and version.row is not None else None

    @property
    def batch(self) -> Batch:
        """What to commit: one change a row, those left out that came and went within this evaluation."""
        changes = {
            place: write
            for place, write in self._staged.items()
            if write.after is not None or self._is_change(place, write)
        }
        return Batch(ordered(changes, self._catalog), list(self.records), list(self._expectations))

    def savepoint(self) -> Savepoint:
        """Return where to go back to if the next change turns out to be impossible."""
        return Savepoint(len(self._steps), len(self.records))

    def roll_back(self, savepoint: Savepoint) -> None:
        """Undo what was staged since. What was expected stays: more than needed is no mistake."""
        while len(self._steps) > savepoint.steps:
            place, before = self._steps.pop()
            if before is None:
                table, owner, key = place
                del self._staged[place]
                self._staged_rows.get((table, owner), {}).pop(key, None)
            else:
                self._staged[place] = before
                self._note_row(before)
        del self.records[savepoint.records :]

    def stored(self, table: Table, owner: Owner, key: Key) -> Version | None:
        """Return the newest version without what this evaluation staged; None if there never was one."""
        return self._look_up(table, (table.id, owner, key)).version

    def unstage(self, place: Place) -> None:
        """Forget what is staged of a row; a savepoint of before brings it back."""
        table, owner, key = place
        self._steps.append((place, self._staged.pop(place)))
        self._staged_rows.get((table, owner), {}).pop(key, None)

    def has_staged(self, place: Place) -> bool:
        """Whether this evaluation has already written the row at `place`."""
        return place in self._staged

    def staged_in(self, table: Table, owner: Owner) -> Staged | None:
        """Return what a query has to see of a partition besides what is stored; None if nothing is staged."""
        writes = [write for place, write in self._staged.items() if place[:2] == (table.id, owner)]
        if not writes:
            return None
        versions = [
            Version(write.key, 0, write.count, write.schema, write.after)
            for write in writes
            if write.after is not None
        ]
        return Staged(versions, [write.previous for write in writes if write.previous])

    def rows_staged(self, *, after: int = 0) -> Iterator[Row | None]:
        """Yield what the writes staged, in their order, without the first `after`; None for a delete."""
        for place, _ in self._steps[after:]:
            yield self._staged[place].after

    @property
    def places(self) -> Sequence[Place]:
        """Where rows are staged."""
        return list(self._staged)

    def expect(self, expectation: Expectation) -> None:
        """Ask the commit to hold one more thing."""
        self._expectations.append(expectation)

    def _look_up(self, table: Table, place: Place) -> Found:
        found = self._found.get(place)
        if found is None:
            _, owner, key = place
            version = self._rows.find_hot(self._reader, table, owner, key)
            if version is not None:
                is_over = table.is_ephemeral and version.seq < table.alive_from(self._now_us)
                found = Found(None if is_over else version, version.seq, None, version if is_over else None)
            else:
                record = self._manifest_record(table, owner)
                found = self._rows.find_cold(
                    self._reader, table, owner, key, record, may_block=self.may_block
                )
            self._found[place] = found
        return found

    def _manifest_record(self, table: Table, owner: Owner) -> bytes | None:
        """Looked up once a partition: the reader doesn't move while a write is evaluated."""
        partition = (table.id, owner)
        if partition not in self._manifests:
            self._manifests[partition] = self._rows.manifest_record(self._reader, table, owner)
        return self._manifests[partition]

    def _stage(
        self,
        table: Table,
        place: Place,
        op: Op,
        row: Row | None,
        origin: Origin | None,
        uploaded: str | None = None,
    ) -> None:
        if self.stop is not None:
            self.stop.check()
        found = self._look_up(table, place)
        staged = self._staged.get(place)
        _, owner, key = place
        if staged is None:
            if found.hot_seq == NO_SEQ:
                self._expect_manifest(found, table, owner)
        elif self._is_change(place, staged):
            # One log entry a key and commit: what the row was before the commit → what it is after it.
            op = self._merged(found, op)
        version = found.version or found.expired
        # One commit, one version, whatever was done to the row in it: but a device is told of its own change.
        is_told = staged is None or staged.source is not None
        count = (staged.count if staged else version.count if version else 0) + is_told
        write = RowWrite(
            table.id,
            owner,
            key,
            op,
            table.version,
            version.row if version else None,
            row,
            count,
            found.hot_seq,
            version.seq if version else 0,
            version.supersedes if version else (),
            origin.source if origin else None,
            origin.change_id if origin else None,
            origin.uploaded if origin else uploaded,
            row is None and table.is_ephemeral,
        )
        self._steps.append((place, staged))
        self._staged[place] = write
        if table.references:
            self._note_row(write)

    def _is_change(self, place: Place, write: RowWrite) -> bool:
        """Whether others see it: a row that came and went in one commit never was, but devices were told."""
        is_seen = write.after is not None or self._found[place].live is not None
        return is_seen or self._catalog.by_id[write.table].synced

    def _expect_manifest(self, found: Found, table: Table, owner: Owner) -> None:
        """Once a partition: what wasn't hot was judged by the manifest in force."""
        if (table.id, owner) not in self._manifests_expected:
            expectations = found.manifest_expectation(table, owner)
            if expectations:
                self._manifests_expected.add((table.id, owner))
                self._expectations += expectations

    @staticmethod
    def _merged(found: Found, op: Op) -> Op:
        if op is Op.DELETE:
            return op
        return Op.UPDATE if found.live else Op.INSERT

    def _note_row(self, write: RowWrite) -> None:
        rows = self._staged_rows.setdefault((write.table, write.owner), {})
        if write.after is None:
            rows.pop(write.key, None)
        else:
            rows[write.key] = write.after
