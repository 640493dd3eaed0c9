"""Predicates of live queries: whatever SELECT's WHERE takes, a live view holds what SELECT finds.

All forms are followed at once while rows come, change and go; SELECT is the oracle after each step.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.errors import InvalidSql, QueryFailure, UpwellError
from upwell.feeds.live import LiveFeed
from upwell.feeds.match import decide
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import Embedded, answer_rows
from upwell.testing.live import Subscriber
from upwell.types import Value

COLUMNS = (
    "id BIGINT PRIMARY KEY, b BOOLEAN, s SMALLINT, i INT, n BIGINT, f FLOAT, d DOUBLE, m DECIMAL(12,2),"
    " t TEXT, u UUID, j JSON, y BYTES, dt DATE, tm TIME, ts TIMESTAMP, dz DATETIME"
)
UUIDS = ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000")
NOON_US, MOMENT_US = 43_200_000_000, 1_700_000_000_000_000
ROWS: list[list[Value]] = [
    [
        *[1, True, 1, 1, 1, 1.5, 1.5, "1.50", "abc", UUIDS[0], '{"a":1,"b":["x"],"s":"hi"}', b"abc", 20_000],
        *[NOON_US, MOMENT_US, MOMENT_US],
    ],
    [
        *[2, False, -(2**15), -(2**31), -(2**63), -0.0, -0.0, "-9999999999.99", "ÄB", UUIDS[1], "[1,2]", b""],
        *[-1, 0, -1, -1],
    ],
    [3, *[None] * 15],
    [
        *[4, True, 2**15 - 1, 2**31 - 1, 2**63 - 1, 3.4e38, 1e308, "9999999999.99", "7", UUIDS[0], "null"],
        *[b"\x00\xff", 0, 86_399_999_999, 0, 0],
    ],
]
PREDICATES = """
CASE WHEN b THEN n = 1 ELSE i < 0 END
CASE s WHEN 1 THEN TRUE WHEN 32767 THEN b END
COALESCE(t, 'x') = 'x'
NULLIF(t, 'abc') IS NULL
TRY_CAST(t AS BIGINT) = 7
CAST(n AS TEXT) = '1'
n::TEXT = '1' OR n IS NULL
j ->> 'a' = '1'
j -> 'b' = '["x"]'
j->'b'->>0 = 'x'
j ? 'a'
json_get_int(j, 'a') = 1
json_length(j) = 2
json_contains(j, 's')
j ->> 'a' > 0
n IS DISTINCT FROM 1
n IS NOT DISTINCT FROM NULL
m = 1.5
m > 1 AND id < 9
m BETWEEN 1 AND 2
m IN (1.50, 7)
m = '1.5'
m * 2 = 3
ROUND(m) = 2
n / 2 + 1 > 1
i % 2 = 1
d / 0 > 1
f + d = 3
f = 0
d >= 0.0
i * 2 > 0
n = 9223372036854775807.0
t LIKE 'a%'
t ILIKE 'Ä%'
t NOT LIKE '%_c'
t SIMILAR TO 'a.*'
t ~ '^a'
t !~* '^A'
regexp_like(t, '^[a-c]+$')
starts_with(t, 'a')
position('b' IN t) > 0
substring(t FROM 1 FOR 1) = 'a'
trim(t) = 'abc'
lower(t) = 'äb'
LENGTH(t) = 3
t || 'x' = 'abcx'
concat(t, n) = 'abc1'
y = X'616263'
encode(y, 'hex') = '616263'
u = 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'
u IN ('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11')
u = 'x'
u <> CURRENT_USER()
t = CURRENT_USER() OR t = 'abc'
dt = '2024-10-04'
dt < CURRENT_DATE
dt + INTERVAL '1 day' = DATE '2024-10-05'
EXTRACT(YEAR FROM dt) = 2024
date_trunc('day', ts) = TIMESTAMP '2023-11-14'
ts < NOW()
ts > NOW() - INTERVAL '100 years'
dz <= CURRENT_TIMESTAMP
to_timestamp(1700000000) = ts
tm < '12:00:01'
ts = dz
b IS UNKNOWN
b = (n > 0)
NOT b
TRUE
NULL
n NOT IN (1, NULL)
(n, i) IN ((1, 1))
n = ANY(ARRAY[1,2])
greatest(n, i) = 1
n & 1 = 1
string_to_array(t,'b')[1] = 'a'
t.t = 'abc' OR a.t.n IS NULL
"t" = 'abc' AND CURRENT_ROLE() = 'user'
_seq > 0 AND _deleted = FALSE AND n % 2 = 1
n = 1 AND j ->> 'a' = '1'
n = 1 -- a comment
""".strip().splitlines()


class World:
    """An engine with a table of every type, and the live views of it."""

    def __init__(self, directory: Path) -> None:
        clock = ManualClock()
        self.db = Embedded(directory, clock=clock, store=MemoryStore(clock=clock))
        self.feed: LiveFeed = self.db.sessions.feed
        self.pump = self.db.runner.get_loop().create_task(self.feed.run())
        self.db.run("CREATE NAMESPACE a")

    def make(self) -> None:
        self.db.run("DROP TABLE IF EXISTS a.t")
        self.db.run(f"CREATE TABLE a.t ({COLUMNS}) WITH (TYPE='SHARED', ACCESS_LEVEL='PUBLIC')")

    def insert(self, row: list[Value]) -> None:
        marks = ", ".join(f"${at + 1}" for at in range(len(row)))
        self.db.run(f"INSERT INTO a.t VALUES ({marks})", row)

    def follow(self, where: str, **options: object) -> Subscriber:
        subscriber = Subscriber(self.db, self.feed, "ann", f"SELECT id FROM a.t WHERE {where}")
        self.db.runner.run(subscriber.open(**{"view": True, **options}))
        return subscriber

    def found(self, where: str, user: str = "ann") -> set[str]:
        return {str(key) for (key,) in self.db.rows(f"SELECT id FROM a.t WHERE {where}", user=user)}

    def settle(self, live: dict[str, Subscriber]) -> None:
        """Wait until each live view is what SELECT finds; say which one isn't."""
        for where, subscriber in live.items():
            wanted = self.found(where)
            agreed = subscriber.until(lambda s=subscriber, w=wanted: s.errors or set(s.rows) == w)
            self.db.runner.run(agreed)
            assert (where, subscriber.errors, set(subscriber.rows)) == (where, [], wanted)

    def error(self, subscriber: Subscriber) -> tuple[str, str]:
        self.db.runner.run(subscriber.until(lambda: subscriber.errors))
        [error] = subscriber.errors
        return error

    def close(self) -> None:
        async def end() -> None:
            self.pump.cancel()
            await asyncio.gather(self.pump, return_exceptions=True)
            await self.feed.close()

        self.db.runner.run(end())
        self.db.close()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("predicates"))
    yield world
    world.close()


