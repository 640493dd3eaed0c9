"""Device endpoints: `/sync/*` of generation A, and hydration.

Law: user and source come from the token and from nowhere else; every answer that is not 200 leaves a
device's pending changes as they are.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from urllib.parse import parse_qs

import msgspec

from upwell.edge.http import Receive, Scope, Send, header, read_body, respond
from upwell.engine.view import Publication
from upwell.errors import AuthenticationFailed, InvalidInput, ReadOnly, SeqTrimmed, TooLarge, UpwellError
from upwell.feeds.download import Downloads
from upwell.feeds.hydrate import Hydrations
from upwell.feeds.upload import Uploads
from upwell.protocol import sync
from upwell.session.auth import Authenticator
from upwell.session.policy import Principal

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
DIGITS_MAX = 19
_SCHEMA_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_METHODS = {
    sync.UPLOAD_PATH: "POST",
    sync.DOWNLOAD_PATH: "GET",
    sync.HYDRATE_PATH: "GET",
    sync.SCHEMA_VERSION_PATH: "GET",
}
DEVICE_PATHS = tuple(_METHODS)


class DeviceEndpoints:
    """Serves the paths of `_METHODS` in threads; what is decided there is the feeds' business."""

    def __init__(
        self,
        uploads: Uploads,
        downloads: Downloads,
        hydrations: Hydrations,
        authenticator: Authenticator,
        publication: Publication,
        threads: Executor,
        *,
        body_bytes_max: int,
        schema_version: int,
    ) -> None:
        self._uploads = uploads
        self._downloads = downloads
        self._hydrations = hydrations
        self._authenticator = authenticator
        self._publication = publication
        self._threads = threads
        self._body_bytes_max = body_bytes_max
        self._schema_version = schema_version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != _METHODS[scope["path"]]:
            await _refuse(send, 405, "method_not_allowed", f"use {_METHODS[scope['path']]}")
            return
        try:
            device = self._authenticator.device(
                header(scope, b"authorization"), self._publication.view.catalog
            )
            body = await self._answer(device, scope, receive)
        except AuthenticationFailed as error:
            await _refuse(send, 401, "authentication_failed", str(error))
        except (InvalidInput, TooLarge) as error:
            await _refuse(send, 413 if isinstance(error, TooLarge) else 400, "invalid_request", str(error))
        except SeqTrimmed as error:
            await _refuse(send, 409, sync.HISTORY_PRUNED, str(error))
        except ReadOnly as error:
            await _refuse(send, 503, "upload_failed", str(error))
        except UpwellError as error:
            code = "upload_failed" if scope["path"] == sync.UPLOAD_PATH else "download_failed"
            await _refuse(send, 500, code, str(error))
        else:
            await respond(send, 200, body)

    async def _answer(self, device: Principal, scope: Scope, receive: Receive) -> bytes:
        assert device.device is not None, "the authenticator gives devices only"
        query = parse_qs(scope["query_string"].decode("latin-1"))
        match scope["path"]:
            case sync.UPLOAD_PATH:
                request = _parsed(await read_body(scope, receive, bytes_max=self._body_bytes_max))
                call: Callable[[], object] = partial(
                    self._uploads.upload, device.user, device.device, request
                )
            case sync.DOWNLOAD_PATH:
                call = partial(
                    self._downloads.download,
                    device.user,
                    device.device,
                    after=_number(query, "after", default=0),
                    until=_number(query, "until", default=0),
                    limit=_limit(query),
                    schema=_schema(query),
                    include_self=query.get("include_self") == ["true"],
                )
            case sync.HYDRATE_PATH:
                call = partial(
                    self._hydrations.hydrate,
                    device.user,
                    device.device,
                    cursor=query.get("cursor", [""])[0] or None,
                    limit=_limit(query),
                    schema=_schema(query),
                )
            case _:
                return sync.encode(sync.SchemaVersion(schema_version=self._schema_version))
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: sync.encode(call()))


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    await respond(send, status, sync.encode(sync.SyncError(error=code, message=message)))


def _parsed(body: bytes) -> sync.UploadRequest:
    try:
        return sync.decode_upload_request(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"invalid JSON: {error}") from error


def _number(query: dict[str, list[str]], name: str, *, default: int) -> int:
    text = query.get(name, [str(default)])[0]
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS_MAX or int(text) >= 1 << 63:
        raise InvalidInput(f"query parameter {name} is a number ≥ 0, not '{text[:40]}'")
    return int(text)


def _limit(query: dict[str, list[str]]) -> int:
    limit = _number(query, "limit", default=LIMIT_DEFAULT)
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidInput(f"query parameter limit is 1..{LIMIT_MAX}, not {limit}")
    return limit


def _schema(query: dict[str, list[str]]) -> str | None:
    schema = query.get("schema", [""])[0]
    if schema and not _SCHEMA_CHARACTERS.issuperset(schema):
        raise InvalidInput("query parameter schema has only a–z, 0–9 and _")
    return schema or None
