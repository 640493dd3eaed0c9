"""The device: an app's own SQLite file that works offline and syncs with an Upwell server.

Law: the app reads and writes through `connection` (or any other connection to the file) as it likes; every
call here may be interrupted at any point and made again, and no local edit is lost by it.
"""

import base64
import binascii
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import msgspec

from upwell.device.capture import Capture
from upwell.device.conflict import Resolver, server_wins
from upwell.device.failures import AnswerRefused, DeviceError, FileRefused, NotSignedIn
from upwell.device.file import SyncFile, connect
from upwell.device.report import (
    DeviceStatus,
    DownloadReport,
    HydrateReport,
    PendingChange,
    Progress,
    SyncReport,
    UploadReport,
)
from upwell.device.schema import quoted
from upwell.device.sync import Exchange, Syncer
from upwell.device.transport import HttpTransport, Request, Response, Transport, refusal
from upwell.protocol.sync import DEVICE_TOKEN_PATH, DeviceTokenRequest, DeviceTokenResponse

LOGIN_PATH = "/v1/api/auth/login"

T = TypeVar("T")

# From the URL of `sign_in` to a transport.
Dial: TypeAlias = Callable[[str], Transport]


class Device:
    """One installation of an app; made by `Device.open`."""

    def __init__(self, path: str, file: SyncFile, capture: Capture, syncer: Syncer, dial: Dial) -> None:
        self.connection = connect(path, has_foreign_keys=True)
        self._file = file
        self._capture = capture
        self._syncer = syncer
        self._dial = dial
        self._transport: Transport | None = None
        self._token: str | None = None
        self._last_error: str | None = None
        # One exchange at a time; the app's own connection is not concerned.
        self._exchange = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        schema: str,
        tables: Sequence[str],
        source: str | None = None,
        upload_limit: int = 200,
        download_limit: int = 1000,
        resolver: Resolver = server_wins,
        on_progress: Callable[[Progress], None] | None = None,
        dial: Dial = HttpTransport,
        new_source: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> Self:
        """Open or create the file at `path` and capture `tables` (which must exist) for namespace `schema`.

        `source` names this installation; without it a new random one is stored in the file. `dial` makes the
        transport from the URL of `sign_in`. Raises `TableRefused` and `FileRefused`.
        """
        file = SyncFile.open(str(path), source, new_source)
        try:
            capture = Capture(file)
            capture.register(tables)
            syncer = Syncer(
                file,
                capture,
                schema=schema,
                upload_limit=upload_limit,
                download_limit=download_limit,
                resolver=resolver,
                on_progress=on_progress,
            )
            return cls(str(path), file, capture, syncer, dial)
        except BaseException:
            file.connection.close()
            raise

    def register(self, tables: Sequence[str]) -> None:
        """Capture more tables; rows that they have already are queued."""
        with self._exchange:
            self._capture.register(tables)

    def sign_in(self, url: str, user: str, *, token: str | None = None, password: str | None = None) -> None:
        """Connect the file with `user` on the server at `url`.

        `token` is a device token of this source, or an access token that is exchanged for one; `password`
        logs in first. Raises `FileRefused` when the file is another user's.
        """
        if (token is None) == (password is None):
            raise DeviceError("give either a token or a password")
        owner = self._file.identity().user
        if owner not in ("", user):
            self._file.claim(user)
        transport = self._dial(url)
        try:
            access = token or _log_in(transport, user, password or "")
            device_token = self._device_token(transport, user, access)
            self._file.claim(user)
        except BaseException:
            transport.close()
            raise
        self.sign_out()
        self._transport, self._token = transport, device_token

    def sign_out(self) -> None:
        """Forget the token; the data stays, and further edits are captured."""
        if self._transport is not None:
            self._transport.close()
        self._transport = self._token = None

    def wipe(self) -> None:
        """Empty the file for another user; raises `PendingChanges` if an edit would be lost."""
        with self._exchange:
            self._file.wipe([quoted(shape.name) for shape in self._capture.tables])

    def upload(self) -> UploadReport:
        """Send what is pending, batch by batch."""
        return self._drive(self._syncer.upload)

    def download(self) -> DownloadReport:
        """Fetch what others changed since the last time."""
        return self._drive(self._syncer.download)

    def hydrate(self, page_rows: int = 1000) -> HydrateReport:
        """Fetch everything, in pages of `page_rows` rows; goes on where an interrupted hydration stopped."""
        return self._drive(lambda: self._syncer.hydrate(page_rows))

    def sync(self) -> SyncReport:
        """Hydrate if needed, upload, download."""
        return self._drive(self._syncer.sync)

    def pending(self) -> list[PendingChange]:
        """What waits for upload, in the order of the edits."""
        rows = self._file.connection.execute(
            "SELECT table_name, pk_uuid, op, base_version, payload, change_id, queued_at,"
            " quarantined, reason, detail FROM _sync_pending ORDER BY change_id"
        )
        return [
            PendingChange(table, key, op, base, payload, change_id, queued_at, bool(held), reason, detail)
            for table, key, op, base, payload, change_id, queued_at, held, reason, detail in rows
        ]

    def status(self) -> DeviceStatus:
        """Where the file stands; costs a few counts."""
        identity = self._file.identity()
        return DeviceStatus(
            user=identity.user,
            source=identity.source,
            is_signed_in=self._token is not None,
            is_hydrated=self._syncer.is_hydrated(),
            pending=self._file.pending_count(),
            quarantined=self._file.count("quarantined", "_sync_pending"),
            withheld=self._file.count("true", "_sync_withheld"),
            conflicts=self._file.count("true", "_sync_conflicts"),
            cursor=self._file.cursor(),
            next_change_id=self._file.next_change_id(),
            last_error=self._last_error or self._syncer.waiting_for_tables(),
        )

    def retry_refused(self) -> int:
        """Let the next upload try all quarantined changes again; return how many there are.

        For when what the server refused them for is mended; an edit of the row does it for that row alone.
        """
        with self._exchange:
            return self._syncer.retry_refused()

    def close(self) -> None:
        """Sign out and close both connections."""
        self.sign_out()
        self.connection.close()
        self._file.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drive(self, begin: Callable[[], Exchange[T]]) -> T:
        with self._exchange:
            exchange = begin()
            try:
                request = next(exchange)
                while True:
                    request = exchange.send(self._send(request))
            except StopIteration as done:
                self._last_error = None
                result: T = done.value
                return result
            except DeviceError as error:
                self._last_error = str(error)
                raise
            finally:
                exchange.close()

    def _send(self, request: Request) -> Response:
        if self._transport is None or self._token is None:
            raise NotSignedIn("sign in before syncing; until then edits are captured")
        return self._transport.send(replace(request, token=self._token))

    def _device_token(self, transport: Transport, user: str, token: str) -> str:
        source = self._file.identity().source
        claims = _claims(token)
        if "did" not in claims:
            body = msgspec.json.encode(DeviceTokenRequest(device=source))
            response = transport.send(Request("POST", DEVICE_TOKEN_PATH, body=body, token=token))
            token = _answer(response, DeviceTokenResponse).token
            claims = _claims(token)
        if claims.get("did", source) != source:
            raise FileRefused(f"the token is for device {claims['did']!r}, the file's source is {source!r}")
        if claims.get("sub", user) != user:
            raise FileRefused(f"the token is for user {claims['sub']!r}, not {user!r}")
        return token


class _Login(msgspec.Struct):
    access_token: str


def _log_in(transport: Transport, user: str, password: str) -> str:
    body = msgspec.json.encode({"user": user, "password": password})
    return _answer(transport.send(Request("POST", LOGIN_PATH, body=body)), _Login).access_token


def _answer(response: Response, kind: type[T]) -> T:
    if response.status != 200:
        raise refusal(response)
    try:
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.MsgspecError as cause:
        raise AnswerRefused(f"not the protocol's answer: {cause}") from cause


def _claims(token: str) -> dict[str, Any]:
    """Read the claims of a JWT without checking them (the server does); none if it isn't one."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        text = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(text, type=dict[str, Any])
    except (binascii.Error, msgspec.MsgspecError, ValueError):
        return {}
