"""Queries: the door to DataFusion, with `context` and `scout`. One table name stands for both tiers.

Law: a query sees exactly the newest version of each live row of its View: the live hot rows, and the
cold rows that neither the manifest nor a hot version hides. Every predicate comes after that resolution.

A cold part is a listing over hard links of exactly the manifest's segments, planned once per manifest
number; `hidden` sets are anti-joins against a few integers, never literals.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import reduce
from operator import or_
from threading import Lock

import pyarrow as pa
from datafusion import DataFrame, Expr, SessionConfig, SessionContext, col, literal
from datafusion.catalog import Catalog as FusionCatalog
from datafusion.catalog import Schema
from datafusion.catalog import Table as FusionTable
from datafusion.functions import when

from upwell.engine.catalog import Table
from upwell.engine.context import ONLY_QUERIES, Contexts, context_of
from upwell.engine.flow import Flow, collected
from upwell.engine.hot_rows import HotRows
from upwell.engine.overlay import Overlay
from upwell.engine.reading import Reading
from upwell.engine.refusal import CATALOG, translated
from upwell.engine.rows import Rows
from upwell.engine.scout import Scout
from upwell.engine.source import (
    OWNER,
    OWNER_FIELD,
    AnySource,
    Derived,
    Everybody,
    Resolve,
    Source,
    schema_of,
)
from upwell.engine.stage import Staged
from upwell.engine.stop import Stop
from upwell.engine.view import View
from upwell.errors import QueryFailure
from upwell.storage.arrow import (
    DELETED,
    SEQ,
    column_array,
    physical_name,
    record_batch,
    scan_schema,
)
from upwell.storage.cold import ColdPartition
from upwell.storage.files import Linked
from upwell.storage.manifest import Segment
from upwell.types import Column, Owner, coerce, owner_user

COLD_PLANS_MAX = 256
LONG_ROWS_MIN = 50_000
"""A query over so many rows can be stopped while it runs; shorter ones are faster without."""
# What may last however few rows its tables have.
_LASTING = re.compile(r"\b(?:recursive|generate_series|range|unnest|repeat)\b", re.IGNORECASE)
_OF_A_ROW = re.compile(r"overflow|\b(?:zero|cast|parse|parsing)\b", re.IGNORECASE)
_MAY_FAIL = re.compile(r"[/%]|::|\bCAST\b|\b(?:checked|typed|to)_", re.IGNORECASE)
_NO_SEQ = -1


class QueryEngine:
    """Runs SELECTs on Views. Thread-safe; each query has a context of its own."""

    def __init__(self, rows: Rows, overlay: Overlay) -> None:
        self._rows = rows
        self._overlay = overlay
        self._contexts = Contexts()
        self.scout = Scout()
        self._cold_plans: OrderedDict[tuple[int, Owner], tuple[Linked, DataFrame]] = OrderedDict()
        self._lock = Lock()

    def kept_bytes(self, table: Table, owner: Owner) -> int:
        """Return what the partition's hot rows cost in memory at this moment."""
        return self._overlay.kept_bytes(table, owner)

    def run(
        self,
        view: View,
        text: str,
        namespace: str,
        tables: list[tuple[str, str]],
        resolve: Resolve,
        *,
        stop: Stop | None = None,
    ) -> pa.Table:
        """Run a query over `tables` on `view`; blocks its thread. Field metadata has the wire types.

        Raises `Stopped` between two batches after a request to stop, `QueryFailure` above
        `RESULT_BYTES_MAX`.
        """
        try:
            return self._collected(Reading(view), text, namespace, tables, resolve, stop or Stop())
        except QueryFailure as failure:
            # It may be that of a row that WHERE leaves out.
            if _OF_A_ROW.search(str(failure)) is None:
                raise
        strict = Reading(view, is_strict=True)
        return self._collected(strict, text, namespace, tables, resolve, stop or Stop())

    def _collected(
        self,
        reading: Reading,
        text: str,
        namespace: str,
        tables: list[tuple[str, str]],
        resolve: Resolve,
        stop: Stop,
    ) -> pa.Table:
        with self._contexts.lent(namespace, text) as context:
            frame, large = self._frame(context, reading, text, namespace, tables, resolve)
            is_long = large or len(tables) > 1 or _LASTING.search(text) is not None
            with reading.translating():
                batches = collected(reading.begun(frame), stop, is_long=is_long)
                schema = batches[0].schema if batches else frame.schema()
        return pa.Table.from_batches(batches, schema=schema)

    def stream(
        self, view: View, text: str, namespace: str, tables: list[tuple[str, str]], resolve: Resolve
    ) -> tuple[pa.Schema, Flow]:
        """Plan a query and return the schema and the batches of its result, made as they are asked for."""
        reading = Reading(view, is_strict=_MAY_FAIL.search(text) is not None)
        frame, _ = self._frame(context_of(namespace, text), reading, text, namespace, tables, resolve)
        with reading.translating():
            return frame.schema(), Flow(reading.begun(frame), reading)

    def _frame(
        self,
        context: SessionContext,
        reading: Reading,
        text: str,
        namespace: str,
        tables: list[tuple[str, str]],
        resolve: Resolve,
    ) -> tuple[DataFrame, bool]:
        """Return the planned query, and whether it reads many rows."""
        is_large = False
        catalog = FusionCatalog.memory_catalog()
        context.register_catalog_provider(CATALOG, catalog)
        schemas: dict[str, Schema] = {}
        for space, name in dict.fromkeys([(namespace, ""), *tables]):
            if space not in schemas:
                catalog.register_schema(space, Schema.memory_schema())
                schemas[space] = catalog.schema(space)
            if name:
                source = resolve(space, name)
                is_large = is_large or self._is_large(reading.view, source)
                schemas[space].register_table(name, self._fusion_table(context, reading, source))
        try:
            return context.sql_with_options(text, ONLY_QUERIES), is_large
        except BaseException as error:
            raise translated(error) from error

    def _is_large(self, view: View, source: AnySource) -> bool:
        if isinstance(source, pa.Table):
            return bool(source.num_rows > LONG_ROWS_MIN)
        if not isinstance(source, Source):
            return True  # there is no telling
        hot = self._overlay.hot_rows(view, source.table, source.owner)
        cold = self._rows.cold_partition(view.hot, source.table, source.owner)
        return hot.count + (0 if cold is None else cold.row_count_max) > LONG_ROWS_MIN

    def find_hot_only(self, view: View, source: Source, *, changes_max: int | None) -> HotRows | None:
        """Return the hot rows of a source if it has no cold ones, else None.

        With `changes_max` also None if it takes more than to convert so many changes.
        """
        table, owner = source.table, source.owner
        if self._rows.manifest_number(view.hot, table, owner):
            return None
        if changes_max is None:
            rows: HotRows | None = self._overlay.hot_rows(view, table, owner)
        else:
            rows = self._overlay.find_rows(view, table, owner, changes_max=changes_max)
        return rows.since(source.alive_from) if rows is not None and source.alive_from else rows

    def find_count(self, view: View, source: Source) -> int | None:
        """Return how many rows a source has, without a scan; None if hot rows supersede cold ones.

        What is cold was counted when it was written; minus hidden rows it is counted once a manifest.
        """
        table, owner = source.table, source.owner
        hot = self._overlay.hot_rows(view, table, owner)
        partition = self._rows.cold_partition(view.hot, table, owner)
        if hot.superseded or partition is None:
            return None
        partition.check_sizes()
        if partition.visible_count is None:
            frame = self._cold_frame(reading := Reading(view), table, owner)
            with reading.translating():
                partition.visible_count = 0 if frame is None else frame.count()
        return hot.count + partition.visible_count

    def parts_of(self, view: View, source: Source) -> tuple[HotRows, ColdPartition | None]:
        """Return what of a source is hot and what is cold."""
        cold = self._rows.cold_partition(view.hot, source.table, source.owner)
        return self._overlay.hot_rows(view, source.table, source.owner), cold

    def rows_unordered(self, view: View, source: Source) -> int:
        """Return about how many rows a source has, 0 if they come by primary key as they are."""
        hot = self._overlay.hot_rows(view, source.table, source.owner)
        staged = 0 if source.staged is None else len(source.staged.versions)
        partition = self._rows.cold_partition(view.hot, source.table, source.owner)
        if partition is None or not partition.manifest.segments:
            return 0 if hot.is_ordered and not staged else hot.count + staged
        return hot.count + partition.row_count_max + staged

    def _fusion_table(self, context: SessionContext, reading: Reading, source: AnySource) -> FusionTable:
        if isinstance(source, pa.Table):
            return FusionTable(context.from_arrow(source))
        if isinstance(source, Derived):
            home = source.query.home
            names = self.scout.tables_in(source.text, home, source.resolve)
            own = context_of(home, source.text)
            return FusionTable(self._frame(own, reading, source.text, home, names, source.resolve)[0])
        if isinstance(source, Everybody):
            return FusionTable(self._of_everybody(context, reading, source))
        frame = self._both_tiers(context, reading, source)
        frame = frame if source.staged is None else _with(context, frame, source.staged, source)
        # The engine calculates before it filters, if all that is asked of rows is in the list.
        frame = frame.filter(col(SEQ) != literal(_NO_SEQ)) if reading.is_strict else frame
        seen = [col(f'"{name}"') for name in schema_of(source).names] if source.unseen else []
        return FusionTable(frame.select(*seen) if seen else frame)

    def _of_everybody(self, context: SessionContext, reading: Reading, source: Everybody) -> DataFrame:
        """Return the rows of all owners with whose they are; what is cold of each is planned once."""
        view, table, batches, frames = reading.view, source.table, [], []
        for owner in self._rows.owners(view.hot, table):
            user = owner_user(owner)
            hot = self._overlay.hot_rows(view, table, owner)
            hot = hot.since(source.alive_from) if source.alive_from else hot
            batches += [
                batch.append_column(OWNER_FIELD, pa.array([user] * batch.num_rows, pa.string()))
                for batch in hot.batches
            ]
            cold = self._cold_frame(reading, table, owner)
            if cold is not None:
                cold = _without(context, cold, hot.superseded) if hot.superseded else cold
                frames.append(cold.with_column(OWNER, literal(user)))
        if batches or not frames:
            nothing = pa.RecordBatch.from_pylist([], schema=schema_of(source))
            frames.append(context.create_dataframe([batches or [nothing]]))
        return _union(frames)

    def _both_tiers(self, context: SessionContext, reading: Reading, source: Source) -> DataFrame:
        table, owner = source.table, source.owner
        hot = self._overlay.hot_rows(reading.view, table, owner)
        hot = hot.since(source.alive_from) if source.alive_from else hot
        frame = context.create_dataframe([hot.batches])
        cold = self._cold_frame(reading, table, owner)
        if cold is None:
            return frame
        if hot.superseded:
            cold = _without(context, cold, hot.superseded)
        return frame.union(cold) if hot.count else cold

    def _cold_frame(self, reading: Reading, table: Table, owner: Owner) -> DataFrame | None:
        partition = self._rows.cold_partition(reading.view.hot, table, owner)
        if partition is None or not partition.manifest.segments:
            return None
        linked = partition.links()
        reading.cold.append((partition, linked))
        # One plan, of the manifest that was read last: the links tell whether it is this one.
        place = (table.id, owner)
        with self._lock:
            planned = self._cold_plans.get(place)
        if planned is not None and planned[0] is linked:
            return planned[1]
        frame = _plan_cold(partition, linked, table)
        with self._lock:
            self._cold_plans[place] = linked, frame
            self._cold_plans.move_to_end(place)
            while len(self._cold_plans) > COLD_PLANS_MAX:
                self._cold_plans.popitem(last=False)
        return frame


