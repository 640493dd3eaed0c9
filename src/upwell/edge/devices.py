"""Device endpoints: `/sync/*` of generation A, and hydration.

Law: user and source come from the token and from nowhere else; every answer that is not 200 leaves a
device's pending changes as they are.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import msgspec

from upwell.edge.http import Receive, Scope, Send, header, read_body, respond
from upwell.edge.parameters import Parameters, find_number, limit, number, parameters, schema
from upwell.edge.stream import LogStreams
from upwell.engine.view import Publication
from upwell.errors import (
    AuthenticationFailed,
    InvalidInput,
    ReadOnly,
    RequestRefused,
    SeqTrimmed,
    TooLarge,
    UpwellError,
)
from upwell.feeds import hydrate
from upwell.feeds.failures import Failures
from upwell.feeds.hydrate import Hydrations
from upwell.feeds.registry import Registry
from upwell.feeds.stock import StockDownloads
from upwell.feeds.upload import Uploads
from upwell.protocol import sync
from upwell.protocol.salvage import decode_upload_request
from upwell.session.auth import Authenticator
from upwell.session.policy import Principal

_METHODS = {
    sync.UPLOAD_PATH: "POST",
    sync.DOWNLOAD_PATH: "GET",
    sync.HYDRATE_PATH: "GET",
    sync.SCHEMA_VERSION_PATH: "GET",
    sync.WATCH_PATH: "GET",
    sync.FAILURES_PATH: "GET",
    sync.RETRY_PATH: "POST",
}
DEVICE_PATHS = tuple(_METHODS)
RETRY_BODY_BYTES_MAX = 4_096
# The code of a failure that is no fault of the request; the contract has no other names than these.
_FAILURE = dict.fromkeys(_METHODS, "download_failed") | {
    sync.UPLOAD_PATH: "upload_failed",
    sync.FAILURES_PATH: "list_failures_failed",
    sync.RETRY_PATH: "retry_failed",
}
_STATUS = {"shutting_down": 503, "too_many_streams": 503, "not_found": 404, "retry_in_progress": 409}


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes of an upload that is applied, and of one that is read to be answered: send a half of it."""

    batch_bytes_max: int
    body_bytes_max: int


