"""What only `RocksStore` promises: durability, restarts, one server per directory, and how it refuses."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from upwell.clock import ManualClock
from upwell.effects import NoPoints
from upwell.errors import ReadOnly, StartRefused
from upwell.storage import rocks
from upwell.storage.hot import NO_SEQ, Batch, Drop, ExpectationFailed, Kind, RecordIs, RecordWrite, RowWrite
from upwell.storage.rocks import RocksStore
from upwell.types import Op, TableId, user_owner

NOTES, ANN = TableId(1), user_owner("ann")

WRITER = """
import sys
from pathlib import Path
from upwell.clock import SystemClock
from upwell.storage.hot import NO_SEQ, Batch, Kind, RecordWrite, RowWrite
from upwell.storage.rocks import RocksStore
from upwell.types import Op, TableId, user_owner

store = RocksStore(Path(sys.argv[1]), clock=SystemClock())
for number in range(int(sys.argv[2]), 1_000_000):
    rows = [
        RowWrite(TableId(1), user_owner("ann"), number * 3 + part, Op.INSERT, 1, None, [number], 1, NO_SEQ)
        for part in range(3)
    ]
    applied = store.apply(Batch(rows, [RecordWrite(Kind.RECEIPT, f"{number:09}", b"")]))
    store.sync()
    print(number, applied.seq, flush=True)
