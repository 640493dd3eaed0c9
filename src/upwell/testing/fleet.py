"""A state machine: phones with different conflict rules and a back end edit at random, over a line that
loses, doubles, delays and refuses, while phones and server crash anywhere.

Law: no edit is lost or takes effect twice, and all agree at last.

The server's parts and the devices are the real ones, on RocksDB or in memory, and SQLite files;
what must hold after each exchange is said in `upwell.testing.ledger`.
"""

import itertools
import shutil
import sqlite3
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from upwell.clock import ManualClock
from upwell.device import AnswerRefused, RequestRefused, Unreachable
from upwell.device.conflict import Resolver
from upwell.effects import POINTS
from upwell.storage.memory import MemoryStore
from upwell.testing.embedded import RETENTION_S, Embedded
from upwell.testing.fleet_edits import (
    EDIT,
    EDITS,
    EDITS_BEFORE,
    PHONES,
    PHONES_MAX,
    RESOLVERS,
    TABLE,
    Edit,
    Edits,
)
from upwell.testing.fleet_stock import StockPhone
from upwell.testing.fleet_tables import (
    APP_TABLES,
    CHILDREN,
    PARENTS,
    SERVER_REFERENCES,
    SERVER_TABLES,
    TABLES,
    USER,
    columns_of,
)
from upwell.testing.inprocess import App, Crashing, CrashPoints, Fault, Killed, SyncServer
from upwell.testing.ledger import Content, Diary, Ledger, Place

ROUNDS_MAX = 4
EXCHANGES = st.sampled_from(["sync", "upload", "download"])
STEPS = st.sampled_from(["sync", "sync", "upload", "download", "hydrate"])
FAULTS = st.lists(st.sampled_from(Fault), min_size=1, max_size=4)
CRASHES = st.sampled_from(
    sorted(p for p in POINTS if p.startswith("commit:") and p != "commit:after-publish")
)
FLUSH_CRASHES = st.sampled_from([None, None, *sorted(p for p in POINTS if p.startswith("flush:"))])


LIMITS = st.sampled_from([1, 2, 200])
STOCK_LIMITS = st.sampled_from([1, 2, 3, 7])
STOCK_PAGES_MAX = 1_000


def differences(found: dict[Place, Content], wanted: dict[Place, Content]) -> list[Any]:
    places = found.keys() | wanted.keys()
    return [(p, found.get(p), wanted.get(p)) for p in sorted(places) if found.get(p) != wanted.get(p)]


