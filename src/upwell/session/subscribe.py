"""SUBSCRIBE TO: what a client has to send, and where, to follow a live query (contract, 3.11).

Law: what is answered can be subscribed as it stands; what a live query refuses is refused in the same words.
Nothing is subscribed by the statement itself: a request has nobody who would take what comes later.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from upwell.engine.result import ResultColumn
from upwell.feeds.cursor import Growth
from upwell.feeds.live import LiveFeed
from upwell.feeds.lookout import refuse_options
from upwell.feeds.snapshot import Snapshot, expect_same_table
from upwell.protocol import messages
from upwell.session.call import Call
from upwell.session.outcome import PointAnswer
from upwell.session.threads import QueryThreads
from upwell.session.watch import Look, bind_watch, find_question
from upwell.sql.subscribe import SubscribeTo
from upwell.types import SqlType

LIVE_PATH = "/v1/ws"
_COLUMNS = (
    ResultColumn("status", SqlType.TEXT),
    ResultColumn("ws_url", SqlType.TEXT),
    ResultColumn("subscription", SqlType.JSON),
    ResultColumn("message", SqlType.TEXT),
)
_MESSAGE = 'Open ws_url, sign in, and send {"type": "subscribe", "subscription": …}; docs/live.md tells more'
_NAME_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Invitation:
    """Answers SUBSCRIBE TO; `address` is the server's, as `http://host:port`."""

    feed: LiveFeed
    growth: Growth
    threads: QueryThreads
    look: Look
    address: str

    async def tell(self, call: Call, statement: SubscribeTo) -> PointAnswer:
        """Return one row; raise what the live query would be refused with."""
        place = await self._place(call, messages.Subscription("", statement.sql, statement.options))
        name = "-".join(("sub", *place))[:_NAME_CHARS_MAX]
        subscription: dict[str, Any] = {"id": f"{name}-{call.context().next_uuid()}", "sql": statement.sql}
        if statement.options is not None:
            subscription["options"] = msgspec.to_builtins(statement.options)
        url = f"ws{self.address.removeprefix('http')}{LIVE_PATH}"
        return PointAnswer(_COLUMNS, [["active", url, subscription, _MESSAGE]])

    async def _place(self, call: Call, asked: messages.Subscription) -> tuple[str, str]:
        """Return namespace and name of the table that can be followed."""
        view, options = self.growth.view, asked.options
        question = find_question(asked, call.principal, self.look)
        if question is not None:
            refuse_options(options)
            await question.look()
            return question.namespace, question.name
        watch = bind_watch(asked, call.principal, view.catalog, call.context(), self.feed)
        expect_same_table(watch.table, options)
        if options is not None:
            Snapshot.begin(options, until=view.seq)
        if watch.condition is not None:
            check = watch.condition.check
            await self.threads.run(lambda _: check(view))
        return watch.table.namespace, watch.table.name
