"""The registry: which devices there are, and how far each has read its user's log.

Law: a cursor is what a device asked with, never what it was answered, so that a lost answer doesn't count
as read. Requests note in memory; records follow behind, and a crash makes a cursor older, never newer.
"""

import asyncio
import logging
import threading
from concurrent.futures import Executor

import msgspec

from upwell.clock import Clock
from upwell.engine.commit import Committer
from upwell.engine.names import source_name, user_prefix
from upwell.errors import ReadOnly
from upwell.logs import fields
from upwell.storage.hot import Batch, HotReader, Kind, RecordWrite

log = logging.getLogger("upwell.sync")

COMMIT_RECORDS_MAX = 2_000


class DeviceRecord(msgspec.Struct, frozen=True, array_like=True):
    """One source of one user; `cursor` None: it hasn't read the log yet. Times are µs since the epoch."""

    user: str
    source: str
    cursor: int | None
    first_seen_us: int
    last_seen_us: int


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
        name, now_us = source_name(user, source), self._clock.now_us()
        with self._lock:
            known = self._noted.get(name) or self._find(name)
            if known is not None and cursor is None:
                cursor = known.cursor
            first_us = known.first_seen_us if known is not None else now_us
            self._noted[name] = DeviceRecord(user, source, cursor, first_us, now_us)

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
                batch = Batch(
                    records=[
                        RecordWrite(Kind.DEVICE, name, msgspec.msgpack.encode(self._noted[name]))
                        for name in names
                    ]
                )
                self._committer.apply(batch)
                for name in names:
                    del self._noted[name]
            return bool(self._noted)

    def _find(self, name: str) -> DeviceRecord | None:
        record = self._committer.newest.find_record(Kind.DEVICE, name)
        return _decode(record) if record is not None else None


def _decode(record: bytes) -> DeviceRecord:
    return msgspec.msgpack.decode(record, type=DeviceRecord)
