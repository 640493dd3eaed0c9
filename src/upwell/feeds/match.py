"""Matching: which subscriptions a change concerns, and what it is to each of them.

Law: the index finds exactly the subscriptions that a scan over all of them would find, at a cost that
doesn't depend on those it doesn't concern: by (table, owner), then by one equality of the predicate.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Generic, NoReturn, Protocol, TypeVar

from upwell.engine.catalog import Table
from upwell.engine.changelog import Needed
from upwell.engine.condition import Condition, Verdicts
from upwell.engine.expression import Context, Literal, Node, columns_read, equalities
from upwell.engine.expression import predicate as compiled
from upwell.engine.view import View
from upwell.errors import QueryFailure
from upwell.feeds.delta import Projection
from upwell.protocol.messages import ChangeType
from upwell.storage.hot import Change
from upwell.types import Key, Op, Owner, Row, Value

Test = Callable[[Row, int], bool]
"""(row, its `_seq`) → whether the predicate is true."""


def _unbound() -> NoReturn:
    raise AssertionError("the predicate of a live query was frozen when it was subscribed")


# The count of what follows a row's first version: only a later one ends a row that was another before.
_SECOND = 2

_FROZEN = Context("", "", 0, _unbound, _unbound, _unbound)


@dataclass(frozen=True)
class Watch:
    """What a subscription watches: rows of `owner` in `table` for which `predicate` (frozen) is true.

    `where` is the same predicate as SQL, for the snapshot. With a `condition` it says more than `predicate`,
    and the query engine has to be asked of rows for which that is true. With `view`, rows that enter or leave
    the filter count as inserted or deleted. Of rows with untold[0] < `_seq` < untold[1] the subscriber never
    hears: they had expired when it asked. `require` raises when the table has become one that its owner
    may not read.
    """

    table: Table
    owner: Owner
    projection: Projection
    predicate: Node | None = None
    where: str | None = None
    view: bool = False
    untold: tuple[int, int] = (0, 0)
    require: Callable[[Table], object] | None = None
    condition: Condition | None = None

    @property
    def needed(self) -> Needed:
        """What of the log it can't do without: the ends of rows that expire only if a view was asked for."""
        if not self.table.is_ephemeral:
            return Needed.ALL
        return Needed.ENDS if self.view else Needed.NOTHING

    @property
    def has_gaps(self) -> bool:
        """Whether versions may have left the log that its subscriber has to be told the end of."""
        return self.view and self.table.is_ephemeral

    @cached_property
    def matches(self) -> Test:
        """Raises `QueryFailure` where SQL has no answer for a row."""
        if self.predicate is None:
            return lambda row, seq: True
        test = compiled(self.predicate)
        if any(index < 0 for index in columns_read(self.predicate)):
            return lambda row, seq: test([*row, False, seq], (), _FROZEN)
        return lambda row, seq: test(row, (), _FROZEN)

    @cached_property
    def selector(self) -> tuple[int, Value] | None:
        """A (column, value) that each matching row has; None if the predicate promises none."""
        if self.predicate is None:
            return None
        found = [
            (index, node.value)
            for index, node in equalities(self.predicate)
            if index >= 0 and isinstance(node, Literal)
        ]
        by_key = [pair for pair in found if pair[0] == self.table.key_index]
        return next(iter(by_key + found), None)


def judge(
    watch: Watch, change: Change, verdicts: Verdicts = MappingProxyType({}), *, is_gap: bool = False
) -> ChangeType | None:
    """Return what a change of the watched partition is to `watch`, None if it is nothing.

    `verdicts` are what `decide` said. With `is_gap` the change is one that `Gaps` has. Raises `QueryFailure`
    where SQL has no answer for a row.
    """
    # An update that changed no value isn't left out: the row has a new `_seq`, so that a snapshot which is
    # being read doesn't show it any more.
    before, after = change.before, change.after
    if change.op == Op.EXPIRE.value and not _is_told_end(watch, change):
        return "delete" if is_gap else None
    is_in = after is not None and not _is_untold(watch, change.seq)
    is_in = is_in and after is not None and _is_in(watch, after, change.seq, verdicts)
    if not watch.view and after is not None:
        return None if not is_in else "insert" if change.op == Op.INSERT.value else "update"
    was_in = is_gap or (before is not None and _is_in(watch, before, change.previous, verdicts))
    if is_in:
        return "update" if was_in else "insert"
    return "delete" if was_in else None


def _is_told_end(watch: Watch, change: Change) -> bool:
    return watch.view and not _is_untold(watch, change.previous)


def _is_untold(watch: Watch, seq: int) -> bool:
    return watch.untold[0] < seq < watch.untold[1]


