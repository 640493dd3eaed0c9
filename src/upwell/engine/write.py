"""What a write does to rows: constraints, versions and expectations, gathered into one batch.

Law: an evaluation looks each current version up once, and asks the commit to hold exactly what it saw.
If anything moved, the commit refuses and the evaluation is done again. SQL and devices both write
through here, so a constraint holds for all of them.
"""

from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence

import msgspec

from upwell.engine.catalog import TABLES_MADE, Catalog, OnDelete, Reference, Table, TableKind
from upwell.engine.payload import text_after
from upwell.engine.rows import Rows, WouldBlock
from upwell.engine.stage import Origin, Savepoint, Stage
from upwell.engine.violation import ChildrenLeft, ParentMissing, Place, check_values
from upwell.errors import AlreadyExists, ConstraintViolation
from upwell.storage.hot import Batch, HotReader, Kind, NoChangeAfter, RecordIs
from upwell.types import SHARED, Key, Op, Owner, Row, TableId, Value

FindChildren = Callable[[Table, Owner, Reference, Sequence[Key]], Iterable[tuple[Key, Key]]]
"""(child table, owner, reference, parent keys) → pairs (parent key, child key) of live children."""


def shown(key: Key) -> str:
    """Return a key as messages show it."""
    return key.hex() if isinstance(key, bytes) else str(key)


class _Deleted(msgspec.Struct, frozen=True):
    """Rows whose tombstones are staged and whose children have still to be settled."""

    table: Table
    owner: Owner
    keys: Sequence[Key]