def _union(frames: Sequence[DataFrame]) -> DataFrame:
    """Return the rows of all frames; halves of halves, because the engine recurses into unions."""
    if len(frames) == 1:
        return frames[0]
    middle = len(frames) // 2
    return _union(frames[:middle]).union(_union(frames[middle:]))


def _plan_cold(partition: ColdPartition, linked: Linked, table: Table) -> DataFrame:
    """Plan a scan of the manifest's segments without tombstones and hidden rows."""
    context = SessionContext(SessionConfig().with_target_partitions(1))
    schema = scan_schema(table.columns)
    context.register_parquet("cold", str(linked.directory), schema=schema)
    segments = partition.manifest.segments
    columns = [
        _cold_column(column, field, segments) for column, field in zip(table.columns, schema, strict=False)
    ]
    frame = context.table("cold")
    if any(segment.live_count < segment.row_count for segment in segments):
        frame = frame.filter(~col(DELETED))
    frame = frame.select(*columns, col(SEQ), col(DELETED))
    return _without(context, frame, sorted(partition.hidden)) if partition.hidden else frame


def _cold_column(column: Column, field: pa.Field, segments: Sequence[Segment]) -> Expr:
    """Return the column by its logical name; in segments that are older than it, what it began with."""
    stored = col(f'"{physical_name(column)}"')
    older = [segment for segment in segments if segment.schema_version < column.added]
    if column.initial is None or not older:
        return stored.alias(column.name)
    # Flushes of a partition take ranges of seqs that don't overlap, so that a row's seq tells its segment.
    is_older = [col(SEQ).between(literal(each.min_seq), literal(each.max_seq)) for each in older]
    first = literal(column_array([coerce(column.initial, column)], column)[0])
    filled = when(reduce(or_, is_older), first).otherwise(stored)
    metadata = {name.decode(): value.decode() for name, value in (field.metadata or {}).items()}
    return filled.alias(column.name, metadata)


def _without(context: SessionContext, frame: DataFrame, seqs: Sequence[int]) -> DataFrame:
    """Return the rows of `frame` whose `_seq` isn't one of `seqs`."""
    hidden = pa.record_batch({SEQ: pa.array(seqs, pa.int64())})
    return frame.join(context.create_dataframe([[hidden]]), on=SEQ, how="anti")


def _with(context: SessionContext, frame: DataFrame, staged: Staged, source: Source) -> DataFrame:
    """Return the rows of `frame` as they are after what is staged."""
    if staged.replaced:
        frame = _without(context, frame, staged.replaced)
    return frame.union(context.create_dataframe([[record_batch(staged.versions, source.table.columns)]]))
