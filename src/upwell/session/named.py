"""Named queries: CREATE VIEW and DROP VIEW, with their rights and messages.

Law: a view gives nobody more than they have: who reads it reads its tables, with their own rights and rows.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from upwell.engine.named_query import NamedQuery, is_plain
from upwell.engine.query_schema import QuerySchema
from upwell.engine.result import ResultColumn, result_columns
from upwell.engine.stop import Stop
from upwell.engine.view import View
from upwell.errors import Conflict, InvalidOperation, InvalidSql
from upwell.feeds.cursor import Growth
from upwell.ids import Seq
from upwell.session.audit import AuditLog, audited
from upwell.session.call import Call
from upwell.session.outcome import Message
from upwell.session.policy import require_admin
from upwell.session.read import Reader
from upwell.session.threads import QueryThreads
from upwell.sql.column import NAME
from upwell.sql.lex import tokenize
from upwell.sql.owners import name_all_owners
from upwell.sql.statements import CreateView, DropView
from upwell.storage.hot import ExpectationFailed
from upwell.types import Column

ATTEMPTS_MAX = 20
# What may stand before a `*` that is all columns, not a product.
_BEFORE_ALL = frozenset({"SELECT", "DISTINCT", "ALL", ",", "."})


@dataclass(frozen=True, slots=True)
class QueryDefiner:
    """Runs statements about views."""

    schema: QuerySchema
    reader: Reader
    audit: AuditLog
    growth: Growth
    threads: QueryThreads

    async def define(self, call: Call, statement: CreateView | DropView) -> Message:
        """Run a definition; return when it is durable and visible."""
        require_admin(call.principal, "view management")
        full_name = f"{statement.namespace}.{statement.name}"
        schema = self.schema.noted(self.audit.note(call.principal.user, *audited(statement)))
        if isinstance(statement, DropView):
            place = (statement.namespace, statement.name)
            seq = schema.drop(place, if_exists=statement.if_exists)
            text = f"View {full_name} " + ("dropped successfully" if seq else "does not exist (skipped)")
        else:
            seq = await self._create(call, statement, schema)
            text = f"View {full_name} " + ("created successfully" if seq else "already exists")
        # Also nothing to do is an answer about the newest state.
        await self.growth.reached(self.schema.last_seq)
        return Message(text)

    async def _create(self, call: Call, statement: CreateView, schema: QuerySchema) -> Seq | None:
        for _ in range(ATTEMPTS_MAX):
            view = await self.growth.reached(self.schema.last_seq)
            query = await self.threads.run(partial(self._planned, call, view, statement))
            with suppress(ExpectationFailed):
                return schema.create(
                    query,
                    view.catalog,
                    replaces=statement.replaces,
                    if_not_exists=statement.if_not_exists,
                )
        raise Conflict("the tables of this view keep changing; run the statement again")

    def _planned(self, call: Call, view: View, statement: CreateView, stop: Stop) -> NamedQuery:
        stop.check()
        if name_all_owners(statement.text, statement.home)[1]:
            raise InvalidOperation(
                "a view can't read all_owners(): each reading of everybody's rows is written to the audit log"
            )
        reads, schema = self.reader.scouted(call, view, statement.text, statement.home)
        inner = result_columns(schema)
        names, tokens = _names(statement, inner), tokenize(statement.text)
        return NamedQuery(
            namespace=statement.namespace,
            name=statement.name,
            text=statement.text,
            home=statement.home,
            columns=tuple(
                Column(number, name, each.type, precision=each.precision, scale=each.scale)
                for number, (name, each) in enumerate(zip(names, inner, strict=True), 1)
            ),
            reads=tuple(reads),
            seen=tuple(tuple(read.names) for read in reads.values()),
            words=frozenset(
                token.text.strip('"`').lower() for token in tokens if token.kind in ("word", "quoted")
            ),
            takes_all=any(
                token.word == "NATURAL" or (token.word == "*" and before.word in _BEFORE_ALL)
                for before, token in pairwise(tokens)
            ),
        )


def _names(statement: CreateView, inner: Sequence[ResultColumn]) -> Sequence[str]:
    """Return the names of a view's columns; raise if one has none, or two have the same."""
    if statement.labels and len(statement.labels) != len(inner):
        raise InvalidSql(
            f"view {statement.namespace}.{statement.name} names {len(statement.labels)} columns, but its "
            f"query has {len(inner)}"
        )
    names = statement.labels or tuple(column.name.lower() for column in inner)
    for number, (name, column) in enumerate(zip(names, inner, strict=True), 1):
        if not statement.labels and not is_plain(column.name):
            raise InvalidSql(f"column {number} of the view has no name; say {column.name[:60]} AS a_name")
        if not NAME.fullmatch(name):
            raise InvalidSql(f"column name '{name[:60]}' may only have letters, digits and _, 128 at most")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise InvalidSql(f"two columns of the view are named '{twice}'; name one of them with AS")
    return names
