"""Objects: the only door to obstore. A bucket, or the part of it below a prefix, holds a storage's files.

Law: a put that returned is stored whole, and `put_new` never replaces an object: servers that ignore this
condition are found out by `prove`, and not used. What obstore says may quote credentials: it is never passed
on, only its kind, its status and the code of the server's answer.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from upwell.errors import StorageFailed
from upwell.storage.definition import Storage, StorageType

CHUNK_BYTES = 1024 * 1024
CONNECT_S = 5
TIMEOUT_S = 60
RETRIES_MAX = 3
PROBE = "upwell-probe"

_trials = itertools.count(1)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_HINTS = {
    "NoSuchBucket": "the bucket doesn't exist",
    "403": "access is denied; check the credentials and what they may do",
    "401": "the credentials aren't accepted",
    "503": "the server is overloaded or down",
}


class Bucket:
    """The objects of one storage, by key: a path below the storage's root. Thread-safe."""

    def __init__(self, storage: Storage, secrets: Mapping[str, str]) -> None:
        self._id = storage.id
        self._base = storage.base
        with self._asking("open", ""):
            self._store = _open(storage, secrets)

    def shown(self, key: str) -> str:
        """Return what a message calls an object."""
        return f"{self._base}/{key}"

    def put_new(self, key: str, content: bytes | Path) -> None:
        """Create an object of the bytes, or of a file's; raise `FileExistsError` if there is another.

        One with the very same content is a put of ours whose answer was lost.
        """
        try:
            with self._asking("write", key):
                answer = obstore.put(self._store, key, content, mode="create", use_multipart=False)
        except FileExistsError:
            if self._has(key, content):
                return
            raise
        self._verify(key, content, answer.get("e_tag"))

    def put(self, key: str, content: bytes) -> None:
        """Create or replace an object."""
        with self._asking("write", key):
            answer = obstore.put(self._store, key, content, use_multipart=False)
        self._verify(key, content, answer.get("e_tag"))

    def get(self, key: str) -> bytes:
        """Return the content; raise `FileNotFoundError` if there is none."""
        with self._asking("read", key):
            return bytes(obstore.get(self._store, key).bytes())

    def fetch(self, key: str, path: Path) -> None:
        """Write the content to a local file; raise `FileNotFoundError` if there is none."""
        with path.open("wb") as file:
            for chunk in self._chunks(key):
                file.write(chunk)

    def names(self, directory: str) -> list[str]:
        """Return the names of the objects directly in a directory, sorted; none if there is none."""
        with self._asking("list", directory):
            found = obstore.list_with_delimiter(self._store, directory or None)
        return sorted(each["path"].rpartition("/")[2] for each in found["objects"])

    def delete(self, key: str) -> None:
        """Delete an object; one that is gone already is fine."""
        try:
            with self._asking("delete", key):
                obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    def prove(self, server: str) -> None:
        """Put it to the test: does it refuse to create what is there?

        Raises `StorageFailed` if not: two writers could then replace each other's files unnoticed.
        """
        # One of its own for each trial: two at a time must not take each other's object for a promise kept.
        key = f"{PROBE}-{server}-{next(_trials)}"
        try:
            self.put_new(key, b"first")
        except FileExistsError:  # of a test that was cut short
            self.delete(key)
            self.put_new(key, b"first")
        try:
            self.put_new(key, b"second")
        except FileExistsError:
            return
        finally:
            self.delete(key)
        raise StorageFailed(
            f"storage '{self._id}': the server replaces an object although it was told to create it only "
            "(it ignores If-None-Match); use a server that honours it"
        )

    def _verify(self, key: str, content: bytes | Path, tag: str | None) -> None:
        """Raise unless the object is stored whole: its tag is the content's MD5, or the size fits."""
        found = _MD5.fullmatch(tag or "")
        if found is not None and found[1] == _digest("md5", _content_chunks(content)):
            return
        with self._asking("check", key):
            size_bytes = obstore.head(self._store, key)["size"]
        expected = content.stat().st_size if isinstance(content, Path) else len(content)
        if size_bytes != expected:
            self.delete(key)
            raise StorageFailed(
                f"storage '{self._id}': {self.shown(key)} was cut off on its way: {size_bytes} of {expected} "
                "bytes arrived"
            )

    def _has(self, key: str, content: bytes | Path) -> bool:
        try:
            return _digest("sha256", self._chunks(key)) == _digest("sha256", _content_chunks(content))
        except FileNotFoundError:
            return False

    def _chunks(self, key: str) -> Iterator[Any]:
        with self._asking("read", key):
            yield from obstore.get(self._store, key).stream(min_chunk_size=CHUNK_BYTES)

    @contextmanager
    def _asking(self, verb: str, key: str) -> Iterator[None]:
        """Translate what obstore raises, without a word of its own."""
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise FileExistsError(f"{self.shown(key)} is there already") from None
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StorageFailed(self._failure(verb, key, error)) from None
            raise FileNotFoundError(f"{self.shown(key)} is missing") from None
        except (BaseError, PermissionError, TimeoutError, ValueError) as error:
            raise StorageFailed(self._failure(verb, key, error)) from None

    def _failure(self, verb: str, key: str, error: Exception) -> str:
        text = str(error)
        status, code = _STATUS.search(text), _CODE.search(text)
        answer = " ".join(found[1] for found in (status, code) if found)
        hint = _HINTS.get(code[1] if code else "") or _HINTS.get(status[1] if status else "")
        if verb == "open":
            cause = "its CONFIG or its credentials make no sense to the client"
        elif answer:
            cause = f"the server answers {answer}" + (f": {hint}" if hint else "")
        elif "timed out" in text or "Timeout" in text:
            cause = "the server doesn't answer in time"
        elif "Connect" in text:
            cause = "can't connect to the server"
        else:
            cause = f"the request failed ({type(error).__name__})"
        return f"storage '{self._id}': can't {verb} {self.shown(key)}: {cause}"


def _digest(name: str, chunks: Iterator[Any]) -> str:
    digest = hashlib.new(name, usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _content_chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _open(storage: Storage, secrets: Mapping[str, str]) -> ObjectStore:
    bucket, _, prefix = storage.base.removeprefix(storage.type.scheme).partition("/")
    config, retries = storage.config, int(storage.config.get("retries_max", RETRIES_MAX))
    client: Any = {
        "connect_timeout": f"{CONNECT_S}s",
        "timeout": f"{config.get('timeout_s', TIMEOUT_S)}s",
        "allow_http": config.get("allow_http") == "true",
    }
    retry: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=TIMEOUT_S)}
    options: dict[str, Any] = {"prefix": prefix or None, "client_options": client, "retry_config": retry}
    options |= secrets
    open_type: Callable[..., ObjectStore]
    match storage.type:
        case StorageType.S3:
            open_type = S3Store
            options["virtual_hosted_style_request"] = config.get("virtual_hosted_style") == "true"
            options |= {name: config[name] for name in ("endpoint", "region") if name in config}
        case StorageType.GCS:
            open_type = GCSStore
        case StorageType.AZURE:
            open_type = AzureStore
            options["account_name"] = config["account_name"]
            options |= {name: config[name] for name in ("endpoint",) if name in config}
        case StorageType.FILESYSTEM:
            raise AssertionError("a directory is no bucket")
    return open_type(bucket, **options)
