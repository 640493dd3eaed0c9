"""The registry: which devices there are, and how far each has read its user's log.

Laws: a cursor is what a device asked with, never what it was answered, so that a lost answer doesn't count
as read. Requests note in memory; records follow behind, and a crash makes a cursor older, never newer.
Of the numbers of the log, a device holds none, or one of those that it may hold: a crash widens them.
"""

import asyncio
import logging
import threading
from concurrent.futures import Executor

import msgspec
from msgspec import structs

from upwell.clock import Clock
from upwell.decodable import decodable
from upwell.engine.commit import Committer
from upwell.engine.names import source_name, user_prefix
from upwell.errors import ReadOnly
from upwell.ids import COUNTER_MASK
from upwell.logs import fields
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite

log = logging.getLogger("upwell.sync")

COMMIT_RECORDS_MAX = 2_000
ANY_NUMBER = (1 << 63) - 1


@decodable
class DeviceRecord(msgspec.Struct, frozen=True, array_like=True):
    """One source of one user; `cursor` None: it hasn't read the log yet. Times are µs since the epoch.

    It may hold the numbers of the log from `asked`, its last question to the log, to `given`, at least what
    it was ever answered. (A record of a version that didn't know them says: any.)
    """

    user: str
    source: str
    cursor: int | None
    first_seen_us: int
    last_seen_us: int
    asked: int = 0
    given: int = ANY_NUMBER

    def told(self, number: int, asked: int | None) -> "DeviceRecord":
        """Return the device after an answer; None: it asked something else than the log."""
        asked = min(self.asked, number) if asked is None else asked
        if number > self.given:
            # Half as much again, so that few answers of many need a commit.
            return structs.replace(self, asked=asked, given=number + (number & COUNTER_MASK) // 2)
        return structs.replace(self, asked=asked)

    def may_hold_more_than(self, other: "DeviceRecord") -> bool:
        """Tell whether there is a number that this one may hold and the other may not."""
        return self.asked < other.asked or self.given > other.given


def load_devices(reader: HotReader, user: str | None = None) -> list[DeviceRecord]:
    """Return the recorded devices of a user, or of all users, in the order of their names."""
    prefix = "" if user is None else user_prefix(user)
    return [_decode(value) for _, value in reader.scan_records(Kind.DEVICE, prefix)]


class Registry:
    """What is known of devices. Thread-safe; `note` costs no commit."""

    def __init__(self, committer: Committer, clock: Clock) -> None:
        self._committer = committer
        self._clock = clock
        self._noted: dict[str, DeviceRecord] = {}
        self._lock = threading.Lock()

    def now_us(self) -> int:
        return self._clock.now_us()

    def note(self, user: str, source: str, cursor: int | None) -> None:
        """Remember that a device is here now, and the cursor that it asked with, if it did."""
        now_us = self.now_us()
        with self._lock:
            known = self._known(user, source, now_us)
            cursor = known.cursor if cursor is None else cursor
            self._noted[source_name(user, source)] = structs.replace(
                known, cursor=cursor, last_seen_us=now_us
            )

    def give(self, user: str, source: str, number: int, *, asked: int | None) -> None:
        """Remember that a device may hold a number of the log; to be called before it is answered.

        `asked` is what it asked the log with, None if it asked something else. Durable, if it may hold more
        than was known.
        """
        name = source_name(user, source)
        with self._lock:
            known = self._known(user, source, self.now_us())
            told = known.told(number, asked)
            if not told.may_hold_more_than(known):
                if told != known:
                    self._noted[name] = told
                return
        with self._committer.lock, self._lock:
            told = self._known(user, source, self.now_us()).told(number, asked)
            seq = self._committer.apply(Batch(records=[_record(told)]))
            self._noted.pop(name, None)
        self._committer.publication.wait(seq)

    def find(self, user: str, source: str) -> DeviceRecord:
        """Return a device as it is now; one that was never seen holds nothing."""
        with self._lock:
            return self._known(user, source, self.now_us())

    def devices(self, user: str | None = None) -> list[DeviceRecord]:
        """Return the devices of a user, or of all users, as they are now."""
        # What is taken out of the notes meanwhile is in this copy; requests don't wait for the scan.
        with self._lock:
            noted = [d for d in self._noted.values() if user is None or d.user == user]
        found = {source_name(d.user, d.source): d for d in load_devices(self._committer.newest, user)}
        for device in noted:
            name = source_name(device.user, device.source)
            if name not in found or found[name].last_seen_us <= device.last_seen_us:
                found[name] = device
        return [found[name] for name in sorted(found)]

    def slowest_cursor(self, user: str, since_us: int, unread: int | None = None) -> int | None:
        """Return the lowest cursor of the user's devices that were seen since; None if none reads the log.

        `unread` stands for the cursor of those that haven't read it yet; None: they don't count.
        """
        live = [device for device in self.devices(user) if device.last_seen_us >= since_us]
        cursors = (unread if device.cursor is None else device.cursor for device in live)
        return min((cursor for cursor in cursors if cursor is not None), default=None)

    def write(self) -> None:
        """Record what was noted, in one commit for all (in several, if there are very many)."""
        while self._write_some():
            pass

    def close(self) -> None:
        """Record the last notes; a server that is read-only can't."""
        try:
            self.write()
        except ReadOnly as failure:
            log.warning("devices were not recorded", extra=fields(cause=str(failure)))

    async def run(self, threads: Executor, *, interval_s: float) -> None:
        """Record at every interval, until cancelled or the server is read-only."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.sleep(interval_s)
                await loop.run_in_executor(threads, self.write)
        except ReadOnly as failure:
            log.warning("devices are no longer recorded", extra=fields(cause=str(failure)))

    def _write_some(self) -> bool:
        # What is applied under the lock is found in the newest state by the next `note`. The write lock is
        # taken first, as by a statement that writes what it reads in `system.sync_devices`.
        with self._committer.lock, self._lock:
            names = list(self._noted)[:COMMIT_RECORDS_MAX]
            if names:
                self._committer.apply(Batch(records=[_record(self._noted[name]) for name in names]))
                for name in names:
                    del self._noted[name]
            return bool(self._noted)

    def _known(self, user: str, source: str, now_us: int) -> DeviceRecord:
        name = source_name(user, source)
        if noted := self._noted.get(name):
            return noted
        record = self._committer.newest.find_record(Kind.DEVICE, name)
        return _decode(record) if record else DeviceRecord(user, source, None, now_us, now_us, given=0)


def _record(device: DeviceRecord) -> RecordWrite:
    return RecordWrite(Kind.DEVICE, source_name(device.user, device.source), msgspec.msgpack.encode(device))


def _decode(record: bytes) -> DeviceRecord:
    return msgspec.msgpack.decode(record, type=DeviceRecord)
