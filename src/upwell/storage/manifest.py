"""Manifests: which immutable files make up a partition, as numbered files that are created once.

Law: a manifest, a segment and a hidden set never change once they have their name. The number in force is
a record in the hot store, and beside it is a spare of that manifest: what counts is known as long as the hot
store is there. `manifest.json` is only a copy for people and outside readers.

A manifest is JSON in the shape of the contract (section 6.5), extended by `table_number`, `flushed_until`,
`columns` and `hidden`, and per segment `filter`, `filter_bytes` (base64) and `live_count`. A hidden set is a
sorted JSON array: rows of the segments that have these `_seq`s are superseded and don't count.

A manifest is sealed (`digests.sealed`), and says the SHA-256 of each segment and hidden set.

`storage` and `directory` say where a file is: a partition's files lie in several places after its table was
given another storage. An entry without them is beside its manifest.
"""

import hashlib
import logging
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal, TypeVar

import msgspec

from upwell.decodable import decodable
from upwell.errors import ColdFileMissing, StorageFailed
from upwell.logs import fields
from upwell.storage.arrow import physical_name
from upwell.storage.digests import is_seal_broken, sealed
from upwell.storage.files import PartitionFiles
from upwell.storage.place import MANIFEST_COPY, Partition, Place
from upwell.types import Column, Owner, SqlType, coerce, owner_user, to_json

log = logging.getLogger("upwell.cold")

Scalar = dict[str, str | int | float | bool]
"""One tagged value, as `{"Int64": "1"}`; 64-bit integers are strings."""

T = TypeVar("T")


