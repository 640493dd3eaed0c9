"""Writes: INSERT, UPDATE and DELETE, evaluated and committed.

Law: a short write is evaluated and applied at once under the write lock; a long one on a View in a worker
thread, again if somebody was faster, and in the end while others of its table wait.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from upwell.engine.catalog import Table
from upwell.engine.commit import Committer
from upwell.engine.defaults import Defaults
from upwell.engine.expression import Context
from upwell.engine.query import QueryEngine
from upwell.engine.references import Children
from upwell.engine.result import refuse_not_finite
from upwell.engine.rows import Rows, WouldBlock
from upwell.engine.stop import Stop
from upwell.engine.write import Write
from upwell.errors import Conflict
from upwell.feeds.cursor import Growth
from upwell.session.call import Call
from upwell.session.dml import Evaluation, Foreign, Inquiry, changed_table
from upwell.session.inquiry import InlineInquiry, ThreadInquiry
from upwell.session.outcome import Answer, Changed, PointAnswer
from upwell.session.point import rows_answer
from upwell.session.policy import Action, require_table
from upwell.session.read import Reader
from upwell.session.threads import QueryThreads
from upwell.session.transaction import Transaction
from upwell.session.turn import TURN_S_MAX, Turns
from upwell.sql.statements import Delete, Insert, Returning, Update
from upwell.storage.hot import Batch, ExpectationFailed
from upwell.types import Row

Dml = Insert | Update | Delete
Effect = Changed | PointAnswer | Answer
"""What a change gave: how many rows, or with RETURNING those."""

INLINE_ROWS_MAX = 300
LOCK_WAIT_S_MAX = 0.002
ATTEMPTS_MAX = 100
OVERTAKEN_MAX = 5
"""After so many attempts others wait for a long write."""
_VERBS = {Insert: "Inserted", Update: "Updated", Delete: "Deleted"}


class Altered(Exception):
    """The statement's table isn't what it was bound to any more; nothing has been done."""


@dataclass(frozen=True, slots=True)
class Writer:
    """Runs statements that change rows; `reader` answers the queries in them."""

    committer: Committer
    rows: Rows
    query: QueryEngine
    defaults: Defaults
    growth: Growth
    threads: QueryThreads
    reader: Reader
    turns: Turns = field(default_factory=Turns)

    async def write(self, call: Call, statement: Dml) -> Effect:
        require_table(call.principal, Action.WRITE, statement.table)
        if call.transaction is not None:
            return await self._stage(call, call.transaction, statement)
        await self.turns.wait(statement.table.id)
        done = None
        if not self._must_defer(call, statement):
            done = self._write_inline(call, statement)
        if done is None:
            done = await self._write_deferred(call, statement)
        seq, effect = done
        await self.growth.reached(seq)
        return effect

    async def commit(self, transaction: Transaction) -> None:
        """Apply what is staged; return when it is acknowledged, raise `Conflict` if nothing was applied."""
        batch = transaction.write.batch
        if not batch.rows:
            return
        await self.turns.wait(*{row.table for row in batch.rows})
        try:
            seq = await self._apply(batch)
        except ExpectationFailed as failure:
            raise Conflict(
                f"{failure} since transaction '{transaction.id}' began; nothing was applied, run it again"
            ) from failure
        await self.growth.reached(seq)

    async def _apply(self, batch: Batch) -> int:
        committer = self.committer
        if len(batch.rows) <= INLINE_ROWS_MAX and committer.lock.acquire(timeout=LOCK_WAIT_S_MAX):
            try:
                return committer.apply(batch)
            finally:
                committer.lock.release()

        def apply(stop: Stop) -> int:
            stop.take_effect()
            return committer.apply(batch)

        return await self.threads.run(apply)

    async def _stage(self, call: Call, transaction: Transaction, statement: Dml) -> Effect:
        """Evaluate a statement of a transaction."""
        transaction.require(statement.table)
        write = transaction.write
        savepoint = write.savepoint()
        if not self._must_defer(call, statement):
            write.may_block, write.stop = False, None
            try:
                inquiry = InlineInquiry(self.reader, call, transaction.view, write)
                return self._evaluate(call, statement, write, inquiry, call.context())
            except (WouldBlock, Foreign):
                write.roll_back(savepoint)
        return await self.threads.run(partial(self._stage_on, call, transaction, statement))

    def _stage_on(self, call: Call, transaction: Transaction, statement: Dml, stop: Stop) -> Effect:
        transaction.write.may_block = True
        transaction.write.stop = stop  # the statement's own: the next one in a thread brings its own
        inquiry = ThreadInquiry(self.reader, call, transaction.view, transaction.write, stop)
        return self._evaluate(call, statement, transaction.write, inquiry, call.context())

    def _must_defer(self, call: Call, statement: Dml) -> bool:
        """Whether the statement is long or looks at other rows than those that it names."""
        is_asked = statement.returning is not None and statement.returning.columns is None
        if is_asked or len(call.values_each) > INLINE_ROWS_MAX:
            return True
        match statement:
            case Insert(_, _, rows, query):
                return query is not None or len(rows) > INLINE_ROWS_MAX
            case Update(table, assignments):
                key_index = table.key_index
                moves = any(index == key_index for index, _ in assignments)
                return moves and table.id in self.growth.view.catalog.children
            case Delete(table):
                return table.id in self.growth.view.catalog.children

    def _write_inline(self, call: Call, statement: Dml) -> tuple[int, Effect] | None:
        """Evaluate on the newest state and apply, all under the lock; None if that would take too long."""
        committer = self.committer
        if not committer.lock.acquire(timeout=LOCK_WAIT_S_MAX):
            return None  # a worker thread commits many rows
        try:
            context = call.context()
            write = Write(
                self.rows,
                committer.newest,
                committer.newest_catalog,
                may_block=False,
                find_children=None,
                view_seq=None,
                now_us=context.now_us,
            )
            # While we hold the lock and all is published, the View is the newest state too.
            view = self.growth.view if self.growth.view.seq == committer.last_seq else None
            inquiry = InlineInquiry(self.reader, call, view, write)
            effect = self._evaluate(call, statement, write, inquiry, context)
            # Nothing to write is also an answer about the newest state: it waits for that one's sync.
            batch = write.batch
            batch.is_newest = True
            seq = committer.apply(batch) if batch.rows else committer.last_seq
        except (WouldBlock, Foreign, ExpectationFailed):
            return None
        finally:
            committer.lock.release()
        return seq, effect

    async def _write_deferred(self, call: Call, statement: Dml) -> tuple[int, Effect]:
        table, loop, took_s = statement.table.id, asyncio.get_running_loop(), 0.0
        for attempt in range(ATTEMPTS_MAX):
            has_turn = attempt >= OVERTAKEN_MAX and took_s < TURN_S_MAX
            started_s = loop.time()
            try:
                if has_turn:
                    async with self.turns.taken(table):
                        started_s = loop.time()
                        return await self._attempt(call, statement)
                await self.turns.wait(table)
                return await self._attempt(call, statement)
            except ExpectationFailed:
                self._refuse_stale(statement.table)
                took_s = loop.time() - started_s
        raise Conflict("the rows of this statement keep changing; run it again")

    async def _attempt(self, call: Call, statement: Dml) -> tuple[int, Effect]:
        await self.growth.reached(self.committer.last_seq)
        return await self.threads.run(partial(self._write_on, call, statement))

    def _refuse_stale(self, table: Table) -> None:
        """Names were resolved with a table that was changed, dropped or made anew since."""
        if self.committer.newest_catalog.tables.get((table.namespace, table.name)) != table:
            raise Altered

    def _write_on(self, call: Call, statement: Dml, stop: Stop) -> tuple[int, Effect]:
        # Taken when its turn has come: what others commit while it waits for that is no reason to fail.
        view = self.committer.publication.view
        context = call.context()
        write = Write(
            self.rows,
            view.hot,
            view.catalog,
            may_block=True,
            find_children=Children(self.query, view),
            view_seq=view.seq,
            now_us=context.now_us,
        )
        write.stop = stop
        inquiry = ThreadInquiry(self.reader, call, view, write, stop)
        effect = self._evaluate(call, statement, write, inquiry, context)
        stop.take_effect()
        batch = write.batch
        return (self.committer.apply(batch) if batch.rows else view.seq), effect

    def _evaluate(
        self, call: Call, statement: Dml, write: Write, inquiry: Inquiry, context: Context
    ) -> Effect:
        owner = statement.table.owner_for(call.principal.user)
        evaluation = Evaluation(write, owner, context, self.defaults, inquiry)
        match statement:
            case Insert():
                count = evaluation.insert(statement, call.values_each)
            case Update():
                count = evaluation.update(statement, call.values_each)
            case Delete():
                count = evaluation.delete(statement, call.values_each)
        if statement.returning is None:
            return Changed(_VERBS[type(statement)], count)
        return _given_back(call, statement.table, statement.returning, evaluation.returned, inquiry)


def _given_back(
    call: Call, table: Table, returning: Returning, rows: Sequence[Row], inquiry: Inquiry
) -> PointAnswer | Answer:
    if returning.columns is not None:
        return rows_answer(table, returning.columns, rows)
    values = call.values if call.rows is None else ()
    found = inquiry.rows(returning.text, values, changed_table(table, rows), is_stored=False)
    refuse_not_finite(found)
    return Answer(found)
