"""Places: where a partition's files lie, and what they are called.

    <root of the storage>/{namespace}/{tableName}            a shared partition, unless a template says other
    <root of the storage>/{namespace}/{tableName}/{userId}   a user's partition
        batch-<table id>-<n>.parquet, batch-<table id>-<n>.filter      a segment and its key filter
        hidden-<table id>-<n>.json, manifest-<table id>-<n>.json       immutable, created once
        manifest.json                                                  a copy for people, replaced
        .links/<table id>-<n>/                                         links to one manifest's segments

Law: no name from outside can leave its own directory. Names are percent-encoded to lower-case letters,
digits, `_` and `-`: never `.` or `/`, so that a name is neither a way up nor the name of a file, and never
an upper-case letter, because some file systems fold case. Different names have different directories.
Files hold the numeric table id: a table that is dropped and created again never meets old files.
"""

import hashlib
import re
from dataclasses import dataclass

import msgspec

from upwell.types import Owner, TableId, owner_user

LOCAL = "local"
"""The storage that is always there: the directory `storage` of the data directory."""
MANIFEST_COPY = "manifest.json"
NAME_BYTES_MAX = 200

ENCODED = re.compile(r"[a-z0-9_%-]*")
"""What an encoded name, or a piece of one, is made of."""

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_PREFIX_BYTES = 100
_NAME = re.compile(
    r"(?P<kind>batch|hidden|manifest)-(?P<table>[0-9]+)-(?P<number>[0-9]+)\.(?:parquet|filter|json)"
)


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A directory of a storage, relative to the storage's root."""

    storage: str
    directory: str


def encode_name(name: str) -> str:
    """Return `name` as one directory name, different for different names, at most 200 bytes long.

    `%` alone is the empty name; a name too long becomes its beginning, `%%` and its SHA-256.
    """
    raw = name.encode("utf-8", "surrogatepass")
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw) or "%"
    if len(encoded) <= NAME_BYTES_MAX:
        return encoded
    return f"{encoded[:_PREFIX_BYTES]}%%{hashlib.sha256(raw).hexdigest()}"


def partition_dir(namespace: str, table: str, owner: Owner) -> str:
    """Return the directory of a partition in the storage `local`, unless its templates say other."""
    names = [namespace, table]
    if (user := owner_user(owner)) is not None:
        names.append(user)
    return "/".join(encode_name(name) for name in names)


@dataclass(frozen=True, slots=True)
class Partition:
    """The rows of one table and owner: who they are, and what their files are called."""

    namespace: str
    table: str
    table_id: TableId
    owner: Owner

    @property
    def full_name(self) -> str:
        """What the table is called; after it is dropped another one may have the name."""
        return f"{self.namespace}.{self.table}"

    @property
    def home(self) -> Place:
        """Where the files lie if nobody says other."""
        return Place(LOCAL, partition_dir(self.namespace, self.table, self.owner))

    def segment_name(self, number: int) -> str:
        return f"batch-{self.table_id}-{number}.parquet"

    def filter_name(self, number: int) -> str:
        return f"batch-{self.table_id}-{number}.filter"

    def hidden_name(self, number: int) -> str:
        return f"hidden-{self.table_id}-{number}.json"

    def manifest_name(self, number: int) -> str:
        return f"manifest-{self.table_id}-{number}.json"

    def is_file(self, name: str) -> bool:
        """Return whether `name` is a file of this very table."""
        match = _NAME.fullmatch(name)
        return match is not None and int(match["table"]) == self.table_id

    def number_of(self, name: str, kind: str) -> int | None:
        """Return the number of a `batch`, `hidden` or `manifest` file; None if `name` is none."""
        match = _NAME.fullmatch(name)
        return int(match["number"]) if match is not None and match["kind"] == kind else None