"""


def put(key: int) -> RowWrite:
    return RowWrite(NOTES, ANN, key, Op.INSERT, 1, None, [key], 1, NO_SEQ)


def open_store(path: Path, clock: ManualClock | None = None) -> RocksStore:
    return RocksStore(path / "hot", clock=clock or ManualClock())


def keys(store: RocksStore) -> list[object]:
    return [version.key for version in store.scan_rows(NOTES, ANN)]


def test_a_restart_changes_nothing_and_reuses_no_seq_although_the_clock_stepped_back(tmp_path: Path) -> None:
    clock = ManualClock()
    store = open_store(tmp_path, clock)
    rows = store.apply(Batch([put(1), put(2)], [RecordWrite(Kind.META, "m", b"1")])).changes
    seq = store.apply(Batch(drops=[Drop(NOTES, ANN, 1, rows[0].seq)])).seq
    store.close()
    clock.advance(-86_400)
    store = open_store(tmp_path, clock)
    assert (store.last_seq, keys(store), store.owner_counter(ANN)) == (seq, [2], 2)
    assert store.read_owner_log(ANN, 0, None, 9) == rows
    assert store.find_record(Kind.META, "m") == b"1"
    applied = store.apply(Batch([put(3)]))
    assert (applied.seq, applied.changes[0].counter) == (seq + 1, 3)
    store.close()


def test_a_second_store_on_the_directory_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(StartRefused, match="another server uses this directory"):
        open_store(tmp_path)
    script = WRITER.replace("for number", "raise SystemExit('opened')\nfor number")
    outcome = run_writer(script, tmp_path / "hot").communicate()[1]
    assert "StartRefused: another server uses this directory" in outcome
    assert str(tmp_path) not in outcome.rsplit("StartRefused", 1)[1]
    store.apply(Batch([put(1)]))
    store.close()


def test_close_releases_the_directory_although_readers_are_left(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.apply(Batch([put(key) for key in range(100)]))
    _, reader = store.snapshot()
    begun = store.scan_rows(NOTES, ANN)
    next(begun)
    store.close()
    open_store(tmp_path).close()
    for use in (lambda: reader.find_row(NOTES, ANN, 1), lambda: list(begun), lambda: keys(store), store.sync):
        with pytest.raises(AssertionError, match="closed"):
            use()
    store.close()


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(rocks, "FORMAT_VERSION", rocks.FORMAT_VERSION + 1)
        open_store(tmp_path).close()
    for _ in range(2):
        with pytest.raises(StartRefused, match="a newer Upwell wrote this directory"):
            open_store(tmp_path)


def test_a_directory_that_cannot_be_opened_is_refused_without_its_path(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "hot" / "CURRENT").write_text("no manifest\n")
    with pytest.raises(StartRefused) as refused:
        open_store(tmp_path)
    assert str(tmp_path) not in str(refused.value)


def test_each_sync_comes_after_the_writes_that_it_covers(tmp_path: Path) -> None:
    events: list[str] = []

    class Trace(NoPoints):
        def reach(self, name: str) -> None:
            super().reach(name)
            events.append(name)

    def wal_sync(sync: Callable[[], None]) -> None:
        events.append("sync begins")
        sync()
        events.append("sync returns")

    store = RocksStore(tmp_path / "hot", clock=ManualClock(), points=Trace(), wal_sync=wal_sync)
    store.apply(Batch([put(1)]))
    with pytest.raises(ExpectationFailed):
        store.apply(Batch([put(1)]))
    store.sync()
    assert events == [
        "commit:before-write", "commit:after-write", "sync begins", "sync returns", "commit:after-sync",
    ]  # fmt: skip
    store.close()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_after_a_failed_sync_the_store_only_reads(tmp_path: Path, nth: int) -> None:
    numbers = itertools.count(1)

    def wal_sync(sync: Callable[[], None]) -> None:
        if next(numbers) == nth:
            raise OSError(5, "Input/output error")
        sync()

    store = RocksStore(tmp_path / "hot", clock=ManualClock(), wal_sync=wal_sync)
    for key in range(1, nth):
        store.apply(Batch([put(key)]))
        store.sync()
    store.apply(Batch([put(nth)]))
    for refused in (store.sync, store.sync, lambda: store.apply(Batch()), lambda: store.forget_table(NOTES)):
        with pytest.raises(ReadOnly, match="restart the server"):
            refused()
    assert next(numbers) == nth + 1, "a sync is not tried again"
    assert keys(store) == list(range(1, nth + 1))
    store.close()
    store = open_store(tmp_path)
    store.apply(Batch([put(nth + 1)]))
    store.close()


def test_what_was_dropped_does_not_hide_what_is_left(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    changes = store.apply(Batch([put(key) for key in range(2000)])).changes
    for start in range(0, 2000, 500):
        some = changes[start : start + 500]
        drops = [Drop(NOTES, ANN, change.key, change.seq) for change in some if change.key != 1234]
        store.apply(Batch(drops=drops))
    store.checkpoint(tmp_path / "copy")
    assert keys(store) == [1234]
    assert len(store.read_log(NOTES, ANN, 0, None, 9999)) == 2000
    store.close()


def test_kill_9_loses_no_acknowledged_commit_and_halves_none(tmp_path: Path) -> None:
    path = tmp_path / "hot"
    begin, last_seq = 0, 0
    for acks in (1, 40, 150):
        writer = run_writer(WRITER, path, begin)
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(acks)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [
            line for line in writer.communicate()[0].splitlines(keepends=True) if line[-1] == "\n"
        ]
        numbers, seqs = zip(*((int(word) for word in line.split()) for line in acknowledged), strict=True)
        assert list(numbers) == list(range(begin, begin + len(numbers)))
        assert last_seq < seqs[0]
        store = open_store(tmp_path)
        recovered = [int(name) for name, _ in store.scan_records(Kind.RECEIPT)]
        assert recovered == list(range(len(recovered)))
        assert set(numbers) <= set(recovered)
        assert keys(store) == list(range(3 * len(recovered)))
        changes = store.read_owner_log(ANN, 0, None, 1_000_000)
        assert [change.counter for change in changes] == list(range(1, 3 * len(recovered) + 1))
        assert [change.last for change in changes] == [False, False, True] * len(recovered)
        assert store.last_seq == changes[-1].seq >= seqs[-1]
        begin, last_seq = len(recovered), store.last_seq
        store.close()


def run_writer(script: str, path: Path, begin: int = 0) -> subprocess.Popen[str]:
    source = Path(rocks.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(begin)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )


def test_a_record_of_the_batch_itself_is_no_expectation(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    batch = Batch(records=[RecordWrite(Kind.META, "m", b"1")], expectations=[RecordIs(Kind.META, "m", b"1")])
    with pytest.raises(ExpectationFailed):
        store.apply(batch)
    store.close()
