"""What fails unexpectedly in one live query ends that one, with a word and a log line; the others go on."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import upwell.testing.live
from upwell.clock import ManualClock
from upwell.errors import InvalidInput
from upwell.feeds.lookout import Lookouts, Question
from upwell.feeds.match import Watch
from upwell.feeds.subscription import Origin
from upwell.ids import Snowflakes
from upwell.protocol.codec import PLAIN
from upwell.protocol.messages import SubscriptionOptions
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded
from upwell.testing.live import WAIT_S, Subscriber

SQL = "SELECT * FROM app.notes"


class Bug(Exception):
    """What nobody has foreseen."""


@dataclass
class Stage:
    """An engine with a table and its feed; `pump` is the feed's task, which must not end."""

    db: Embedded
    pump: asyncio.Task[None]

    async def subscriber(self, kind: type[Subscriber] = Subscriber) -> Subscriber:
        return await kind(self.db, self.db.sessions.feed, "ann", SQL).open()

    async def insert(self, key: int) -> None:
        await self.db.outcomes(f"INSERT INTO app.notes (id) VALUES ({key})", user="ann")


@asynccontextmanager
async def staged(directory: Path) -> AsyncIterator[Stage]:
    clock = ManualClock()
    db = await asyncio.to_thread(Embedded, directory, clock=clock, store=MemoryStore(clock=clock))
    db.sessions = db.session(asyncio.get_running_loop())
    await db.outcomes(
        "CREATE NAMESPACE app; CREATE TABLE app.notes (id BIGINT PRIMARY KEY) WITH (TYPE='USER')"
    )
    pump = asyncio.create_task(db.sessions.feed.run())
    yield Stage(db, pump)
    assert not pump.done()
    pump.cancel()
    await asyncio.gather(pump, return_exceptions=True)
    await db.sessions.feed.close()
    await asyncio.to_thread(db.close)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(tmp_path) as stage:
        yield stage


class Broken(Subscriber):
    """A subscriber whose outlet fails as soon as it is live."""

    def write(self, frames: Sequence[bytes]) -> None:
        if self.subscription is not None:
            raise Bug("the outlet is broken")
        super().write(frames)


