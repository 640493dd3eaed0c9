"""An independent reader of cold files: pyarrow and the manifest, none of the server's code.

Law: what it reads is exactly what the manifests name, resolved to the newest `_seq` of each primary key,
without tombstones; so it agrees with the server only if the files alone hold the truth. pyarrow is loaded
on first use.

`roots` says where the storages of a table that was moved are: a storage's id → its directory. Without it all
files lie beside their manifest.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SUSPECT_SUFFIXES = frozenset({".parquet", ".filter", ".tmp"})

Row = dict[str, Any]

NOWHERE: Mapping[str, Path] = {}


@dataclass(frozen=True, slots=True)
class Segment:
    """One Parquet file as its manifest describes it; `path` is relative to the partition's directory."""

    path: str
    row_count: int
    min_seq: int
    max_seq: int
    size_bytes: int
    directory: Path


@dataclass(frozen=True, slots=True)
class Partition:
    """One directory with a `manifest.json`: the cold rows of one table and one owner.

    `table_id` is `namespace.table`, `user_id` None for a shared table. `hidden` and `filters` are the further
    files that the manifest names: sets of superseded `_seq`s, and key filters.
    """

    directory: Path
    table_id: str
    user_id: str | None
    version: int
    segments: tuple[Segment, ...]
    hidden: tuple[Path, ...]
    filters: tuple[Path, ...]

    def files(self) -> list[Path]:
        """Return the Parquet files."""
        return [segment.directory / segment.path for segment in self.segments]

    def companions(self) -> list[Path]:
        """Return the files of `hidden` and `filters`."""
        return [*self.hidden, *self.filters]


def load_partition(directory: Path, roots: Mapping[str, Path] = NOWHERE) -> Partition:
    """Read the manifest of `directory`; raise `OSError`, `ValueError` or `KeyError` if it isn't whole."""
    manifest = json.loads((directory / MANIFEST).read_bytes())

    def place(entry: Mapping[str, str]) -> Path:
        root = roots.get(entry.get("storage", ""))
        return directory if root is None else root / entry["directory"]

    return Partition(
        directory=directory,
        table_id=manifest["table_id"],
        user_id=manifest["user_id"],
        version=int(manifest["version"]),
        segments=tuple(
            Segment(
                path=segment["path"],
                row_count=int(segment["row_count"]),
                min_seq=int(segment["min_seq"]),
                max_seq=int(segment["max_seq"]),
                size_bytes=int(segment["size_bytes"]),
                directory=place(segment),
            )
            for segment in manifest["segments"]
        ),
        hidden=tuple(place(hidden) / hidden["path"] for hidden in manifest.get("hidden", ())),
        filters=tuple(place(each) / each["filter"] for each in manifest["segments"] if each.get("filter")),
    )


def partitions(
    root: Path, *, table_id: str | None = None, roots: Mapping[str, Path] = NOWHERE
) -> list[Partition]:
    """Return all partitions below `root`, of one table if named, in order of their directories."""
    found = [load_partition(path.parent, roots) for path in sorted(root.rglob(MANIFEST))]
    return [partition for partition in found if table_id in (None, partition.table_id)]


def find_partition(
    root: Path, table_id: str, user_id: str | None = None, *, roots: Mapping[str, Path] = NOWHERE
) -> Partition | None:
    """Return the partition of this table and owner, None if there is none; two of them are an error."""
    found = [p for p in partitions(root, table_id=table_id, roots=roots) if p.user_id == user_id]
    assert len(found) <= 1, f"{table_id} of {user_id} is in several places: {[p.directory for p in found]}"
    return found[0] if found else None


def versions(partition: Partition) -> Iterator[Row]:
    """Yield every row of the files that the manifest names, superseded ones and tombstones included."""
    import pyarrow.parquet as parquet

    for path in partition.files():
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()


def rows(partition: Partition, pk: str | Sequence[str], *, system: bool = False) -> list[Row]:
    """Return the newest version of each primary key, tombstones dropped, in primary-key order.

    Columns that begin with an underscore are left out unless `system`. Two versions of a key with the same
    `_seq` are an error.
    """
    return resolve(versions(partition), pk, system=system)