@pytest.fixture
def world(worlds: World) -> World:
    worlds.make()
    return worlds


def test_every_form_of_predicate_is_followed(world: World) -> None:
    world.insert(ROWS[0])
    live = {where: world.follow(where, batch_size=2) for where in PREDICATES}
    world.settle(live)
    for row in ROWS[1:]:
        world.insert(row)
    world.settle(live)
    world.db.run(
        "BEGIN; UPDATE a.t SET b = NOT b, n = 1, i = 1, t = 'abc', j = '{\"a\": 1}', m = 1.5, f = 0, ts = 1"
        " WHERE id <> 3; UPDATE a.t SET t = 'Äbc', dt = 20000, n = 3, j = '[]' WHERE id >= 3; COMMIT"
    )
    world.settle(live)
    away = {where: subscriber.copy() for where, subscriber in live.items()}
    world.db.run("DELETE FROM a.t WHERE id IN (1, 3); UPDATE a.t SET t = 'abc', n = 1, m = 2 WHERE id = 4")
    world.insert([5, *ROWS[0][1:]])
    world.settle(live)
    for subscriber in away.values():
        world.db.runner.run(subscriber.resume(view=True, batch_size=1))
    world.settle(away)


def test_without_a_view_what_matches_by_now_is_told(world: World) -> None:
    subscriber = world.follow("lower(j ->> 'state') = 'open'", view=False, live_only=True)
    world.insert([1, *[None] * 9, '{"state": "new"}', *[None] * 5])
    for state in ("open", "shut", "open"):
        world.db.run(f'UPDATE a.t SET j = \'{{"state": "{state}"}}\' WHERE id = 1')
    world.db.run("DELETE FROM a.t WHERE id = 1")
    world.db.runner.run(subscriber.until(lambda: len(subscriber.events) == 3))
    assert [kind for kind, _, _ in subscriber.events] == ["update", "update", "delete"]