class ColumnStats(msgspec.Struct, frozen=True, gc=False):
    """Bounds of a column in one segment; None where they are unknown or too long to be worth keeping."""

    min: Scalar | None
    max: Scalar | None
    null_count: int


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file in force. `live_count` are its rows that aren't tombstones; times are ms.

    The key filter is a file, or of few keys and then said here: `filter` "", the content in `filter_bytes`.
    """

    min_seq: int
    max_seq: int
    row_count: int
    live_count: int
    size_bytes: int
    created_at: int
    id: str
    path: str
    filter: str
    column_stats: dict[str, ColumnStats]
    schema_version: int
    status: Literal["committed"] = "committed"
    storage: str = ""
    directory: str = ""
    sha256: str = ""
    filter_bytes: bytes = b""

    @property
    def place(self) -> Place | None:
        """Where the file and its filter are; None: beside the manifest."""
        return Place(self.storage, self.directory) if self.storage else None

    def seal(self, owner: Owner) -> bytes:
        """Return what no other segment has: its name, whose it is, and the seqs of its rows."""
        return f"{self.path} {self.row_count} {self.min_seq} {self.max_seq} {owner}".encode()


class FileColumn(msgspec.Struct, frozen=True, gc=False):
    """What a column is called and where it is: `path` is its name in the files, for ever.

    Segments of a schema version below `added` don't have it: their rows read `initial` there (as the SQL
    wire writes it), which is fixed as well. `name` and `type` are those of the manifest's time.
    """

    id: int
    name: str
    path: str
    type: str
    primary_key: bool
    added: int
    initial: object = None


class Hidden(msgspec.Struct, frozen=True, gc=False):
    """One immutable file of superseded `_seq`s."""

    path: str
    count: int
    storage: str = ""
    directory: str = ""
    sha256: str = ""

    @property
    def place(self) -> Place | None:
        """Where the file is; None: beside the manifest."""
        return Place(self.storage, self.directory) if self.storage else None


class Attachments(msgspec.Struct, frozen=True, gc=False):
    """Where the next attachment goes; nothing is kept there yet."""

    subfolder: int = 1
    count: int = 0


Entry = TypeVar("Entry", Segment, Hidden)


def _placed(entry: Entry, place: Place) -> Entry:
    if entry.storage:
        return entry
    return msgspec.structs.replace(entry, storage=place.storage, directory=place.directory)


@decodable
class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The segments of a partition at one number (`version`); everything ≤ `flushed_until` is in them."""

    table_id: str
    table_number: int
    user_id: str | None
    version: int
    created_at: int
    updated_at: int
    segments: tuple[Segment, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    flushed_until: int = 0
    last_sequence_number: int = -1
    files: Attachments = Attachments()
    vector_indexes: dict[str, object] = {}
    storage: str = ""
    directory: str = ""
    columns: tuple[FileColumn, ...] = ()

    @property
    def place(self) -> Place | None:
        """Where the manifest itself is; None: where it was found."""
        return Place(self.storage, self.directory) if self.storage else None

    def names_at(self, place: Place) -> list[str]:
        """Return the files in `place` that this manifest needs, itself included."""
        own = self.place or place
        found = [f"manifest-{self.table_number}-{self.version}.json"] if own == place else []
        for segment in self.segments:
            if (segment.place or own) == place:
                found += [segment.path, *([segment.filter] if segment.filter else ())]
        return found + [each.path for each in self.hidden if (each.place or own) == place]

    def placed(self, place: Place) -> "Manifest":
        """Return the manifest as it lies in `place`; so does each of its entries that doesn't say other."""
        return msgspec.structs.replace(
            self,
            storage=place.storage,
            directory=place.directory,
            segments=tuple(_placed(entry, place) for entry in self.segments),
            hidden=tuple(_placed(entry, place) for entry in self.hidden),
        )


def file_columns(columns: Sequence[Column]) -> tuple[FileColumn, ...]:
    """Return what a manifest tells readers of the files about a table's columns."""
    return tuple(
        FileColumn(
            column.id,
            column.name,
            physical_name(column),
            _type_text(column),
            column.primary_key,
            column.added,
            to_json(coerce(column.initial, column), column.type),
        )
        for column in columns
    )


def _type_text(column: Column) -> str:
    name = column.type.name
    return f"{name}({column.precision}, {column.scale})" if column.type is SqlType.DECIMAL else name


def empty_manifest(partition: Partition, *, time_ms: int) -> Manifest:
    """Return what is in force before the first flush: number 0, no segments; it is never written."""
    return Manifest(
        table_id=f"{partition.namespace}.{partition.table}",
        table_number=partition.table_id,
        user_id=owner_user(partition.owner),
        version=0,
        created_at=time_ms,
        updated_at=time_ms,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of the file: one line of JSON."""
    return sealed(manifest)


def write_manifest(files: PartitionFiles, manifest: Manifest) -> None:
    """Create the numbered file; raise `FileExistsError` if a crashed attempt left one.

    The caller then tries the next number; nothing is overwritten. Its name, and those of all that it names,
    are durable with `PartitionFiles.sync_names`.
    """
    data = encode_manifest(manifest)
    files.write_new(files.partition.manifest_name(manifest.version), data, sync_name=False)


def copy_manifest(files: PartitionFiles, manifest: Manifest, *, sync_name: bool = True) -> None:
    """Put the manifest at `manifest.json`, when its number is in force."""
    files.replace(MANIFEST_COPY, encode_manifest(manifest), sync_name=sync_name)


def remove_copy(files: PartitionFiles) -> None:
    """Remove `manifest.json` of a dropped table, unless it is by now another table's of the same name.

    Raises `ColdFileMissing` if it can't be read for now.
    """
    copy = find_copy(files)
    if copy is not None and copy.table_number == files.partition.table_id:
        files.remove(MANIFEST_COPY)


def load_manifest(files: PartitionFiles, number: int) -> Manifest:
    """Return the manifest of this number; raise `ColdFileMissing` if it is missing, damaged or another's.

    `manifest.json` stands in for one that is lost, or the spare, if it is of this very number.
    """
    name = files.partition.manifest_name(number)
    try:
        manifest = _decode(files, name)
        if not _is_of(files, manifest, number):
            raise ColdFileMissing(
                f"cold file {files.shown(name)} is the manifest of another table, user or number"
            )
        return manifest
    except ColdFileMissing as error:
        copy = (_find_own_copy(files, number) or _find_spare(files, number)) if is_lost(error) else None
        if copy is None:
            raise
        log.warning("A manifest was lost and is made of its copy", extra=fields(reason=str(error)))
        _write_again(files, copy)
        return copy


def _write_again(files: PartitionFiles, manifest: Manifest) -> None:
    """Write a manifest that was lost, and its copy if there is none; not if its place is away."""
    with suppress(OSError, StorageFailed, ColdFileMissing):
        files.replace(files.partition.manifest_name(manifest.version), encode_manifest(manifest))
        if find_copy(files) is None:
            copy_manifest(files, manifest)


def is_lost(error: ColdFileMissing) -> bool:
    """Whether the file is gone or damaged, rather than out of reach for now."""
    cause = error.__cause__
    return not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError)


def find_copy(files: PartitionFiles) -> Manifest | None:
    """Return what `manifest.json` says, whoever's it is; None if it isn't there or not whole."""
    try:
        return _decode(files, MANIFEST_COPY)
    except ColdFileMissing as error:
        if not is_lost(error):
            raise
        return None


def spare_of(manifest: Manifest) -> bytes:
    """Return what the hot store keeps of a manifest in force, for when its files are lost."""
    return zlib.compress(encode_manifest(manifest), 1)


def _find_spare(files: PartitionFiles, number: int) -> Manifest | None:
    spare = files.find_spare()
    if spare is None:
        return None
    manifest = _decoded(files, files.partition.manifest_name(number), zlib.decompress(spare), Manifest)
    return manifest if _is_of(files, manifest, number) else None


def _find_own_copy(files: PartitionFiles, number: int) -> Manifest | None:
    with suppress(ColdFileMissing):
        copy = find_copy(files)
        if copy is not None and _is_of(files, copy, number):
            return copy
    return None


def _is_of(files: PartitionFiles, manifest: Manifest, number: int) -> bool:
    names = (files.partition.table_id, owner_user(files.partition.owner), number)
    return (manifest.table_number, manifest.user_id, manifest.version) == names


def write_hidden(files: PartitionFiles, number: int, seqs: Iterable[int]) -> Hidden:
    """Create a hidden set and return its entry; raise `FileExistsError` if the number is taken.

    Its name becomes durable with that of the manifest.
    """
    unique = sorted(set(seqs))
    name, data = files.partition.hidden_name(number), msgspec.json.encode(unique)
    files.write_new(name, data, sync_name=False)
    return Hidden(name, len(unique), sha256=hashlib.sha256(data).hexdigest())


def load_hidden(files: PartitionFiles, hidden: Hidden) -> list[int]:
    """Return the superseded `_seq`s, sorted; raise `ColdFileMissing` if the file is missing or damaged."""
    data = files.read(hidden.path)
    if hidden.sha256 and hashlib.sha256(data).hexdigest() != hidden.sha256:
        raise ColdFileMissing(f"cold file {files.shown(hidden.path)} is damaged: it isn't what was written")
    seqs = _decoded(files, hidden.path, data, list[int])
    if len(seqs) != hidden.count:
        raise ColdFileMissing(
            f"cold file {files.shown(hidden.path)} has {len(seqs)} seqs, not {hidden.count}"
        )
    return seqs


def _decode(files: PartitionFiles, name: str) -> Manifest:
    data = files.read(name)
    if is_seal_broken(data):
        raise ColdFileMissing(f"cold file {files.shown(name)} is damaged: it isn't what was written")
    return _decoded(files, name, data, Manifest)


def _decoded(files: PartitionFiles, name: str, data: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ColdFileMissing(f"cold file {files.shown(name)} is damaged: {error}") from error
