"""The history of a store: the id that devices know it by, and its epoch.

Law: whoever may have read what is lost finds out. A stop without notice in `async` durability may have
taken back what was acknowledged and read; the next start then begins a new epoch.

What is written here is written past the committer: before its first View, or after its last.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from upwell.engine.commit import Durability
from upwell.errors import ReadOnly
from upwell.storage.hot import Batch, HotStore, Kind, RecordWrite

_ID = "stream_id"
_RUNNING = "running"


@contextmanager
def running(store: HotStore, durability: Durability) -> Iterator[None]:
    """Note that a server runs on the store, until the block ends without an error."""
    if store.find_record(Kind.META, _RUNNING) == Durability.ASYNC.value.encode():
        store.raise_epoch()
    _put(store, _RUNNING, durability.value.encode())
    yield
    with suppress(ReadOnly):  # a store that failed keeps the note
        _put(store, _RUNNING, None)


def stream_id(store: HotStore) -> str:
    """Return the name of the store's history; device cursors of another history mean nothing here."""
    name = server_id(store)
    return f"{name}-{store.epoch}" if store.epoch else name


def server_id(store: HotStore) -> str:
    """Return the name of the store itself, which stays the same in all epochs."""
    record = store.find_record(Kind.META, _ID)
    if record is None:
        record = uuid.uuid4().hex.encode()
        _put(store, _ID, record)
    return record.decode()


def _put(store: HotStore, name: str, value: bytes | None) -> None:
    store.apply(Batch(records=[RecordWrite(Kind.META, name, value)]))
    store.sync()
