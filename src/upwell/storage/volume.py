"""Volumes: what a storage can do with a file, whether it is a directory or a bucket, and how that is tried.

Law: a check tells what works and what doesn't; it never raises what the storage raises. A secret is read
when a storage is opened, and stands in no message.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from upwell.effects import Files
from upwell.errors import StorageFailed, UpwellError
from upwell.storage.definition import Storage

ENVIRONMENT_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_")
"""Variables that a definition may name: not everything in the environment is a storage's business."""


class Volume(Protocol):
    """Files by their path below a storage's root; what it raises is `OSError` or `StorageFailed`."""

    def put_new(self, key: str, content: bytes) -> None: ...
    def get(self, key: str) -> bytes: ...
    def names(self, directory: str) -> list[str]: ...
    def delete(self, key: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Directory:
    """A volume on the local file system; its root has to be there."""

    root: Path
    files: Files

    def put_new(self, key: str, content: bytes) -> None:
        self.files.write_new(self.root / key, content)

    def get(self, key: str) -> bytes:
        return self.files.read(self.root / key)

    def names(self, directory: str) -> list[str]:
        return self.files.list(self.root / directory)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self.files.remove(self.root / key)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a storage found; bytes are None where nobody counts them."""

    writable: bool = False
    readable: bool = False
    listable: bool = False
    deletable: bool = False
    error: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None

    @property
    def status(self) -> str:
        abilities = (self.readable, self.writable, self.listable, self.deletable)
        return "healthy" if all(abilities) else "degraded" if any(abilities) else "unreachable"


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where references to secrets lead: the server's environment, and files of one directory."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    directory: Path = Path("/run/secrets")

    def resolve(self, storage: Storage) -> dict[str, str]:
        """Return the secrets that a definition refers to; raise `StorageFailed` naming the reference."""
        return {key: self._read(storage.id, reference) for key, reference in storage.credentials.items()}

    def _read(self, storage: str, reference: str) -> str:
        kind, _, name = reference.partition(":")
        found = self._read_file(name) if kind == "file" else self._read_variable(name)
        if not found:
            raise StorageFailed(
                f"storage '{storage}': the server finds no secret at '{reference}'; env: reads a variable "
                f"whose name begins with {', '.join(ENVIRONMENT_PREFIXES)}, file: a file of secrets_dir"
            )
        return found

    def _read_variable(self, name: str) -> str | None:
        return self.environment.get(name) if name.startswith(ENVIRONMENT_PREFIXES) else None

    def _read_file(self, name: str) -> str | None:
        path = (self.directory / name).resolve()
        if path.is_relative_to(self.directory.resolve()):
            with suppress(OSError, UnicodeDecodeError):
                return path.read_text().strip()
        return None


def tried(volume: Volume, key: str) -> Checked:
    """Write, read, list and delete the file `key`, and tell what worked."""
    content = key.encode()
    causes: list[str] = []

    def write() -> bool:
        volume.delete(key)
        volume.put_new(key, content)
        return True

    def delete() -> bool:
        volume.delete(key)
        return True

    def works(step: Callable[[], bool]) -> bool:
        try:
            return step()
        except (OSError, StorageFailed) as error:
            causes.append(cause_of(error))
            return False

    found = Checked(
        writable=works(write),
        readable=works(lambda: volume.get(key) == content),
        listable=works(lambda: key in volume.names("")),
        deletable=works(delete),
    )
    return replace(found, error=causes[0] if causes else None)


def cause_of(error: Exception) -> str:
    """Return what a message says of a failure, without the prefix of its kind."""
    if isinstance(error, UpwellError):
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
