"""What a write does to rows: constraints, versions and expectations, gathered into one batch.

Law: an evaluation looks each current version up once, and asks the commit to hold exactly what it saw.
If anything moved, the commit refuses and the evaluation is done again. SQL and devices both write
through here, so a constraint holds for all of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from upwell.engine.catalog import TABLES_MADE, Catalog, OnDelete, Reference, Table, TableKind
from upwell.engine.operation import VALUE_BYTES_MAX, size_bytes
from upwell.engine.payload import patched_text
from upwell.engine.rows import Found, Rows
from upwell.errors import AlreadyExists, ConstraintViolation
from upwell.storage.hot import (
    Batch,
    Expectation,
    HotReader,
    Kind,
    NoChangeAfter,
    RecordIs,
    RecordWrite,
    RowWrite,
    Version,
)
from upwell.types import SHARED, Key, Op, Owner, Row, Value

ROW_BYTES_MAX = VALUE_BYTES_MAX
Place = tuple[int, Owner, Key]
FindChildren = Callable[[Table, Owner, Reference, Sequence[Key]], Iterable[tuple[Key, Key]]]
"""(child table, owner, reference, parent keys) → pairs (parent key, child key) of live children."""


class ParentMissing(ConstraintViolation):
    """Foreign keys point at no live row: `missing` as `namespace.table:value`, `places` where they look."""

    def __init__(self, table: Table, column: str, missing: Sequence[tuple[str, Place]]) -> None:
        super().__init__(
            f"foreign key '{column}' of {table.full_name} refers to {missing[0][0]}, which does not exist; "
            "insert the parent first"
        )
        self.missing = [name for name, _ in missing]
        self.places = [place for _, place in missing]


class ChildrenLeft(ConstraintViolation):
    """A parent row can't be deleted while the rows of `child` at `places` refer to it."""

    def __init__(self, parent: Table, key: Key, child: Table, places: Sequence[Place]) -> None:
        super().__init__(
            f"row '{shown(key)}' of {parent.full_name} is still referenced by {child.full_name}; "
            "delete those rows first"
        )
        self.places = places


def shown(key: Key) -> str:
    """Return a key as messages show it."""
    return key.hex() if isinstance(key, bytes) else str(key)


@dataclass(frozen=True, slots=True)
class Origin:
    """The device's change behind a write: its source, change id and the payload text to keep."""

    source: str
    change_id: int
    uploaded: str | None


@dataclass(frozen=True, slots=True)
class Savepoint:
    """What a `Write` had staged at one moment."""

    staged: dict[Place, RowWrite]
    rows: list[RowWrite]
    records: list[RecordWrite]
    expectations: list[Expectation]
    manifests_expected: set[tuple[int, Owner]]


@dataclass(frozen=True, slots=True)
class _Deleted:
    """Rows whose tombstones are staged and whose children have still to be settled."""

    table: Table
    owner: Owner
    keys: Sequence[Key]