class Write(Stage):
    """One evaluation of an upload, a statement or the statements of a transaction, on one reader's state.

    `view_seq` is that of the View which `reader` is of; None for the newest state, whose reader holds the
    write lock until the commit. Children of deleted rows are found in the View through `find_children`
    (None, or `may_block` False: `WouldBlock` asks for a worker thread). Rows whose time is over at `now_us`
    are no rows any more.
    """

    def __init__(
        self,
        rows: Rows,
        reader: HotReader,
        catalog: Catalog,
        *,
        may_block: bool,
        find_children: FindChildren | None,
        view_seq: int | None,
        now_us: int = 0,
    ) -> None:
        super().__init__(rows, reader, catalog, may_block=may_block, now_us=now_us)
        self.promised: frozenset[Place] = frozenset()
        """Rows that the caller stages before it commits: parents that are there, children that let go."""
        self._find_children = find_children
        self._view_seq = view_seq
        self._awaited: dict[Place, list[tuple[Table, Reference, Row]]] = {}
        self._doubtful: set[Place] = set()
        self._is_no_table_expected = False
        self._children_expected: set[tuple[TableId, Owner | None]] = set()
        self._statement_start = 0

    @property
    def batch(self) -> Batch:
        batch = super().batch
        batch.seen = self._view_seq or 0
        return batch

    def begin_statement(self) -> None:
        """Begin the next statement of a transaction: what was promised for the one before is kept by now."""
        self.promised = frozenset()
        self._awaited, self._doubtful = {}, set()
        self._statement_start = len(self._steps)

    def roll_back(self, savepoint: Savepoint) -> None:
        self._awaited = {}
        super().roll_back(savepoint)

    def insert(
        self,
        table: Table,
        owner: Owner,
        row: Row,
        origin: Origin | None = None,
        uploaded: str | None = None,
        key: Key | None = None,
    ) -> None:
        """Stage a new row; raise `AlreadyExists`, `ParentMissing` or a NOT NULL violation.

        `uploaded` is the payload text to keep if no device wrote it; `key` is given if no column has it.
        """
        key = self._key_of(table, row) if key is None else key
        place = (table.id, owner, key)
        if self.find_live(table, owner, key) is not None:
            column = table.columns[table.key_index]
            is_twice = place in (staged for staged, _ in self._steps[self._statement_start :])
            how = "appears multiple times in" if is_twice else "already exists in"
            raise AlreadyExists(f"Primary key violation: value '{shown(key)}' {how} column '{column.name}'")
        self._check_row(table, owner, row, before=None)
        self._check_awaiting(table, place, row)
        self._stage(table, place, Op.INSERT, row, origin, uploaded)

    def update(self, table: Table, owner: Owner, key: Key, row: Row, origin: Origin | None = None) -> None:
        """Stage a new version of a live row; a changed primary key moves the row."""
        before = self.find_live(table, owner, key)
        assert before is not None, "only rows that were found are updated"
        place = (table.id, owner, key)
        self._check_row(table, owner, row, before=None if place in self._doubtful else before.row)
        new_key = self._key_of(table, row)
        uploaded = None if origin else text_after(table, before, row)
        if new_key != key:
            self.delete(table, owner, [key])
            self.insert(table, owner, row, origin, uploaded)
        else:
            assert before.row is not None, "a live version has a row"
            self._check_children(table, owner, key, before.row, row)
            self._check_awaiting(table, place, row)
            self._stage(table, place, Op.UPDATE, row, origin, uploaded)

    def delete(self, table: Table, owner: Owner, keys: Sequence[Key], origin: Origin | None = None) -> None:
        """Stage tombstones of live rows; children restrict, follow or lose their reference."""
        self._expect_no_new_table()
        for key in keys:
            self._stage(table, (table.id, owner, key), Op.DELETE, None, origin)
        deleted = deque([_Deleted(table, owner, keys)])
        while deleted:
            self._settle_references(deleted.popleft(), deleted)

    def keys_at(self, table: Table, owner: Owner, seqs: Container[object]) -> list[Key]:
        """Return the keys of the hot rows that have one of these `_seq`s, for a table that has no other."""
        return [found.key for found in self._reader.scan_rows(table.id, owner) if found.seq in seqs]

    def promise(self, table: Table, owner: Owner, keys: Iterable[Value]) -> None:
        """Say that rows of these keys will be staged as well, or else this write be given up."""
        self.promised |= {(table.id, owner, key) for key in keys if key is not None}

    @staticmethod
    def _key_of(table: Table, row: Row) -> Key:
        key = row[table.key_index]
        if key is None:
            raise ConstraintViolation(
                f"primary key column '{table.columns[table.key_index].name}' cannot be NULL"
            )
        return key

    def _check_row(self, table: Table, owner: Owner, row: Row, before: Row | None) -> None:
        check_values(table, row)
        if not table.references:
            return
        missing = [
            (reference, lost)
            for reference in table.references
            if before is None or any(before[index] != row[index] for index in reference.columns)
            if (key := reference.key_in(row)) is not None
            and (lost := self._missing_parent(table, owner, reference, key, row))
        ]
        if missing:
            raise ParentMissing(table, missing[0][0], [lost for _, lost in missing])

    def _missing_parent(
        self, table: Table, owner: Owner, reference: Reference, key: Key, row: Row
    ) -> tuple[str, Place] | None:
        """Return name and place of a parent that isn't there, else ask the commit to hold that it is."""
        parent = self._catalog.by_id.get(reference.parent)
        if parent is None:
            return f"a dropped table: {shown(key)}", (reference.parent, owner, key)
        parent_owner = owner if parent.kind is TableKind.USER else SHARED
        place = (parent.id, parent_owner, key)
        lost = f"{parent.full_name}:{shown(key)}", place
        if place == (table.id, owner, row[table.key_index]):
            return None if reference.agrees(row, row) else lost
        if place in self.promised and not self.has_staged(place):
            if reference.others:
                self._awaited.setdefault(place, []).append((table, reference, row))
            return None
        found = self.find_live(parent, parent_owner, key)
        if found is None or found.row is None or not reference.agrees(row, found.row):
            return lost
        if not self.has_staged(place):
            self._expectations += self._look_up(parent, place).expectations(parent, parent_owner, key)
        return None

    def _check_awaiting(self, table: Table, place: Place, row: Row) -> None:
        """Judge the children that were staged before their promised parent, by what it turns out to be."""
        for child, reference, child_row in self._awaited.pop(place, ()) if self._awaited else ():
            if not reference.agrees(child_row, row):
                lost = f"{table.full_name}:{shown(place[2])}", place
                raise ParentMissing(child, reference, [lost])

    def _check_children(self, table: Table, owner: Owner, key: Key, before: Row, row: Row) -> None:
        """Refuse to change a column besides the key that children refer to."""
        if self._view_seq is not None:  # else nothing can come between this evaluation and its commit
            self._expect_no_new_table()
        for child, reference in self._catalog.children.get(table.id, ()):
            changed = [at for _, at in reference.others if before[at] != row[at]]
            if not changed:
                continue
            self._expect_no_new_child(table, owner, child)
            held = [
                place
                for child_owner in self._child_owners(child, owner)
                for _, found in self._live_children(child, child_owner, reference, [key])
                if (place := (child.id, child_owner, found)) != (table.id, owner, key)
                if not self._follows(place, reference, row)
            ]
            if child.id == table.id and reference.key_in(row) == key and not reference.agrees(row, row):
                held.append((table.id, owner, key))
            if held:
                raise ChildrenLeft(table, shown(key), child, held, changed)

    def _follows(self, place: Place, reference: Reference, parent: Row) -> bool:
        """Whether a child agrees with its parent's new row, or is still to be staged, and judged then."""
        staged = self._staged.get(place)
        if staged is not None and staged.after is not None:
            return reference.agrees(staged.after, parent)
        if place in self.promised:
            self._doubtful.add(place)
        return place in self.promised

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
        if self._view_seq is not None and (child.id, partition) not in self._children_expected:
            self._children_expected.add((child.id, partition))
            self.expect(NoChangeAfter(child.id, partition, self._view_seq))

    def _expect_no_new_table(self) -> None:
        """One made since, whose rows may refer to these, isn't among the children that are known here."""
        if not self._is_no_table_expected:
            self.expect(RecordIs(Kind.META, TABLES_MADE, self._reader.find_record(Kind.META, TABLES_MADE)))
            self._is_no_table_expected = True

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
            raise ChildrenLeft(gone.table, shown(key), self._catalog.by_id[place[0]], places)

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
                    self._stage(child, (child.id, owner, child_key), Op.DELETE, None, None)
                    cascade.append(child_key)
                case OnDelete.SET_NULL:
                    version = self.find_live(child, owner, child_key)
                    assert version is not None, "it was just found live"
                    assert version.row is not None, "a live version has a row"
                    row = list(version.row)
                    for index in reference.columns:
                        row[index] = None
                    self.update(child, owner, child_key, row)
        if cascade:
            deleted.append(_Deleted(child, owner, cascade))
        return [(key, place) for key, place in held if place not in self.promised]

    def _live_children(
        self, child: Table, owner: Owner, reference: Reference, keys: Sequence[Key]
    ) -> list[tuple[Key, Key]]:
        """Children in the View that this evaluation didn't touch, and those that it staged."""
        if self._find_children is None or not self.may_block:
            raise WouldBlock
        wanted = set(keys)
        stored = [
            pair
            for pair in self._find_children(child, owner, reference, keys)
            if not self.has_staged((child.id, owner, pair[1]))
        ]
        staged = [
            (parent_key, key)
            for key, row in self._staged_rows.get((child.id, owner), {}).items()
            if (parent_key := reference.key_in(row)) is not None and parent_key in wanted
        ]
        return stored + staged
