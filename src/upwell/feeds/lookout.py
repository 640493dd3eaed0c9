"""Lookouts: live queries of system tables, which aren't rows of the log but are computed when asked.

Law: what a lookout was sent, folded, is what its SELECT returned when it last looked. It looks again all the
while its socket takes frames; one that is full is told the difference when it isn't.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from upwell.engine.catalog import Table, TableKind
from upwell.engine.expression import DELETED, SEQ
from upwell.engine.result import result_columns, result_rows
from upwell.errors import InvalidInput, SeqTrimmed, UpwellError
from upwell.feeds.cursor import Growth
from upwell.feeds.delta import Projection
from upwell.feeds.live import LiveFeed
from upwell.feeds.match import Watch
from upwell.feeds.snapshot import Page
from upwell.feeds.subscription import Origin, Outlet, State, Subscription, unexpected
from upwell.protocol.codec import encode_frame, encode_row
from upwell.protocol.messages import BatchControl, ChangeType, Protocol, SubscriptionAck, SubscriptionOptions
from upwell.storage.hot import Change
from upwell.types import SHARED, Column, Op, TableId, Value

LOOK_INTERVAL_S = 0.5
LOOK_ROWS_MAX = 10_000
NO_TABLE = TableId(0)
"""The id of what isn't in the catalog."""

_OPS: dict[ChangeType, Op] = {"insert": Op.INSERT, "update": Op.UPDATE, "delete": Op.DELETE}
_SYSTEM_COLUMNS = {"_seq": SEQ, "_deleted": DELETED}