def resolve(found: Iterable[Row], pk: str | Sequence[str], *, system: bool = False) -> list[Row]:
    """Reduce versions to the visible rows, as `rows` describes."""
    columns = (pk,) if isinstance(pk, str) else tuple(pk)
    newest: dict[tuple[Any, ...], Row] = {}
    for row in found:
        key = tuple(row[column] for column in columns)
        other = newest.setdefault(key, row)
        assert other is row or other["_seq"] != row["_seq"], f"key {key!r} has _seq {row['_seq']} twice"
        if row["_seq"] > other["_seq"]:
            newest[key] = row
    visible = [newest[key] for key in sorted(newest) if not newest[key]["_deleted"]]
    return [{name: row[name] for name in row if system or not name.startswith("_")} for row in visible]


def audit_hidden(partition: Partition, pk: str | Sequence[str]) -> list[str]:
    """Compare the two ways to find the visible rows, newest `_seq` and hidden sets; return the problems."""
    found = list(versions(partition))
    hidden = {int(seq) for path in partition.hidden for seq in json.loads(path.read_bytes())}
    by_newest = {row["_seq"] for row in resolve(found, pk, system=True)}
    by_hidden = {row["_seq"] for row in found if not row["_deleted"]} - hidden
    doubled = [
        f"{partition.directory}: _seq {seq} is superseded, but not hidden" for seq in by_hidden - by_newest
    ]
    lost = [f"{partition.directory}: _seq {seq} is the newest, but hidden" for seq in by_newest - by_hidden]
    return sorted(doubled) + sorted(lost)


def audit(root: Path, roots: Mapping[str, Path] = NOWHERE) -> list[str]:
    """Compare the files below `root` and all `roots` with the manifests and with themselves; return the
    problems.

    Checked: manifests whole; every named file there, named once, of the named size, row count, smallest and
    largest `_seq`; no Parquet, filter or temporary file that no manifest names (more links of a named one are
    fine).
    """
    problems: list[str] = []
    named: list[Path] = []
    directories = dict.fromkeys((root, *roots.values()))
    for path in sorted(path for each in directories for path in each.rglob(MANIFEST)):
        try:
            partition = load_partition(path.parent, roots)
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"{path}: not a whole manifest: {error!r}")
            continue
        named += [*partition.files(), *partition.companions()]
        missing = [path for path in partition.companions() if not path.is_file()]
        problems += [f"{path}: missing, but the manifest names it" for path in missing]
        for segment in partition.segments:
            problems += _audit_segment(segment.directory / segment.path, segment)
    problems += [f"{path}: named {count} times" for path, count in Counter(named).items() if count > 1]
    return problems + [each for directory in directories for each in _orphans(directory, named)]


def _audit_segment(path: Path, segment: Segment) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing, but the manifest names it"
        return
    measured: dict[str, int | None] = {"size_bytes": path.stat().st_size}
    try:
        measured |= _measure(path)
    except (OSError, ValueError, KeyError) as error:
        yield f"{path}: not readable as a segment: {error}"
    for field, value in measured.items():
        if value != getattr(segment, field):
            yield f"{path}: {field} is {value}, the manifest says {getattr(segment, field)}"


def _measure(path: Path) -> dict[str, int | None]:
    """Return row count (of the footer), smallest and largest `_seq` (of the rows themselves)."""
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        row_count = file.metadata.num_rows
        bounds = compute.min_max(file.read(columns=["_seq"]).column("_seq")).as_py()
    return {"row_count": row_count, "min_seq": bounds["min"], "max_seq": bounds["max"]}


def _orphans(root: Path, named: Iterable[Path]) -> list[str]:
    inodes = {(s.st_dev, s.st_ino) for path in named if path.is_file() for s in [path.stat()]}
    found = []
    for path in _suspects(root):
        # A server that collects what it replaced may be faster than this look.
        with suppress(FileNotFoundError):
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) not in inodes:
                found.append(f"{path}: no manifest names it")
    return found


def _suspects(root: Path) -> list[Path]:
    paths = (Path(directory, name) for directory, _, names in os.walk(root) for name in names)
    return sorted(path for path in paths if path.suffix in SUSPECT_SUFFIXES)