class Write:
    """One evaluation of a statement or an upload, on the state of one reader.

    `may_block` False forbids file access (`WouldBlock` then asks for a worker thread).
    Children of deleted rows are found through `find_children`, which reads a View at `view_seq`.
    """

    def __init__(
        self,
        rows: Rows,
        reader: HotReader,
        catalog: Catalog,
        *,
        may_block: bool,
        find_children: FindChildren,
        view_seq: int,
    ) -> None:
        self.batch = Batch()
        self.promised: frozenset[Place] = frozenset()
        """Rows that the caller stages before it commits: parents that are there, children that let go."""
        self._rows = rows
        self._reader = reader
        self._catalog = catalog
        self._may_block = may_block
        self._find_children = find_children
        self._view_seq = view_seq
        self._found: dict[Place, Found] = {}
        self._staged: dict[Place, RowWrite] = {}
        self._staged_rows: dict[tuple[int, Owner], dict[Key, Row]] = {}
        self._manifests: dict[tuple[int, Owner], bytes | None] = {}
        self._manifests_expected: set[tuple[int, Owner]] = set()

    def current(self, table: Table, owner: Owner, key: Key) -> Version | None:
        """Return the newest version, what this evaluation staged included; None if there never was one."""
        staged = self._staged.get((table.id, owner, key))
        if staged is None:
            return self._look_up(table, owner, key).version
        return Version(key, 0, staged.count, staged.schema, staged.after, (), staged.uploaded)

    def find_live(self, table: Table, owner: Owner, key: Key) -> Version | None:
        """Return the newest version if the row exists, else None."""
        version = self.current(table, owner, key)
        return version if version is not None and version.row is not None else None

    def savepoint(self) -> "Savepoint":
        """Return the state to go back to if the next change turns out to be impossible."""
        return Savepoint(
            dict(self._staged),
            list(self.batch.rows),
            list(self.batch.records),
            list(self.batch.expectations),
            set(self._manifests_expected),
        )

    def roll_back(self, savepoint: "Savepoint") -> None:
        self._staged = savepoint.staged
        self.batch.rows = savepoint.rows
        self.batch.records = savepoint.records
        self.batch.expectations = savepoint.expectations
        self._manifests_expected = savepoint.manifests_expected
        self._staged_rows = {}
        for write in self._staged.values():
            self._note_row(write)

    def is_staged(self, table: Table, owner: Owner, key: Key) -> bool:
        """Whether this evaluation has already written the key."""
        return self.has_staged((table.id, owner, key))

    def has_staged(self, place: Place) -> bool:
        """Whether this evaluation has already written the row at `place`."""
        return place in self._staged

    def insert(self, table: Table, owner: Owner, row: Row, origin: Origin | None = None) -> None:
        """Stage a new row; raise `AlreadyExists`, `ParentMissing` or a NOT NULL violation."""
        column = table.columns[table.key_index]
        key = self._key_of(table, row)
        if self.find_live(table, owner, key) is not None:
            is_twice = self.is_staged(table, owner, key)
            how = "appears multiple times in" if is_twice else "already exists in"
            raise AlreadyExists(f"Primary key violation: value '{shown(key)}' {how} column '{column.name}'")
        self._check_row(table, owner, row, before=None)
        self._stage(table, owner, key, Op.INSERT, row, origin)

    def update(self, table: Table, owner: Owner, key: Key, row: Row, origin: Origin | None = None) -> None:
        """Stage a new version of a live row; a changed primary key moves the row."""
        before = self.find_live(table, owner, key)
        assert before is not None, "only rows that were found are updated"
        self._check_row(table, owner, row, before=before.row)
        new_key = self._key_of(table, row)
        if new_key != key:
            self.delete(table, owner, [key])
            self.insert(table, owner, row, origin)
        else:
            self._stage(table, owner, key, Op.UPDATE, row, origin)

    def delete(self, table: Table, owner: Owner, keys: Sequence[Key], origin: Origin | None = None) -> None:
        """Stage tombstones of live rows; children restrict, follow or lose their reference."""
        # A table made since, whose rows may refer to these, isn't among the children that are known here.
        self.expect(RecordIs(Kind.META, TABLES_MADE, self._reader.find_record(Kind.META, TABLES_MADE)))
        for key in keys:
            self._stage(table, owner, key, Op.DELETE, None, origin)
        deleted = deque([_Deleted(table, owner, keys)])
        while deleted:
            self._settle_references(deleted.popleft(), deleted)

    def promise(self, table: Table, owner: Owner, keys: Iterable[Value]) -> None:
        """Say that rows of these keys will be staged as well, or else this write be given up."""
        self.promised |= {(table.id, owner, key) for key in keys if key is not None}

    def expect(self, expectation: Expectation) -> None:
        """Ask the commit to hold one more thing."""
        self.batch.expectations.append(expectation)

    def _look_up(self, table: Table, owner: Owner, key: Key) -> Found:
        place = (table.id, owner, key)
        found = self._found.get(place)
        if found is None:
            version = self._reader.find_row(table.id, owner, key)
            if version is not None:
                found = Found(version, version.seq, None)
            else:
                record = self._manifest_record(table, owner)
                found = self._rows.find_cold(
                    self._reader, table, owner, key, record, may_block=self._may_block
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
        self, table: Table, owner: Owner, key: Key, op: Op, row: Row | None, origin: Origin | None
    ) -> None:
        place = (table.id, owner, key)
        found = self._look_up(table, owner, key)
        staged = self._staged.get(place)
        if staged is None:
            self._expect_manifest(found, table, owner)
        elif self._is_change(found, staged):
            # One log entry a key and commit: what the row was before the commit → what it is after it.
            self.batch.rows.remove(staged)
            op = self._merged(found, op)
        version = found.version
        count = staged.count if staged else version.count if version else 0
        write = RowWrite(
            table=table.id,
            owner=owner,
            key=key,
            op=op,
            schema=table.version,
            before=version.row if version else None,
            after=row,
            count=count + 1,
            expect=found.hot_seq,
            previous=version.seq if version else 0,
            supersedes=version.supersedes if version else (),
            source=origin.source if origin else None,
            change_id=origin.change_id if origin else None,
            uploaded=origin.uploaded if origin else self._uploaded_after(table, owner, key, row),
        )
        self._staged[place] = write
        if self._is_change(found, write):
            self.batch.rows.append(write)

    @staticmethod
    def _is_change(found: Found, write: RowWrite) -> bool:
        """Whether others can see it: a row that came and went within one commit never was."""
        return write.after is not None or found.live is not None

    def _uploaded_after(self, table: Table, owner: Owner, key: Key, row: Row | None) -> str | None:
        """What stays of a device's payload text when the back end changes its row."""
        before = self.current(table, owner, key)
        if before is None or before.uploaded is None or before.row is None or row is None:
            return None
        return patched_text(table, before.uploaded, before.row, row)

    def _expect_manifest(self, found: Found, table: Table, owner: Owner) -> None:
        """Once a partition: what wasn't hot was judged by the manifest in force."""
        if (table.id, owner) not in self._manifests_expected:
            expectations = found.manifest_expectation(table, owner)
            if expectations:
                self._manifests_expected.add((table.id, owner))
                self.batch.expectations += expectations

    @staticmethod
    def _merged(found: Found, op: Op) -> Op:
        if op is Op.DELETE:
            return op
        return Op.UPDATE if found.live else Op.INSERT

    @staticmethod
    def _key_of(table: Table, row: Row) -> Key:
        key = row[table.key_index]
        if key is None:
            raise ConstraintViolation(
                f"primary key column '{table.columns[table.key_index].name}' cannot be NULL"
            )
        return key

    def _check_row(self, table: Table, owner: Owner, row: Row, before: Row | None) -> None:
        for index in table.required:
            if row[index] is None:
                raise ConstraintViolation(
                    f"NOT NULL constraint violation: column '{table.columns[index].name}' cannot be NULL"
                )
        if (size := size_bytes(row)) > ROW_BYTES_MAX:
            raise ConstraintViolation(
                f"a row of {table.full_name} can hold at most {ROW_BYTES_MAX} bytes of values, got {size}"
            )
        if not table.references:
            return
        self_place = (table.id, owner, row[table.key_index])
        missing = [
            (reference.column, lost)
            for reference in table.references
            if (value := row[reference.column]) is not None
            and (before is None or before[reference.column] != value)
            and (lost := self._missing_parent(owner, reference, value, self_place))
        ]
        if missing:
            raise ParentMissing(table, table.columns[missing[0][0]].name, [lost for _, lost in missing])

    def _missing_parent(
        self, owner: Owner, reference: Reference, key: Key, self_place: tuple[int, Owner, object]
    ) -> tuple[str, Place] | None:
        """Return name and place of a parent that isn't there, else ask the commit to hold that it is."""
        parent = self._catalog.by_id.get(reference.parent)
        if parent is None:
            return f"a dropped table: {shown(key)}", (reference.parent, owner, key)
        parent_owner = owner if parent.kind is TableKind.USER else SHARED
        place = (parent.id, parent_owner, key)
        if place == self_place or place in self.promised:
            return None
        if self.find_live(parent, parent_owner, key) is None:
            return f"{parent.full_name}:{shown(key)}", place
        if not self.has_staged(place):
            self.batch.expectations += self._look_up(parent, parent_owner, key).expectations(
                parent, parent_owner, key
            )
        return None

    def _child_owners(self, child: Table, owner: Owner) -> list[Owner]:
        if child.kind is TableKind.SHARED:
            return [SHARED]
        return [owner] if owner != SHARED else self._rows.owners(self._reader, child)

    def _expect_no_new_child(self, parent: Table, owner: Owner, child: Table) -> None:
        """Ask the commit to hold that the children are those of the View, of owners not met yet as well."""
        partition: Owner | None = owner
        if child.kind is TableKind.SHARED:
            partition = SHARED
        elif parent.kind is TableKind.SHARED:
            partition = None
        self.expect(NoChangeAfter(child.id, partition, self._view_seq))

    def _settle_references(self, gone: "_Deleted", deleted: "deque[_Deleted]") -> None:
        """Settle all that refers to deleted rows; what follows them is staged, and put into `deleted`."""
        held: list[tuple[Key, Place]] = []
        for child, reference in self._catalog.children.get(gone.table.id, ()):
            self._expect_no_new_child(gone.table, gone.owner, child)
            for owner in self._child_owners(child, gone.owner):
                held += self._settle_children(child, owner, reference, gone.keys, deleted)
        if held:
            key, place = held[0]
            places = [place for _, place in held]
            raise ChildrenLeft(gone.table, key, self._catalog.by_id[place[0]], places)

    def _settle_children(
        self,
        child: Table,
        owner: Owner,
        reference: Reference,
        keys: Sequence[Key],
        deleted: "deque[_Deleted]",
    ) -> list[tuple[Key, Place]]:
        """Return (parent key, place) of the children that hold their parent; the others follow or let go."""
        held: list[tuple[Key, Place]] = []
        cascade: list[Key] = []
        for parent_key, child_key in self._live_children(child, owner, reference, keys):
            match reference.on_delete:
                case OnDelete.RESTRICT:
                    held.append((parent_key, (child.id, owner, child_key)))
                case OnDelete.CASCADE:
                    self._stage(child, owner, child_key, Op.DELETE, None, None)
                    cascade.append(child_key)
                case OnDelete.SET_NULL:
                    version = self.find_live(child, owner, child_key)
                    assert version is not None, "it was just found live"
                    assert version.row is not None, "a live version has a row"
                    row = list(version.row)
                    row[reference.column] = None
                    self.update(child, owner, child_key, row)
        if cascade:
            deleted.append(_Deleted(child, owner, cascade))
        return [(key, place) for key, place in held if place not in self.promised]

    def _live_children(
        self, child: Table, owner: Owner, reference: Reference, keys: Sequence[Key]
    ) -> list[tuple[Key, Key]]:
        """Children in the View that this evaluation didn't touch, and those that it staged."""
        wanted = set(keys)
        stored = [
            pair
            for pair in self._find_children(child, owner, reference, keys)
            if not self.is_staged(child, owner, pair[1])
        ]
        staged: list[tuple[Key, Key]] = [
            (cast(Key, row[reference.column]), key)
            for key, row in self._staged_rows.get((child.id, owner), {}).items()
            if row[reference.column] in wanted
        ]
        return stored + staged

    def _note_row(self, write: RowWrite) -> None:
        rows = self._staged_rows.setdefault((write.table, write.owner), {})
        if write.after is None:
            rows.pop(write.key, None)
        else:
            rows[write.key] = write.after