Row = list[Value]
Key = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for: all columns of `look`'s rows, of which the first `keys` (None: all) are the key.

    `columns` are (column, output name), None for all. If `is_stored`, only commits change the answer.
    """

    namespace: str
    name: str
    keys: int | None
    columns: tuple[tuple[str, str], ...] | None
    look: Callable[[], Awaitable[pa.Table]]
    is_stored: bool


@dataclass(eq=False, slots=True)
class _Lookout:
    subscription: Subscription
    question: Question
    rows: dict[Key, tuple[Row, int]]
    """What was sent: a row and its `_seq`, by key."""
    looked_at: int


class Lookouts:
    """All lookouts of one event loop; `next_seq` gives ever larger numbers."""

    def __init__(
        self,
        feed: LiveFeed,
        growth: Growth,
        next_seq: Callable[[], int],
        *,
        interval_s: float = LOOK_INTERVAL_S,
    ) -> None:
        self._feed = feed
        self._growth = growth
        self._next_seq = next_seq
        self._interval_s = interval_s
        self._lookouts: dict[_Lookout, None] = {}

    async def subscribe(
        self,
        question: Question,
        *,
        subscription_id: str,
        outlet: Outlet,
        options: SubscriptionOptions | None,
        protocol: Protocol,
        origin: Origin,
    ) -> Subscription:
        """Acknowledge, send all rows if `options` were given, and keep looking.

        Raises `SeqTrimmed` for a resume, since nothing is kept to resume from, `InvalidInput`, and what the
        question raises.
        """
        refuse_options(options)
        looked_at = self._growth.view.seq
        found = await question.look()
        table = _table(question, found.schema)
        projection = Projection.of(table, _columns(question, table))
        watch = Watch(table, SHARED, projection)
        subscription = Subscription(subscription_id, watch, outlet, 0, origin, protocol, state=State.HEAD)
        rows = {key: (row, self._next_seq()) for key, row in _keyed(question, found).items()}
        page = Page(
            [encode_row(projection.whole(row, seq), protocol.serialization) for row, seq in rows.values()],
            max((seq for _, seq in rows.values()), default=None),
            has_more=False,
        )
        control = page.control(0) if options is not None else BatchControl(0, False, "ready", None)
        frames = [encode_frame(SubscriptionAck(subscription.id, 0, control, projection.schema()), protocol)]
        if options is not None:
            frames.append(page.frame(subscription.id, 0, protocol))
        self._feed.adopt(subscription, self._growth.view.seq)
        outlet.write(frames)
        self._lookouts[_Lookout(subscription, question, rows, looked_at)] = None
        return subscription

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            for lookout in list(self._lookouts):
                if lookout.subscription.is_ended:
                    del self._lookouts[lookout]
                elif self._is_due(lookout):
                    await self._look(lookout)

    def _is_due(self, lookout: _Lookout) -> bool:
        is_same = lookout.question.is_stored and lookout.looked_at == self._growth.view.seq
        return not is_same and not lookout.subscription.outlet.is_full

    async def _look(self, lookout: _Lookout) -> None:
        lookout.looked_at = self._growth.view.seq
        try:
            found = _keyed(lookout.question, await lookout.question.look())
            if not lookout.subscription.is_ended:
                self._tell(lookout, found)
        except UpwellError as failure:
            self._feed.end(lookout.subscription, failure)
        except Exception:  # noqa: BLE001 — one lookout must not take the others, and the server, with it
            self._feed.end(lookout.subscription, unexpected(lookout.subscription))

    def _tell(self, lookout: _Lookout, found: dict[Key, Row]) -> None:
        frames = self._differences(lookout, found)
        if frames:
            lookout.subscription.outlet.write(frames)

    def _differences(self, lookout: _Lookout, found: dict[Key, Row]) -> list[bytes]:
        """Return what has to be said to get from what was sent to `found`, which counts as sent then."""
        frames: list[bytes] = []
        for key in [key for key in lookout.rows if key not in found]:
            before, seq = lookout.rows.pop(key)
            frames.append(self._frame(lookout, "delete", before, None, seq, self._next_seq()))
        outputs = lookout.subscription.watch.projection.outputs
        shown = [output.index for output in outputs if output.index >= 0]
        for key, row in found.items():
            sent = lookout.rows.get(key)
            if sent is None:
                lookout.rows[key] = row, self._next_seq()
                frames.append(self._frame(lookout, "insert", None, row, 0, lookout.rows[key][1]))
            elif any(sent[0][index] != row[index] for index in shown):
                lookout.rows[key] = row, self._next_seq()
                frames.append(self._frame(lookout, "update", sent[0], row, sent[1], lookout.rows[key][1]))
        return frames

    @staticmethod
    def _frame(
        lookout: _Lookout, kind: ChangeType, before: Row | None, after: Row | None, previous: int, seq: int
    ) -> bytes:
        subscription = lookout.subscription
        watch = subscription.watch
        row = after if after is not None else before
        assert row is not None, "a change has a row"
        change = Change(
            seq, True, NO_TABLE, SHARED, 0, row[0], _OPS[kind].value, 1, before, after, previous, 1
        )
        return subscription.frame(watch.projection.tail(kind, change, subscription.protocol.serialization))


def refuse_options(options: SubscriptionOptions | None) -> None:
    """Raise `SeqTrimmed` for a resume, `InvalidInput` for what only rows in order of their `_seq` have."""
    if options is not None and options.after:
        raise SeqTrimmed("system tables have no history to resume from: subscribe again without `from`")
    if options is not None and options.last_rows is not None:
        raise InvalidInput("last_rows is not for system tables; narrow the query with WHERE")


def _table(question: Question, schema: pa.Schema) -> Table:
    """Return the table that the answer would be the rows of."""
    keys = len(schema) if question.keys is None else question.keys
    columns = tuple(
        Column(number, column.name, column.type, nullable=number > keys, primary_key=number <= keys)
        for number, column in enumerate(result_columns(schema), 1)
    )
    return Table(NO_TABLE, question.namespace, question.name, TableKind.SHARED, columns)


def _columns(question: Question, table: Table) -> tuple[tuple[int, str], ...] | None:
    if question.columns is None:
        return None
    places = table.index_of | _SYSTEM_COLUMNS
    # What rows are called besides the chosen columns: updates tell the key, everything tells `_seq`.
    names = dict(_SYSTEM_COLUMNS)
    if all(table.columns[table.key_index].name != name for name, _ in question.columns):
        names[table.columns[table.key_index].name] = table.key_index
    for name, output in question.columns:
        if name not in places:
            raise InvalidInput(f"column '{name}' does not exist in {table.full_name}")
        if names.setdefault(output, places[name]) != places[name]:
            raise InvalidInput(
                f"two columns of the live query are called '{output}' (rows also have _seq and their key); "
                "give one of them another name with AS"
            )
    return tuple(dict.fromkeys((places[name], output) for name, output in question.columns))


def _keyed(question: Question, found: pa.Table) -> dict[Key, Row]:
    if found.num_rows > LOOK_ROWS_MAX:
        raise InvalidInput(
            f"a live query of a system table has at most {LOOK_ROWS_MAX} rows; narrow it with WHERE"
        )
    rows: Sequence[tuple[Value, ...]] = list(result_rows(found))
    return {row[: question.keys]: list(row) for row in rows}