REFUSED: list[tuple[str, type[UpwellError], str]] = [
    ("n = (SELECT 1)", InvalidSql, "follow the other table as well"),
    ("sum(n) > 1", QueryFailure, "Aggregate functions are not allowed in the WHERE clause"),
    ("row_number() OVER () = 1", InvalidSql, "a window looks at other rows"),
    ("nothing = 1", QueryFailure, "column 'nothing' does not exist"),
    ("nothing + 1 = 1", QueryFailure, "column 'nothing' does not exist"),
    ("nosuch(t) = 1", QueryFailure, "Invalid function 'nosuch'"),
    ("n", QueryFailure, "boolean"),
    ("ts = 'junk'", QueryFailure, "Error parsing timestamp from 'junk'"),
    ("b = 1", QueryFailure, "Cannot infer common argument type"),
    ("n = 1 +", InvalidSql, ""),
]


@pytest.mark.parametrize("live_only", [True, False])
@pytest.mark.parametrize(("where", "error", "message"), REFUSED)
def test_what_select_refuses_or_no_row_can_decide_is_refused(
    where: str, error: type[UpwellError], message: str, live_only: bool, worlds: World
) -> None:
    if "a.t" not in str(worlds.db.view.catalog.tables):
        worlds.make()
    with pytest.raises(error) as caught:
        worlds.follow(where, live_only=live_only)
    assert message in str(caught.value)
    assert worlds.feed.total == len([each for each in worlds.feed.subscriptions() if each.table == "a.t"])


def test_a_row_without_an_answer_ends_that_live_query_only(world: World) -> None:
    fails = world.follow("1 / n = 1")
    others = {where: world.follow(where) for where in ("1 / NULLIF(n, 0) = 1", "n IS NOT NULL", "m > 1.0")}
    world.db.run("INSERT INTO a.t (id, n, m) VALUES (1, 1, 2), (2, 0, 3), (3, 1, 4)")
    assert world.error(fails) == ("SUBSCRIPTION_FAILED", "Execution error: Divide by zero error")
    assert set(fails.rows) == {"1"}, "what came before it was told"
    world.settle(others)
    world.db.run("UPDATE a.t SET n = 0, m = 0 WHERE id = 3")
    world.settle(others)


@pytest.mark.parametrize(
    ("where", "n"), [("n + 1 > 1", 2**63 - 1), ("n - 1 < 1", -(2**63)), ("-n > 0", -(2**63))]
)
def test_a_sum_that_does_not_fit_ends_the_live_query_as_it_does_a_select(
    world: World, where: str, n: int
) -> None:
    live = world.follow(where)
    world.db.run("INSERT INTO a.t (id, n) VALUES (1, -5), (2, 5), (3, 0)")
    world.settle({where: live})
    world.db.run("INSERT INTO a.t (id, n) VALUES (4, $1)", [n])
    code, message = world.error(live)
    assert (code, "arithmetic overflow" in message) == ("SUBSCRIPTION_FAILED", True)
    with pytest.raises(QueryFailure, match="arithmetic overflow"):
        world.found(where)


def test_a_row_is_judged_by_itself(world: World) -> None:
    """One that another part of the condition rules out is no matter, whatever rows came with it."""
    live = {"n <> 0 AND 1 / n = 1": world.follow("n <> 0 AND 1 / n = 1")}
    world.db.run("INSERT INTO a.t (id, n) VALUES (1, 0), (2, 1)")
    [subscriber] = live.values()
    world.db.runner.run(subscriber.until(lambda: subscriber.errors or subscriber.rows))
    assert (subscriber.errors, set(subscriber.rows)) == ([], {"2"})


def test_a_predicate_lives_through_alter_until_its_column_is_altered(world: World) -> None:
    where = "COALESCE(t, 'x') = 'x' AND n % 2 = 1"
    live = {where: world.follow(where)}
    world.db.run("INSERT INTO a.t (id, n) VALUES (1, 1), (2, 2)")
    world.settle(live)
    world.db.run("ALTER TABLE a.t ADD COLUMN more TEXT DEFAULT 'm'")
    world.db.run("ALTER TABLE a.t DROP COLUMN y")
    world.db.run("INSERT INTO a.t (id, n, more) VALUES (3, 3, NULL); UPDATE a.t SET n = 5 WHERE id = 2")
    world.settle(live)
    world.db.run("ALTER TABLE a.t RENAME COLUMN n TO amount")
    code, message = world.error(live[where])
    assert (code, "column 'n' of a.t was altered" in message) == ("SUBSCRIPTION_FAILED", True)