def memory_directory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class Fleet(Edits):
    """Two or three phones of one user, SQL, and everything that can go wrong."""

    is_on_disk: ClassVar[bool]

    @initialize(
        resolvers=st.permutations(RESOLVERS),
        limits=st.sampled_from([2, 2, PHONES_MAX]).flatmap(lambda n: st.tuples(*[LIMITS] * n)),
        download=LIMITS,
    )
    def begin(self, resolvers: list[Resolver], limits: tuple[int, ...], download: int) -> None:
        self.resolvers, self.limits, self.download_limit = resolvers, limits, download
        self.directory = Path(tempfile.mkdtemp(dir=memory_directory()))
        self.clock = ManualClock()
        points = CrashPoints()
        self.db = Embedded(
            self.directory / "server",
            store=None if self.is_on_disk else MemoryStore(clock=self.clock),
            clock=self.clock,
            points=points,
        )
        self.db.run("CREATE NAMESPACE app")
        for table in SERVER_TABLES:
            self.db.run(f"CREATE TABLE app.{table} WITH (TYPE = 'USER', SYNC = TRUE)")
        for reference in SERVER_REFERENCES:
            self.db.run(f"ALTER TABLE app.{reference}")
        self.server = SyncServer(self.db, points)
        self.ledger = Ledger()
        self.numbers = itertools.count(1)
        self.past: list[Diary] = []
        self.diaries = [self.install(i, is_source_forced=i == 0) for i in range(len(limits))]
        self.stocks: dict[int, StockPhone] = {}

    def install(self, index: int, *, is_source_forced: bool, source: str | None = None) -> Diary:
        source = source or f"s{next(self.numbers)}"
        path = self.directory / f"{next(self.numbers)}.sqlite"
        connection = sqlite3.connect(path)
        connection.executescript(APP_TABLES)
        connection.close()
        app = App(
            path,
            self.server,
            user=USER,
            schema="app",
            tables=TABLES,
            upload_limit=self.limits[index],
            download_limit=self.download_limit,
            resolver=self.resolvers[index],
            clock=self.clock,
            source=source if is_source_forced else None,
            new_source=lambda: source,
        )
        return Diary(app, TABLES, installed_after=self.ledger.counter)

    def teardown(self) -> None:
        if not hasattr(self, "diaries"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.converge()
        finally:
            for diary in self.diaries:
                diary.app.device.close()
            for stock in self.stocks.values():
                stock.close()
            self.server.close()
            self.db.close()
            shutil.rmtree(self.directory)

    # --- the end

    def converge(self) -> None:
        """No more faults: a few rounds, and all agree with SQL."""
        for diary in self.diaries:
            diary.app.device.retry_refused()
        for _ in range(ROUNDS_MAX):
            for diary in self.diaries:
                self.exchange(diary, "sync")
            if all(self.is_quiet(diary) for diary in self.diaries):
                break
        wanted = self.rows_by_sql()
        assert wanted == self.ledger.live(), differences(wanted, self.ledger.live())
        for (table, _), content in wanted.items():
            parent = content[2] if table in PARENTS else None
            assert parent is None or (PARENTS[table], parent) in wanted, f"{table}: an orphan on the server"
        for diary in self.diaries:
            status = diary.app.device.status()
            assert (status.pending, status.quarantined, status.withheld) == (0, 0, 0), (
                diary.app.device.pending()
            )
            assert diary.contents() == wanted, (diary.source, differences(diary.contents(), wanted))
        for limit in (1, 2):
            self.stocks[-limit] = StockPhone(self.server, self.directory, f"stock-{limit}", limit)
        for stock in self.stocks.values():
            assert stock.read(STOCK_PAGES_MAX), f"{stock.source} comes to no end"
            assert stock.contents() == wanted, (stock.source, differences(stock.contents(), wanted))
        for diary in [*self.past, *self.diaries]:
            diary.check_nothing_lost(self.ledger)
        self.ledger.check_reasons([*self.past, *self.diaries])

    def is_quiet(self, diary: Diary) -> bool:
        status = diary.app.device.status()
        return status.pending == status.withheld == 0 and status.cursor == self.ledger.counter

    def rows_by_sql(self) -> dict[Place, Content]:
        return {
            (table, str(pk)): tuple(content)
            for table in TABLES
            for pk, *content in self.db.rows(f"SELECT {columns_of(table)} FROM app.{table}", user=USER)
        }

    # --- edits

    @rule(phone=PHONES, edits=EDITS)
    def write(self, phone: int, edits: list[Edit]) -> None:
        for edit in edits:
            self.edit_in_app(self.phone(phone), edit)

    @rule(edits=EDITS, crash=st.one_of(st.none(), st.none(), CRASHES))
    def write_by_sql(self, edits: list[Edit], crash: str | None) -> None:
        """The back end edits rows; the server may crash on it."""
        with self.crashing(crash):
            for edit in edits:
                self.edit_by_sql(edit)

    # --- exchanges

    @rule(phone=PHONES, step=STEPS)
    def talk(self, phone: int, step: str) -> None:
        self.exchange(self.phone(phone), step)

    @rule()
    def all_talk(self) -> None:
        for diary in self.diaries:
            self.exchange(diary, "sync")

    @rule(phone=PHONES, step=STEPS, faults=FAULTS)
    def talk_over_a_bad_line(self, phone: int, step: str, faults: list[Fault]) -> None:
        diary = self.phone(phone)
        diary.app.line.faults.extend(faults)
        self.try_exchange(diary, step)
        diary.app.line.clear()

    @rule(phone=PHONES, step=STEPS, crash=CRASHES)
    def talk_while_the_server_crashes(self, phone: int, step: str, crash: str) -> None:
        with self.crashing(crash):
            self.try_exchange(self.phone(phone), step)

    @rule(
        phone=PHONES, step=STEPS, answers=st.integers(0, 3), statement=st.integers(1, 50), edits=EDITS_BEFORE
    )
    def be_killed(self, phone: int, step: str, answers: int, statement: int, edits: list[Edit]) -> None:
        """The app ends between two of its SQL statements, or later in good order."""
        diary = self.phone(phone)
        for edit in edits:
            self.edit_by_sql(edit)
        self.kill_later(diary, answers, statement)
        with suppress(Killed):
            self.step(diary, step)
        self.restart(diary)

    def kill_later(self, diary: Diary, answers: int, statement: int) -> None:
        if answers:
            diary.app.line.on_answer = lambda: self.kill_later(diary, answers - 1, statement)
        else:
            diary.app.kill_at(statement)

    @rule(phone=PHONES, edit=EDIT, there=EDIT, is_child=st.booleans(), step=EXCHANGES)
    def meet(self, phone: int, edit: Edit, there: Edit, is_child: bool, step: str) -> None:
        """App and back end edit the same row, or one that refers to it, and know nothing of each other."""
        diary, (table, number, _, _) = self.phone(phone), edit
        self.edit_in_app(diary, edit)
        _, other, parent, verb = there
        children = CHILDREN.get(table) if is_child else None
        self.edit_by_sql(
            (children[parent % len(children)], other, number, verb)
            if children
            else (table, number, parent, verb)
        )
        self.exchange(diary, step)

    @rule(phone=PHONES, edit=EDIT, step=EXCHANGES, when=st.sampled_from(["on_send", "on_answer"]), then=EDIT)
    def edit_in_flight(self, phone: int, edit: Edit, step: str, when: str, then: Edit) -> None:
        """The app edits what is being sent, or any row while it downloads."""
        diary = self.phone(phone)
        self.edit_in_app(diary, edit)
        setattr(diary.app.line, when, lambda: self.edit_in_app(diary, self.aimed(diary, then)))
        self.exchange(diary, step)
        diary.app.line.clear()

    @rule(phone=PHONES, step=STEPS, when=st.sampled_from(["on_send", "on_answer"]), edits=EDITS)
    def write_by_sql_in_flight(self, phone: int, step: str, when: str, edits: list[Edit]) -> None:
        diary = self.phone(phone)

        def edit_all() -> None:
            for edit in edits:
                self.edit_by_sql(self.aimed(diary, edit))

        setattr(diary.app.line, when, edit_all)
        self.exchange(diary, step)
        diary.app.line.clear()

    def aimed(self, diary: Diary, edit: Edit) -> Edit:
        """The edit, of a row that is being sent if there is one."""
        _, number, parent, verb = edit
        sent = diary.in_flight()
        if not sent:
            return edit
        table, pk = sent[number % len(sent)]
        return table, int(pk[-6:]), parent, verb

    @rule(phone=PHONES, edit=EDIT, here=EDITS_BEFORE, there=EDITS_BEFORE, step=EXCHANGES)
    def send_again(self, phone: int, edit: Edit, here: list[Edit], there: list[Edit], step: str) -> None:
        """The answer to an upload is lost, its rows change again, and the phone repeats it."""
        diary = self.phone(phone)
        self.edit_in_app(diary, edit)
        diary.app.line.faults.extend([Fault.ANSWER_LOST])
        self.try_exchange(diary, "upload")
        diary.app.line.clear()
        for change in here:
            self.edit_in_app(diary, self.aimed(diary, change))
        for change in there:
            self.edit_by_sql(self.aimed(diary, change))
        self.exchange(diary, step)

    @rule(phone=PHONES, index=st.integers(0, 9))
    def get_a_late_copy(self, phone: int, index: int) -> None:
        """A request that was sent once reaches the server again."""
        sent = self.phone(phone).app.line.sent
        if sent:
            self.ledger.read(self.db, USER)
            self.server.answer(sent[-1 - index % len(sent)])
            self.ledger.read(self.db, USER, is_late=True)

    def restart(self, diary: Diary) -> None:
        diary.app.restart()
        self.check(diary)

    @rule(phone=PHONES, is_same_source=st.booleans())
    def reinstall(self, phone: int, is_same_source: bool) -> None:
        """The app is deleted and installed again, if nothing would be lost."""
        diary = self.phone(phone)
        if diary.app.device.status().pending:
            return
        self.check(diary)
        diary.app.device.close()
        diary.app.remove()
        self.past.append(diary)
        index = self.diaries.index(diary)
        self.diaries[index] = self.install(
            index, is_source_forced=is_same_source, source=diary.source if is_same_source else None
        )
        self.exchange(self.diaries[index], "sync")

    @rule(limit=STOCK_LIMITS, pages=st.integers(1, 5), lost=st.integers(0, 1), is_anew=st.integers(0, 3))
    def read_as_stock(self, limit: int, pages: int, lost: int, is_anew: int) -> None:
        """A stock client, one for each limit, reads some pages, of the log or of rows."""
        self.clock.advance(0.01)
        if limit not in self.stocks:
            source = f"stock{next(self.numbers)}"
            self.stocks[limit] = StockPhone(self.server, self.directory, source, limit)
        elif is_anew == 0:
            self.stocks[limit].reinstall()
        self.stocks[limit].read(pages, lost=lost)

    # --- the server on its own

    @rule(table=TABLE, crash=FLUSH_CRASHES)
    def flush(self, table: str, crash: str | None) -> None:
        with self.crashing(crash):
            self.db.flush(f"app.{table}")

    @rule(
        present=st.sets(PHONES, max_size=2),
        edits=EDITS_BEFORE,
        crash=st.sampled_from([None, None, "trim:after-slice"]),
        returning=PHONES,
        step=STEPS,
    )
    def let_time_pass(
        self, present: set[int], edits: list[Edit], crash: str | None, returning: int, step: str
    ) -> None:
        """What is old leaves the log, unless a phone that is still around hasn't read it; one comes back."""
        for edit in edits:
            self.edit_by_sql(edit)
        self.clock.advance(RETENTION_S + 1)
        for phone in sorted(present):
            self.exchange(self.phone(phone), "download")
        self.ledger.read(self.db, USER)
        with self.crashing(crash):
            self.db.trim.run()
        self.exchange(self.phone(returning), step)

    def crashing(self, point: str | None) -> Crashing:
        return Crashing(self.server, point)

    def exchange(self, diary: Diary, step: str) -> None:
        """One exchange, and what must hold after it, however it ended."""
        try:
            self.step(diary, step)
            diary.check_at_rest()
        finally:
            if not diary.app.is_dead:
                self.check(diary)

    def try_exchange(self, diary: Diary, step: str) -> None:
        with suppress(Unreachable, RequestRefused, AnswerRefused):
            self.exchange(diary, step)

    def step(self, diary: Diary, step: str) -> None:
        self.clock.advance(0.01)
        device = diary.app.device
        if step == "hydrate":
            device.hydrate(page_rows=2)
        else:
            getattr(device, step)()

    def check(self, diary: Diary) -> None:
        self.server.recover()
        self.ledger.read(self.db, USER)
        diary.check(self.ledger)
