"""Ownership: which storages a store that comes from another server may write to.

Law: two servers never write to one storage, or they would remove each other's files. Who restores a
backup, of another server too, keeps its own name, and takes its own storages of the same ids for those of
the backup; what it has no storage of its own for it takes only where no other server's marker is.
"""

from collections.abc import Iterable

from upwell.engine.archive import Archive
from upwell.engine.catalog import Catalog, load_catalog, storage_record
from upwell.engine.commit import Committer
from upwell.engine.history import find_server_id, lose_after, name_record
from upwell.errors import InvalidOperation
from upwell.storage.definition import MARKER, Storage
from upwell.storage.hot import Batch, HotStore
from upwell.storage.place import LOCAL
from upwell.storage.storages import Storages


def claim_storages(store: HotStore, archive: Archive, *, committer: Committer, storages: Storages) -> None:
    """Make a restored store the server's whose committer this is, with storages that are ready for its files.

    Raises `InvalidOperation`, which says what to do, if a storage that it needs is another server's, or away.
    """
    name, own = find_server_id(committer.newest), committer.newest_catalog
    catalog = load_catalog(store)
    needed = {table.storage for table in catalog.by_id.values()} | {
        each.storage for each in archive.elsewhere
    }
    for storage in _foreign(catalog, needed - own.storages.keys()):
        _take_over(storage, own, storages)
    mine = [own.storages[each.id] for each in _foreign(catalog, own.storages)]
    for storage in mine:
        if storage.id in needed:
            _require_ready(storage, storages)
    store.apply(Batch(records=[storage_record(each) for each in mine]))
    if name is not None and name != find_server_id(store):
        store.apply(Batch(records=[name_record(name)]))
        # Who has read this server has read another history, from the first seq on.
        lose_after(store, 0)


def _take_over(storage: Storage, own: Catalog, storages: Storages) -> None:
    try:
        storages.create(storage, own.storages.values())
    except InvalidOperation as error:
        raise InvalidOperation(
            f"{error.args[0]}. The backup has files in this storage. If that server goes on, CREATE STORAGE "
            f"{storage.id} here, in a place of its own, and restore again; if it is gone for good, remove "
            f"{storage.base}/{MARKER}, and restore again"
        ) from error


def _require_ready(storage: Storage, storages: Storages) -> None:
    """Raise `InvalidOperation` if the next start couldn't bring files there."""
    error = storages.check(storage, count_bytes=False).error
    if error is not None:
        raise InvalidOperation(
            f"{error}. Files of the backup belong there. If what was there is lost, ALTER STORAGE "
            f"{storage.id} SET CONFIG, with the settings that it has, makes it anew; then restore again"
        )


def _foreign(catalog: Catalog, names: Iterable[str]) -> list[Storage]:
    """Return the storages of a catalog with these names, but for the one that each server has."""
    return [catalog.storages[name] for name in sorted(names) if name in catalog.storages and name != LOCAL]