class Gaps:
    """Which changes end what a subscriber may hold although nothing in between told so.

    What told of it may have left the log: it made a version that has expired since. Who was told everything
    up to `after` may hold an older one of the row; any later change whose version before was in no page that
    was read since then ends it, whatever became of the row meanwhile.
    """

    __slots__ = ("_after", "_is_needed", "_read")

    def __init__(self, watch: Watch, *, after: int) -> None:
        self._is_needed = watch.has_gaps
        self._after = after
        self._read: dict[Key, int] = {}

    def has(self, change: Change) -> bool:
        return (
            self._is_needed
            and change.count > _SECOND
            and change.previous > self._after
            and self._read.get(change.key) != change.previous
        )

    def pass_by(self, change: Change) -> None:
        """Note that a change was read, and what it says is told."""
        if not self._is_needed:
            return
        if change.op == Op.EXPIRE.value or change.count < _SECOND:
            # Nobody asks for a first version: rows that are written once cost nothing.
            self._read.pop(change.key, None)
        else:
            self._read[change.key] = change.seq

    def add(self, keys: Iterable[Key]) -> None:
        """What was read of these rows couldn't be told: the next change of each has to."""
        for key in keys:
            self._read.pop(key, None)


def decide(view: View, watch: Watch, changes: Sequence[Change]) -> Verdicts:
    """Return what the query engine says of the rows that `judge` asks about; blocks if there are any.

    Up to the first change of which `judge` says that there is no answer: it isn't asked beyond that.
    """
    if watch.condition is None:
        return {}
    asked: dict[int, Row] = {}
    with suppress(QueryFailure):
        for change in changes:
            asked.update(_asked(watch, change))
    # Nothing to ask is no reason to wait for those who do.
    return watch.condition.decide(view, asked) if asked else {}


def needs_decision(watch: Watch, change: Change) -> bool:
    """Whether `judge` needs a verdict on the change; raises `QueryFailure` as it does."""
    return watch.condition is not None and any(True for _ in _asked(watch, change))


def _asked(watch: Watch, change: Change) -> Iterator[tuple[int, Row]]:
    if change.op == Op.EXPIRE.value and not _is_told_end(watch, change):
        return
    if change.after is not None and watch.matches(change.after, change.seq):
        yield change.seq, change.after
    is_asked = watch.view or change.after is None
    if is_asked and change.before is not None and watch.matches(change.before, change.previous):
        yield change.previous, change.before


def _is_in(watch: Watch, row: Row, seq: int, verdicts: Verdicts) -> bool:
    if not watch.matches(row, seq):
        return False
    if watch.condition is None:
        return True
    verdict = verdicts[seq]
    if isinstance(verdict, QueryFailure):
        raise verdict
    return verdict


class Watching(Protocol):
    """Something with a watch; compared by identity."""

    @property
    def watch(self) -> Watch: ...


W = TypeVar("W", bound=Watching)


class _Partition(Generic[W]):
    """The watchers of one table and owner: those that are found by a column's value, and the rest."""

    def __init__(self) -> None:
        self.by_value: dict[int, dict[Value, dict[W, None]]] = {}
        self.rest: dict[W, None] = {}

    @property
    def is_empty(self) -> bool:
        return not self.rest and not self.by_value

    def add(self, item: W) -> None:
        selector = item.watch.selector
        if selector is None:
            self.rest[item] = None
        else:
            column, value = selector
            self.by_value.setdefault(column, {}).setdefault(value, {})[item] = None

    def discard(self, item: W) -> None:
        selector = item.watch.selector
        if selector is None:
            self.rest.pop(item, None)
            return
        column, value = selector
        values = self.by_value.get(column, {})
        items = values.get(value, {})
        items.pop(item, None)
        if not items:
            values.pop(value, None)
        if not values:
            self.by_value.pop(column, None)

    def concerned(self, change: Change) -> list[W]:
        found = list(self.rest)
        for column, values in self.by_value.items():
            old, new = _cell(change.before, column), _cell(change.after, column)
            found += values.get(new, ())
            if old != new:
                found += values.get(old, ())
        return found


def _cell(row: Row | None, column: int) -> Value:
    # Who subscribes by a new column is here before changes of older rows are all through.
    return row[column] if row is not None and column < len(row) else None


class Index(Generic[W]):
    """Watchers, found by the changes that may concern them."""

    def __init__(self) -> None:
        self._partitions: dict[tuple[int, str], _Partition[W]] = {}

    def add(self, item: W) -> None:
        place = (item.watch.table.id, item.watch.owner)
        self._partitions.setdefault(place, _Partition()).add(item)

    def discard(self, item: W) -> None:
        place = (item.watch.table.id, item.watch.owner)
        partition = self._partitions.get(place)
        if partition is not None:
            partition.discard(item)
            if partition.is_empty:
                del self._partitions[place]

    def partitions(self) -> list[tuple[int, str]]:
        """Return each (table, owner) that somebody watches."""
        return list(self._partitions)

    def concerned(self, change: Change) -> list[W]:
        """Return all whose predicate can be true for the row before or after; `judge` decides."""
        partition = self._partitions.get((change.table, change.owner))
        return partition.concerned(change) if partition is not None else []
