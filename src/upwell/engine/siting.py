"""Siting: where the files of a table go, and that no other table's go there.

Law: a table whose directory could be that of another one isn't made, nor moved there: the two would have one
`manifest.json`. Tables of one kind are kept apart by the checks of templates, so that only a SHARED table and
the users of a USER table can meet.
"""

from collections.abc import Collection, Iterable, Mapping

from upwell.engine.catalog import Catalog, Table, TableKind
from upwell.errors import InvalidOperation
from upwell.storage.definition import Storage, may_be_one
from upwell.storage.place import LOCAL

_OTHER_KIND = {TableKind.USER: TableKind.SHARED, TableKind.SHARED: TableKind.USER}


def require_site(catalog: Catalog, table: Table) -> None:
    """Raise `InvalidOperation` unless the table's storage exists, and its directory is only its own."""
    if table.storage != LOCAL and table.storage not in catalog.storages:
        raise InvalidOperation(f"Storage '{table.storage}' does not exist")
    refuse_meeting_tables([table], catalog.by_id.values(), catalog.storages)


def refuse_meeting_tables(
    tables: Iterable[Table], others: Collection[Table], storages: Mapping[str, Storage]
) -> None:
    """Raise `InvalidOperation` if one of the tables and one of the others can have the same directory."""
    for table in tables:
        mine, theirs = storages.get(table.storage), _OTHER_KIND.get(table.kind)
        if mine is None or theirs is None:
            continue
        template = _template(mine, table.kind)
        near = {s.id: s for s in storages.values() if may_be_one(mine, template, s, _template(s, theirs))}
        if not near:  # as with the templates that nobody has changed
            continue
        filled = _filled(mine, table)
        for other in others:
            storage = near.get(other.storage) if other.kind is theirs else None
            if storage is not None and may_be_one(mine, filled, storage, _filled(storage, other)):
                raise InvalidOperation(
                    f"files of '{table.full_name}' and '{other.full_name}' would be in the same directory, "
                    f"by the templates of storage '{mine.id}' and storage '{storage.id}'; choose another "
                    "name, or templates that begin with different words, like shared/ and users/"
                )


def _template(storage: Storage, kind: TableKind) -> str:
    return storage.user_template if kind is TableKind.USER else storage.shared_template


def _filled(storage: Storage, table: Table) -> str:
    return storage.template_of(table.namespace, table.name, is_user=table.kind is TableKind.USER)