async def test_an_outlet_that_fails_loses_its_own_queries(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = await stage.subscriber(Broken), await stage.subscriber()
    await stage.insert(1)
    await stage.insert(2)
    await sound.until(lambda: sound.rows.keys() == {"1", "2"})
    assert broken.subscription is not None
    assert broken.subscription.is_ended
    assert broken.events == []
    assert "Bug: the outlet is broken" in caplog.text


async def test_a_pump_that_fails_ends_who_depends_on_it_and_goes_on(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, stalled = await stage.subscriber(), await stage.subscriber()
    stalled.is_stalled = True
    await stage.insert(1)
    await told.until(lambda: told.rows)

    def fail(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise Bug("the log can't be read")

    monkeypatch.setattr(stage.db.committer.changelog, "tail", fail)
    await stage.insert(2)
    await told.until(lambda: told.errors)
    [(code, message)] = told.errors
    assert (code, "resume with `from`" in message) == ("SUBSCRIPTION_FAILED", True)
    stalled.release()
    await stalled.until(lambda: stalled.rows.keys() == {"1", "2"})
    await told.resume()
    await stage.insert(3)
    await told.until(lambda: told.rows.keys() == {"1", "2", "3"})
    assert "Bug: the log can't be read" in caplog.text


async def test_a_query_that_cannot_follow_its_table_ends_alone(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = upwell.testing.live.bind_watch

    def fail(table: object) -> None:
        raise Bug("the table can't be followed")

    def bound(*asked: Any) -> Watch:
        return replace(bind(*asked), require=fail)

    monkeypatch.setattr(upwell.testing.live, "bind_watch", bound)
    broken = await stage.subscriber()
    monkeypatch.undo()
    sound = await stage.subscriber()
    await stage.db.outcomes("ALTER TABLE app.notes ADD COLUMN body TEXT DEFAULT 'b'")
    await stage.insert(1)
    await sound.until(lambda: sound.rows == {"1": {"id": "1", "body": "b"}})
    [(code, message)] = broken.errors
    assert (code, "app.notes" in message, "Bug" in message) == ("SUBSCRIPTION_FAILED", True, False)
    assert "Bug: the table can't be followed" in caplog.text


async def test_a_table_that_is_made_while_the_pump_reads_is_not_taken_for_dropped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pump reads for long what memory has no more, with a catalog that was the newest when it began."""
    feed = stage.db.sessions.feed
    await Subscriber(stage.db, feed, "ann", SQL).open(live_only=True)
    changelog = stage.db.committer.changelog
    read, is_reading, may_read = changelog.read, threading.Event(), threading.Event()

    def slowly(*asked: Any, **more: Any) -> Any:
        is_reading.set()
        assert may_read.wait(WAIT_S)
        return read(*asked, **more)

    monkeypatch.setattr(changelog, "tail", lambda *_, **__: None)
    monkeypatch.setattr(changelog, "read", slowly)
    await stage.db.outcomes("CREATE TABLE app.first (id BIGINT PRIMARY KEY) WITH (TYPE='USER')")
    assert await asyncio.to_thread(is_reading.wait, WAIT_S)
    monkeypatch.undo()
    await stage.db.outcomes("CREATE TABLE app.second (id BIGINT PRIMARY KEY) WITH (TYPE='USER')")
    late = await Subscriber(stage.db, feed, "ann", "SELECT * FROM app.second").open(live_only=True)
    may_read.set()
    await stage.db.outcomes("INSERT INTO app.second (id) VALUES (1)", user="ann")
    await late.until(lambda: late.rows or late.errors)
    assert (late.errors, list(late.rows)) == ([], ["1"])


# Lookouts


@asynccontextmanager
async def looking(stage: Stage) -> AsyncIterator[Lookouts]:
    feed, growth = stage.db.sessions.feed, stage.db.sessions.growth
    lookouts = Lookouts(feed, growth, Snowflakes(stage.db.clock).next, interval_s=0.001)
    task = asyncio.create_task(lookouts.run())
    yield lookouts
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Looker(Subscriber):
    """A subscriber of a system table that doesn't exist but for its answers: the n-th, or its failure."""

    async def ask(self, lookouts: Lookouts, *answers: pa.Table | Exception, **changed: Any) -> "Looker":
        left = list(answers)

        async def look() -> pa.Table:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        columns = changed.get("columns")
        question = Question("system", "things", 1, columns, look, is_stored=False)
        self.subscription = await lookouts.subscribe(
            question,
            subscription_id="s",
            outlet=self,
            options=SubscriptionOptions(),
            protocol=PLAIN,
            origin=Origin("ann"),
        )
        return self


def things(**columns: list[Any]) -> pa.Table:
    return pa.table(columns)


def looker(stage: Stage) -> Looker:
    return Looker(stage.db, stage.db.sessions.feed, "ann", "")


@pytest.mark.parametrize(
    "failure", [Bug("nobody looks"), things(id=["a"])], ids=["raises", "an answer without a column"]
)
async def test_a_lookout_that_fails_ends_alone(
    stage: Stage, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with looking(stage) as lookouts:
        broken = await looker(stage).ask(lookouts, things(id=["a"], body=["b"]), failure)
        sound = await looker(stage).ask(
            lookouts, *[things(id=["a"])] * 5, things(id=["a", "b"]), things(id=["b"])
        )
        await broken.until(lambda: broken.errors)
        await sound.until(lambda: sound.rows.keys() == {"b"})
        [(code, message)] = broken.errors
        assert (code, "system.things failed unexpectedly" in message) == ("SUBSCRIPTION_FAILED", True)
        assert sound.errors == []
        assert "a live query failed unexpectedly" in caplog.text
        assert len(stage.db.sessions.feed.subscriptions()) == 1


async def test_a_lookout_that_fails_at_once_leaves_nothing(stage: Stage) -> None:
    async with looking(stage) as lookouts:
        with pytest.raises(Bug):
            await looker(stage).ask(lookouts, Bug("nobody looks"))
        assert stage.db.sessions.feed.subscriptions() == []


@pytest.mark.parametrize(
    "columns",
    [
        (("id", "a"), ("body", "a")),
        (("body", "_seq"),),
        (("body", "id"),),
        (("id", "x"), ("body", "_deleted")),
    ],
)
async def test_names_that_clash_are_refused(stage: Stage, columns: tuple[tuple[str, str], ...]) -> None:
    async with looking(stage) as lookouts:
        with pytest.raises(InvalidInput, match="two columns of the live query are called"):
            await looker(stage).ask(lookouts, things(id=["a"], body=["b"]), columns=columns)


async def test_a_column_that_is_named_twice_is_told_once(stage: Stage) -> None:
    async with looking(stage) as lookouts:
        columns = (("id", "id"), ("body", "text"), ("body", "text"))
        told = await looker(stage).ask(lookouts, things(id=["a"], body=["b"]), columns=columns)
        assert told.rows == {"a": {"id": "a", "text": "b"}}
