"""The history of a store: the id that devices know it by, its epoch, and what of it was lost.

Law: whoever may have read what is lost finds out. A stop without notice in `async` durability may have
taken back what was acknowledged and read; the next start then begins a new epoch, as it does after a
restore. A seq between the last one that is left and the first of the new epoch is of a lost history.

What is written here is written past the committer: before its first View, or after its last.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from upwell.engine.commit import Durability
from upwell.errors import ReadOnly
from upwell.storage.hot import Batch, HotReader, HotStore, Kind, RecordWrite

_ID = "stream_id"
_RUNNING = "running"
_LOST_AFTER = "lost_after"
_LOST = "lost"


@contextmanager
def running(store: HotStore, durability: Durability) -> Iterator[None]:
    """Note that a server runs on the store, until the block ends without an error."""
    if store.find_record(Kind.META, _RUNNING) == Durability.ASYNC.value.encode():
        lose_after(store, store.last_seq)
        store.raise_epoch()
    _put(store, _RUNNING, durability.value.encode())
    _begin_after_loss(store)
    yield
    with suppress(ReadOnly):  # a store that failed keeps the note
        _put(store, _RUNNING, None)


def stream_id(store: HotStore) -> str:
    """Return the name of the store's history; device cursors of another history mean nothing here."""
    name = server_id(store)
    return f"{name}-{store.epoch}" if store.epoch else name


def server_id(store: HotStore) -> str:
    """Return the name of the store itself, which stays the same in all epochs."""
    name = find_server_id(store)
    if name is None:
        name = uuid.uuid4().hex
        _put(store, _ID, name.encode())
    return name


def find_server_id(reader: HotReader) -> str | None:
    """Return the name of the store; None if it never had one."""
    record = reader.find_record(Kind.META, _ID)
    return None if record is None else record.decode()


def name_record(name: str) -> RecordWrite:
    """Return the record that gives a store another name."""
    return RecordWrite(Kind.META, _ID, name.encode())


def lose_after(store: HotStore, seq: int) -> None:
    """Note, before the store is served again, that what came after `seq` may be lost."""
    known = store.find_record(Kind.META, _LOST_AFTER)
    _put(store, _LOST_AFTER, str(seq if known is None else min(seq, int(known))).encode())


def is_lost(reader: HotReader, seq: int) -> bool:
    """Whether `seq` is of a history that was lost: who read up to there may hold what isn't so any more."""
    return any(after < seq < begin for after, begin in _losses(reader))


def _begin_after_loss(store: HotStore) -> None:
    after = store.find_record(Kind.META, _LOST_AFTER)
    if after is not None:
        losses = [*_losses(store), (int(after), store.last_seq)]
        records = [
            RecordWrite(Kind.META, _LOST, msgspec.json.encode(losses)),
            RecordWrite(Kind.META, _LOST_AFTER, None),
        ]
        store.apply(Batch(records=records))
        store.sync()


def _losses(reader: HotReader) -> list[tuple[int, int]]:
    record = reader.find_record(Kind.META, _LOST)
    return [] if record is None else msgspec.json.decode(record, type=list[tuple[int, int]])


def _put(store: HotStore, name: str, value: bytes | None) -> None:
    store.apply(Batch(records=[RecordWrite(Kind.META, name, value)]))
    store.sync()
