"""`upwell cold-sql`: the DuckDB query over exactly the files that a table's manifests name.

Law: it needs no server. What it prints gives the newest version of each owner's key, without deleted rows,
under the names of today: what SELECT gives, if everything is flushed.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from upwell.engine.archive import LIST
from upwell.engine.restore import REPLACED
from upwell.errors import StartRefused
from upwell.storage.digests import is_seal_broken
from upwell.storage.files import LINKS
from upwell.storage.manifest import FileColumn, Manifest, Segment
from upwell.storage.place import MANIFEST_COPY

_TYPES = {
    "BOOLEAN": "BOOLEAN", "SMALLINT": "SMALLINT", "INT": "INTEGER", "BIGINT": "BIGINT", "DOUBLE": "DOUBLE",
    "TEXT": "VARCHAR", "TIMESTAMP": "TIMESTAMP", "UUID": "VARCHAR", "JSON": "VARCHAR", "BYTES": "BLOB",
    "FLOAT": "FLOAT", "DATETIME": "TIMESTAMPTZ", "DATE": "DATE", "TIME": "TIME",
}  # fmt: skip
# What is a number in the manifest, as DuckDB's value.
_MOMENTS = {
    "TIMESTAMP": "make_timestamp({})", "DATETIME": "make_timestamptz({})", "DATE": "(DATE '1970-01-01' + {})",
    "TIME": "(TIME '00:00:00' + to_microseconds({}))",
}  # fmt: skip


def cold_sql(root: Path, table: str, user: str | None) -> str:
    """Return the query over the files of `table` (of one user) somewhere below `root`.

    Raises `StartRefused` if there is no manifest of it, one can't be read, or there are copies.
    """
    found = [(path, manifest) for path, manifest in _manifests(root) if manifest.table_id == table]
    newest = max((manifest.table_number for _, manifest in found), default=0)
    chosen = [
        (path, manifest)
        for path, manifest in found
        if manifest.table_number == newest and user in (None, manifest.user_id)
    ]
    if not chosen:
        whose = f" of user {user}" if user is not None else ""
        raise StartRefused(
            f"no {MANIFEST_COPY} of {table}{whose} below {root}; STORAGE FLUSH TABLE {table} makes it cold"
        )
    _refuse_copies(table, chosen)
    columns = max((manifest for _, manifest in chosen), key=lambda manifest: manifest.updated_at).columns
    is_user = any(manifest.user_id is not None for _, manifest in chosen)
    files = {
        str(_file(path.absolute(), manifest, segment)): segment.schema_version
        for path, manifest in chosen
        for segment in manifest.segments
    }
    return _query(files, columns, is_user=is_user)


def _manifests(root: Path) -> Iterable[tuple[Path, Manifest]]:
    def refuse(error: OSError) -> None:
        raise StartRefused(f"can't look for manifests: {error}") from error

    for directory, below, files in os.walk(root, onerror=refuse if root.is_dir() else None):
        below[:] = sorted(name for name in below if not _is_aside(Path(directory, name)))
        if MANIFEST_COPY in files:
            path = Path(directory, MANIFEST_COPY)
            try:
                data = path.read_bytes()
                manifest = msgspec.json.decode(data, type=Manifest)
            except (OSError, msgspec.DecodeError) as error:
                raise StartRefused(f"manifest {path} can't be read: {error}") from error
            if is_seal_broken(data):
                raise StartRefused(f"manifest {path} is damaged: it isn't what was written")
            yield path, manifest


def _is_aside(directory: Path) -> bool:
    """Whether what is in there isn't in force: a backup, what a restore has replaced, links of the server."""
    name = directory.name
    is_left = name.startswith(REPLACED) or name.endswith(".incomplete")
    return name == LINKS or is_left or (directory / LIST).exists()


def _refuse_copies(table: str, chosen: Iterable[tuple[Path, Manifest]]) -> None:
    """Raise `StartRefused` if a partition is there twice: rows that one has deleted are in the other."""
    seen: dict[str | None, Path] = {}
    for path, manifest in chosen:
        other = seen.setdefault(manifest.user_id, path)
        if other != path:
            raise StartRefused(
                f"{table} is there twice, in {other.parent} and in {path.parent}; give --data-dir a "
                "directory that has one of them"
            )


def _file(path: Path, manifest: Manifest, segment: Segment) -> Path:
    """Return where a segment is: beside its manifest, or elsewhere in the same storage."""
    if segment.place in (None, manifest.place):
        return path.parent / segment.path
    if segment.storage == manifest.storage and path.parent.match(manifest.directory):
        root = path.parents[len(PurePosixPath(manifest.directory).parts)]
        return root / segment.directory / segment.path
    raise StartRefused(
        f"{segment.path} of {manifest.table_id} is in the storage '{segment.storage}'; "
        f"STORAGE COMPACT TABLE {manifest.table_id} brings it to the others"
    )


def _query(files: dict[str, int], columns: Sequence[FileColumn], *, is_user: bool) -> str:
    owner = ['"_owner"'] if is_user else []
    if not files:
        nothing = [f"CAST(NULL AS {_duckdb_type(column)}) AS {_name(column.name)}" for column in columns]
        return "SELECT " + ", ".join(nothing) + "\nWHERE FALSE;"
    key = next(column for column in columns if column.primary_key)
    shown = ",\n       ".join([*owner, *(_shown(column, files) for column in columns)])
    listed = ",\n                          ".join(_text(path) for path in files)
    partition = ", ".join([*owner, _name(key.path)])
    order = ", ".join([*owner, _name(key.name)])
    return f"""SELECT {shown}
FROM (
    SELECT *, row_number() OVER (PARTITION BY {partition} ORDER BY "_seq" DESC) AS "#newest"
    FROM read_parquet([{listed}],
                      union_by_name = true, filename = "#file", hive_partitioning = false)
)
WHERE "#newest" = 1 AND NOT "_deleted"
ORDER BY {order};"""


def _shown(column: FileColumn, files: dict[str, int]) -> str:
    """Return a column by today's name; files that are older than it have what it began with."""
    older = [path for path, version in files.items() if version < column.added]
    began = f"CAST({_literal(column)} AS {_duckdb_type(column)})"
    name = _name(column.name)
    if len(older) == len(files):
        return f"{began} AS {name}"
    stored = f"CAST({_name(column.path)} AS {_duckdb_type(column)})"
    if not older or column.initial is None:
        return f"{stored} AS {name}"
    listed = ", ".join(map(_text, older))
    return f'CASE WHEN "#file" IN ({listed}) THEN {began} ELSE {stored} END AS {name}'


def _duckdb_type(column: FileColumn) -> str:
    return _TYPES.get(column.type, column.type)


def _literal(column: FileColumn) -> str:
    value = column.initial
    match value:
        case None:
            return "NULL"
        case list():
            return f"from_hex('{bytes(value).hex()}')"
        case int() if column.type in _MOMENTS:
            return _MOMENTS[column.type].format(value)
        case _:
            return _text(str(value))


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