class DeviceEndpoints:
    """Serves the paths of `_METHODS` in threads; what is decided there is the feeds' business."""

    def __init__(
        self,
        uploads: Uploads,
        downloads: StockDownloads,
        hydrations: Hydrations,
        failures: Failures,
        streams: LogStreams,
        registry: Registry,
        authenticator: Authenticator,
        publication: Publication,
        threads: Executor,
        *,
        limits: BodyLimits,
        schema_version: int,
    ) -> None:
        self._uploads = uploads
        self._downloads = downloads
        self._hydrations = hydrations
        self._failures = failures
        self._streams = streams
        self._registry = registry
        self._authenticator = authenticator
        self._publication = publication
        self._threads = threads
        self._limits = limits
        # Above the bytes of a batch one body at a time is in memory.
        self._large_upload = asyncio.Lock()
        self._schema_version = schema_version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != _METHODS[scope["path"]]:
            await refuse(send, 405, "method_not_allowed", f"use {_METHODS[scope['path']]}")
            return
        try:
            device = self._authenticator.device(
                header(scope, b"authorization"), self._publication.view.catalog
            )
            if scope["path"] == sync.WATCH_PATH:
                await self._watch(device, scope, receive, send)
            else:
                await respond(send, 200, await self._answer(device, scope, receive))
        except AuthenticationFailed as error:
            await refuse(send, 401, "authentication_failed", str(error))
        except RequestRefused as error:
            await refuse(send, _STATUS[error.code], error.code, str(error))
        except (InvalidInput, TooLarge) as error:
            await refuse(send, 413 if isinstance(error, TooLarge) else 400, "invalid_request", str(error))
        except SeqTrimmed as error:
            await refuse(send, 409, sync.HISTORY_PRUNED, str(error))
        except UpwellError as error:
            status = 503 if isinstance(error, ReadOnly) else 500
            await refuse(send, status, _FAILURE[scope["path"]], str(error))

    async def _watch(self, device: Principal, scope: Scope, receive: Receive, send: Send) -> None:
        after = find_number(parameters(scope), "after")
        self._note(device, after)
        try:
            await self._streams.serve(device, scope, receive, send, after=after)
        finally:
            self._note(device, None)

    def _note(self, device: Principal, cursor: int | None) -> None:
        assert device.device is not None, "the authenticator gives devices only"
        self._registry.note(device.user, device.device, cursor)

    async def _answer(self, device: Principal, scope: Scope, receive: Receive) -> bytes:
        assert device.device is not None, "the authenticator gives devices only"
        user, source, asked = device.user, device.device, parameters(scope)
        cursor: int | None = None
        match scope["path"]:
            case sync.UPLOAD_PATH:
                self._note(device, None)
                return await self._upload(user, source, scope, receive)
            case sync.DOWNLOAD_PATH:
                cursor = number(asked, "after", default=0)
                call: Callable[[], object] = partial(
                    self._downloads.download,
                    user,
                    source,
                    after=cursor,
                    until=number(asked, "until", default=0),
                    limit=limit(asked),
                    schema=schema(asked),
                    include_self=asked.get("include_self") == ["true"],
                )
            case sync.HYDRATE_PATH:
                call = partial(
                    self._hydrations.hydrate,
                    user,
                    source,
                    cursor=asked.get("cursor", [""])[0] or None,
                    limit=limit(asked, hydrate.ROWS_DEFAULT, hydrate.ROWS_MAX),
                    schema=schema(asked),
                )
            case sync.FAILURES_PATH:
                call = partial(
                    self._failures.newest,
                    user,
                    schema=_name(asked, "schema"),
                    table=_name(asked, "table"),
                    limit=_limit_or_default(asked),
                )
            case sync.RETRY_PATH:
                failure = find_number(asked, "id")
                if failure is None:
                    failure = _retried(await read_body(scope, receive, bytes_max=RETRY_BODY_BYTES_MAX))
                call = partial(self._failures.retry, user, failure)
            case _:
                call = partial(sync.SchemaVersion, schema_version=self._schema_version)
        self._note(device, cursor)
        return await self._in_thread(call)

    async def _upload(self, user: str, source: str, scope: Scope, receive: Receive) -> bytes:
        length = header(scope, b"content-length") or b"0"
        if length.isdigit() and int(length) > self._limits.batch_bytes_max:
            async with self._large_upload:
                request = _parsed(await read_body(scope, receive, bytes_max=self._limits.body_bytes_max))
                changes = request.changes or []
                if len(changes) > 1:
                    why = f"bytes={int(length)} limit={self._limits.batch_bytes_max}"
                    return await self._in_thread(partial(self._uploads.refuse, user, changes, why))
                return await self._in_thread(partial(self._uploads.upload, user, source, request))
        body = await read_body(scope, receive, bytes_max=self._limits.batch_bytes_max)
        return await self._in_thread(lambda: self._uploads.upload(user, source, _parsed(body)))

    async def _in_thread(self, call: Callable[[], object]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: sync.encode(call()))


async def refuse(send: Send, status: int, code: str, message: str) -> None:
    """Answer with an error in the form of the device sync."""
    await respond(send, status, sync.encode(sync.SyncError(error=code, message=message)))


def _parsed(body: bytes) -> sync.UploadRequest:
    try:
        return decode_upload_request(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"invalid JSON: {error}") from error


def _retried(body: bytes) -> int:
    try:
        return msgspec.json.decode(body, type=sync.RetryRequest).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the id of a failure is missing: {error}") from error


def _name(asked: Parameters, name: str) -> str | None:
    return asked.get(name, [""])[0].strip().lower() or None


def _limit_or_default(asked: Parameters) -> int:
    """Return the limit of a list; a bad one is ignored, as the contract says."""
    try:
        return number(asked, "limit", default=0)
    except InvalidInput:
        return 0