def test_the_moment_of_asking_stays(world: World) -> None:
    """NOW() and CURRENT_DATE are what they were when it was asked."""
    live = {where: world.follow(where) for where in ("ts < NOW()", "dt < CURRENT_DATE", "dt < today() + 1")}
    at_us = world.db.clock.now_us()
    world.db.clock.advance(3 * 86_400)  # type: ignore[attr-defined]
    sql = "INSERT INTO a.t (id, ts, dt) VALUES (1, $1, $2), (2, $3, $4)"
    day = at_us // 86_400_000_000
    world.db.run(sql, [at_us - 1, day - 1, at_us + 1, day + 1])
    for subscriber in live.values():
        world.db.runner.run(subscriber.until(lambda s=subscriber: s.rows))
        assert (set(subscriber.rows), subscriber.errors) == ({"1"}, [])


def test_who_asks_the_same_asks_the_query_engine_once(world: World) -> None:
    same = [world.follow("n % 2 = 1") for _ in range(3)]
    conditions = {id(each.subscription.watch.condition) for each in same if each.subscription}
    assert len(conditions) == 1
    world.db.run("ALTER TABLE a.t ADD COLUMN more TEXT")
    world.db.run("INSERT INTO a.t (id, n) VALUES (1, 1)")
    for each in same:
        world.settle({"n % 2 = 1": each})
    assert len({id(each.subscription.watch.condition) for each in same if each.subscription}) == 1


def test_who_has_nothing_to_ask_waits_for_nobody_who_does(world: World) -> None:
    live = world.follow("n % 2 = 1 AND id = 1")
    world.db.run("INSERT INTO a.t (id, n) VALUES (1, 1)")
    world.settle({"n % 2 = 1 AND id = 1": live})
    assert live.subscription is not None
    watch = live.subscription.watch
    assert watch.condition is not None
    # As a thread holds it that the query engine keeps busy.
    with ThreadPoolExecutor() as threads, watch.condition._deciding:
        assert threads.submit(decide, world.db.view, watch, []).result(timeout=10) == {}
        assert threads.submit(watch.condition.on, watch.table).result(timeout=10)


def test_update_and_delete_find_the_rows_that_select_finds(world: World) -> None:
    for row in ROWS:
        world.insert(row)
    for where in PREDICATES:
        wanted = world.found(where, user="root")
        for statement in (f"UPDATE a.t SET t = 'new' WHERE {where}", f"DELETE FROM a.t WHERE {where}"):
            sql = f"BEGIN; {statement}\nRETURNING id; ROLLBACK"
            done = world.db.runner.run(world.db.outcomes(sql))[-2]
            assert (statement, {str(key) for (key,) in answer_rows(done)}) == (statement, wanted)


def test_a_row_is_set_to_its_seq(world: World) -> None:
    world.db.run("INSERT INTO a.t (id, n, ts) VALUES (1, 1, 77), (2, 2, 88)")
    seqs = dict(world.db.rows("SELECT id, _seq FROM a.t"))
    world.db.run("UPDATE a.t SET n = _seq WHERE id = 1")
    world.db.run("UPDATE a.t SET n = _seq + 1, b = _deleted WHERE id > 1")
    assert world.db.rows("SELECT id, n, b FROM a.t") == [(1, seqs[1], None), (2, seqs[2] + 1, False)]


@pytest.mark.parametrize("settings", ["n = sum(excluded.n)", "n = 3 WHERE sum(t.n) > 0"])
def test_a_conflict_is_settled_row_by_row(world: World, settings: str) -> None:
    world.db.run("INSERT INTO a.t (id, n) VALUES (1, 1), (2, 2)")
    with pytest.raises(QueryFailure, match="GROUP BY"):
        world.db.run(
            f"INSERT INTO a.t (id, n) VALUES (1, 1), (2, 1) ON CONFLICT (id) DO UPDATE SET {settings}"
        )
    world.db.run(
        "INSERT INTO a.t (id, n) VALUES (1, 5), (2, 5) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
        " WHERE t.n / 0.0 > 1 AND t.u IS DISTINCT FROM 'x' AND t.n < 2"
    )
    assert world.db.rows("SELECT id, n FROM a.t") == [(1, 5), (2, 2)]
